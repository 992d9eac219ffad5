//! What the clients together know of the records while they write: bodies to send again, versions
//! to name in preconditions.

use std::collections::HashMap;
use std::sync::Mutex;

use super::history::Shown;
use super::plan::Target;
use super::rules::{Change, Members, Outcome};

/// Notes on all records of a round.
#[derive(Default)]
pub struct Notes(Mutex<HashMap<Target, Note>>);

/// Notes on one record.
#[derive(Default)]
struct Note {
    sent: Vec<Sent>,
    /// The newest version that anybody was told of.
    version: usize,
    /// The body of the newest POST that was acknowledged as a change, and its version.
    newest: Option<(usize, Members)>,
}

/// A POST body that was sent.
struct Sent {
    body: Members,
    /// The client that has sent it in bulk. Results of bulk items have no version; when all those
    /// of one body come from one client, one after the other, it is clear which is which.
    owner: Option<usize>,
}

impl Notes {
    fn on<T>(&self, target: Target, act: impl FnOnce(&mut Note) -> T) -> T {
        let mut notes = self.0.lock().expect("no client died");
        act(notes.entry(target).or_default())
    }

    /// A body for a single request to repeat.
    pub fn replay(&self, target: Target, back: usize) -> Option<Members> {
        self.on(target, |note| match (back, &note.newest) {
            (0, Some((_, body))) => Some(body.clone()),
            _ => {
                let at = note.sent.len().checked_sub(back.max(1))?;
                Some(note.sent[at].body.clone())
            }
        })
    }

    /// A body for an item of this client's bulk request to repeat.
    pub fn claim(&self, target: Target, back: usize, client: usize) -> Option<Members> {
        self.on(target, |note| {
            let may = |sent: &&mut Sent| sent.owner.is_none_or(|owner| owner == client);
            let sent = note.sent.iter_mut().rev().filter(may).nth(back)?;
            sent.owner = Some(client);
            Some(sent.body.clone())
        })
    }

    /// The body of the newest acknowledged content.
    pub fn newest(&self, target: Target) -> Option<Members> {
        self.on(target, |note| Some(note.newest.as_ref()?.1.clone()))
    }

    /// The newest version that anybody was told of; 0 for none.
    pub fn version(&self, target: Target) -> usize {
        self.on(target, |note| note.version)
    }

    /// A new body goes out.
    pub fn sends(&self, target: Target, body: &Members, owner: Option<usize>) {
        let body = body.clone();
        self.on(target, |note| note.sent.push(Sent { body, owner }));
    }

    /// An answer came.
    pub fn hears(&self, target: Target, change: &Change, shown: &Shown) {
        self.on(target, |note| {
            note.version = note.version.max(shown.version);
            let is_news = note
                .newest
                .as_ref()
                .is_none_or(|(version, _)| *version < shown.version);
            if let (Change::Put(body), true) = (change, is_news)
                && shown.outcome.is_some_and(Outcome::is_change)
            {
                note.newest = Some((shown.version, body.clone()));
            }
        });
    }
}
