//! Email addresses.

use email_address::{EmailAddress, Options};
use serde::Serialize;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, Schema, SchemaFormat, Type};
use utoipa::{PartialSchema, ToSchema};

use super::faults::{Checked, Faults};
use super::json::Node;
use super::text::{longer_than, string};

/// RFC 5321, section 4.5.3.1.3 (a path of 256 with its angle brackets).
const MAX_CHARS: usize = 254;

/// An address that is syntactically valid; kept as sent.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct Email(String);

impl Email {
    /// Reads a bare address (RFC 5321 and, for other scripts, RFC 6531): no display name, no
    /// address in square brackets.
    ///
    /// # Errors
    /// Anything else, and addresses over 254 characters.
    pub fn read(node: &Node) -> Checked<Self> {
        let text = string(node)?;
        if longer_than(text, MAX_CHARS) {
            return Err(Faults::one("must have at most 254 characters"));
        }
        if !is_address(text) {
            return Err(Faults::one("must be an email address"));
        }
        Ok(Self(text.to_owned()))
    }

    /// As sent.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The crate takes `" <a@example.com>"` for an address with an empty display name, and RFC 5322's
/// special characters in a domain; neither can receive mail.
fn is_address(text: &str) -> bool {
    let options = Options {
        minimum_sub_domains: 0,
        allow_domain_literal: false,
        allow_display_text: false,
    };
    let in_domain = |c: char| !c.is_ascii() || c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    let domain = text.rsplit_once('@').map_or("", |(_, domain)| domain);
    !text.contains(char::is_control)
        && !text.contains(" <")
        && domain.chars().all(in_domain)
        && EmailAddress::parse_with_options(text, options).is_ok()
}

impl PartialSchema for Email {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::IdnEmail)))
            .min_length(Some(3))
            .max_length(Some(MAX_CHARS))
            .examples(["ada@example.com"])
            .into()
    }
}

impl ToSchema for Email {}

#[cfg(test)]
mod tests {
    use super::super::json::parse;
    use super::*;

    fn read(text: &str) -> Checked<Email> {
        let json = serde_json::to_string(text).unwrap();
        Email::read(&parse(json.as_bytes()).unwrap())
    }

    #[test]
    fn addresses_are_kept_as_sent() {
        let kept = [
            "ada@example.com",
            "A.b+c@Sub.Example.COM",
            "\"a b\"@example.com",
            "é@exämple.de",
        ];
        for text in kept {
            assert_eq!(read(text).unwrap().as_str(), text);
        }
    }

    #[test]
    fn other_text_is_refused() {
        let refused = [
            "",
            "ada",
            "@example.com",
            "ada@",
            "ada@@example.com",
            "ada@example..com",
            ".ada@example.com",
            "ada@-example.com",
            "ada@exam_ple.com",
            "ada@exam!ple.com",
            "ada@[127.0.0.1]",
            "Ada <ada@example.com>",
            " <ada@example.com>",
            "<ada@example.com>",
            " ada@example.com",
            "ada@example.com ",
            "ada@example.com\n",
            "\"a\tb\"@example.com",
            "a b@example.com",
        ];
        for text in refused {
            assert_eq!(
                read(text),
                Err(Faults::one("must be an email address")),
                "{text}"
            );
        }
        assert_eq!(
            read("a\0@example.com"),
            Err(Faults::one("must not contain U+0000"))
        );
    }

    #[test]
    fn two_hundred_and_fifty_four_characters_are_the_most() {
        let label = "d".repeat(61);
        let text = format!("{}@{label}.{label}.{label}.com", "a".repeat(64));
        assert_eq!(text.len(), 254);
        assert!(read(&text).is_ok());
        let message = "must have at most 254 characters";
        assert_eq!(read(&format!("{text}m")), Err(Faults::one(message)));
    }
}
