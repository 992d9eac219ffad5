//! When a call that failed is made again.

use chrono::{DateTime, TimeDelta, Utc};

use crate::targets::RetryAfter;

/// Waits after failed calls; after one more it is given up.
const WAITS_S: [i64; 7] = [5, 300, 1_800, 7_200, 18_000, 36_000, 36_000];
/// A receiver may ask for no longer wait.
const MOST_ASKED: TimeDelta = TimeDelta::hours(24);

/// How long to wait after so many failed calls in a row, with a tenth of it more or less; none: it
/// is given up.
#[must_use]
pub fn wait(failed: i32) -> Option<TimeDelta> {
    let place = usize::try_from(failed).ok()?.checked_sub(1)?;
    let seconds = WAITS_S.get(place)?;
    let per_mille = rand::random_range(900..=1_100);
    Some(TimeDelta::milliseconds(seconds * per_mille))
}

/// The time before which a receiver wants no call.
#[must_use]
pub fn asked(retry_after: RetryAfter, now: DateTime<Utc>) -> DateTime<Utc> {
    let latest = now + MOST_ASKED;
    let asked = match retry_after {
        RetryAfter::After(wait) => TimeDelta::from_std(wait)
            .ok()
            .and_then(|wait| now.checked_add_signed(wait))
            .unwrap_or(latest),
        RetryAfter::At(at) => at,
    };
    asked.clamp(now, latest)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn seven_waits_grow_and_the_eighth_failure_is_the_last() {
        for (failed, seconds) in (1..).zip(WAITS_S) {
            let wait = wait(failed).unwrap().num_milliseconds();
            assert!(
                (seconds * 900..=seconds * 1_100).contains(&wait),
                "{failed}"
            );
        }
        for none in [0, 8, 9, -1] {
            assert_eq!(wait(none), None);
        }
    }

    #[test]
    fn a_receiver_can_ask_for_a_day_at_most() {
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let after = |seconds| RetryAfter::After(Duration::from_secs(seconds));
        for (retry_after, seconds) in [
            (after(0), 0),
            (after(7), 7),
            (after(u64::MAX), 86_400),
            (RetryAfter::At(now - TimeDelta::hours(1)), 0),
            (RetryAfter::At(now + TimeDelta::minutes(1)), 60),
            (RetryAfter::At(now + TimeDelta::days(9)), 86_400),
        ] {
            assert_eq!(asked(retry_after, now), now + TimeDelta::seconds(seconds));
        }
    }
}
