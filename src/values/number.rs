//! A decimal number taken apart exactly: by hand, since every detour (binary floats, decimal types
//! with a fixed width) loses digits of some number that JSON can write.

/// Stands for every exponent beyond what the length of a body could make up for.
const FAR: i64 = 1_000_000_000_000_000;

/// Decimals that [`Exact::plain`] keeps; a number within the bounds of [`Exact::is_moderate`] needs
/// at most 79, what is cut are zeros.
const MAX_PLAIN_DECIMALS: i64 = 80;

/// ± d.ddd × 10^exponent.
#[derive(Clone, Debug)]
pub(super) struct Exact {
    /// Never true for zero.
    pub negative: bool,
    /// The significant digits: no zeros at either end, none at all for zero.
    pub digits: String,
    /// Of the first digit; 0 for zero.
    pub exponent: i64,
    /// Decimals as written, after the exponent is applied (what Postgres calls the scale); an
    /// exponent of zero is ignored, or five bytes would be stored as eighty digits.
    decimals: i64,
}

impl Exact {
    /// Takes a number apart that follows the grammar of RFC 8259, section 6.
    pub fn of(text: &str) -> Self {
        let unsigned = text.strip_prefix('-').unwrap_or(text);
        let (mantissa, power) = match unsigned.split_once(['e', 'E']) {
            Some((mantissa, power)) => (mantissa, power_of_ten(power)),
            None => (unsigned, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let all = [whole, fraction].concat();
        let significant = all.trim_start_matches('0');
        let first = length(whole) - 1 - (length(&all) - length(significant));
        let digits = significant.trim_end_matches('0');
        let power = if digits.is_empty() { 0 } else { power };
        Self {
            negative: text.len() > unsigned.len() && !digits.is_empty(),
            exponent: if digits.is_empty() { 0 } else { first + power },
            digits: digits.to_owned(),
            decimals: (length(fraction) - power).max(0),
        }
    }

    pub fn is_zero(&self) -> bool {
        self.digits.is_empty()
    }

    /// Decimals that the value needs, however it was written; negative for multiples of ten.
    pub fn needed_decimals(&self) -> i64 {
        length(&self.digits) - 1 - self.exponent
    }

    /// Value × 10^`scale`, if that is a whole number below 10^36 (which fits an `i128`).
    pub fn scaled(&self, scale: u32) -> Option<i128> {
        if self.is_zero() {
            return Some(0);
        }
        let zeros = u32::try_from(i64::from(scale) - self.needed_decimals()).ok()?;
        if self.digits.len() > 36 || zeros > 36 || length(&self.digits) + i64::from(zeros) > 36 {
            return None;
        }
        let magnitude = self
            .digits
            .parse::<i128>()
            .ok()?
            .checked_mul(10_i128.pow(zeros))?;
        Some(if self.negative { -magnitude } else { magnitude })
    }

    /// Whether Postgres holds it without growing out of proportion: 14 bytes like `1e131071` would
    /// become 131,072 digits. At most 40 significant digits and an exponent within ±40; zero always.
    pub fn is_moderate(&self) -> bool {
        self.digits.len() <= 40 && self.exponent.abs() <= 40
    }

    /// Without an exponent and with its decimals as written, as Postgres prints a `numeric`. Only
    /// for a moderate number; decimals past the 80th, which are zeros then, are dropped.
    pub fn plain(&self) -> String {
        let decimals = self.decimals.min(MAX_PLAIN_DECIMALS);
        let mut plain = String::from(if self.negative { "-" } else { "" });
        for place in (-decimals..=self.exponent.max(0)).rev() {
            plain.push(self.digit_at(place));
            if place == 0 && decimals > 0 {
                plain.push('.');
            }
        }
        plain
    }

    /// The digit that counts 10^`place`.
    fn digit_at(&self, place: i64) -> char {
        let index = usize::try_from(self.exponent - place).ok();
        let digit = index.and_then(|index| self.digits.as_bytes().get(index));
        char::from(*digit.unwrap_or(&b'0'))
    }
}

impl PartialEq for Exact {
    /// By value: `1.0` is `1`.
    fn eq(&self, other: &Self) -> bool {
        (self.negative, self.exponent, &self.digits)
            == (other.negative, other.exponent, &other.digits)
    }
}

fn power_of_ten(text: &str) -> i64 {
    let far = if text.starts_with('-') { -FAR } else { FAR };
    text.parse().unwrap_or(far).clamp(-FAR, FAR)
}

fn length(digits: &str) -> i64 {
    i64::try_from(digits.len()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_taken_apart_exactly() {
        let cases = [
            ("0", false, "", 0),
            ("-0.00e5", false, "", 0),
            ("0e999999999999999999999999", false, "", 0),
            ("12.5e-1", false, "125", 0),
            ("-1200", true, "12", 3),
            ("0.00120", false, "12", -3),
            ("1e+3", false, "1", 3),
            ("1E-3", false, "1", -3),
            ("1e00000000000000000000000000002", false, "1", 2),
            ("1e-99999999999999999999", false, "1", -FAR),
            (
                "99999999999999999999.99",
                false,
                "9999999999999999999999",
                19,
            ),
        ];
        for (text, negative, digits, exponent) in cases {
            let number = Exact::of(text);
            let parts = (number.negative, number.digits.as_str(), number.exponent);
            assert_eq!(parts, (negative, digits, exponent), "{text}");
        }
    }

    #[test]
    fn plain_keeps_the_scale_as_postgres_does() {
        let cases = [
            ("1e2", "100"),
            ("1.50", "1.50"),
            ("1E-3", "0.001"),
            ("-0", "0"),
            ("-0.0", "0.0"),
            ("1.5e1", "15"),
            ("1.50e1", "15.0"),
            ("100e-2", "1.00"),
            ("-12.5e-1", "-1.25"),
            ("0e5", "0"),
        ];
        for (text, plain) in cases {
            assert_eq!(Exact::of(text).plain(), plain, "{text}");
        }
        let padded = format!("1.{}", "0".repeat(200));
        assert_eq!(Exact::of(&padded).plain(), format!("1.{}", "0".repeat(80)));
        assert_eq!(Exact::of("0e-99999").plain(), "0");
        assert_eq!(Exact::of("-0.00e-7").plain(), "0.00");
    }

    #[test]
    fn equality_is_by_value() {
        for (a, b) in [
            ("1.0", "1"),
            ("1e2", "100"),
            ("-0", "0e7"),
            ("0.10", "1e-1"),
        ] {
            assert_eq!(Exact::of(a), Exact::of(b), "{a} {b}");
        }
        for (a, b) in [
            ("1", "-1"),
            ("1", "10"),
            ("1", "1.0000000000000000000000000000001"),
        ] {
            assert_ne!(Exact::of(a), Exact::of(b), "{a} {b}");
        }
    }

    #[test]
    fn scaled_is_exact_or_nothing() {
        assert_eq!(Exact::of("12.34").scaled(4), Some(123_400));
        assert_eq!(Exact::of("-5e0").scaled(0), Some(-5));
        assert_eq!(Exact::of("0e999").scaled(0), Some(0));
        assert_eq!(Exact::of("0.5").scaled(0), None);
        assert_eq!(Exact::of("1e36").scaled(0), None);
        assert_eq!(
            Exact::of(&"9".repeat(36))
                .scaled(0)
                .map(|n| n.to_string().len()),
            Some(36)
        );
    }
}
