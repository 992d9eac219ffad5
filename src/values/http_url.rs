//! Links.

use serde::Serialize;
use url::Url;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use super::faults::{Checked, Faults};
use super::json::Node;
use super::text::{longer_than, string};

/// Long enough for signed links.
const MAX_CHARS: usize = 1024;

/// An absolute `http` or `https` URL with a host; kept as sent, never normalised.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct HttpUrl(String);

impl HttpUrl {
    /// Reads a URL by the WHATWG's rules, without their repairs: no whitespace to be stripped, no
    /// missing or backward slashes after the scheme.
    ///
    /// # Errors
    /// Anything else, and URLs over 1,024 characters.
    pub fn read(node: &Node) -> Checked<Self> {
        let text = string(node)?;
        if longer_than(text, MAX_CHARS) {
            return Err(Faults::one("must have at most 1024 characters"));
        }
        if !is_plain(text) || Url::parse(text).is_err() {
            return Err(Faults::one("must be an absolute http or https URL"));
        }
        Ok(Self(text.to_owned()))
    }

    /// As sent.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The scheme, two slashes, and the host at once; nothing that a parser would drop silently.
fn is_plain(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once("://") else {
        return false;
    };
    (scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https"))
        && !rest.starts_with(['/', '\\'])
        && !text.contains(|c: char| c.is_whitespace() || c.is_control())
}

impl PartialSchema for HttpUrl {
    fn schema() -> RefOr<Schema> {
        // The first branch says nothing new: it steers generators to hosts that can exist. No
        // `format: uri`: validators that check it refuse the other scripts that we take.
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some("An absolute http or https URL."))
            .max_length(Some(MAX_CHARS))
            .pattern(Some(concat!(
                r"^(?:https?://[a-z][a-z0-9]{0,20}\.[a-z]{2,8}(?:/[A-Za-z0-9_-]{0,20}){0,3}",
                r"|[Hh][Tt][Tt][Pp][Ss]?://[^\s\u0000/\\][^\s\u0000]*)$"
            )))
            .examples(["https://shop.example.com/carts/7"])
            .into()
    }
}

impl ToSchema for HttpUrl {}

#[cfg(test)]
mod tests {
    use super::super::json::parse;
    use super::*;

    fn read(text: &str) -> Checked<HttpUrl> {
        let json = serde_json::to_string(text).unwrap();
        HttpUrl::read(&parse(json.as_bytes()).unwrap())
    }

    #[test]
    fn urls_are_kept_as_sent() {
        let kept = [
            "https://example.com",
            "HTTP://Example.COM:80/a/../b?q=%41#f",
            "http://127.0.0.1:3000/",
            "http://[::1]/",
            "https://exämple.de/é",
            "https://u:p@example.com/",
        ];
        for text in kept {
            assert_eq!(read(text).unwrap().as_str(), text);
        }
    }

    #[test]
    fn other_text_is_refused() {
        let refused = [
            "",
            "example.com",
            "//example.com",
            "/cart",
            "ftp://example.com",
            "javascript://example.com/%0aalert(1)",
            "http:example.com",
            "http:/example.com",
            "http:///example.com",
            "http://\\example.com",
            "http:\\\\example.com",
            "http://",
            "http://?q",
            "http://:80",
            "http://u@/",
            "http://exa mple.com",
            "http://example.com/a b",
            " http://example.com",
            "http://example.com\n",
            "ht\ttp://example.com",
            "http://example.com/\u{a0}",
            "http://example.com:99999",
            "http://a<b>/",
        ];
        for text in refused {
            let message = "must be an absolute http or https URL";
            assert_eq!(read(text), Err(Faults::one(message)), "{text}");
        }
        assert_eq!(
            read("http://a/\0"),
            Err(Faults::one("must not contain U+0000"))
        );
    }

    #[test]
    fn a_thousand_and_twenty_four_characters_are_the_most() {
        let text = format!("https://example.com/{}", "é".repeat(1004));
        assert!(read(&text).is_ok());
        let message = "must have at most 1024 characters";
        assert_eq!(read(&format!("{text}é")), Err(Faults::one(message)));
    }
}
