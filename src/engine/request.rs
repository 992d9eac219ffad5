//! What a write says besides its body: preconditions (RFC 9110, section 13).

use http::{HeaderMap, header};

/// `If-Match` and `If-None-Match` of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    if_match: Option<Tags>,
    if_none_match: Option<Tags>,
}

/// The entity tags of one such header.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Tags {
    Any,
    /// Versions; what is no tag of ours matches nothing and is left out.
    Versions(Vec<i64>),
}

impl Conditions {
    /// Reads the headers. A tag that is not one of ours matches nothing.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Self {
        Self {
            if_match: Tags::of(headers, &header::IF_MATCH, Comparison::Strong),
            if_none_match: Tags::of(headers, &header::IF_NONE_MATCH, Comparison::Weak),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether they hold for a record of this version (none: there is no record).
    #[must_use]
    pub fn hold(&self, version: Option<i64>) -> bool {
        let matches = |tags: &Tags| match (tags, version) {
            (_, None) => false,
            (Tags::Any, Some(_)) => true,
            (Tags::Versions(versions), Some(version)) => versions.contains(&version),
        };
        self.if_match.as_ref().is_none_or(matches)
            && !self.if_none_match.as_ref().is_some_and(matches)
    }
}

/// RFC 9110, section 8.8.3.2.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Strong,
    Weak,
}

impl Tags {
    fn of(headers: &HeaderMap, name: &header::HeaderName, comparison: Comparison) -> Option<Self> {
        let mut values = headers.get_all(name).iter().peekable();
        values.peek()?;
        let mut versions = Vec::new();
        for value in values {
            for tag in value.to_str().unwrap_or_default().split(',').map(str::trim) {
                if tag == "*" {
                    return Some(Self::Any);
                }
                versions.extend(version_of(tag, comparison));
            }
        }
        Some(Self::Versions(versions))
    }
}

/// The version that a tag names: `"3"`.
fn version_of(tag: &str, comparison: Comparison) -> Option<i64> {
    let strong = match comparison {
        Comparison::Strong => tag,
        Comparison::Weak => tag.strip_prefix("W/").unwrap_or(tag),
    };
    let digits = strong.strip_prefix('"')?.strip_suffix('"')?;
    let version: i64 = digits.parse().ok()?;
    (version.to_string() == digits).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conditions(name: header::HeaderName, value: &str) -> Conditions {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().expect("a header value"));
        Conditions::of(&headers)
    }

    #[test]
    fn if_match_holds_for_the_named_versions_only() {
        for (value, version, holds) in [
            ("\"3\"", Some(3), true),
            ("\"2\", \"3\"", Some(3), true),
            ("\"2\"", Some(3), false),
            ("\"3\"", None, false),
            ("*", Some(3), true),
            ("*", None, false),
            ("3", Some(3), false),
            ("W/\"3\"", Some(3), false),
            ("\"03\"", Some(3), false),
            ("", Some(3), false),
        ] {
            let held = conditions(header::IF_MATCH, value).hold(version);
            assert_eq!(held, holds, "{value} on {version:?}");
        }
    }

    #[test]
    fn if_none_match_refuses_what_is_there() {
        for (value, version, holds) in [
            ("*", Some(1), false),
            ("*", None, true),
            ("\"1\"", Some(1), false),
            ("W/\"1\"", Some(1), false),
            ("\"2\"", Some(1), true),
        ] {
            let held = conditions(header::IF_NONE_MATCH, value).hold(version);
            assert_eq!(held, holds, "{value} on {version:?}");
        }
    }
}
