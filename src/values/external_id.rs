//! The caller's own key of a record.

use std::sync::Arc;

use serde::Serialize;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use super::faults::{Checked, Faults};
use super::json::Node;
use super::text::{longer_than, string, without_nul};

/// Characters, not bytes: up to 1,020 bytes, well under what an index of Postgres can hold.
const MAX_CHARS: usize = 255;

/// Kept exactly as sent: case matters, nothing is trimmed or normalised. 1 to 255 characters, none
/// of them a control character, and neither `.` nor `..`, which clients resolve away in a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ExternalId(Arc<str>);

impl ExternalId {
    /// Reads it from a body.
    ///
    /// # Errors
    /// Not a string, or see [`ExternalId::parse`].
    pub fn read(node: &Node) -> Checked<Self> {
        Self::parse(string(node)?)
    }

    /// Reads it from a decoded path or query.
    ///
    /// # Errors
    /// The length, a control character (Unicode's Cc), or `.` or `..`.
    pub fn parse(text: &str) -> Checked<Self> {
        without_nul(text)?;
        if text.is_empty() || longer_than(text, MAX_CHARS) {
            return Err(Faults::one("must have 1 to 255 characters"));
        }
        if text.contains(char::is_control) {
            return Err(Faults::one("must not contain control characters"));
        }
        if matches!(text, "." | "..") {
            return Err(Faults::one("must not be . or .."));
        }
        Ok(Self(text.into()))
    }

    /// An id that the database holds.
    #[must_use]
    pub fn from_stored(text: String) -> Self {
        Self(text.into())
    }

    /// As sent.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl PartialSchema for ExternalId {
    fn schema() -> RefOr<Schema> {
        const CONTROLS: &str = r"\u0000-\u001f\u007f-\u009f";
        // Without a look-ahead, which not every regular expression engine has.
        let pattern = format!(
            r"^(?:[^.{CONTROLS}][^{CONTROLS}]*|\.[^.{CONTROLS}][^{CONTROLS}]*|\.\.[^{CONTROLS}]+)$"
        );
        ObjectBuilder::new()
            .schema_type(Type::String)
            .min_length(Some(1))
            .max_length(Some(MAX_CHARS))
            .pattern(Some(pattern))
            .examples(["A-1001"])
            .into()
    }
}

impl ToSchema for ExternalId {}

#[cfg(test)]
mod tests {
    use super::super::json::parse;
    use super::*;

    #[test]
    fn ids_are_kept_exactly() {
        for id in [
            "A/7", " a ", "...", ".a", "e\u{301}", "%2F", "+", "a\u{a0}b", "\u{200b}",
        ] {
            assert_eq!(ExternalId::parse(id).unwrap().as_str(), id);
        }
        let longest = "😀".repeat(255);
        assert_eq!(ExternalId::parse(&longest).unwrap().as_str(), longest);
    }

    #[test]
    fn bad_ids_are_refused_with_the_reason() {
        let too_long = "😀".repeat(256);
        let cases = [
            ("", "must have 1 to 255 characters"),
            (too_long.as_str(), "must have 1 to 255 characters"),
            (".", "must not be . or .."),
            ("..", "must not be . or .."),
            ("a\0", "must not contain U+0000"),
            ("a\n", "must not contain control characters"),
            ("\u{7f}", "must not contain control characters"),
            ("\u{85}", "must not contain control characters"),
        ];
        for (id, message) in cases {
            assert_eq!(ExternalId::parse(id), Err(Faults::one(message)), "{id:?}");
        }
    }

    #[test]
    fn only_a_string_is_an_id() {
        for json in ["1", "[\"a\"]", "{}", "true"] {
            let read = ExternalId::read(&parse(json.as_bytes()).unwrap());
            assert_eq!(read, Err(Faults::one("must be a string")), "{json}");
        }
    }
}
