//! Who is calling: API keys, and what they open.
//!
//! A key is `kf_` + 43 base62 characters of randomness + 6 of checksum, so that a mistyped key is
//! refused without asking the database. Keys and stores that were found are remembered for a few
//! seconds, and those that are in use are asked for again all at once before that time is over; what
//! was not found is asked for each time, so a new key or store counts at once.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use http::{HeaderMap, header};
use rand::RngExt as _;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::database::{Connection, Database};
use crate::edge::Holder;
use crate::error::Error;
use crate::state::State;
use crate::tenancy::{self, KeyScope, Store};
use crate::values::Country;

const PREFIX: &str = "kf_";
/// 43 base62 characters hold 256 bits.
const RANDOM_CHARACTERS: usize = 43;
const CHECKSUM_CHARACTERS: usize = 6;
const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// Changes by the command line count within 5 s. Counted from before the database is asked.
const REMEMBERED: Duration = Duration::from_secs(4);
/// After this time what is in use is asked for again.
const RENEWED: Duration = Duration::from_millis(1_500);
/// Look-ups at a time, and how long one waits for its turn.
const ASKING: usize = 16;
const TURN: Duration = Duration::from_secs(2);
/// How long a look-up by key may take, and how often it is tried: of all connections one may have
/// fallen silent, and another one knows at once.
const LOOK_UP: Duration = Duration::from_secs(2);
const TRIES: u32 = 2;
/// Entries remembered at once, of some hundred bytes each; more only means more look-ups.
const MOST_REMEMBERED: usize = 50_000;

/// A new key, in clear.
#[must_use]
pub fn new_key() -> String {
    let mut random = rand::rng();
    let body: String = (0..RANDOM_CHARACTERS)
        .map(|_| char::from(BASE62[random.random_range(0..62)]))
        .collect();
    let checksum = checksum(&body);
    format!("{PREFIX}{body}{checksum}")
}

