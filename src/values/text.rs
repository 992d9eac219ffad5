//! Free text within a length, and words out of a fixed list.

use std::borrow::Cow;

use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use super::faults::{Checked, Faults};
use super::json::{Node, Value};

/// Matches text without U+0000, which Postgres can't hold.
pub(super) const NO_NUL: &str = r"^[^\u0000]*$";

/// The schema of [`text`] with at most `MAX_CHARS` characters. Only names the schema.
#[derive(Clone, Copy, Debug)]
pub struct Text<const MAX_CHARS: usize>;

/// Reads text of at most `max_chars` characters (Unicode scalar values); it may be empty.
pub fn text(max_chars: usize) -> impl Fn(&Node) -> Checked<String> {
    move |node| {
        let text = string(node)?;
        if longer_than(text, max_chars) {
            return Err(Faults::one(format!(
                "must have at most {max_chars} characters"
            )));
        }
        Ok(text.to_owned())
    }
}

/// Reads one of the `choices`, exactly as written.
pub fn choice(choices: &'static [&'static str]) -> impl Fn(&Node) -> Checked<&'static str> {
    move |node| {
        let text = string(node)?;
        let chosen = choices.iter().find(|choice| **choice == text);
        let none = || Faults::one(format!("must be one of {}", choices.join(", ")));
        chosen.copied().ok_or_else(none)
    }
}

/// The schema of [`choice`].
#[must_use]
pub fn choice_schema(choices: &'static [&'static str]) -> RefOr<Schema> {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .enum_values(Some(choices.iter().copied()))
        .into()
}

/// A string that Postgres can hold.
pub(super) fn string<'n>(node: &'n Node) -> Checked<&'n str> {
    match &node.value {
        Value::String(text) => without_nul(text),
        _ => Err(Faults::one("must be a string")),
    }
}

/// Refuses U+0000.
pub(super) fn without_nul(text: &str) -> Checked<&str> {
    if text.contains('\0') {
        return Err(Faults::one("must not contain U+0000"));
    }
    Ok(text)
}

/// Whether there are more characters than that, without counting those of a whole megabyte.
pub(super) fn longer_than(text: &str, max_chars: usize) -> bool {
    text.len() > max_chars && text.chars().nth(max_chars).is_some()
}

impl<const MAX_CHARS: usize> PartialSchema for Text<MAX_CHARS> {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .max_length(Some(MAX_CHARS))
            .pattern(Some(NO_NUL))
            .into()
    }
}

impl<const MAX_CHARS: usize> ToSchema for Text<MAX_CHARS> {
    fn name() -> Cow<'static, str> {
        Cow::Owned(format!("Text{MAX_CHARS}"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::json::parse;
    use super::*;

    fn said<T>(json: &str, read: impl Fn(&Node) -> Checked<T>) -> Result<T, String> {
        let node = parse(json.as_bytes()).unwrap();
        read(&node).map_err(|faults| faults.as_map()[""].join("; "))
    }

    #[test]
    fn text_counts_characters_and_may_be_empty() {
        let quoted = |text: &str| format!("\"{text}\"");
        assert_eq!(said("\"\"", text(3)), Ok(String::new()));
        assert_eq!(said(&quoted("😀é "), text(3)), Ok("😀é ".to_owned()));
        let long = said(&quoted("😀é x"), text(3));
        assert_eq!(long, Err("must have at most 3 characters".to_owned()));
        assert_eq!(
            said(r#""\u0000""#, text(3)),
            Err("must not contain U+0000".to_owned())
        );
        for json in ["1", "null", "true", "[]", "{}"] {
            assert_eq!(
                said(json, text(3)),
                Err("must be a string".to_owned()),
                "{json}"
            );
        }
    }

    #[test]
    fn a_choice_is_taken_exactly_as_written() {
        let read = choice(&["active", "abandoned"]);
        assert_eq!(said("\"active\"", &read), Ok("active"));
        for json in ["\"Active\"", "\"\"", "\"active \""] {
            assert_eq!(
                said(json, &read),
                Err("must be one of active, abandoned".to_owned())
            );
        }
        assert_eq!(said("1", &read), Err("must be a string".to_owned()));
    }

    #[test]
    fn schemas_of_different_lengths_have_different_names() {
        assert_eq!(Text::<64>::name(), "Text64");
        let schema = serde_json::to_value(Text::<64>::schema()).unwrap();
        assert_eq!(schema["maxLength"], 64);
    }
}
