//! `kill -9` at every step from a change to the settlement of its call, and from a run to its walk,
//! under load: what the receiver has at the end is what is there, under keys that mean one state
//! each, and nothing is left behind.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::processes::idle;
use crate::support::app::App;
use crate::support::exports::order;
use crate::support::load::Target;
use crate::support::process::Process;
use crate::support::proxy::{Asking, Fate, Proxy};
use crate::support::receiver::{Call, Receiver, Says};
use crate::support::scale::{eventually, rounds};
use crate::support::whatsapp::SECRET_KEY;

/// More than a slice of a run's walk.
const ORDERS: usize = 600;
/// Clients that write at the same time.
const CLIENTS: usize = 6;
/// Of a client's records those that every other change is about: they go back and forth between two
/// states.
const HOT: usize = 2;
/// A client's rest between two changes.
const REST: Duration = Duration::from_millis(30);
/// Records that a process has in hand: called, ready, and not yet settled.
const IN_HAND: usize = 16 + 32 + 32;

/// Where the process is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Step {
    /// Records wait for their calls, and the commit of that is never heard.
    BeforeEvaluated,
    /// They do, and nobody is told.
    AfterEvaluated,
    /// The export is leased, and the process does not know.
    AfterLease,
    /// What is due was read, and no call of it is made.
    BeforeCall,
    /// The receiver has a call, and has not answered.
    AtReceiver,
    /// The receiver has answered, and the commit of that is never heard.
    BeforeSettled,
    /// That is committed, and the process does not know.
    AfterSettled,
    /// A run has walked some records, and the commit of that is never heard.
    BeforeWalked,
    /// That is committed, and the process does not know.
    AfterWalked,
}

const STEPS: [Step; 9] = [
    Step::BeforeEvaluated,
    Step::AfterEvaluated,
    Step::AfterLease,
    Step::BeforeCall,
    Step::AtReceiver,
    Step::BeforeSettled,
    Step::AfterSettled,
    Step::BeforeWalked,
    Step::AfterWalked,
];

/// The hand on the switch: kills the process at the next chance that fits.
#[derive(Clone, Default)]
struct Switch(Arc<Mutex<Hand>>);

#[derive(Default)]
struct Hand {
    armed: Option<Armed>,
    /// What the transaction on each connection is about, as far as it matters.
    about: HashMap<usize, About>,
    /// The process works for the export under a lease.
    is_pumping: bool,
    killed: bool,
}

struct Armed {
    step: Step,
    pid: u32,
    /// Chances that are let go before.
    spared: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum About {
    /// Events are looked at.
    Following,
    /// Records of theirs wait for their calls.
    Evaluating,
    Settling,
    Walking,
    /// The work for the export ends.
    Finishing,
}

impl Switch {
    fn arm(&self, step: Step, pid: u32, spared: usize) {
        let mut hand = self.0.lock().expect("no panic");
        hand.armed = Some(Armed { step, pid, spared });
        hand.killed = false;
    }

    fn is_done(&self) -> bool {
        self.0.lock().expect("no panic").killed
    }

    /// What the caller gets to see of a call.
    fn hears(&self) -> Says {
        let mut hand = self.0.lock().expect("no panic");
        if hand.pull(Step::AtReceiver) {
            Says::Reset
        } else {
            Says::Status(200)
        }
    }

