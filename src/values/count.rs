//! Whole numbers that count something.

use serde::Serialize;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, Schema, SchemaFormat, Type};
use utoipa::{Number, PartialSchema, ToSchema};

use super::faults::{Checked, Faults};
use super::json::{Node, Value};
use super::number::Exact;

/// An integer from 0 to 2^63 - 1, the most that a `bigint` holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Count(i64);

impl Count {
    /// Reads a JSON number without a fraction, however written: `5`, `5.0` and `5e0` are 5.
    ///
    /// # Errors
    /// Anything else, and numbers outside the bounds.
    pub fn read(node: &Node) -> Checked<Self> {
        let Value::Number(text) = node.value else {
            return Err(Faults::one("must be an integer"));
        };
        let number = Exact::of(text);
        if number.needed_decimals() > 0 {
            return Err(Faults::one("must be an integer"));
        }
        if number.negative {
            return Err(Faults::one("must not be negative"));
        }
        let count = number.scaled(0).and_then(|count| i64::try_from(count).ok());
        let too_big = || Faults::one(format!("must be at most {}", i64::MAX));
        count.map(Self).ok_or_else(too_big)
    }

    /// A count that the database holds.
    #[must_use]
    pub fn from_stored(count: i64) -> Self {
        Self(count)
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> i64 {
        self.0
    }
}

impl PartialSchema for Count {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::Integer)
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64)))
            .minimum(Some(Number::Int(0)))
            .maximum(Some(Number::Int(9_223_372_036_854_775_807)))
            .examples([serde_json::json!(12)])
            .into()
    }
}

impl ToSchema for Count {}

#[cfg(test)]
mod tests {
    use super::super::json::parse;
    use super::*;

    fn read(json: &str) -> Result<i64, String> {
        let node = parse(json.as_bytes()).unwrap();
        Count::read(&node)
            .map(Count::get)
            .map_err(|faults| faults.as_map()[""].join("; "))
    }

    #[test]
    fn whole_numbers_are_read_however_written() {
        let cases = [
            ("0", 0),
            ("-0", 0),
            ("0e99999999999999999999", 0),
            ("0.000", 0),
            ("5", 5),
            ("5.0", 5),
            ("5e0", 5),
            ("0.5e1", 5),
            ("9223372036854775807", i64::MAX),
            ("9007199254740993", 9_007_199_254_740_993),
        ];
        for (json, count) in cases {
            assert_eq!(read(json), Ok(count), "{json}");
        }
    }

    #[test]
    fn what_is_no_count_is_refused() {
        let most = "must be at most 9223372036854775807";
        let cases = [
            ("9223372036854775808", most),
            ("1e99999999999999999999", most),
            ("-1", "must not be negative"),
            ("0.5", "must be an integer"),
            ("-0.5", "must be an integer"),
            ("1e-99999999999999999999", "must be an integer"),
            ("\"5\"", "must be an integer"),
            ("true", "must be an integer"),
            ("[5]", "must be an integer"),
        ];
        for (json, message) in cases {
            assert_eq!(read(json), Err(message.to_owned()), "{json}");
        }
    }
}