/// What is stored of a key.
#[must_use]
pub fn digest(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

/// The first bits of the digest of the random part, in base62.
fn checksum(body: &str) -> String {
    let digest = digest(body);
    let mut number = u64::from_be_bytes([
        digest[0], digest[1], digest[2], digest[3], digest[4], digest[5], digest[6], digest[7],
    ]);
    let mut text = String::with_capacity(CHECKSUM_CHARACTERS);
    for _ in 0..CHECKSUM_CHARACTERS {
        text.push(char::from(
            BASE62[usize::try_from(number % 62).unwrap_or(0)],
        ));
        number /= 62;
    }
    text
}

/// Whether a text could be a key of ours at all.
fn is_well_formed(key: &str) -> bool {
    let Some(rest) = key.strip_prefix(PREFIX) else {
        return false;
    };
    if rest.len() != RANDOM_CHARACTERS + CHECKSUM_CHARACTERS || !rest.is_ascii() {
        return false;
    }
    let (body, sum) = rest.split_at(RANDOM_CHARACTERS);
    body.bytes().all(|byte| byte.is_ascii_alphanumeric()) && checksum(body) == sum
}

/// The store that a request is about, proven to be active and open to the caller.
#[derive(Clone, Copy, Debug)]
pub struct StoreAccess {
    /// What every statement names.
    pub store_id: i64,
    /// How national spellings of phone numbers are read.
    pub default_country: Option<Country>,
}

impl StoreAccess {
    /// On whose account the store's requests take memory.
    #[must_use]
    pub fn holder(&self) -> Holder {
        Holder::Store(self.store_id)
    }
}

/// What is remembered of a store.
#[derive(Clone, Copy)]
struct KnownStore {
    team_id: i64,
    default_country: Option<Country>,
}

impl KnownStore {
    /// A store, if it is not paused.
    fn of(store: &Store) -> Option<Self> {
        (store.status == "active").then(|| Self {
            team_id: store.team_id,
            default_country: store.default_country.as_deref().and_then(Country::parse),
        })
    }
}

/// Checks keys and stores.
#[derive(Clone)]
pub struct Gatekeeper {
    pool: Database,
    tasks: TaskTracker,
    keys: Arc<Memory<[u8; 32], KeyScope>>,
    stores: Arc<Memory<i64, KnownStore>>,
    /// Look-ups under way: what is no longer remembered is asked for once, and not by every request
    /// of a busy moment; and when the database is away, all hear of it together.
    key_look_ups: Flights<[u8; 32], KeyScope>,
    store_look_ups: Flights<i64, KnownStore>,
    asking: Arc<Semaphore>,
    /// Set while everything in use is asked for again.
    renewing: Arc<AtomicBool>,
    /// When each key's use was last written down.
    noted: Arc<Mutex<HashMap<Uuid, DateTime<Utc>>>>,
}

impl Gatekeeper {
    /// A gatekeeper that remembers nothing yet.
    #[must_use]
    pub fn new(state: &State) -> Self {
        Self {
            pool: state.pool.clone(),
            tasks: state.tasks.clone(),
            keys: Arc::new(Memory::default()),
            stores: Arc::new(Memory::default()),
            key_look_ups: Flights::default(),
            store_look_ups: Flights::default(),
            asking: Arc::new(Semaphore::new(ASKING)),
            renewing: Arc::default(),
            noted: Arc::default(),
        }
    }

    /// Who is calling: 401 for every key that is not valid, whatever is wrong with it.
    ///
    /// # Errors
    /// `Unauthorized`, or that the database can't be asked.
    pub async fn caller(&self, headers: &HeaderMap) -> Result<KeyScope, Error> {
        let key = bearer(headers)
            .filter(|key| is_well_formed(key))
            .ok_or(Error::Unauthorized)?;
        let digest = digest(key);
        if let Some(scope) = self.remembered(&self.keys, &digest) {
            return Ok(scope);
        }
        let this = self.clone();
        let found = self.key_look_ups.join(&self.tasks, digest, async move {
            let asked = Instant::now();
            let found = this
                .look_up(digest, |connection, digest| {
                    Box::pin(async move { tenancy::find_keys(connection, &[digest]).await })
                })
                .await?;
            let scope = found.into_iter().next().map(|(_, scope)| scope);
            if let Some(scope) = scope {
                this.keys.put(digest, asked, scope);
            }
            Ok(scope)
        });
        found.await?.ok_or(Error::Unauthorized)
    }

    /// Asks the database for one thing, in its turn.
    async fn look_up<K: Copy, T>(
        &self,
        key: K,
        look: for<'c> fn(&'c mut Connection, K) -> BoxFuture<'c, sqlx::Result<T>>,
    ) -> Result<T, Error> {
        let turn = tokio::time::timeout(TURN, self.asking.acquire()).await;
        let _turn = turn.map_err(|_| Error::Overloaded)?;
        let mut tries = 1;
        loop {
            let found = async {
                let mut connection = self.pool.acquire().await?;
                connection.allow(LOOK_UP);
                look(&mut connection, key).await
            };
            match found.await {
                Ok(found) => return Ok(found),
                Err(sqlx::Error::Io(_)) if tries < TRIES => tries += 1,
                Err(error) => return Err(failed(&self.pool, error)),
            }
        }
    }

    /// Opens a store to a caller: unknown and paused ones are 404 for everybody, then those of
    /// others are 403.
    ///
    /// # Errors
    /// `StoreNotFound`, `StoreForbidden`, or that the database can't be asked.
    pub async fn store(&self, caller: KeyScope, store_id: i64) -> Result<StoreAccess, Error> {
        let store = self
            .known_store(store_id)
            .await?
            .ok_or(Error::StoreNotFound)?;
        let restricted = caller.store_id.is_some_and(|only| only != store_id);
        if restricted || store.team_id != caller.team_id {
            return Err(Error::StoreForbidden);
        }
        Ok(StoreAccess {
            store_id,
            default_country: store.default_country,
        })
    }

    async fn known_store(&self, store_id: i64) -> Result<Option<KnownStore>, Error> {
        if let Some(store) = self.remembered(&self.stores, &store_id) {
            return Ok(Some(store));
        }
        let this = self.clone();
        let found = self.store_look_ups.join(&self.tasks, store_id, async move {
            let asked = Instant::now();
            let found = this
                .look_up(store_id, |connection, store_id| {
                    Box::pin(async move { tenancy::find_stores(connection, &[store_id]).await })
                })
                .await?;
            let known = found.first().and_then(KnownStore::of);
            if let Some(known) = known {
                this.stores.put(store_id, asked, known);
            }
            Ok(known)
        });
        found.await
    }

    /// What is remembered; sees to it that everything in use is asked for again in time.
    fn remembered<K, V>(&self, memory: &Memory<K, V>, key: &K) -> Option<V>
    where
        K: Copy + Eq + Hash,
        V: Copy,
    {
        let (value, age) = memory.get(key)?;
        if age > RENEWED && !self.renewing.swap(true, Ordering::Relaxed) {
            let this = self.clone();
            let renewing = Renewing(Arc::clone(&self.renewing));
            self.tasks.spawn(async move {
                let _renewing = renewing;
                // What can't be renewed is forgotten in time, and asked for by who needs it.
                if let Err(error) = this.renew().await {
                    tracing::debug!(%error, "keys and stores could not be renewed");
                }
            });
        }
        Some(value)
    }

    /// Asks for all keys and stores in use: thousands of stores would else be asked for one by one,
    /// every few seconds each.
    async fn renew(&self) -> sqlx::Result<()> {
        let asked = Instant::now();
        let digests = self.keys.in_use();
        let found = tenancy::find_keys(&self.pool, &digests).await?;
        let found = found.into_iter().filter_map(|(digest, scope)| {
            let digest = digest.try_into().ok()?;
            Some((digest, scope))
        });
        self.keys.renew(&digests, asked, found);
        let asked = Instant::now();
        let ids = self.stores.in_use();
        let found = tenancy::find_stores(&self.pool, &ids).await?;
        let found = found
            .iter()
            .filter_map(|store| Some((store.id, KnownStore::of(store)?)));
        self.stores.renew(&ids, asked, found);
        Ok(())
    }

    /// Whether the use of this key should be written down now: at most once a minute.
    #[must_use]
    pub fn is_use_due(&self, key_id: Uuid, now: DateTime<Utc>) -> bool {
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        if noted
            .get(&key_id)
            .is_some_and(|last| now - *last < TimeDelta::minutes(1))
        {
            return false;
        }
        if noted.len() >= MOST_REMEMBERED {
            noted.clear();
        }
        noted.insert(key_id, now);
        true
    }
}