    /// What happens to a statement of the service.
    fn sees(&self, asking: &Asking<'_>) -> Fate {
        let mut hand = self.0.lock().expect("no panic");
        let (statement, connection) = (asking.statement, asking.connection);
        if statement.starts_with("begin") {
            hand.about.remove(&connection);
            return Fate::Passes;
        }
        if statement == "commit" {
            let steps = match hand.about.remove(&connection) {
                Some(About::Evaluating) => (Step::BeforeEvaluated, Step::AfterEvaluated),
                Some(About::Settling) => (Step::BeforeSettled, Step::AfterSettled),
                Some(About::Walking) => (Step::BeforeWalked, Step::AfterWalked),
                Some(About::Finishing) => {
                    hand.is_pumping = false;
                    return Fate::Passes;
                }
                Some(About::Following) | None => return Fate::Passes,
            };
            return if hand.pull(steps.0) {
                Fate::Unheard
            } else {
                hand.after(steps.1)
            };
        }
        if statement.starts_with("select position") && statement.contains("event_consumers") {
            hand.about.insert(connection, About::Following);
        }
        if statement.contains("wanted = d.wanted + 1") {
            let about = match hand.about.get(&connection) {
                Some(About::Following) => About::Evaluating,
                _ => About::Walking,
            };
            hand.about.insert(connection, about);
        }
        if statement.starts_with("insert into export_log") {
            hand.about.insert(connection, About::Settling);
        }
        if statement.starts_with("delete from outbox") {
            hand.about.insert(connection, About::Finishing);
        }
        // Only who has the lease extends it.
        if statement.starts_with("update outbox") && statement.contains("set lease_until = $4") {
            hand.is_pumping = true;
        }
        let leases = statement.starts_with("update outbox")
            && statement.contains("set lease_id = $3, lease_until = $4");
        if leases && !hand.is_pumping {
            return hand.after(Step::AfterLease);
        }
        if statement.contains("from export_log l") && statement.contains("l.number desc") {
            return hand.after(Step::BeforeCall);
        }
        Fate::Passes
    }
}

impl Hand {
    /// Kills the process if that is what it is armed for.
    fn pull(&mut self, step: Step) -> bool {
        let Some(armed) = self.armed.as_mut().filter(|armed| armed.step == step) else {
            return false;
        };
        if armed.spared > 0 {
            armed.spared -= 1;
            return false;
        }
        let pid = Pid::from_raw(armed.pid.cast_signed());
        kill(pid, Signal::SIGKILL).expect("it runs");
        *self = Self {
            killed: true,
            ..Self::default()
        };
        true
    }

    /// Killed now, while Postgres hears of the statement all the same.
    fn after(&mut self, step: Step) -> Fate {
        if self.pull(step) {
            Fate::Unanswered
        } else {
            Fate::Passes
        }
    }
}

/// Clients that change orders, each its own, and each change again and again until it is
/// acknowledged.
struct Writers {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
    tasks: Vec<JoinHandle<()>>,
}

impl Writers {
    fn start(target: &Target) -> Self {
        let (stop, acknowledged) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let tasks = (0..CLIENTS)
            .map(|writer| {
                let (stop, acknowledged) = (Arc::clone(&stop), Arc::clone(&acknowledged));
                let target = target.clone();
                tokio::spawn(async move {
                    let own = ORDERS / CLIENTS;
                    let mut n = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let (of_own, total) = if n % 2 == 0 {
                            (n / 2 % HOT, n / 2 / HOT % 2)
                        } else {
                            (n / 2 % own, n)
                        };
                        let external_id = name(writer * own + of_own);
                        insist(&target, &external_id, &format!("{}.00", 100 + total)).await;
                        acknowledged.fetch_add(1, Ordering::Relaxed);
                        n += 1;
                        tokio::time::sleep(REST).await;
                    }
                })
            })
            .collect();
        Self {
            stop,
            acknowledged,
            tasks,
        }
    }

    fn acknowledged(&self) -> usize {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits for some more changes.
    async fn proceed(&self) {
        let before = self.acknowledged();
        eventually("writes go on", || async {
            (self.acknowledged() > before + CLIENTS).then_some(())
        })
        .await;
    }

    /// Ends them; gives how many changes there were.
    async fn stop(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("no panic");
        }
        self.acknowledged.load(Ordering::Relaxed)
    }
}

/// The external id of an order.
fn name(n: usize) -> String {
    format!("A-{n:05}")
}

