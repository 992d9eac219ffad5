//! Which connections are open, and which one goes first when there is no place for another.
//!
//! A connection that rests costs its client nothing. So when all places are taken, or all that one
//! address may have, the one that has rested for longest is closed: first of those on which no valid
//! key was ever sent. One with a request under way, or still arriving, is never closed for another.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hashbrown::HashMap;
use tokio_util::sync::CancellationToken;

use super::socket::Activity;

/// All connections of a server.
#[derive(Default)]
pub(super) struct Connections(Mutex<All>);

#[derive(Default)]
struct All {
    next: u64,
    /// In the order in which they came.
    open: BTreeMap<u64, One>,
    addresses: HashMap<IpAddr, usize>,
}

struct One {
    address: IpAddr,
    activity: Arc<Activity>,
    /// Ends it when nothing is under way on it.
    end: CancellationToken,
}

impl Connections {
    /// Notes a connection until the entry is dropped.
    pub(super) fn enter(
        self: &Arc<Self>,
        address: IpAddr,
        activity: Arc<Activity>,
        end: CancellationToken,
    ) -> Entry {
        let mut all = self.all();
        let number = all.next;
        all.next += 1;
        *all.addresses.entry(address).or_default() += 1;
        let one = One {
            address,
            activity,
            end,
        };
        all.open.insert(number, one);
        Entry {
            connections: Arc::clone(self),
            number,
        }
    }

    /// How many an address has.
    pub(super) fn of(&self, address: IpAddr) -> usize {
        self.all().addresses.get(&address).copied().unwrap_or(0)
    }

    /// Ends one that rests, of this address if one is named; false when none does.
    pub(super) fn end_one(&self, address: Option<IpAddr>) -> bool {
        let all = self.all();
        let rests = all.open.values().filter(|one| {
            let is_meant = address.is_none_or(|address| address == one.address);
            is_meant && !one.end.is_cancelled() && one.activity.rests()
        });
        // Of equal ones the first: the oldest.
        let first = rests.min_by_key(|one| one.activity.has_key());
        first.map(|one| one.end.cancel()).is_some()
    }

    fn all(&self) -> MutexGuard<'_, All> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An open connection.
pub(super) struct Entry {
    connections: Arc<Connections>,
    number: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut all = self.connections.all();
        let Some(one) = all.open.remove(&self.number) else {
            return;
        };
        if let Some(count) = all.addresses.get_mut(&one.address) {
            *count -= 1;
            if *count == 0 {
                all.addresses.remove(&one.address);
            }
        }
    }
}
