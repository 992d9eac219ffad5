//! Phone numbers: any spelling in, E.164 kept, so that two spellings are one key.
//!
//! Google's rules as `rlibphonenumber` ports them. Its panics on hostile text are kept away by a
//! filter on the characters, and caught as a last net.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, LazyLock};

use rlibphonenumber::{PHONE_NUMBER_UTIL, PhoneNumberFormat, PhoneNumberUtil, Region};
use serde::Serialize;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use super::country::Country;
use super::faults::{Checked, Faults};
use super::json::Node;
use super::text::string;

/// Longer than any spelling of 15 digits that a person would write.
const MAX_BYTES: usize = 40;

/// A possible phone number in E.164: `+` and the digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Phone(Arc<str>);

/// How a [`Phone`] may be sent: in any spelling. Only names the schema.
#[derive(Clone, Copy, Debug)]
pub struct PhoneInput;

impl Phone {
    /// Reads it from a body; see [`Phone::parse`].
    ///
    /// # Errors
    /// Not a string, or not a possible number.
    pub fn read(node: &Node, default_country: Option<Country>) -> Checked<Self> {
        Self::parse(string(node)?, default_country)
    }

    /// Reads any spelling; one without `+` is a national one of `default_country`.
    ///
    /// # Errors
    /// Not a possible number, a national spelling without a country, an extension.
    pub fn parse(text: &str, default_country: Option<Country>) -> Checked<Self> {
        let fault = || Faults::one("must be a possible phone number");
        if text.len() > MAX_BYTES || !text.bytes().all(is_allowed) {
            return Err(fault());
        }
        if default_country.is_none() && text.contains(is_digit) && !begins_with_plus(text) {
            return Err(Faults::one(
                "must be in international form (+…): the store has no default country",
            ));
        }
        let region = default_country.map(Country::region);
        quietly(|util| e164(util, text, region))
            .flatten()
            .map(|e164| Self(e164.into()))
            .ok_or_else(fault)
    }

    /// A number that the database holds.
    #[must_use]
    pub fn from_stored(e164: String) -> Self {
        Self(e164.into())
    }

    /// In E.164.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_allowed(byte: u8) -> bool {
    byte.is_ascii_digit() || b" +-.()/".contains(&byte)
}

fn is_digit(c: char) -> bool {
    c.is_ascii_digit()
}

/// Whether the number proper, after brackets and the like, is written with `+`.
fn begins_with_plus(text: &str) -> bool {
    text.trim_start_matches([' ', '-', '.', '(', ')', '/'])
        .starts_with('+')
}

/// The E.164 form that reads as itself. One reading is not enough: `0065597451` in Australia gives
/// `+61065597451`, which in turn reads as `+6165597451`, and the key a caller is answered must find
/// the record again. Each reading takes a needless zero away, so few are enough.
fn e164(util: &PhoneNumberUtil, text: &str, region: Option<Region>) -> Option<String> {
    let mut e164 = read_once(util, text, region)?;
    if e164 == text {
        return Some(e164);
    }
    for _ in 0..8 {
        let again = read_once(util, &e164, None)?;
        if again == e164 {
            return Some(e164);
        }
        e164 = again;
    }
    None
}

/// What Google calls `isPossibleNumber`: the length fits, the digits needn't be assigned.
fn read_once(util: &PhoneNumberUtil, text: &str, region: Option<Region>) -> Option<String> {
    let number = util.parse(text, region).ok()?;
    if number.extension.is_some() || !util.is_possible_number(&number) {
        return None;
    }
    Some(util.format(&number, PhoneNumberFormat::E164).into_owned())
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Once: panics inside [`quietly`] are not reported, since the text that caused one is a caller's
/// and the answer is an ordinary refusal. Every other panic goes to the hook that was there.
static QUIET_HOOK: LazyLock<()> = LazyLock::new(|| {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        if !QUIET.get() {
            report(panic);
        }
    }));
});

/// Runs the library; `None` when it panicked.
fn quietly<T>(work: impl FnOnce(&PhoneNumberUtil) -> T) -> Option<T> {
    LazyLock::force(&QUIET_HOOK);
    let util = LazyLock::force(&PHONE_NUMBER_UTIL);
    QUIET.set(true);
    let result = panic::catch_unwind(AssertUnwindSafe(|| work(util)));
    QUIET.set(false);
    result.ok()
}

