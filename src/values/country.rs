//! Countries, whose numbering plans national spellings of phone numbers follow.

use rlibphonenumber::{PHONE_NUMBER_UTIL, Region};
use serde::{Serialize, Serializer};

/// A country by its two letters of ISO 3166-1, one that libphonenumber knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Country(Region);

impl Country {
    /// Two letters in any case.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let region = Region::from_code(text)
            .ok()
            .filter(|region| *region != Region::World)?;
        PHONE_NUMBER_UTIL
            .get_country_code_for_region(region)
            .map(|_| Self(region))
    }

    /// As the library names it.
    pub(super) fn region(self) -> Region {
        self.0
    }
}

impl std::fmt::Display for Country {
    /// Two capital letters.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl Serialize for Country {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn countries_are_two_letters_with_a_numbering_plan() {
        for text in ["fr", "FR", "Fr"] {
            assert_eq!(
                Country::parse(text).map(|c| c.to_string()).as_deref(),
                Some("FR")
            );
        }
        for text in ["", "F", "FRA", "001", "ZZ", "XX", "É", "F\0"] {
            assert_eq!(Country::parse(text), None, "{text}");
        }
    }
}
