//! Labels on a record.

use std::collections::HashSet;

use serde::Serialize;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ArrayBuilder, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::faults::{Checked, Faults};
use super::json::{Node, Value};
use super::text::{Text, text};

/// Counted as sent, duplicates included.
const MAX_TAGS: usize = 250;

/// Of one tag.
const MAX_CHARS: usize = 255;

/// Each tag once, in the order of its first appearance, which is part of the value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Tags(Vec<String>);

impl Tags {
    /// Reads an array of at most 250 strings of at most 255 characters; duplicates are dropped.
    ///
    /// # Errors
    /// Anything else; a faulty tag at its index.
    pub fn read(node: &Node) -> Checked<Self> {
        let Value::Array(items) = &node.value else {
            return Err(Faults::one("must be an array"));
        };
        if items.len() > MAX_TAGS {
            return Err(Faults::one(format!("must have at most {MAX_TAGS} items")));
        }
        let mut faults = Faults::default();
        let mut tags = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            match text(MAX_CHARS)(item) {
                Ok(tag) => tags.push(tag),
                Err(inner) => faults.nest(&index.to_string(), inner),
            }
        }
        faults.into_result()?;
        let mut seen = HashSet::new();
        tags.retain(|tag| seen.insert(tag.clone()));
        Ok(Self(tags))
    }

    /// Tags that the database holds.
    #[must_use]
    pub fn from_stored(tags: Vec<String>) -> Self {
        Self(tags)
    }

    /// As a JSON array.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Strings always serialise.
        serde_json::to_string(&self.0).unwrap_or_default()
    }

    /// In order.
    #[must_use]
    pub fn as_slice(&self) -> &[String] {
        &self.0
    }
}

impl PartialSchema for Tags {
    fn schema() -> RefOr<Schema> {
        ArrayBuilder::new()
            .items(Text::<MAX_CHARS>::schema())
            .max_items(Some(MAX_TAGS))
            .description(Some("Duplicates are dropped, the order is kept."))
            .examples([serde_json::json!(["vip", "newsletter"])])
            .into()
    }
}

impl ToSchema for Tags {}

#[cfg(test)]
mod tests {
    use super::super::json::parse;
    use super::*;

    fn read(json: &str) -> Checked<Tags> {
        Tags::read(&parse(json.as_bytes()).unwrap())
    }

    fn array(items: usize, tag: &str) -> String {
        format!("[{}]", vec![format!("\"{tag}\""); items].join(","))
    }

    #[test]
    fn duplicates_go_and_the_order_stays() {
        let tags = read(r#"["b","a","b","","a","\u0061"]"#).unwrap();
        assert_eq!(tags.as_slice(), ["b", "a", ""]);
        assert_eq!(read("[]").unwrap(), Tags::default());
    }

    #[test]
    fn the_number_is_judged_before_duplicates_go() {
        assert_eq!(read(&array(250, "a")).unwrap().as_slice(), ["a"]);
        assert_eq!(
            read(&array(251, "a")),
            Err(Faults::one("must have at most 250 items"))
        );
    }

    #[test]
    fn faulty_tags_are_named_by_index() {
        assert!(read(&array(1, &"é".repeat(255))).is_ok());
        let json = format!(r#"["a",1,"b\u0000","{}",null]"#, "é".repeat(256));
        let faults = read(&json).unwrap_err();
        let said: Vec<_> = faults
            .as_map()
            .iter()
            .map(|(at, s)| (at.as_str(), &*s[0]))
            .collect();
        let expected = [
            ("1", "must be a string"),
            ("2", "must not contain U+0000"),
            ("3", "must have at most 255 characters"),
            ("4", "must be a string"),
        ];
        assert_eq!(said, expected);
        assert_eq!(read("\"a\""), Err(Faults::one("must be an array")));
    }
}
