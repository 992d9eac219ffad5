//! Amounts of money: exact in, exact out, never through a binary float.

use rust_decimal::Decimal;
use serde::{Serialize, Serializer};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{AnyOfBuilder, ObjectBuilder, Schema, Type};
use utoipa::{Number, PartialSchema, ToSchema};

use super::faults::{Checked, Faults};
use super::json::{Node, Value};
use super::number::Exact;

/// Decimals kept; no currency of ISO 4217 has more.
const DECIMALS: u32 = 4;

/// Amounts stay below 10^15.
const WHOLE_DIGITS: i64 = 15;

/// An amount in the currency of its record: 0 ≤ amount < 10^15, at most 4 decimals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Money(Decimal);

/// How [`Money`] may be sent: a JSON number or a decimal string. Only names the schema.
#[derive(Clone, Copy, Debug)]
pub struct MoneyInput;

impl Money {
    /// Reads a JSON number, or a string of digits with or without decimals (no exponent, no sign
    /// but a minus before zero).
    ///
    /// # Errors
    /// Anything else, and amounts outside the bounds: nothing is ever rounded.
    pub fn read(node: &Node) -> Checked<Self> {
        match &node.value {
            Value::Number(text) => Self::exact(&Exact::of(text)),
            Value::String(text) if is_decimal(text) => Self::exact(&Exact::of(text)),
            Value::String(_) => Err(Faults::one("must be a decimal like \"49.90\"")),
            _ => Err(Faults::one("must be a number or a decimal string")),
        }
    }

    /// An amount that the database holds.
    #[must_use]
    pub fn from_decimal(amount: Decimal) -> Self {
        Self(amount.normalize())
    }

    /// The amount, without zeros at the end.
    #[must_use]
    pub fn as_decimal(self) -> Decimal {
        self.0
    }

    fn exact(number: &Exact) -> Checked<Self> {
        if number.negative {
            return Err(Faults::one("must not be negative"));
        }
        if number.exponent >= WHOLE_DIGITS {
            return Err(Faults::one("must be less than 10^15"));
        }
        let scaled = number.scaled(DECIMALS);
        let scaled = scaled.ok_or_else(|| Faults::one("must have at most 4 decimals"))?;
        Ok(Self::from_decimal(Decimal::from_i128_with_scale(
            scaled, DECIMALS,
        )))
    }
}

impl std::fmt::Display for Money {
    /// With at least 2 decimals: `49.90`, `0.0125`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut amount = self.0.normalize();
        if amount.scale() < 2 {
            amount.rescale(2);
        }
        write!(f, "{amount}")
    }
}

impl Serialize for Money {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// `-?digits(.digits)?` with no needless leading zero, as RFC 8259 writes numbers.
fn is_decimal(text: &str) -> bool {
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, "0"));
    let all_digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    all_digits(whole) && all_digits(fraction) && (whole == "0" || !whole.starts_with('0'))
}

impl PartialSchema for Money {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some("An amount with 2 to 4 decimals."))
            .pattern(Some(r"^(?:0|[1-9][0-9]{0,14})\.[0-9]{2,4}$"))
            .examples(["49.90", "0.0125"])
            .into()
    }
}

impl ToSchema for Money {}

impl PartialSchema for MoneyInput {
    fn schema() -> RefOr<Schema> {
        // Not `multipleOf`: validators compute it in binary floats and refuse 49.9. The branch for
        // integers only steers generators to numbers that have no more than 4 decimals.
        let number = |kind, example| {
            ObjectBuilder::new()
                .schema_type(kind)
                .minimum(Some(Number::Int(0)))
                .exclusive_maximum(Some(Number::Int(1_000_000_000_000_000)))
                .examples([example])
        };
        let text = ObjectBuilder::new()
            .schema_type(Type::String)
            .pattern(Some(
                r"^(?:-0(?:\.0+)?|(?:0|[1-9][0-9]{0,14})(?:\.[0-9]{1,4}0*)?)$",
            ))
            .examples(["49.90"]);
        AnyOfBuilder::new()
            .item(text)
            .item(number(Type::Integer, serde_json::json!(50)))
            .item(number(Type::Number, serde_json::json!(49.9)))
            .description(Some(
                "An amount as a number or a decimal string: not negative, less than 10^15, at most \
                 4 decimals (zeros at the end don't count).",
            ))
            .into()
    }
}

