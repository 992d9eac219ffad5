//! `kill -9` at every step of a message's way, under load: none reaches the provider twice, none is
//! lost, and what nobody knows is settled by the provider's own word.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use keyfold::clock::Clock;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::task::JoinHandle;

use super::{answer_or_none, everybody_writes, person, tell};
use crate::support::app::{client, tenant};
use crate::support::database;
use crate::support::meta::{Behaviour, Meta, Then};
use crate::support::process::Process;
use crate::support::proxy::{Asking, Fate, Proxy};
use crate::support::scale::{eventually, rounds};
use crate::support::webhooks::{self, Told};
use crate::support::whatsapp::{connect, number_of, settings};

/// Clients that send at the same time.
const CLIENTS: usize = 6;
/// A client's rest between two messages: together they send slower than a number may.
const REST: Duration = Duration::from_millis(60);

/// Where the process is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    /// The send's commit is asked for, and Postgres never hears of it.
    BeforeCommit,
    /// It is committed, and nobody is told.
    AfterCommit,
    /// The worker has leased messages.
    AfterLease,
    /// The mark of the beginning is committed, and no byte has left.
    BeforeBytes,
    /// The provider has read the request, and takes the message.
    AfterBytesTaken,
    /// The provider has read the request, and does not take it.
    AfterBytesNotTaken,
    /// The provider has answered, and nothing of it is written down.
    AfterAnswer,
    /// What came of it is written, and its commit never heard.
    BeforeSettled,
    /// What came of it is committed, and the process does not know.
    AfterSettled,
}

const STEPS: [Step; 9] = [
    Step::BeforeCommit,
    Step::AfterCommit,
    Step::AfterLease,
    Step::BeforeBytes,
    Step::AfterBytesTaken,
    Step::AfterBytesNotTaken,
    Step::AfterAnswer,
    Step::BeforeSettled,
    Step::AfterSettled,
];

/// The hand on the switch: kills the process at the next chance that fits.
#[derive(Clone, Default)]
struct Switch(Arc<Mutex<Hand>>);

#[derive(Default)]
struct Hand {
    armed: Option<(Step, u32)>,
    /// What the statements of the present transactions were about, as far as it matters.
    about: About,
    killed: bool,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum About {
    #[default]
    Other,
    Sending,
    Settling,
}

impl Switch {
    fn arm(&self, step: Step, pid: u32) {
        let mut hand = self.0.lock().expect("no panic");
        hand.armed = Some((step, pid));
        hand.killed = false;
    }

    fn is_done(&self) -> bool {
        self.0.lock().expect("no panic").killed
    }

    /// Kills the process if that is what it is armed for.
    fn pull(hand: &mut Hand, steps: &[Step]) -> bool {
        let Some((step, pid)) = hand.armed else {
            return false;
        };
        if !steps.contains(&step) {
            return false;
        }
        kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).expect("it runs");
        hand.armed = None;
        hand.killed = true;
        true
    }

    /// What happens to a statement of the service. The transactions of a process overlap, so what a
    /// commit is about is known for sure only by the last statement before it on any connection;
    /// that is often enough right, and every kill is a fair one.
    fn sees(&self, asking: &Asking<'_>) -> Fate {
        let mut hand = self.0.lock().expect("no panic");
        let statement = asking.statement;
        if statement.starts_with("update idempotency_keys") && statement.contains("set status") {
            hand.about = About::Sending;
        }
        let settles = statement.starts_with("delete from outbox");
        if settles {
            if Self::pull(&mut hand, &[Step::AfterAnswer]) {
                return Fate::Unheard;
            }
            hand.about = About::Settling;
        }
        if statement.starts_with("update outbox") && statement.contains("set begun_at") {
            return Self::after(&mut hand, Step::BeforeBytes);
        }
        if statement.starts_with("update outbox") && statement.contains("set lease_id = $3") {
            return Self::after(&mut hand, Step::AfterLease);
        }
        if statement == "commit" {
            let (before, after) = match std::mem::take(&mut hand.about) {
                About::Sending => (Step::BeforeCommit, Step::AfterCommit),
                About::Settling => (Step::BeforeSettled, Step::AfterSettled),
                About::Other => return Fate::Passes,
            };
            if Self::pull(&mut hand, &[before]) {
                return Fate::Unheard;
            }
            return Self::after(&mut hand, after);
        }
        Fate::Passes
    }

