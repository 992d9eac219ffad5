//! Points in time, RFC 3339 in and out.

use chrono::{DateTime, Datelike, NaiveDate, SecondsFormat, SubsecRound, TimeDelta, Utc};
use serde::{Serialize, Serializer};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, Schema, SchemaFormat, Type};
use utoipa::{PartialSchema, ToSchema};

use super::faults::{Checked, Faults};
use super::json::Node;
use super::text::string;

/// Microseconds, as Postgres keeps them.
const DECIMALS: u16 = 6;

/// A point in time from 1970 to 9999 (UTC), in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(DateTime<Utc>);

/// How a [`Timestamp`] may be sent: with any offset. Only names the schema.
#[derive(Clone, Copy, Debug)]
pub struct TimestampInput;

impl Timestamp {
    /// Reads RFC 3339, strictly (chrono takes a space for the `T`, and leap seconds); finer than
    /// microseconds is cut off.
    ///
    /// # Errors
    /// Anything else, and years outside 1970–9999 in UTC.
    pub fn read(node: &Node) -> Checked<Self> {
        let malformed = || Faults::one("must be an RFC 3339 time with an offset");
        let time = parse(string(node)?).ok_or_else(malformed)?;
        if !(1970..=9999).contains(&time.year()) {
            return Err(Faults::one("must be in the years 1970 to 9999 (UTC)"));
        }
        Ok(Self(time))
    }

    /// A time that the clock or the database tells.
    #[must_use]
    pub fn from_utc(time: DateTime<Utc>) -> Self {
        Self(time.trunc_subsecs(DECIMALS))
    }

    /// The point in time.
    #[must_use]
    pub fn utc(self) -> DateTime<Utc> {
        self.0
    }
}

/// `date-time` of RFC 3339, section 5.6, without the leap second.
fn parse(text: &str) -> Option<DateTime<Utc>> {
    let (local, rest) = text.split_at_checked(19)?;
    let local = local.as_bytes();
    let separators = [
        local[4],
        local[7],
        local[10].to_ascii_uppercase(),
        local[13],
        local[16],
    ];
    if separators != *b"--T::" {
        return None;
    }
    let (micros, offset) = match rest.strip_prefix('.') {
        Some(fraction) => split_fraction(fraction)?,
        None => (0, rest),
    };
    let date = NaiveDate::from_ymd_opt(
        i32::try_from(number(&local[..4])?).ok()?,
        number(&local[5..7])?,
        number(&local[8..10])?,
    )?;
    let (hour, minute) = (number(&local[11..13])?, number(&local[14..16])?);
    let time = date.and_hms_micro_opt(hour, minute, number(&local[17..])?, micros)?;
    Some(time.checked_sub_signed(parse_offset(offset)?)?.and_utc())
}

/// The microseconds and what follows the digits.
fn split_fraction(text: &str) -> Option<(u32, &str)> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    if digits.is_empty() {
        return None;
    }
    let micros: String = digits.chars().chain("000000".chars()).take(6).collect();
    Some((micros.parse().ok()?, rest))
}

fn parse_offset(text: &str) -> Option<TimeDelta> {
    let (sign, hours, minutes) = match text.as_bytes() {
        b"Z" | b"z" => return Some(TimeDelta::zero()),
        [b'+', h1, h2, b':', m1, m2] => (1, number(&[*h1, *h2])?, number(&[*m1, *m2])?),
        [b'-', h1, h2, b':', m1, m2] => (-1, number(&[*h1, *h2])?, number(&[*m1, *m2])?),
        _ => return None,
    };
    let in_range = hours <= 23 && minutes <= 59;
    in_range.then(|| TimeDelta::minutes(sign * i64::from(hours * 60 + minutes)))
}

/// Up to four digits and nothing else.
fn number(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |sum, byte| {
        byte.is_ascii_digit()
            .then(|| sum * 10 + u32::from(byte - b'0'))
    })
}

impl std::fmt::Display for Timestamp {
    /// In UTC with `Z`; without decimals when there are none.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.to_rfc3339_opts(SecondsFormat::AutoSi, true))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A string of the format `date-time`.
fn date_time(pattern: &str) -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
        .pattern(Some(pattern))
}

impl PartialSchema for Timestamp {
    fn schema() -> RefOr<Schema> {
        date_time(r"^[0-9-]{10}T[0-9:]{8}(?:\.[0-9]{3}|\.[0-9]{6})?Z$")
            .description(Some("UTC, with microseconds if there are any."))
            .examples(["2010-12-01T08:26:00Z"])
            .into()
    }
}

impl ToSchema for Timestamp {}

