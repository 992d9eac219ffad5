//! What is known of a send: a status, and the timeline behind it.
//!
//! A provider's statuses come late, twice and out of order, so a status is applied by its rank: the
//! timeline keeps everything that was told once, the message's status is the highest of it.
//!
//! ```text
//!  rank   0 queued   1 unknown   2 sent   3 failed   4 delivered   5 read
//! ```
//!
//! `unknown` is below `sent`: any status of the provider settles it. `failed` is above `sent`, since a
//! message may fail after it was accepted, and below `delivered`: what arrived has arrived.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What has become of a message. In order of rank.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
#[schema(as = MessageStatus)]
pub enum Status {
    /// Accepted by us, waits to be handed to the provider.
    Queued,
    /// The provider may or may not have it; never sent again by itself.
    Unknown,
    /// The provider has it.
    Sent,
    /// It was not or could not be delivered.
    Failed,
    /// It is on the recipient's device.
    Delivered,
    /// The recipient has seen it.
    Read,
}

impl Status {
    /// As it is stored and answered.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Unknown => "unknown",
            Self::Sent => "sent",
            Self::Failed => "failed",
            Self::Delivered => "delivered",
            Self::Read => "read",
        }
    }

    /// Reads what is stored, or what a provider says.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [
            Self::Queued,
            Self::Unknown,
            Self::Sent,
            Self::Failed,
            Self::Delivered,
            Self::Read,
        ]
        .into_iter()
        .find(|status| status.as_str() == text)
    }
}

/// One step of a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Step {
    /// What it became.
    pub status: Status,
    /// When, by the clock of whoever knew it: the provider's for what the provider told.
    pub at: DateTime<Utc>,
    /// The reason's code: the provider's number as text, or one of ours.
    #[serde(default)]
    #[schema(example = "131026")]
    pub code: Option<String>,
    /// The reason in words; null once the person has been erased.
    #[serde(default)]
    pub detail: Option<String>,
}

impl Step {
    /// A step without a reason.
    #[must_use]
    pub fn plain(status: Status, at: DateTime<Utc>) -> Self {
        Self {
            status,
            at,
            code: None,
            detail: None,
        }
    }

    /// A step with its reason.
    #[must_use]
    pub fn because(status: Status, at: DateTime<Utc>, code: &str, detail: Option<&str>) -> Self {
        Self {
            code: Some(code.to_owned()),
            detail: detail.map(str::to_owned),
            ..Self::plain(status, at)
        }
    }
}

/// Most steps that are kept: a provider that sent ever new ones must not fill a row.
const MOST_STEPS: usize = 32;

/// The steps of a message in order of time, and what it is by them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Course {
    /// What the message is.
    pub status: Status,
    /// What happened, oldest first.
    pub timeline: Vec<Step>,
}

impl Course {
    /// A message that was just accepted.
    #[must_use]
    pub fn begin(now: DateTime<Utc>) -> Self {
        Self {
            status: Status::Queued,
            timeline: vec![Step::plain(Status::Queued, now)],
        }
    }

    /// Takes in a step; says whether anything changed. The same status told again is no news, nor is
    /// that nobody knows once somebody does.
    pub fn apply(&mut self, step: Step) -> bool {
        if step.status == Status::Unknown && self.status > Status::Unknown {
            return false;
        }
        let known = self
            .since_last_queued()
            .any(|old| old.status == step.status);
        if known {
            return false;
        }
        self.make_room();
        self.status = self.status.max(step.status);
        self.insert(step);
        true
    }

    /// Begins anew, because an operator says so.
    pub fn requeue(&mut self, now: DateTime<Utc>) {
        self.status = Status::Queued;
        self.make_room();
        self.timeline.push(Step::plain(Status::Queued, now));
    }

    fn make_room(&mut self) {
        if self.timeline.len() >= MOST_STEPS {
            self.timeline.remove(0);
        }
    }

    /// The step that made the message what it is, where that has a reason.
    #[must_use]
    pub fn reason(&self) -> Option<&Step> {
        self.since_last_queued()
            .find(|step| step.status == self.status && step.code.is_some())
    }