/// Everything in use is asked for again, until it is dropped.
struct Renewing(Arc<AtomicBool>);

impl Drop for Renewing {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// What a look-up finds, for all that wait for it.
type Flight<V> = Shared<BoxFuture<'static, Result<Option<V>, Arc<Error>>>>;

/// Look-ups under way, one for each key. Clones share them.
struct Flights<K, V>(Arc<Mutex<HashMap<K, Flight<V>>>>);

impl<K, V> Clone for Flights<K, V> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K, V> Default for Flights<K, V> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K, V> Flights<K, V>
where
    K: Copy + Eq + Hash + Send + 'static,
    V: Copy + Send + Sync + 'static,
{
    /// What the look-up of this key finds that is under way, or this one, which no hang-up cuts.
    async fn join(
        &self,
        tasks: &TaskTracker,
        key: K,
        look: impl Future<Output = Result<Option<V>, Error>> + Send + 'static,
    ) -> Result<Option<V>, Error> {
        let flight = {
            let mut flights = self.flights();
            let spawn = || {
                let landing = Landing(self.clone(), key);
                let task = tasks.spawn(async move {
                    let found = look.await;
                    drop(landing);
                    found.map_err(Arc::new)
                });
                let found =
                    async move { task.await.map_err(|died| Arc::new(Error::internal(died)))? };
                found.boxed().shared()
            };
            flights.entry(key).or_insert_with(spawn).clone()
        };
        flight.await.map_err(Error::Shared)
    }

    fn flights(&self) -> MutexGuard<'_, HashMap<K, Flight<V>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whoever comes after its drop asks anew.
struct Landing<K: Copy + Eq + Hash, V>(Flights<K, V>, K);

impl<K: Copy + Eq + Hash, V> Drop for Landing<K, V> {
    fn drop(&mut self) {
        let flights = self.0.0.lock();
        let mut flights = flights.unwrap_or_else(PoisonError::into_inner);
        flights.remove(&self.1);
    }
}

/// A look-up that failed did nothing yet. Waiting in vain for a connection while all of them are at
/// work says nothing against the database.
fn failed(pool: &Database, error: sqlx::Error) -> Error {
    let all_exist = pool.size() >= pool.limits().max_connections as usize;
    match error {
        sqlx::Error::PoolTimedOut if all_exist => Error::Overloaded,
        error => Error::DatabaseUnavailable(error.into()),
    }
}

/// The token of exactly one `Authorization: Bearer …` (RFC 6750).
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return None;
    };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| token.trim_matches(' '))
}