impl PartialSchema for TimestampInput {
    fn schema() -> RefOr<Schema> {
        // 1969 and 9999 reach into, or out of, the years allowed by their offset.
        date_time(concat!(
            r"^(?:1969|19[7-9][0-9]|[2-9][0-9]{3})-[0-9]{2}-[0-9]{2}[Tt]",
            r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?",
            r"(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])$",
        ))
        .description(Some(
            "With an offset; years 1970 to 9999 in UTC; no leap seconds.",
        ))
        .examples(["2010-12-01T10:26:00+02:00"])
        .into()
    }
}

impl ToSchema for TimestampInput {}

#[cfg(test)]
mod tests {
    use super::super::json;
    use super::*;

    fn read(text: &str) -> Result<String, String> {
        let quoted = serde_json::to_string(text).unwrap();
        let node = json::parse(quoted.as_bytes()).unwrap();
        let time = Timestamp::read(&node).map(|time| time.to_string());
        time.map_err(|faults| faults.as_map()[""].join("; "))
    }

    #[test]
    fn times_are_answered_in_utc() {
        let cases = [
            ("2010-12-01T08:26:00Z", "2010-12-01T08:26:00Z"),
            ("2010-12-01t08:26:00z", "2010-12-01T08:26:00Z"),
            ("2010-12-01T08:26:00+02:00", "2010-12-01T06:26:00Z"),
            ("2010-12-01T08:26:00-00:00", "2010-12-01T08:26:00Z"),
            ("2010-12-01T08:26:00-23:59", "2010-12-02T08:25:00Z"),
            ("2010-12-01T08:26:00.123456Z", "2010-12-01T08:26:00.123456Z"),
            ("2010-12-01T08:26:00.5Z", "2010-12-01T08:26:00.500Z"),
            (
                "2010-12-01T08:26:00.1234569Z",
                "2010-12-01T08:26:00.123456Z",
            ),
            (
                "2010-12-01T08:26:00.000000999999999999Z",
                "2010-12-01T08:26:00Z",
            ),
            ("2012-02-29T00:00:00Z", "2012-02-29T00:00:00Z"),
            ("1969-12-31T23:00:00-01:00", "1970-01-01T00:00:00Z"),
            ("1970-01-01T00:00:00Z", "1970-01-01T00:00:00Z"),
            ("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999Z"),
        ];
        for (text, answer) in cases {
            assert_eq!(read(text).as_deref(), Ok(answer), "{text}");
        }
    }

    #[test]
    fn years_are_judged_in_utc() {
        for text in [
            "1970-01-01T00:00:00+00:01",
            "9999-12-31T23:59:00-00:01",
            "0000-01-01T00:00:00Z",
        ] {
            assert_eq!(
                read(text),
                Err("must be in the years 1970 to 9999 (UTC)".to_owned())
            );
        }
    }

    #[test]
    fn everything_else_is_refused() {
        let cases = [
            "",
            "now",
            "infinity",
            "2010-12-01",
            "2010-12-01T08:26:00",
            "2010-12-01 08:26:00Z",
            "2010-12-01T08:26Z",
            "2010-12-01T08:26:60Z",
            "2016-12-31T23:59:60Z",
            "2010-12-01T24:00:00Z",
            "2010-12-01T08:60:00Z",
            "2010-02-29T00:00:00Z",
            "2010-13-01T00:00:00Z",
            "2010-00-01T00:00:00Z",
            "2010-12-01T08:26:00.Z",
            "2010-12-01T08:26:00,5Z",
            "2010-12-01T08:26:00+24:00",
            "2010-12-01T08:26:00+23:60",
            "2010-12-01T08:26:00+0200",
            "2010-12-01T08:26:00+02",
            "2010-12-01T08:26:00+02:00:00",
            "2010-12-01T08:26:00 Z",
            " 2010-12-01T08:26:00Z",
            "2010-12-01T08:26:00Z ",
            "+010-12-01T08:26:00Z",
            "12010-12-01T08:26:00Z",
            "2010-12-01T08:26:0éZ",
            "2010-12-01T08:26:00−02:00",
            "２010-12-01T08:26:00Z",
        ];
        for text in cases {
            let message = "must be an RFC 3339 time with an offset";
            assert_eq!(read(text), Err(message.to_owned()), "{text}");
        }
        assert_eq!(read("2010\0"), Err("must not contain U+0000".to_owned()));
    }

    #[test]
    fn finer_than_microseconds_is_cut() {
        let time = DateTime::from_timestamp(0, 1_999).unwrap();
        assert_eq!(
            Timestamp::from_utc(time).to_string(),
            "1970-01-01T00:00:00.000001Z"
        );
    }
}
