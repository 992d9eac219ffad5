//! Requests to addresses that merchants choose: they must not lead into the operator's network.
//!
//! ```text
//!  saved    check_now   the URL, and what its name resolves to now
//!  called   check       the URL again: an address written in it is never resolved
//!           resolver    the name: only what may be called is handed on, and connected to
//! ```
//!
//! A name can change its address at any time, so it is judged where the connection is made, by the
//! address that is connected to. A connection that is used again was judged when it was made.
//! Redirects are not followed, and no proxy is asked.
//!
//! Stores share the look-ups ([`Pot`]), those of saves and those of calls apart: names whose servers
//! never answer hold up the calls of their own store. A call whose name nobody could look up, since all
//! were taken, was not tried.

mod address;
mod client;

#[cfg(test)]
mod tests;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::Uri;
use url::{Host, Url};

use crate::shares::{Pot, Share};

pub use address::{Allowed, is_public};
pub use client::{Answer, Call, CallError, Client, RetryAfter};

/// Names that are asked for at a time, for calls and for exports that are saved. The system's resolver
/// can't be told to stop, and a thread waits for each: names of servers that never answer must not
/// take them all.
const MOST_LOOKUPS_OF_CALLS: usize = 48;
const MOST_LOOKUPS_OF_SAVES: usize = 16;

/// Finds the addresses of a name; the tests have one of their own.
type Lookup = Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> + Send + Sync>;

/// How long things may take; the tests wait for less.
#[derive(Clone, Copy)]
struct Times {
    /// Until a name is resolved that is about to be saved.
    lookup: Duration,
    /// Until a name to be called finds its turn to be looked up. Less than the one below.
    turn: Duration,
    /// Until a connection stands.
    connect: Duration,
    /// The whole call. More than the one above, so that it never cuts off a connection attempt.
    call: Duration,
    /// Of that, until the rest of an answer has come whose status is known.
    drain: Duration,
}

/// Why an address is not called: sentences about the member that holds it. They don't tell what a
/// name resolves to, which would map the operator's network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Another scheme, or something that no request can be sent to.
    #[error("must be an absolute http or https URL")]
    NotHttp,
    /// They would be stored and logged in the clear; headers are the place for them.
    #[error("must not contain a user name or a password")]
    Credentials,
    /// An address that is not on the internet.
    #[error(
        "leads to an address inside the operator's network (KEYFOLD_ALLOW_PRIVATE_TARGETS allows \
         exceptions)"
    )]
    Internal,
}

/// No look-up of a name was to be had in time.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("too many names are being looked up")]
struct NoTurn;

/// Judges addresses. Cheap to clone; all clones share the bounds on look-ups, so one is enough.
#[derive(Clone)]
pub struct Guard {
    allowed: Arc<Allowed>,
    lookup: Lookup,
    of_calls: Pot,
    of_saves: Pot,
    times: Times,
}

impl Guard {
    /// A guard that lets everything public pass, and what is allowed besides.
    #[must_use]
    pub fn new(allowed: Allowed) -> Self {
        Self {
            allowed: Arc::new(allowed),
            lookup: system_lookup(),
            of_calls: Pot::new(MOST_LOOKUPS_OF_CALLS),
            of_saves: Pot::new(MOST_LOOKUPS_OF_SAVES),
            times: Times {
                lookup: Duration::from_secs(2),
                turn: Duration::from_secs(2),
                connect: Duration::from_secs(5),
                call: Duration::from_secs(15),
                drain: Duration::from_secs(2),
            },
        }
    }