impl PartialSchema for Phone {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some("E.164."))
            .pattern(Some(r"^\+[1-9][0-9]{1,19}$"))
            .examples(["+33612345678"])
            .into()
    }
}

impl ToSchema for Phone {}

impl PartialSchema for PhoneInput {
    fn schema() -> RefOr<Schema> {
        // The first branches say nothing new: they steer generators to numbers that exist.
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some(
                "Any spelling of a possible number; a national one needs the store's default \
                 country. No extensions.",
            ))
            .min_length(Some(3))
            .max_length(Some(MAX_BYTES))
            .pattern(Some(concat!(
                r"^(?:\+336[0-9]{8}|\+1[2-9][0-9]{9}|\+447[0-9]{9}|\+4917[0-9]{8}",
                r"|[0-9 +./()-]{3,40})$"
            )))
            .examples(["+33612345678", "+33 6 12 34 56 78"])
            .into()
    }
}

impl ToSchema for PhoneInput {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::json;
    use super::*;

    fn parse(text: &str, country: &str) -> Option<String> {
        let phone = Phone::parse(text, Country::parse(country)).ok()?;
        Some(phone.as_str().to_owned())
    }

    #[test]
    fn spellings_of_a_number_are_one_key() {
        let cases = [
            ("+33612345678", ""),
            ("+33 6 12 34 56 78", ""),
            ("+33 (0)6.12.34.56.78", ""),
            ("(+33) 6-12-34-56-78", ""),
            ("+33612345678", "US"),
            ("06 12 34 56 78", "FR"),
            ("0033612345678", "fr"),
            ("06/12/34/56/78", "FR"),
        ];
        for (text, country) in cases {
            assert_eq!(
                parse(text, country).as_deref(),
                Some("+33612345678"),
                "{text} {country}"
            );
        }
        assert_eq!(
            parse("06 698 12345", "IT").as_deref(),
            Some("+390669812345")
        );
    }

    #[test]
    fn a_national_spelling_needs_a_country() {
        let message = "must be in international form (+…): the store has no default country";
        for text in ["0612345678", "0033612345678", "(0)612345678"] {
            assert_eq!(
                Phone::parse(text, None),
                Err(Faults::one(message)),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_possible_number_is_refused() {
        let long = format!("+33612345678{}", " ".repeat(29));
        let cases = [
            "",
            "+",
            "+33",
            "+336123456789012",
            "+99912345678",
            "+33612345678 ext. 5",
            "+33612345678x5",
            "+33612345678;ext=5",
            "+33612345678#5",
            "1;phone-context=a.com;x=tel:",
            "1-800-FLOWERS",
            "+33\u{a0}612345678",
            "+３３612345678",
            "+33612345678\0",
            "+33612345678\n",
            "+33612345678+33612345678",
            long.as_str(),
        ];
        for text in cases {
            assert_eq!(parse(text, "FR"), None, "{text}");
            assert_eq!(parse(text, ""), None, "{text}");
        }
        assert!(parse(&long[..40], "").is_some());
    }

    #[test]
    fn only_a_string_is_a_phone() {
        let node = json::parse(b"33612345678").unwrap();
        assert_eq!(
            Phone::read(&node, None),
            Err(Faults::one("must be a string"))
        );
    }

    #[test]
    fn a_panic_of_the_library_is_caught() {
        assert_eq!(quietly(|_| -> u8 { panic!("as on hostile text") }), None);
        assert!(parse("+33612345678", "").is_some());
    }

    #[test]
    fn needless_zeros_do_not_make_another_key() {
        assert_eq!(parse("0065597451", "AU").as_deref(), Some("+6165597451"));
        assert_eq!(parse("+61065597451", "").as_deref(), Some("+6165597451"));
    }

    proptest! {
        #[test]
        fn what_is_kept_reads_as_itself(
            text in "(\\+[1-9][0-9]{0,2})?0{0,3}[0-9]{4,12}|[0-9 +./()-]{0,40}",
        ) {
            for country in ["", "FR", "US", "IT", "AU", "IM", "DE", "AR"] {
                if let Some(e164) = parse(&text, country) {
                    prop_assert_eq!(parse(&e164, ""), Some(e164.clone()));
                }
            }
        }

        #[test]
        fn hostile_text_never_panics(text in "\\PC{0,40}") {
            let _ = Phone::parse(&text, Country::parse("US"));
        }
    }
}