/// Values that are believed for a few seconds.
struct Memory<K, V>(Mutex<HashMap<K, Remembered<V>>>);

struct Remembered<V> {
    /// When the database was asked.
    asked: Instant,
    value: V,
    /// Whether anybody wanted it since it was last renewed.
    in_use: bool,
}

impl<K, V> Default for Memory<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Copy + Eq + Hash, V: Copy> Memory<K, V> {
    /// A value that is still believed, and its age.
    fn get(&self, key: &K) -> Option<(V, Duration)> {
        let mut entries = self.entries();
        let entry = entries.get_mut(key)?;
        let age = entry.asked.elapsed();
        if age >= REMEMBERED {
            return None;
        }
        entry.in_use = true;
        Some((entry.value, age))
    }

    fn put(&self, key: K, asked: Instant, value: V) {
        let mut entries = self.entries();
        if entries.len() >= MOST_REMEMBERED {
            entries.retain(|_, entry| entry.asked.elapsed() < REMEMBERED);
            if entries.len() >= MOST_REMEMBERED {
                entries.clear();
            }
        }
        let entry = Remembered {
            asked,
            value,
            in_use: true,
        };
        entries.insert(key, entry);
    }

    /// What was wanted since the last time; the rest is forgotten.
    fn in_use(&self) -> Vec<K> {
        let mut entries = self.entries();
        entries.retain(|_, entry| std::mem::take(&mut entry.in_use));
        entries.keys().copied().collect()
    }

    /// Takes over what was found of these keys; what was not found is forgotten.
    fn renew(&self, keys: &[K], asked: Instant, found: impl Iterator<Item = (K, V)>) {
        let mut found: HashMap<K, V> = found.collect();
        let mut entries = self.entries();
        for key in keys {
            match (found.remove(key), entries.get_mut(key)) {
                (Some(value), Some(entry)) if entry.asked < asked => {
                    (entry.asked, entry.value) = (asked, value);
                }
                (None, Some(entry)) if entry.asked < asked => {
                    entries.remove(key);
                }
                _ => {}
            }
        }
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<K, Remembered<V>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_key_is_well_formed_and_a_mistyped_one_is_not() {
        let key = new_key();
        assert!(is_well_formed(&key), "{key}");
        assert!(key.len() >= PREFIX.len() + 40);
        assert!(!is_well_formed(&key[..key.len() - 1]));
        let first = key.as_bytes()[3];
        let other = if first == b'a' { "b" } else { "a" };
        assert!(!is_well_formed(&format!("kf_{other}{}", &key[4..])));
        assert!(!is_well_formed("kf_"));
        assert!(!is_well_formed("é"));
    }

    #[test]
    fn what_is_in_use_is_renewed_and_the_rest_forgotten() {
        let memory: Memory<u8, u8> = Memory::default();
        let began = Instant::now();
        for key in 1..=3 {
            memory.put(key, began, key);
        }
        assert_eq!(memory.in_use().len(), 3);
        assert_eq!(memory.get(&1).map(|(value, _)| value), Some(1));
        memory.get(&2);
        let mut in_use = memory.in_use();
        in_use.sort_unstable();
        assert_eq!(in_use, [1, 2]);
        assert!(memory.get(&3).is_none());
        // 1 has another value by now, and 2 is gone.
        let asked = Instant::now();
        memory.renew(&in_use, asked, [(1, 9)].into_iter());
        assert_eq!(memory.get(&1).map(|(value, _)| value), Some(9));
        assert!(memory.get(&2).is_none());
        // Whoever asked later knows better.
        memory.renew(&[1], began, std::iter::empty());
        assert_eq!(memory.get(&1).map(|(value, _)| value), Some(9));
    }

    #[test]
    fn only_one_bearer_token_counts() {
        let mut headers = HeaderMap::new();
        headers.append(header::AUTHORIZATION, "bearer abc".parse().expect("valid"));
        assert_eq!(bearer(&headers), Some("abc"));
        headers.append(header::AUTHORIZATION, "Bearer def".parse().expect("valid"));
        assert_eq!(bearer(&headers), None);
    }
}
