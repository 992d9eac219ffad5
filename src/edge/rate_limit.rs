//! How many requests a store may make a minute, per process: a token bucket. Requests that name a key
//! and end before it is known which store they are about count against the key in the same way.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use governor::clock::{Clock as _, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::keyed::DefaultKeyedStateStore;
use governor::{Quota, RateLimiter as Buckets};
use http::{HeaderMap, HeaderName, HeaderValue};
use uuid::Uuid;

use crate::error::Error;

/// After this many requests the buckets that are full again are forgotten.
const SWEEP_EVERY: u32 = 16_384;

/// On whose account a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Account {
    Store(i64),
    Key(Uuid),
}

type AllBuckets =
    Buckets<Account, DefaultKeyedStateStore<Account>, DefaultClock, StateInformationMiddleware>;

/// A bucket for each store; it holds a minute's requests and refills evenly.
pub struct RateLimiter {
    /// `None` when limiting is off.
    on: Option<On>,
}

struct On {
    per_minute: NonZeroU32,
    buckets: AllBuckets,
    since_sweep: AtomicU32,
}

/// Whether one request may go on, and what its answer says about the next ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// `None` when limiting is off.
    pub state: Option<BucketState>,
    /// Set for a refused request: whole seconds until the next is let through, at least 1.
    pub retry_after_s: Option<u64>,
}

/// A store's bucket after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketState {
    /// Requests a minute, and at once after a pause.
    pub limit: u32,
    /// Requests that would be let through now.
    pub remaining: u32,
    /// After a refusal, whole seconds until a request is let through; else until the bucket is full.
    pub reset_s: u64,
}

impl RateLimiter {
    /// A limiter of `per_minute` requests for each store; 0 is off.
    #[must_use]
    pub fn new(per_minute: u32) -> Self {
        let on = NonZeroU32::new(per_minute).map(|per_minute| On {
            per_minute,
            buckets: Buckets::keyed(Quota::per_minute(per_minute)).with_middleware(),
            since_sweep: AtomicU32::new(0),
        });
        Self { on }
    }

    /// Takes one request from a store's bucket. A refusal takes nothing, so it makes no later
    /// request wait longer.
    pub fn check(&self, store_id: i64) -> Decision {
        self.check_account(Account::Store(store_id))
    }

    /// Takes one request from a key's bucket.
    ///
    /// # Errors
    /// `RateLimited` when it is empty.
    pub fn charge_key(&self, key_id: Uuid) -> Result<(), Error> {
        self.check_account(Account::Key(key_id)).admit()
    }

    fn check_account(&self, account: Account) -> Decision {
        match &self.on {
            None => Decision {
                state: None,
                retry_after_s: None,
            },
            Some(on) => on.check(account),
        }
    }
}

impl On {
    fn check(&self, account: Account) -> Decision {
        self.sweep_now_and_then();
        let limit = self.per_minute.get();
        let (remaining, reset_s, retry_after_s) = match self.buckets.check_key(&account) {
            Ok(bucket) => {
                let remaining = bucket.remaining_burst_capacity();
                let missing = u64::from(limit.saturating_sub(remaining));
                (remaining, (missing * 60).div_ceil(u64::from(limit)), None)
            }
            Err(refused) => {
                let wait = refused.wait_time_from(self.buckets.clock().now());
                let wait_s = whole_seconds(wait).max(1);
                (0, wait_s, Some(wait_s))
            }
        };
        Decision {
            state: Some(BucketState {
                limit,
                remaining,
                reset_s,
            }),
            retry_after_s,
        }
    }

    /// Keeps the map at the stores that were active in the last minute.
    fn sweep_now_and_then(&self) {
        if self.since_sweep.fetch_add(1, Ordering::Relaxed) % SWEEP_EVERY == SWEEP_EVERY - 1 {
            self.buckets.retain_recent();
        }
    }
}

fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

impl Decision {
    /// Lets the request go on or not.
    ///
    /// # Errors
    /// `RateLimited`.
    pub fn admit(&self) -> Result<(), Error> {
        match self.retry_after_s {
            None => Ok(()),
            Some(retry_after_s) => Err(Error::RateLimited { retry_after_s }),
        }
    }

    /// Writes `X-RateLimit-Limit`, `-Remaining` and `-Reset`; nothing while limiting is off.
    pub fn describe(&self, headers: &mut HeaderMap) {
        let Some(BucketState {
            limit,
            remaining,
            reset_s,
        }) = self.state
        else {
            return;
        };
        let lines: [(&'static str, HeaderValue); 3] = [
            ("x-ratelimit-limit", limit.into()),
            ("x-ratelimit-remaining", remaining.into()),
            ("x-ratelimit-reset", reset_s.into()),
        ];
        for (name, value) in lines {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_a_minute_are_two_and_a_refusal_does_not_lengthen_the_wait() {
        let limiter = RateLimiter::new(2);
        let first = limiter.check(7);
        let state = BucketState {
            limit: 2,
            remaining: 1,
            reset_s: 30,
        };
        assert_eq!(
            first,
            Decision {
                state: Some(state),
                retry_after_s: None
            }
        );
        assert_eq!(
            limiter.check(7).state.map(|s| (s.remaining, s.reset_s)),
            Some((0, 60))
        );
        for _ in 0..100 {
            let refused = limiter.check(7);
            let Err(Error::RateLimited { retry_after_s }) = refused.admit() else {
                panic!("the third request was let through");
            };
            assert!((1..=30).contains(&retry_after_s), "{retry_after_s}");
            assert_eq!(
                refused.state.map(|s| (s.remaining, s.reset_s)),
                Some((0, retry_after_s))
            );
        }
        assert!(limiter.check(8).admit().is_ok(), "stores share nothing");
    }

    #[test]
    fn the_headers_say_what_is_left() {
        let mut headers = HeaderMap::new();
        RateLimiter::new(60).check(1).describe(&mut headers);
        assert_eq!(headers["x-ratelimit-limit"], "60");
        assert_eq!(headers["x-ratelimit-remaining"], "59");
        assert_eq!(headers["x-ratelimit-reset"], "1");
    }

    #[test]
    fn off_lets_all_through_and_says_nothing() {
        let limiter = RateLimiter::new(0);
        let mut headers = HeaderMap::new();
        for _ in 0..1000 {
            let decision = limiter.check(1);
            assert!(decision.admit().is_ok());
            decision.describe(&mut headers);
        }
        assert!(headers.is_empty());
    }

    #[test]
    fn full_buckets_are_forgotten() {
        let limiter = RateLimiter::new(10_000_000);
        for store_id in 0..2 * i64::from(SWEEP_EVERY) {
            limiter.check(store_id);
        }
        std::thread::sleep(Duration::from_millis(5));
        for _ in 0..SWEEP_EVERY {
            limiter.check(1);
        }
        let kept = limiter.on.as_ref().map_or(0, |on| on.buckets.len());
        assert!(kept <= 1, "{kept} buckets");
    }
}
