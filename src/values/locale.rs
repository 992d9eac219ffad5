//! Language tags.

use serde::Serialize;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use super::faults::{Checked, Faults};
use super::json::Node;
use super::text::{longer_than, string};

/// RFC 5646, section 4.4.1: enough for every tag of practical use.
const MAX_CHARS: usize = 35;

/// A well-formed tag of BCP 47, kept as sent.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct Locale(String);

impl Locale {
    /// Reads a tag; its subtags are separated by hyphens only (`en_US` is not BCP 47).
    ///
    /// # Errors
    /// Anything else, and tags over 35 characters.
    pub fn read(node: &Node) -> Checked<Self> {
        let text = string(node)?;
        if longer_than(text, MAX_CHARS) {
            return Err(Faults::one("must have at most 35 characters"));
        }
        let malformed = |_| Faults::one("must be a BCP 47 language tag like \"pt-BR\"");
        icu_locale_core::Locale::try_from_str(text).map_err(malformed)?;
        Ok(Self(text.to_owned()))
    }

    /// As sent.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl PartialSchema for Locale {
    fn schema() -> RefOr<Schema> {
        // Language, script, region, variants, extensions, private use: RFC 5646, section 2.1.
        const TAG: &str = concat!(
            "^(?:[A-Za-z]{2,3}|[A-Za-z]{5,8})(?:-[A-Za-z]{4})?(?:-(?:[A-Za-z]{2}|[0-9]{3}))?",
            "(?:-(?:[A-Za-z0-9]{5,8}|[0-9][A-Za-z0-9]{3}))*",
            "(?:-[0-9A-WYZa-wyz](?:-[A-Za-z0-9]{2,8})+)*(?:-[Xx](?:-[A-Za-z0-9]{1,8})+)?$",
        );
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some("A BCP 47 language tag."))
            .min_length(Some(2))
            .max_length(Some(MAX_CHARS))
            .pattern(Some(TAG))
            .examples(["fr", "pt-BR"])
            .into()
    }
}

impl ToSchema for Locale {}

#[cfg(test)]
mod tests {
    use super::super::json::parse;
    use super::*;

    fn read(text: &str) -> Checked<Locale> {
        let json = serde_json::to_string(text).unwrap();
        Locale::read(&parse(json.as_bytes()).unwrap())
    }

    #[test]
    fn well_formed_tags_are_kept_as_sent() {
        for tag in [
            "fr",
            "PT-br",
            "zh-Hant-TW",
            "es-419",
            "de-CH-1996",
            "en-US-u-hc-h12",
            "und",
        ] {
            assert_eq!(read(tag).unwrap().as_str(), tag);
        }
    }

    #[test]
    fn other_text_is_refused() {
        for tag in [
            "",
            "en_US",
            "e",
            "en-",
            "-en",
            "en US",
            " en",
            "english1",
            "français",
            "C.UTF-8",
        ] {
            let message = "must be a BCP 47 language tag like \"pt-BR\"";
            assert_eq!(read(tag), Err(Faults::one(message)), "{tag}");
        }
    }

    #[test]
    fn thirty_five_characters_are_the_most() {
        let tag = "en-x-aaaaaaaa-bbbbbbbb-cccccccc-ddd";
        assert_eq!(tag.len(), 35);
        assert!(read(tag).is_ok());
        assert_eq!(
            read(&format!("{tag}d")),
            Err(Faults::one("must have at most 35 characters"))
        );
    }
}
