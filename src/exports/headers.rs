//! Headers that an export's calls carry besides our own.

use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Map, Value as Json};

use crate::values::{Checked, Faults, Node, Value};

/// Headers of one export.
pub const MOST_HEADERS: usize = 50;
/// Characters of a header's name.
pub const NAME_CHARS: usize = 128;
/// Characters of a header's value.
pub const VALUE_CHARS: usize = 4_096;
/// Names that belong to the connection or to us.
const OURS: &[&str] = &[
    "host",
    "content-length",
    "content-type",
    "connection",
    "transfer-encoding",
    "te",
    "trailer",
    "upgrade",
    "keep-alive",
];
/// How such names begin.
const OUR_PREFIXES: &[&str] = &["proxy-", "webhook-"];

/// Names and values as they were sent.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl std::fmt::Debug for Headers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Values are secrets.
        f.debug_list().entries(self.names()).finish()
    }
}

impl Headers {
    /// Reads an object of names and values.
    ///
    /// # Errors
    /// Every name and every value that can't be one.
    pub fn read(node: &Node<'_>) -> Checked<Self> {
        let Value::Object(members) = &node.value else {
            return Err(Faults::one("must be an object"));
        };
        if members.len() > MOST_HEADERS {
            let message = format!("must have at most {MOST_HEADERS} headers");
            return Err(Faults::one(message));
        }
        let (mut faults, mut headers) = (Faults::default(), Vec::new());
        for (name, node) in members {
            let shown: String = name.chars().take(NAME_CHARS).collect();
            if let Err(fault) = check_name(name) {
                faults.nest(&shown, fault);
            }
            let is_twice = |(known, _): &(String, String)| known.eq_ignore_ascii_case(name);
            if headers.iter().any(is_twice) {
                faults.add(shown.as_str(), "is given twice: case does not count");
            }
            match value(node) {
                Ok(value) => headers.push((name.clone().into_owned(), value)),
                Err(fault) => faults.nest(&shown, fault),
            }
        }
        faults.into_result()?;
        Ok(Self(headers))
    }

    /// Those that the database holds.
    #[must_use]
    pub fn from_json(text: &str) -> Option<Self> {
        let members: Map<String, Json> = serde_json::from_str(text).ok()?;
        let headers = members.into_iter().map(|(name, value)| match value {
            Json::String(value) => Some((name, value)),
            _ => None,
        });
        headers.collect::<Option<_>>().map(Self)
    }

    /// As the database holds them, sealed.
    #[must_use]
    pub fn to_json(&self) -> String {
        let members = self.0.iter().cloned();
        let members: Map<String, Json> = members
            .map(|(name, value)| (name, Json::String(value)))
            .collect();
        Json::Object(members).to_string()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The names, which are no secrets.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    /// The spelling under which a name is among them.
    #[must_use]
    pub fn spelling(&self, name: &str) -> Option<&str> {
        self.names().find(|known| known.eq_ignore_ascii_case(name))
    }

    /// As a request carries them.
    #[must_use]
    pub fn to_map(&self) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in &self.0 {
            let name = HeaderName::from_bytes(name.as_bytes());
            let value = HeaderValue::from_str(value);
            if let (Ok(name), Ok(mut value)) = (name, value) {
                value.set_sensitive(true);
                map.insert(name, value);
            }
        }
        map
    }
}

/// Whether a name can be a header's and is not one of ours.
///
/// # Errors
/// Why not.
pub fn check_name(name: &str) -> Checked<()> {
    let is_token = (1..=NAME_CHARS).contains(&name.len())
        && HeaderName::from_bytes(name.as_bytes()).is_ok()
        && name.is_ascii();
    if !is_token {
        return Err(Faults::one(format!(
            "must be the name of a header: 1 to {NAME_CHARS} letters, digits and !#$%&'*+-.^_`|~"
        )));
    }
    let lower = name.to_ascii_lowercase();
    let has_our_prefix = OUR_PREFIXES.iter().any(|prefix| lower.starts_with(prefix));
    if OURS.contains(&lower.as_str()) || has_our_prefix {
        return Err(Faults::one("is a header that can't be set"));
    }
    Ok(())
}

fn value(node: &Node<'_>) -> Checked<String> {
    let Value::String(text) = &node.value else {
        return Err(Faults::one("must be a string"));
    };
    // A receiver would not see spaces around it (RFC 9110, section 5.5).
    let fits = text.len() <= VALUE_CHARS
        && text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
        && !text.starts_with(' ')
        && !text.ends_with(' ');
    if fits {
        Ok(text.clone().into_owned())
    } else {
        Err(Faults::one(format!(
            "must have at most {VALUE_CHARS} visible ASCII characters, and spaces only between them"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::values::parse;

    fn read(json: &str) -> Checked<Headers> {
        Headers::read(&parse(json.as_bytes()).unwrap())
    }

    #[test]
    fn what_is_stored_is_what_was_sent() {
        let sent = read(r#"{"X-Api-Key":"a b","accept":""}"#).unwrap();
        assert_eq!(Headers::from_json(&sent.to_json()).unwrap(), sent);
        assert_eq!(sent.spelling("x-API-key"), Some("X-Api-Key"));
        assert_eq!(sent.to_map()["x-api-key"], "a b");
        assert!(!format!("{sent:?}").contains("a b"));
    }

    #[test]
    fn every_faulty_header_is_named() {
        let json = r#"{
            "Host": "a", "Content-Length": "1", "Proxy-X": "a", "Webhook-Id": "a", "a b": "a",
            "": "a", "X-É": "a", "X-Value": "é", "X-Space": " a", "X-Number": 1, "X-Twice": "a",
            "x-twice": "b", "X-Fine": "c"
        }"#;
        let faults = read(json).unwrap_err();
        let paths: Vec<&str> = faults.as_map().keys().map(String::as_str).collect();
        let expected = [
            "",
            "Content-Length",
            "Host",
            "Proxy-X",
            "Webhook-Id",
            "X-Number",
            "X-Space",
            "X-Value",
            "X-É",
            "a b",
            "x-twice",
        ];
        assert_eq!(paths, expected);
    }
}