impl ToSchema for MoneyInput {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::json::parse;
    use super::*;

    fn read(json: &str) -> Result<String, String> {
        let node = parse(json.as_bytes()).unwrap();
        match Money::read(&node) {
            Ok(money) => Ok(money.to_string()),
            Err(faults) => Err(faults.as_map()[""].join("; ")),
        }
    }

    #[test]
    fn amounts_are_read_exactly() {
        let long = format!("1.23{}", "0".repeat(4000));
        let long_string = format!("\"{long}\"");
        let cases = [
            ("49.9", "49.90"),
            ("\"49.90\"", "49.90"),
            ("0.0125", "0.0125"),
            ("5", "5.00"),
            ("1e3", "1000.00"),
            ("12.5e-1", "1.25"),
            ("0e999999999", "0.00"),
            ("0e-999999999999999999999", "0.00"),
            ("-0", "0.00"),
            ("\"-0\"", "0.00"),
            ("-0.00", "0.00"),
            ("\"-0.00\"", "0.00"),
            ("999999999999999.9999", "999999999999999.9999"),
            ("0.9999999999999999e15", "999999999999999.90"),
            ("1.2300000000000000000000000000000000", "1.23"),
            ("10000e-4", "1.00"),
            (long.as_str(), "1.23"),
            (long_string.as_str(), "1.23"),
        ];
        for (json, amount) in cases {
            assert_eq!(read(json).as_deref(), Ok(amount), "{json}");
        }
    }

    #[test]
    fn what_is_no_amount_is_refused() {
        let decimal = "must be a decimal like \"49.90\"";
        let kind = "must be a number or a decimal string";
        let cases = [
            ("-0.01", "must not be negative"),
            ("\"-5\"", "must not be negative"),
            ("1e15", "must be less than 10^15"),
            ("1000000000000000", "must be less than 10^15"),
            ("1e99999999999999999999", "must be less than 10^15"),
            ("1e-5", "must have at most 4 decimals"),
            ("0.00001", "must have at most 4 decimals"),
            ("999999999999999.99999", "must have at most 4 decimals"),
            ("1e-99999999999999999999", "must have at most 4 decimals"),
            ("\"1e3\"", decimal),
            ("\"+1\"", decimal),
            ("\" 1\"", decimal),
            ("\"1.\"", decimal),
            ("\".5\"", decimal),
            ("\"01\"", decimal),
            ("\"-00\"", decimal),
            ("\"\"", decimal),
            ("\"-\"", decimal),
            ("\"1,5\"", decimal),
            ("\"NaN\"", decimal),
            ("\"٣\"", decimal),
            ("\"1\\u0000\"", decimal),
            ("true", kind),
            ("[1]", kind),
            ("{}", kind),
        ];
        for (json, message) in cases {
            assert_eq!(read(json), Err(message.to_owned()), "{json}");
        }
    }

    #[test]
    fn huge_digit_strings_are_refused_without_harm() {
        let digits = "9".repeat(1_000_000);
        assert!(read(&format!("\"{digits}\"")).is_err());
        assert!(read(&format!("\"0.{digits}\"")).is_err());
        assert!(read(&format!("0.{digits}")).is_err());
    }

    proptest! {
        #[test]
        fn what_is_answered_reads_as_the_same_amount(scaled in 0_i128..10_i128.pow(19)) {
            let money = Money::from_decimal(Decimal::from_i128_with_scale(scaled, 4));
            let json = serde_json::to_string(&money).unwrap();
            let again = Money::read(&parse(json.as_bytes()).unwrap());
            prop_assert_eq!(again, Ok(money));
            prop_assert_eq!(money.as_decimal(), Decimal::from_i128_with_scale(scaled, 4));
        }
    }
}
