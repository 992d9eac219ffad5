//! Which processors our threads use, where there are just two of them.
//!
//! Beside a Postgres on the same two processors there are three who are busy: its process, the
//! thread that serves requests and the thread of the lanes, of which the last two wake each other
//! all the time. The kernel looks for an idle processor only while the machine is not much used
//! (Linux, `select_idle_cpu`), so one of them often waits behind the other while a processor has
//! nothing to do. Kept apart, they don't; Postgres and everybody else go where there is room.

/// The one of two processors that is for requests, and the one that is for the lanes.
#[derive(Clone, Copy, Debug)]
pub struct Apart {
    #[cfg(target_os = "linux")]
    both: nix::sched::CpuSet,
    #[cfg(target_os = "linux")]
    requests: nix::sched::CpuSet,
    #[cfg(target_os = "linux")]
    lanes: nix::sched::CpuSet,
}

#[cfg(target_os = "linux")]
impl Apart {
    /// The two that the calling thread may use; none where there are more or fewer.
    #[must_use]
    pub fn here() -> Option<Self> {
        use nix::sched::{CpuSet, sched_getaffinity};

        let both = sched_getaffinity(nix::unistd::Pid::from_raw(0)).ok()?;
        let may_use = |processor: &usize| both.is_set(*processor).unwrap_or(false);
        let mut allowed = (0..CpuSet::count()).filter(may_use);
        let (first, second) = (allowed.next()?, allowed.next()?);
        if allowed.next().is_some() {
            return None;
        }
        let only = |processor| {
            let mut set = CpuSet::new();
            set.set(processor).ok()?;
            Some(set)
        };
        Some(Self {
            both,
            requests: only(second)?,
            lanes: only(first)?,
        })
    }

    /// Keeps the calling thread, which serves requests, from the lanes' processor.
    pub fn serve_requests(&self) {
        keep_to(&self.requests);
    }

    /// Keeps the calling thread, which is the lanes', from the processor of requests.
    pub fn serve_lanes(&self) {
        keep_to(&self.lanes);
    }

    /// Lets the calling thread use both: a thread begins with what the one had that made it.
    pub fn serve_neither(&self) {
        keep_to(&self.both);
    }
}

/// Where the system does not allow it, things stay as they are: it is about speed alone.
#[cfg(target_os = "linux")]
fn keep_to(processors: &nix::sched::CpuSet) {
    if let Err(error) = nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), processors) {
        tracing::debug!(%error, "a thread can't be kept to a processor");
    }
}

#[cfg(not(target_os = "linux"))]
impl Apart {
    /// None: the system has no such thing, or does without it.
    #[must_use]
    pub fn here() -> Option<Self> {
        None
    }

    /// Nothing.
    pub fn serve_requests(&self) {}

    /// Nothing.
    pub fn serve_lanes(&self) {}

    /// Nothing.
    pub fn serve_neither(&self) {}
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::collections::BTreeSet;
    use std::thread;

    use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
    use nix::unistd::Pid;

    use super::*;

    fn used() -> BTreeSet<usize> {
        let set = sched_getaffinity(Pid::from_raw(0)).expect("ours");
        let is_used = |processor: &usize| set.is_set(*processor).expect("in range");
        (0..CpuSet::count()).filter(is_used).collect()
    }

    fn use_only(processors: impl IntoIterator<Item = usize>) {
        let mut set = CpuSet::new();
        for processor in processors {
            set.set(processor).expect("in range");
        }
        sched_setaffinity(Pid::from_raw(0), &set).expect("fewer are always allowed");
    }

    /// In a thread of its own: what it does to itself, the other tests don't notice.
    fn alone(test: impl FnOnce() + Send + 'static) {
        thread::spawn(test).join().expect("no panic");
    }

    #[test]
    fn two_processors_are_kept_apart_and_given_back() {
        alone(|| {
            let all = used();
            let two: BTreeSet<usize> = all.into_iter().take(2).collect();
            if two.len() < 2 {
                assert!(Apart::here().is_none());
                return;
            }
            use_only(two.iter().copied());
            let apart = Apart::here().expect("two");
            apart.serve_requests();
            let requests = used();
            apart.serve_lanes();
            let lanes = used();
            assert_eq!((requests.len(), lanes.len()), (1, 1));
            assert_eq!(&requests | &lanes, two);
            let inherited = thread::spawn(used).join().expect("no panic");
            assert_eq!(inherited, lanes);
            apart.serve_neither();
            assert_eq!(used(), two);
        });
    }

    #[test]
    fn one_processor_is_not_divided() {
        alone(|| {
            use_only(used().into_iter().take(1));
            assert!(Apart::here().is_none());
        });
    }
}
