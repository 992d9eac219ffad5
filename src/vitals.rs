//! The tasks that the service can't be without: that they live, and whether they get on.
//!
//! Each has a [`Pulse`]: it says when something is under way, and how it went. `/readyz` asks all of
//! them ([`Vitals::ailing`]), so a process whose tasks are stuck, fail, or have died is taken out of
//! service. [`supervise`] starts a task again that has panicked.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::time::Instant;

/// What is under way for longer is stuck: each use of the database ends sooner by its own deadline.
const MOST_STILL: Duration = Duration::from_secs(10);
/// How long a failure counts, unless something goes well before.
const FAILURE_COUNTS: Duration = Duration::from_secs(10);
/// The pause before a task that panicked is started again.
const RESTART: Duration = Duration::from_secs(1);

/// All pulses of a process; clones share them.
#[derive(Clone, Default)]
pub struct Vitals(Arc<Mutex<Vec<Pulse>>>);

/// What is wrong with a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ailment {
    /// What is under way does not end.
    Stuck,
    /// What was last tried has failed, for want of the database.
    Failing,
    /// It has panicked and does not run.
    Down,
}

impl Vitals {
    /// The pulse of a task that begins to count from now on.
    #[must_use]
    pub fn register(&self, name: &'static str) -> Pulse {
        let pulse = Pulse(Arc::new(Shared {
            name,
            course: Mutex::default(),
        }));
        self.pulses().push(pulse.clone());
        pulse
    }

    /// The tasks that don't get on.
    #[must_use]
    pub fn ailing(&self) -> Vec<(&'static str, Ailment)> {
        self.ailing_at(Instant::now())
    }

    fn ailing_at(&self, now: Instant) -> Vec<(&'static str, Ailment)> {
        let pulses = self.pulses();
        let ailing = pulses.iter().filter_map(|pulse| {
            let ailment = pulse.course().ailment(now)?;
            Some((pulse.0.name, ailment))
        });
        ailing.collect()
    }

    fn pulses(&self) -> MutexGuard<'_, Vec<Pulse>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a task gets on; clones share it.
#[derive(Clone)]
pub struct Pulse(Arc<Shared>);

struct Shared {
    name: &'static str,
    course: Mutex<Course>,
}

#[derive(Default)]
struct Course {
    under_way: u32,
    /// When something last ended, or began while nothing was under way.
    moved_at: Option<Instant>,
    failed_at: Option<Instant>,
    is_down: bool,
}

impl Course {
    fn ailment(&self, now: Instant) -> Option<Ailment> {
        let longer_ago = |at: Option<Instant>, time| at.is_some_and(|at| now > at + time);
        if self.is_down {
            Some(Ailment::Down)
        } else if self.under_way > 0 && longer_ago(self.moved_at, MOST_STILL) {
            Some(Ailment::Stuck)
        } else if self.failed_at.is_some() && !longer_ago(self.failed_at, FAILURE_COUNTS) {
            Some(Ailment::Failing)
        } else {
            None
        }
    }
}

impl Pulse {
    /// Something begins that has to end; it has ended when the guard is dropped.
    #[must_use]
    pub fn begin(&self) -> UnderWay {
        let mut course = self.course();
        if course.under_way == 0 {
            course.moved_at = Some(Instant::now());
        }
        course.under_way += 1;
        UnderWay(self.clone())
    }

    /// What was tried went well, or failed for want of the database.
    pub fn note(&self, went_well: bool) {
        self.course().failed_at = (!went_well).then(Instant::now);
    }

    /// Whether what was last tried has failed a moment ago.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        self.course().ailment(Instant::now()) == Some(Ailment::Failing)
    }

    fn course(&self) -> MutexGuard<'_, Course> {
        self.0.course.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Something that a task does.
pub struct UnderWay(Pulse);

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut course = self.0.course();
        course.under_way -= 1;
        course.moved_at = Some(Instant::now());
    }
}

/// Runs a task to its end. When it panics, that is logged and counted, and it is started again.
pub async fn supervise<F: Future<Output = ()>>(pulse: Pulse, mut task: impl FnMut() -> F) {
    // What a task shares with others stands behind locks or in the database, both of which know how
    // to go on after a panic.
    while let Err(panic) = AssertUnwindSafe(task()).catch_unwind().await {
        died(&pulse, &*panic);
        tokio::time::sleep(RESTART).await;
        pulse.course().is_down = false;
    }
}

fn died(pulse: &Pulse, panic: &(dyn Any + Send)) {
    let task = pulse.0.name;
    pulse.course().is_down = true;
    metrics::counter!("keyfold_task_panics_total", "task" => task).increment(1);
    let words = panic_text(panic);
    tracing::error!(task, panic = words, "a task panicked and is started again");
}

/// What a panic says.
#[must_use]
pub fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&'static str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without words")
}

#[cfg(test)]
mod tests {
    use super::*;

    const A_MOMENT: Duration = Duration::from_millis(1);

    #[test]
    fn what_does_not_end_is_stuck_until_something_does() {
        let vitals = Vitals::default();
        let pulse = vitals.register("writes");
        let began = Instant::now();
        let first = pulse.begin();
        let second = pulse.begin();
        assert_eq!(vitals.ailing_at(began + MOST_STILL), []);
        let stuck = [("writes", Ailment::Stuck)];
        let later = || Instant::now() + MOST_STILL + A_MOMENT;
        assert_eq!(vitals.ailing_at(later()), stuck);
        drop(second);
        assert_eq!(vitals.ailing(), []);
        assert_eq!(vitals.ailing_at(later()), stuck);
        drop(first);
        assert_eq!(vitals.ailing_at(later()), [], "nothing is under way");
    }

    #[test]
    fn a_failure_counts_until_something_goes_well_but_not_for_ever() {
        let vitals = Vitals::default();
        let pulse = vitals.register("writes");
        pulse.note(false);
        assert_eq!(vitals.ailing(), [("writes", Ailment::Failing)]);
        assert!(pulse.is_failing());
        let later = Instant::now() + FAILURE_COUNTS + A_MOMENT;
        assert_eq!(vitals.ailing_at(later), []);
        pulse.note(true);
        assert_eq!(vitals.ailing(), []);
    }

    #[tokio::test]
    async fn a_task_that_panics_is_started_again_until_it_ends() {
        let vitals = Vitals::default();
        let pulse = vitals.register("followers");
        let mut starts = 0;
        let (within, seen) = (pulse.clone(), vitals.clone());
        let supervised = supervise(pulse, move || {
            starts += 1;
            let pulse = within.clone();
            async move {
                let _under_way = pulse.begin();
                assert_eq!(starts, 3, "start {starts}");
            }
        });
        let down = async {
            while seen.ailing() != [("followers", Ailment::Down)] {
                tokio::task::yield_now().await;
            }
        };
        tokio::join!(supervised, down);
        assert_eq!(vitals.ailing(), []);
    }
}