/// Changes one order until that is acknowledged.
async fn insist(target: &Target, external_id: &str, total_price: &str) {
    let body = order(external_id, total_price);
    loop {
        if let Ok(answer) = target.post("orders", &body).await {
            if answer.status.is_success() {
                return;
            }
            assert_eq!(answer.status, 503, "{}", answer.text);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What a killed process had leased is free at once; gives how much that was.
async fn expire_leases(app: &App) -> u64 {
    let expired = sqlx::query(
        "update outbox set lease_until = now() - interval '1 s' where lease_until is not null",
    );
    let expired = expired.execute(&app.pool).await.expect("it can be changed");
    expired.rows_affected()
}

/// A process that may export to this machine.
fn serve(url: &str, address: &str) -> Process {
    let settings = [
        ("KEYFOLD_SECRET_KEY", SECRET_KEY),
        ("KEYFOLD_ALLOW_PRIVATE_TARGETS", "127.0.0.1"),
        ("KEYFOLD_LISTEN", address),
    ];
    Process::serve_with(url, &settings)
}

async fn number(app: &App, statement: &'static str) -> i64 {
    let found = sqlx::query_scalar(statement).fetch_one(&app.pool).await;
    found.expect("it can be counted")
}

/// A body without what says when.
fn state(mut body: Value) -> Value {
    let members = body.as_object_mut().expect("members");
    for time in ["version", "created_at", "updated_at", "source_updated_at"] {
        members.remove(time);
    }
    body
}

/// A kill, and what came of it until the next one.
struct Kill {
    step: Step,
    /// Calls that had come before.
    calls: usize,
    changes: usize,
    /// Rows that were leased.
    leased: u64,
}

/// What the kills at one step have come to.
#[derive(Debug, Default)]
struct Sum {
    kills: usize,
    leased: u64,
    /// Changes, calls and calls with a key that was there before, each up to the next kill.
    changes: usize,
    calls: usize,
    repeated: usize,
}

fn sums(kills: &[Kill], calls: &[Call], changes: usize) -> BTreeMap<Step, Sum> {
    let mut sums = BTreeMap::<Step, Sum>::new();
    let mut keys: HashSet<&str> = HashSet::new();
    let first = kills.first().map_or(calls.len(), |kill| kill.calls);
    keys.extend(calls[..first].iter().map(Call::key));
    for (n, kill) in kills.iter().enumerate() {
        let next = kills.get(n + 1);
        let until = next.map_or(calls.len(), |next| next.calls);
        let sum = sums.entry(kill.step).or_default();
        sum.kills += 1;
        sum.leased += kill.leased;
        sum.changes += next.map_or(changes, |next| next.changes) - kill.changes;
        sum.calls += until - kill.calls;
        let of_kill = &calls[kill.calls..until];
        sum.repeated += of_kill
            .iter()
            .filter(|call| !keys.insert(call.key()))
            .count();
    }
    sums
}

/// Fails unless every key means one state, the last state of each record is the one that is there,
/// and what was not noted or repeated was in hand at a kill. Gives how many keys there were, how many
/// calls had one that was there before, and how many keys were never noted, since the next state came
/// before they could be.
async fn check_calls(app: &App, calls: &[Call], kills: usize) -> [usize; 3] {
    let mut by_record: BTreeMap<&str, Vec<&Call>> = BTreeMap::new();
    for call in calls {
        by_record.entry(&call.target).or_default().push(call);
    }
    assert_eq!(by_record.len(), ORDERS, "each record was sent");
    let entries: Vec<(String, Vec<u8>)> =
        sqlx::query_as("select key, content_sha256 from export_log")
            .fetch_all(&app.pool)
            .await
            .expect("the log can be read");
    let log: HashMap<&str, &[u8]> = entries
        .iter()
        .map(|(key, digest)| (key.as_str(), &digest[..]))
        .collect();
    assert_eq!(log.len(), entries.len(), "one entry for each key");
    let received: HashSet<&str> = calls.iter().map(Call::key).collect();
    let never = log.keys().filter(|key| !received.contains(*key)).count();
    assert_eq!(never, 0, "entries of what nobody received");
    let mut unnoted = 0;
    for (target, of_record) in by_record {
        let mut states: HashMap<&str, Value> = HashMap::new();
        let mut digests: HashMap<&[u8], Value> = HashMap::new();
        let mut repeated = 0;
        for call in &of_record {
            let sent = state(call.json());
            if let Some(digest) = log.get(call.key()) {
                let known = digests.entry(digest).or_insert_with(|| sent.clone());
                assert_eq!(*known, sent, "{target}: a digest means one state");
            }
            match states.get(call.key()) {
                Some(known) => {
                    assert_eq!(*known, sent, "{target}: a key means one state");
                    repeated += 1;
                }
                None => drop(states.insert(call.key(), sent)),
            }
        }
        assert!(repeated <= kills, "{target}: {repeated} keys repeated");
        unnoted += states.keys().filter(|key| !log.contains_key(*key)).count();
        let last = of_record.last().expect("it was sent");
        assert!(log.contains_key(last.key()), "{target}: the last is noted");
        let now = app.get(target.trim_start_matches('/')).await.expect(200);
        assert_eq!(state(last.json()), state(now.json()), "{target}");
    }
    let repeated = calls.len() - received.len();
    assert!(repeated + unnoted > 0, "no call was under way at any kill");
    assert!(repeated + unnoted <= kills * IN_HAND, "more than in hand");
    [received.len(), repeated, unnoted]
}

/// Fails unless nothing waits any more.
async fn check_rest(app: &App) {
    for (what, statement) in [
        ("work that is left", "select count(*) from outbox"),
        (
            "deliveries that are not idle",
            "select count(*) from export_deliveries where state <> 'idle' or run_id is not null",
        ),
        (
            "runs that were not completed, or failed for a record",
            "select count(*) from export_runs
            where status <> 'completed' or failed > 0 or total <> sent + skipped",
        ),
    ] {
        assert_eq!(number(app, statement).await, 0, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_killed_at_any_step_loses_nothing_and_repeats_under_the_same_key() {
    let (app, receiver) = (idle().await, Receiver::start().await);
    let switch = Switch::default();
    let seen = switch.clone();
    let watched = move |asking: &Asking<'_>| seen.sees(asking);
    let road = Proxy::watch(&app.database_url, Duration::ZERO, watched).await;
    let heard = switch.clone();
    receiver.says(move |_| heard.hears());
    app.export(&receiver, &json!({})).await;
    app.push_many(ORDERS).await;
    let mut process = serve(&road.url, "127.0.0.1:0");
    let address = process.base.trim_start_matches("http://").to_owned();
    let target = Target {
        base: process.base.clone(),
        ..Target::of(&app)
    };
    let writers = Writers::start(&target);
    let mut kills: Vec<Kill> = Vec::new();
    for round in 0..rounds(3) {
        for step in STEPS {
            writers.proceed().await;
            let walks = [Step::BeforeWalked, Step::AfterWalked].contains(&step);
            if walks {
                let running = "select count(*) from export_runs where status = 'running'";
                eventually("the last run is completed", || async {
                    (number(&app, running).await == 0).then_some(())
                })
                .await;
            }
            // A walk has two slices; calls and settlements come in numbers.
            let spared = if walks { round % 2 } else { round % 3 };
            switch.arm(step, process.pid(), spared);
            if walks {
                app.run().await;
            }
            eventually(&format!("round {round}: killed {step:?}"), || async {
                switch.is_done().then_some(())
            })
            .await;
            drop(process);
            let (calls, changes) = (receiver.count(), writers.acknowledged());
            // Nobody works any more, so every lease is one that would run out.
            let leased = expire_leases(&app).await;
            kills.push(Kill {
                step,
                calls,
                changes,
                leased,
            });
            process = serve(&road.url, &address);
        }
    }
    let changes = writers.stop().await;
    app.exported().await;
    eventually("all is done", || async {
        (app.count("outbox").await == 0).then_some(())
    })
    .await;
    let calls = receiver.calls();
    println!("{changes} changes");
    for (step, sum) in sums(&kills, &calls, changes) {
        println!("{step:?}: {sum:?}");
    }
    check_rest(&app).await;
    let [keys, repeated, unnoted] = check_calls(&app, &calls, kills.len()).await;
    println!("{keys} keys; calls repeated: {repeated}; keys not noted: {unnoted}");
    drop(process);
    app.stop().await;
}

/// The receiver has the second state of a record, nobody knows, and the record is as it was before.
async fn changes_back(app: &App, receiver: &Receiver, process: Process, killed: bool) -> Process {
    app.export(receiver, &json!({})).await;
    app.push("A", "1.00").await;
    eventually("the first state is noted", || async {
        (app.count("export_log").await == 1).then_some(())
    })
    .await;
    receiver.says(move |_| if killed { Says::Nothing } else { Says::Reset });
    app.push("A", "2.00").await;
    eventually("the second has come", || async {
        (receiver.count() > 1).then_some(())
    })
    .await;
    let process = if killed {
        process.kill();
        app.push("A", "1.00").await;
        expire_leases(app).await;
        serve(&app.database_url, "127.0.0.1:0")
    } else {
        app.push("A", "1.00").await;
        process
    };
    receiver.says(|_| Says::Status(200));
    process
}

/// Fails unless the receiver has the first state at the end.
async fn ends_as_it_was(killed: bool) {
    let (app, receiver) = (idle().await, Receiver::start().await);
    let process = serve(&app.database_url, "127.0.0.1:0");
    let process = changes_back(&app, &receiver, process, killed).await;
    eventually("nothing waits", || async {
        let waiting = "select count(*) from export_deliveries where state = 'waiting'";
        app.exported().await;
        (number(&app, waiting).await == 0).then_some(())
    })
    .await;
    let calls = receiver.calls();
    let states: Vec<Value> = calls
        .iter()
        .map(|call| call.json()["total_price"].clone())
        .collect();
    let keys: BTreeSet<&str> = calls.iter().map(Call::key).collect();
    assert_eq!(states.last(), Some(&json!("1.00")), "{states:?} {keys:?}");
    drop(process);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_changes_back_after_a_kill_in_its_call_is_sent_again() {
    ends_as_it_was(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_changes_back_after_a_call_that_broke_off_is_sent_again() {
    ends_as_it_was(false).await;
}
