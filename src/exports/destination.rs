//! Where an export calls: a URL that names the record.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use url::Url;
use uuid::Uuid;

use crate::targets::{Guard, Refused};
use crate::values::{Checked, Faults, HttpUrl, Node};

/// What a URL may name of a record.
const PLACEHOLDERS: &[&str] = &["resource", "id", "external_id"];
/// What is escaped of a name: all but the unreserved characters (RFC 3986, section 2.3), so that it
/// stays one segment of a path, or one value of a query.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// An absolute http or https URL with `{resource}`, `{id}` and `{external_id}` in its path or
/// query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination(String);

/// What a call is about.
#[derive(Clone, Copy, Debug)]
pub struct Names<'a> {
    /// The resource's path.
    pub resource: &'a str,
    /// The record.
    pub id: Uuid,
    /// What names it in a path.
    pub segment: &'a str,
}

impl Destination {
    /// Reads it from a body.
    ///
    /// # Errors
    /// No URL that can be called, placeholders that are unknown, broken or where none may be, or an
    /// address that must not be called.
    pub fn read(node: &Node<'_>, guard: &Guard) -> Checked<Self> {
        let url = HttpUrl::read(node)?;
        let text = url.as_str();
        let authority = authority(text);
        if authority.contains(['{', '}']) {
            return Err(Faults::one(
                "must have its placeholders in the path or the query",
            ));
        }
        if authority.contains('@') {
            return Err(Faults::one(
                "must not contain a user name or a password: headers are the place for secrets",
            ));
        }
        if text.contains('#') {
            return Err(Faults::one("must not have a fragment"));
        }
        check_placeholders(text)?;
        let destination = Self(text.to_owned());
        let sample = destination.sample();
        let sample = sample.map_err(|_| Faults::one(Refused::NotHttp.to_string()))?;
        let judged = guard.check(&sample);
        judged.map_err(|refused| Faults::one(refused.to_string()))?;
        Ok(destination)
    }

    /// One that the database holds.
    #[must_use]
    pub fn from_stored(text: String) -> Self {
        Self(text)
    }

    /// As sent.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The URL of one record.
    ///
    /// # Errors
    /// When none comes of it, which no URL that was read can lead to.
    pub fn of(&self, names: Names<'_>) -> Result<Url, url::ParseError> {
        let escaped = |text: &str| utf8_percent_encode(text, ESCAPED).to_string();
        let values = [
            escaped(names.resource),
            names.id.to_string(),
            escaped(names.segment),
        ];
        let mut filled = String::with_capacity(self.0.len() + 64);
        let mut rest = self.0.as_str();
        while let Some((before, name, after)) = next_placeholder(rest) {
            let value = PLACEHOLDERS.iter().zip(&values);
            let value = value.into_iter().find(|(known, _)| **known == name);
            filled.push_str(before);
            filled.push_str(value.map_or("", |(_, value)| value));
            rest = after;
        }
        filled.push_str(rest);
        Url::parse(&filled)
    }

    /// The URL of some record, for a look at where it leads.
    ///
    /// # Errors
    /// As for [`Destination::of`].
    pub fn sample(&self) -> Result<Url, url::ParseError> {
        self.of(Names {
            resource: "x",
            id: Uuid::nil(),
            segment: "x",
        })
    }
}

/// What stands between the scheme and the path.
fn authority(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split(['/', '?', '#', '\\']).next().unwrap_or(rest)
}

fn check_placeholders(text: &str) -> Checked<()> {
    let mut rest = text;
    while let Some((before, name, after)) = next_placeholder(rest) {
        if before.contains('}') || name.contains('{') {
            return Err(broken());
        }
        if !PLACEHOLDERS.contains(&name) {
            return Err(broken());
        }
        rest = after;
    }
    if rest.contains(['{', '}']) {
        return Err(broken());
    }
    Ok(())
}

/// What stands before the next placeholder, its name, and what comes after it.
fn next_placeholder(text: &str) -> Option<(&str, &str, &str)> {
    let (before, rest) = text.split_once('{')?;
    let (name, after) = rest.split_once('}')?;
    Some((before, name, after))
}

fn broken() -> Faults {
    Faults::one("may have no other braces than those of {resource}, {id} and {external_id}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::targets::Allowed;
    use crate::values::parse;

    fn read(text: &str) -> Checked<Destination> {
        let json = serde_json::to_string(text).unwrap();
        let guard = Guard::new(Allowed::default());
        Destination::read(&parse(json.as_bytes()).unwrap(), &guard)
    }

    #[test]
    fn names_are_one_segment_or_one_value_whatever_they_are() {
        let names = |segment| Names {
            resource: "orders",
            id: Uuid::from_u128(1),
            segment,
        };
        let filled = |url: &str, segment| {
            let url = read(url).unwrap().of(names(segment)).unwrap();
            url.to_string()
        };
        assert_eq!(
            filled("https://erp.example.com/{resource}/{external_id}", "A/7"),
            "https://erp.example.com/orders/A%2F7"
        );
        assert_eq!(
            filled("http://a.example?k={external_id}&i={id}", "a&b=c+d #{id}é"),
            "http://a.example/?k=a%26b%3Dc%2Bd%20%23%7Bid%7D%C3%A9&i=00000000-0000-0000-0000-000000000001"
        );
        assert_eq!(
            filled("https://a.example/{external_id}", "+33612345678"),
            "https://a.example/%2B33612345678"
        );
        assert_eq!(filled("https://a.example", "A"), "https://a.example/");
    }

    #[test]
    fn what_can_not_be_called_is_refused() {
        for url in [
            "ftp://a.example/",
            "/orders",
            "https://{resource}.example.com/",
            "https://a.example:{id}/",
            "{id}://a.example/",
            "https://u:p@a.example/",
            "https://u@a.example/",
            "https://a.example/#x",
            "https://a.example/{nothing}",
            "https://a.example/{ID}",
            "https://a.example/{",
            "https://a.example/}",
            "https://a.example/{id",
            "https://a.example/id}",
            "https://a.example/{{id}}",
            "https://a.example/{}",
            "https://a.example/ {id}",
            "http://10.0.0.1/{id}",
            "http://[::1]/",
        ] {
            assert!(read(url).is_err(), "{url}");
        }
        let long = format!("https://a.example/{}", "x".repeat(1_024));
        assert!(read(&long).is_err());
    }
}