    /// Killed now, while Postgres hears of the statement all the same.
    fn after(hand: &mut Hand, step: Step) -> Fate {
        if Self::pull(hand, &[step]) {
            Fate::Unanswered
        } else {
            Fate::Passes
        }
    }

    /// What the provider does with a request that it has read.
    fn answers(&self) -> Behaviour {
        let mut hand = self.0.lock().expect("no panic");
        if Self::pull(&mut hand, &[Step::AfterBytesNotTaken]) {
            return Behaviour::refuse(Then::Reset);
        }
        Self::pull(&mut hand, &[Step::AfterBytesTaken]);
        Behaviour::accept()
    }
}

/// Clients that send messages, each again and again under its key until it is accepted.
struct Senders {
    stop: Arc<AtomicBool>,
    accepted: Arc<AtomicUsize>,
    tasks: Vec<JoinHandle<HashMap<String, String>>>,
}

impl Senders {
    fn start(base: &str, key: &str, store_id: i64) -> Self {
        let (stop, accepted) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let tasks = (0..CLIENTS)
            .map(|client_number| {
                let (stop, accepted) = (Arc::clone(&stop), Arc::clone(&accepted));
                let (base, key) = (base.to_owned(), key.to_owned());
                tokio::spawn(async move {
                    let (client, mut ids) = (client(), HashMap::new());
                    let mut n = client_number;
                    while !stop.load(Ordering::Relaxed) {
                        let idempotency_key = format!("message-{n}");
                        let id = send(&client, &base, &key, store_id, &idempotency_key, n).await;
                        ids.insert(idempotency_key, id);
                        accepted.fetch_add(1, Ordering::Relaxed);
                        n += CLIENTS;
                        tokio::time::sleep(REST).await;
                    }
                    ids
                })
            })
            .collect();
        Self {
            stop,
            accepted,
            tasks,
        }
    }

    /// Message ids by their keys.
    async fn stop(self) -> HashMap<String, String> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = HashMap::new();
        for task in self.tasks {
            all.extend(task.await.expect("no panic"));
        }
        all
    }
}

