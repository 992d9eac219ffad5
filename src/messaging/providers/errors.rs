//! What the Cloud API's error codes mean for a send.
//!
//! The table is by `error.code`, as Meta asks for; its titles and HTTP statuses change. Source:
//! <https://developers.facebook.com/documentation/business-messaging/whatsapp/support/error-codes>.

use std::time::Duration;

/// What an error means for the message, and for the channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// This message will never be taken.
    Terminal,
    /// It was not taken because of a limit: slower.
    Retry,
    /// Nothing of this number will be taken for a while, or until somebody mends it.
    Pause(Duration),
    /// Nobody knows whether it was taken.
    Unknown,
}

const MINUTE: u64 = 60;
/// Until a limit that is not about speed may have passed.
const SHORT: Class = Class::Pause(Duration::from_secs(5 * MINUTE));
/// Until somebody may have mended what only people can mend; `channel set` ends it at once.
const LONG: Class = Class::Pause(Duration::from_secs(15 * MINUTE));

const TABLE: &[(i64, Class)] = &[
    // Authorization: the token or what it may do.
    (0, LONG),
    (3, LONG),
    (10, LONG),
    (190, LONG),
    // Too much, too fast.
    (4, Class::Retry),
    (80_007, Class::Retry),
    (130_429, Class::Retry),
    (131_056, Class::Retry),
    (133_016, Class::Retry),
    // Integrity: the number may not send for a while.
    (368, LONG),
    (131_031, LONG),
    (131_048, SHORT),
    // The account: money, name, certificate, maintenance.
    (131_005, LONG),
    (131_037, LONG),
    (131_042, LONG),
    (131_045, LONG),
    (131_057, SHORT),
    (133_006, LONG),
    (133_010, LONG),
    // Meta does not know, or is down: it may have been taken.
    (1, Class::Unknown),
    (2, Class::Unknown),
    (131_000, Class::Unknown),
    (131_016, Class::Unknown),
    (133_004, Class::Unknown),
    // The message, the recipient.
    (33, Class::Terminal),
    (100, Class::Terminal),
    (130_472, Class::Terminal),
    (130_497, Class::Terminal),
    (131_008, Class::Terminal),
    (131_009, Class::Terminal),
    (131_021, Class::Terminal),
    (131_026, Class::Terminal),
    (131_030, Class::Terminal),
    (131_047, Class::Terminal),
    (131_049, Class::Terminal),
    (131_050, Class::Terminal),
    (131_051, Class::Terminal),
    (131_052, Class::Terminal),
    (131_053, Class::Terminal),
    (135_000, Class::Terminal),
    // The template.
    (132_000, Class::Terminal),
    (132_001, Class::Terminal),
    (132_005, Class::Terminal),
    (132_007, Class::Terminal),
    (132_012, Class::Terminal),
    (132_015, Class::Terminal),
    (132_016, Class::Terminal),
    (132_018, Class::Terminal),
    (132_068, Class::Terminal),
    (132_069, Class::Terminal),
];

impl Class {
    /// What a code means. Of a code that is not in the table, the status of the answer tells whether
    /// the fault is the request's (it was not taken) or the server's (nobody knows).
    pub(super) fn of(code: i64, is_server_fault: bool) -> Self {
        // Permissions of the API.
        if (200..300).contains(&code) {
            return LONG;
        }
        let known = TABLE.iter().find(|(known, _)| *known == code);
        known.map_or_else(
            || {
                if is_server_fault {
                    Self::Unknown
                } else {
                    Self::Terminal
                }
            },
            |(_, class)| *class,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_has_one_class() {
        for (at, (code, _)) in TABLE.iter().enumerate() {
            let again = TABLE[at + 1..].iter().any(|(other, _)| other == code);
            assert!(!again, "{code} stands twice");
        }
    }

    #[test]
    fn only_limits_are_tried_again_and_doubt_never_is() {
        for code in [130_429, 131_056, 80_007, 4] {
            assert_eq!(Class::of(code, true), Class::Retry, "{code}");
        }
        for code in [131_026, 131_047, 132_000, 132_001] {
            assert_eq!(Class::of(code, false), Class::Terminal, "{code}");
        }
        for code in [190, 131_048, 200, 299] {
            assert!(matches!(Class::of(code, false), Class::Pause(_)), "{code}");
        }
        assert_eq!(Class::of(131_000, true), Class::Unknown);
        assert_eq!(Class::of(999_999, true), Class::Unknown);
        assert_eq!(Class::of(999_999, false), Class::Terminal);
    }
}