    /// Steps of the present attempt: an earlier one's failure is no longer news about this one.
    fn since_last_queued(&self) -> impl Iterator<Item = &Step> {
        let last = self
            .timeline
            .iter()
            .rposition(|step| step.status == Status::Queued)
            .unwrap_or(0);
        self.timeline[last..].iter()
    }

    /// By time, in the whole seconds that the provider tells, then by rank; its clock may be behind
    /// ours, so never before the last `queued`.
    fn insert(&mut self, step: Step) {
        let at = self
            .timeline
            .iter()
            .rposition(|old| {
                old.status == Status::Queued
                    || (old.at.timestamp(), old.status) <= (step.at.timestamp(), step.status)
            })
            .map_or(0, |last| last + 1);
        self.timeline.insert(at, step);
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    fn second(n: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_700_000_000 + n, 0).expect("in range")
    }

    fn statuses(course: &Course) -> Vec<&'static str> {
        let steps = course.timeline.iter();
        steps.map(|step| step.status.as_str()).collect()
    }

    #[test]
    fn every_order_of_arrival_ends_the_same() {
        let steps = [
            Step::plain(Status::Sent, second(1)),
            Step::plain(Status::Delivered, second(2)),
            Step::plain(Status::Read, second(3)),
        ];
        for order in [
            [0, 1, 2],
            [0, 2, 1],
            [1, 0, 2],
            [1, 2, 0],
            [2, 0, 1],
            [2, 1, 0],
        ] {
            let mut course = Course::begin(second(0));
            for at in order {
                assert!(course.apply(steps[at].clone()));
                assert!(!course.apply(steps[at].clone()), "told twice");
            }
            assert_eq!(course.status, Status::Read);
            assert_eq!(statuses(&course), ["queued", "sent", "delivered", "read"]);
        }
    }

    #[test]
    fn unknown_is_settled_by_whatever_the_provider_says() {
        for (status, ends) in [
            (Status::Sent, Status::Sent),
            (Status::Failed, Status::Failed),
            (Status::Delivered, Status::Delivered),
        ] {
            let mut course = Course::begin(second(0));
            course.apply(Step::because(Status::Unknown, second(1), "timeout", None));
            assert_eq!(
                course.reason().and_then(|step| step.code.as_deref()),
                Some("timeout")
            );
            course.apply(Step::plain(status, second(2)));
            assert_eq!(course.status, ends);
            assert_eq!(course.reason(), None);
        }
    }

    #[test]
    fn a_failure_counts_after_sent_and_not_after_delivered() {
        let failed = Step::because(Status::Failed, second(3), "131026", None);
        let mut course = Course::begin(second(0));
        course.apply(Step::plain(Status::Sent, second(1)));
        course.apply(failed.clone());
        assert_eq!(course.status, Status::Failed);
        let mut course = Course::begin(second(0));
        course.apply(Step::plain(Status::Delivered, second(1)));
        assert!(course.apply(failed), "it is kept in the timeline");
        assert_eq!(course.status, Status::Delivered);
        assert_eq!(course.reason(), None);
    }

    #[test]
    fn a_provider_whose_clock_is_behind_does_not_come_before_queued() {
        let mut course = Course::begin(second(0));
        course.apply(Step::plain(Status::Sent, second(0) - TimeDelta::hours(1)));
        assert_eq!(statuses(&course), ["queued", "sent"]);
    }

    #[test]
    fn what_is_queued_again_can_fail_again() {
        let mut course = Course::begin(second(0));
        course.apply(Step::because(Status::Failed, second(1), "132001", None));
        course.requeue(second(2));
        assert_eq!(course.status, Status::Queued);
        assert_eq!(course.reason(), None);
        assert!(course.apply(Step::plain(Status::Sent, second(3))));
        assert_eq!(statuses(&course), ["queued", "failed", "queued", "sent"]);
        for n in 0..100 {
            course.requeue(second(4 + n));
        }
        assert!(course.timeline.len() <= MOST_STEPS);
        assert!(course.apply(Step::plain(Status::Delivered, second(200))));
        assert_eq!(course.status, Status::Delivered);
        assert!(course.timeline.len() <= MOST_STEPS);
    }
}