/// Sends one message until it is accepted; gives its id. Every accepted answer is the same.
async fn send(
    client: &reqwest::Client,
    base: &str,
    key: &str,
    store_id: i64,
    idempotency_key: &str,
    n: usize,
) -> String {
    let body = json!({
        "store_id": store_id, "to": person(n), "type": "text",
        "text": { "body": format!("message {n}") }
    });
    loop {
        let sent = client
            .post(format!("{base}/api/v1/messages/send"))
            .bearer_auth(key)
            .header("content-type", "application/json")
            .header("idempotency-key", idempotency_key)
            .body(body.to_string())
            .send()
            .await;
        if let Ok(response) = sent {
            let answer = answer_or_none(response).await;
            if let Some((status, body)) = answer {
                if status == 201 {
                    let id = body["message_id"].as_str().expect("an id");
                    return id.to_owned();
                }
                assert!([409, 503].contains(&status), "{status}: {body}");
            }
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_killed_at_any_step_sends_no_message_twice_and_loses_none() {
    let url = database::fresh().await;
    let pool = PgPool::connect_lazy(&url).expect("an address");
    let (meta, switch, clock) = (Meta::start().await, Switch::default(), Clock::system());
    let (_, store_id, key) = tenant(&pool, &clock, "Kills").await;
    connect(&pool, &clock, store_id).await;
    let (seen, told) = (switch.clone(), switch.clone());
    let road = Proxy::watch(&url, Duration::ZERO, move |asking| seen.sees(asking)).await;
    meta.behave(move |_| told.answers());
    let settings = settings(&meta);
    let mut settings: Vec<(&str, &str)> = settings
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    let mut process = Process::serve_with(&road.url, &settings);
    let base = process.base.clone();
    let address = base.trim_start_matches("http://").to_owned();
    settings.push(("KEYFOLD_LISTEN", &address));
    let number = number_of(store_id);
    everybody_writes(&base, store_id, &pool).await;

    let senders = Senders::start(&base, &key, store_id);
    for round in 0..rounds(2) {
        for step in STEPS {
            let before = senders.accepted.load(Ordering::Relaxed);
            eventually("messages are accepted", || async {
                let more = senders.accepted.load(Ordering::Relaxed) > before + CLIENTS;
                more.then_some(())
            })
            .await;
            switch.arm(step, process.pid());
            eventually(&format!("round {round}: killed {step:?}"), || async {
                switch.is_done().then_some(())
            })
            .await;
            drop(process);
            // Nobody works any more, so every lease is one that would run out.
            expire_leases(&pool).await;
            process = Process::serve_with(&road.url, &settings);
        }
    }
    let ids = senders.stop().await;
    eventually("nothing waits any more", || async {
        let waiting: i64 =
            sqlx::query_scalar("select count(*) from outbox where state = 'waiting'")
                .fetch_one(&pool)
                .await
                .expect("the outbox can be read");
        (waiting == 0).then_some(())
    })
    .await;
    let before = statuses(&pool).await;
    let taken = meta.taken();
    tell_all(&base, &number, &taken, clock.now().timestamp()).await;
    eventually("the provider's word is taken in", || async {
        let left: i64 = sqlx::query_scalar("select count(*) from inbound_items")
            .fetch_one(&pool)
            .await
            .expect("items can be read");
        (left == 0).then_some(())
    })
    .await;
    let counts = check(&ids, &taken, &statuses(&pool).await, &before);
    println!("messages by (status, status after the provider's word, taken): {counts:?}");
    drop(process);
}

async fn expire_leases(pool: &PgPool) {
    sqlx::query(
        "update outbox set lease_until = now() - interval '1 second' where lease_until is not null",
    )
    .execute(pool)
    .await
    .expect("the outbox can be changed");
}

/// What each message is, by its id.
async fn statuses(pool: &PgPool) -> HashMap<String, String> {
    let rows: Vec<(String, String)> = sqlx::query_as("select id::text, status from messages")
        .fetch_all(pool)
        .await
        .expect("messages can be read");
    rows.into_iter().collect()
}

/// Tells that everything that was taken was delivered: late, twice, and without an order.
async fn tell_all(base: &str, number: &str, taken: &[crate::support::meta::Call], at: i64) {
    let items: Vec<Value> = taken
        .iter()
        .flat_map(|call| {
            let (id, reference) = (call.message_id(), call.reference());
            ["delivered", "sent", "delivered"].map(|status| {
                Told {
                    id: &id,
                    reference: &reference,
                    status,
                    at,
                    code: None,
                }
                .item()
            })
        })
        .collect();
    for some in items.chunks(300) {
        tell(base, &[webhooks::value(number, "statuses", some)]).await;
    }
}

/// What must be true of all messages; counts them by what they were, what they became, and whether
/// the provider took them.
fn check(
    ids: &HashMap<String, String>,
    taken: &[crate::support::meta::Call],
    after: &HashMap<String, String>,
    before: &HashMap<String, String>,
) -> HashMap<(String, String, bool), usize> {
    let mut times: HashMap<String, usize> = HashMap::new();
    for call in taken {
        let reference = call.reference();
        let id = reference.split(':').nth(1).expect("ours").to_owned();
        *times.entry(id).or_default() += 1;
    }
    let twice: Vec<_> = times.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "sent twice: {twice:?}");
    // One message for each key, and none besides.
    for (key, id) in ids {
        assert!(after.contains_key(id), "{key} was accepted and is lost");
    }
    assert_eq!(after.len(), ids.len(), "messages that nobody asked for");
    let mut counts = HashMap::new();
    for (id, status) in after {
        let was_taken = times.contains_key(id);
        let expected = if was_taken { "delivered" } else { "unknown" };
        assert_eq!(status, expected, "{id}, before: {}", before[id]);
        let course = (before[id].clone(), status.clone(), was_taken);
        *counts.entry(course).or_default() += 1;
    }
    counts
}