    /// Judges what is written in a URL, without the network.
    ///
    /// # Errors
    /// Why it must not be called.
    pub fn check(&self, url: &Url) -> Result<(), Refused> {
        // The client reads the URL again, by another parser that takes less: both must see the same
        // host.
        let is_agreed = Uri::try_from(url.as_str()).is_ok_and(|uri| uri.host() == url.host_str());
        if !["http", "https"].contains(&url.scheme()) || !is_agreed {
            return Err(Refused::NotHttp);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Refused::Credentials);
        }
        let may_pass = match url.host().ok_or(Refused::NotHttp)? {
            Host::Ipv4(address) => self.may_reach(address.into()),
            Host::Ipv6(address) => self.may_reach(address.into()),
            Host::Domain(name) if !is_name(name) => return Err(Refused::NotHttp),
            Host::Domain(name) => {
                !is_local(name) || self.allowed.name(name) || self.allows_loopback()
            }
        };
        if may_pass {
            Ok(())
        } else {
            Err(Refused::Internal)
        }
    }

    /// The same for a store, and judges what a name resolves to now. A name that can't be resolved passes: the
    /// receiver may come later, and the call judges again.
    ///
    /// # Errors
    /// Why it must not be called.
    pub async fn check_now(&self, store_id: i64, url: &Url) -> Result<(), Refused> {
        self.check(url)?;
        let Some(Host::Domain(name)) = url.host() else {
            return Ok(());
        };
        // A local name that passed has one allowed address at least, and may have others.
        if is_local(name) || self.allowed.name(name) {
            return Ok(());
        }
        let lookup = async {
            let turn = self.of_saves.wait(store_id, 1).await;
            self.look_up(turn, name.to_owned()).await
        };
        match tokio::time::timeout(self.times.lookup, lookup).await {
            Ok(Ok(found)) if !found.iter().all(|address| self.may_reach(*address)) => {
                Err(Refused::Internal)
            }
            _ => Ok(()),
        }
    }

    /// The addresses of a name that may be connected to.
    async fn resolve(&self, store_id: i64, name: String) -> Result<Vec<IpAddr>, ResolveError> {
        let turn = self.of_calls.wait(store_id, 1);
        let turn = tokio::time::timeout(self.times.turn, turn).await;
        let turn = turn.map_err(|_| NoTurn)?;
        let mut found = self.look_up(turn, name.clone()).await?;
        if found.is_empty() {
            return Err(io::Error::from(io::ErrorKind::NotFound).into());
        }
        if !self.allowed.name(&name) {
            found.retain(|address| self.may_reach(*address));
        }
        if found.is_empty() {
            return Err(Refused::Internal.into());
        }
        Ok(found)
    }

    /// Looks a name up. In a task of its own, since the resolver goes on when nobody waits any more: the
    /// turn ends with the look-up.
    async fn look_up(&self, turn: Share, name: String) -> io::Result<Vec<IpAddr>> {
        let found = (self.lookup)(name);
        let looked_up = tokio::spawn(async move {
            let _turn = turn;
            found.await
        });
        looked_up.await.map_err(io::Error::other)?
    }

    fn may_reach(&self, address: IpAddr) -> bool {
        is_public(address) || self.allowed.address(address)
    }

    fn allows_loopback(&self) -> bool {
        self.allowed.address(Ipv4Addr::LOCALHOST.into())
            || self.allowed.address(Ipv6Addr::LOCALHOST.into())
    }
}

/// The resolver's way to say [`Refused`] through the layers of a client.
type ResolveError = Box<dyn std::error::Error + Send + Sync>;

/// Whether no part of a name is empty. To the parser of URLs `127.0.0.1..` is not an address but a
/// name: no resolver is to find an address in it after all.
fn is_name(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    name.split('.').all(|part| !part.is_empty())
}

/// `localhost` and names below it, which lead to the machine itself (RFC 6761, section 6.3).
fn is_local(name: &str) -> bool {
    let name = name.trim_end_matches('.');
    let last = name.rsplit('.').next().unwrap_or(name);
    last.eq_ignore_ascii_case("localhost")
}

fn system_lookup() -> Lookup {
    Arc::new(|name| {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            Ok(found.map(|address| address.ip()).collect())
        })
    })
}
