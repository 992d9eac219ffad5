//! Currencies by their three letters.

use serde::Serialize;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use super::faults::{Checked, Faults};
use super::json::Node;
use super::text::string;

/// A currency of ISO 4217 that is in use, in capital letters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Currency(String);

/// How a [`Currency`] may be sent: in any case. Only names the schema.
#[derive(Clone, Copy, Debug)]
pub struct CurrencyInput;

impl Currency {
    /// Reads the three letters in any case.
    ///
    /// # Errors
    /// Not in ISO 4217, withdrawn (`HRK`), or no currency (`XXX`, gold).
    pub fn read(node: &Node) -> Checked<Self> {
        let code = string(node)?.to_ascii_uppercase();
        let known = iso_currency::Currency::from_code(&code).is_some_and(is_in_use);
        let fault = || Faults::one("must be an ISO 4217 currency code");
        known.then_some(Self(code)).ok_or_else(fault)
    }

    /// A code that the database holds.
    #[must_use]
    pub fn from_stored(code: String) -> Self {
        Self(code)
    }

    /// Three capital letters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Metals, units of account and test codes are special; a superseded code is withdrawn, but for
/// `VES`, which ISO 4217 keeps beside `VED`.
fn is_in_use(currency: iso_currency::Currency) -> bool {
    use iso_currency::Currency::VES;
    !currency.is_special() && (currency.is_superseded().is_none() || currency == VES)
}

/// All codes in use, in order.
fn codes() -> Vec<&'static str> {
    let all = (0..=999).filter_map(iso_currency::Currency::from_numeric);
    let mut codes: Vec<_> = all.filter(|c| is_in_use(*c)).map(|c| c.code()).collect();
    codes.sort_unstable();
    codes
}

impl PartialSchema for Currency {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some("ISO 4217."))
            .enum_values(Some(codes()))
            .examples(["EUR"])
            .into()
    }
}

impl ToSchema for Currency {}

impl PartialSchema for CurrencyInput {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some("An ISO 4217 code that is in use, in any case."))
            .pattern(Some(format!("^(?:{}|[A-Za-z]{{3}})$", codes().join("|"))))
            .examples(["EUR"])
            .into()
    }
}

impl ToSchema for CurrencyInput {}

#[cfg(test)]
mod tests {
    use super::super::json::parse;
    use super::*;

    fn read(text: &str) -> Checked<Currency> {
        let json = serde_json::to_string(text).unwrap();
        Currency::read(&parse(json.as_bytes()).unwrap())
    }

    #[test]
    fn codes_in_use_are_taken_in_any_case() {
        for code in [
            "EUR", "eur", "Usd", "JPY", "XAF", "XOF", "XPF", "XCD", "XCG", "VES", "VED",
        ] {
            assert_eq!(read(code).unwrap().as_str(), code.to_uppercase());
        }
        assert!(codes().iter().all(|code| read(code).is_ok()));
        assert!((150..170).contains(&codes().len()), "{}", codes().len());
    }

    #[test]
    fn other_codes_are_refused() {
        let refused = [
            "", "E", "EURO", "E U", "€", "978", "ABC", "XXX", "XTS", "XAU", "XAG", "XPT", "XPD",
            "XBA", "XBB", "XBC", "XBD", "XDR", "XSU", "XUA", "XAD", "HRK", "SLL", "ZWL", "CUC",
            "DEM",
        ];
        for code in refused {
            assert_eq!(
                read(code),
                Err(Faults::one("must be an ISO 4217 currency code")),
                "{code}"
            );
        }
    }
}
