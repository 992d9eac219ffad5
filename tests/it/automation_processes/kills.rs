//! `kill -9` at every step from a change to its message, under load: each change has exactly one run
//! of each automation, each run exactly one message, and nothing is left behind.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use sqlx::PgPool;
use tokio::task::JoinHandle;

use super::{at_rest, automate, number, store};
use crate::support::automations::checkout_of;
use crate::support::database;
use crate::support::load::Target;
use crate::support::process::Process;
use crate::support::proxy::{Asking, Fate, Proxy};
use crate::support::scale::{eventually, rounds};

/// Clients that write at the same time.
const CLIENTS: usize = 6;
/// A client's rest between two records.
const REST: Duration = Duration::from_millis(30);

/// Where the process is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Step {
    /// The change and its event are committed, and nobody is told.
    AfterChange,
    /// Events are about to be numbered.
    BeforeNumbering,
    /// They are numbered; the process does not know.
    AfterNumbering,
    /// They are about to be evaluated.
    BeforeEvaluation,
    /// The runs are written, and the commit of that is never heard.
    BeforeEvaluated,
    /// The runs are committed, and nobody is told: none is leased by a hint.
    AfterEvaluated,
    /// Rows of the outbox are leased, and the process does not know.
    AfterLease,
    /// A run that is leased is about to be looked at.
    BeforeExecution,
    /// The message is written, and the commit of that is never heard.
    BeforeExecuted,
    /// The message is committed, and nobody is told.
    AfterExecuted,
    /// The message is handed over, and that is not written down.
    BeforeSettled,
    /// It is, and the process does not know.
    AfterSettled,
}

const STEPS: [Step; 12] = [
    Step::AfterChange,
    Step::BeforeNumbering,
    Step::AfterNumbering,
    Step::BeforeEvaluation,
    Step::BeforeEvaluated,
    Step::AfterEvaluated,
    Step::AfterLease,
    Step::BeforeExecution,
    Step::BeforeExecuted,
    Step::AfterExecuted,
    Step::BeforeSettled,
    Step::AfterSettled,
];

/// The hand on the switch: kills the process at the next chance that fits.
#[derive(Clone, Default)]
struct Switch(Arc<Mutex<Hand>>);

#[derive(Default)]
struct Hand {
    armed: Option<(Step, u32)>,
    /// What the transaction on each connection is about, as far as it matters.
    about: HashMap<usize, About>,
    killed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum About {
    Changing,
    Numbering,
    Evaluating,
    Executing,
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
                Some(About::Changing) => (None, Step::AfterChange),
                Some(About::Numbering) => (None, Step::AfterNumbering),
                Some(About::Evaluating) => (Some(Step::BeforeEvaluated), Step::AfterEvaluated),
                Some(About::Executing) => (Some(Step::BeforeExecuted), Step::AfterExecuted),
                Some(About::Settling) => (None, Step::AfterSettled),
                None => return Fate::Passes,
            };
            return match steps {
                (Some(before), _) if hand.pull(before) => Fate::Unheard,
                (_, after) => hand.after(after),
            };
        }
        if statement.contains("insert into checkouts") {
            if asking.commits {
                return hand.after(Step::AfterChange);
            }
            hand.about.insert(connection, About::Changing);
        }
        if statement.starts_with("update events e") {
            hand.about.insert(connection, About::Numbering);
            return hand.before(Step::BeforeNumbering);
        }
        if statement.starts_with("select position") && statement.contains("event_consumers") {
            return hand.before(Step::BeforeEvaluation);
        }
        if statement.starts_with("insert into automation_runs") {
            hand.about.insert(connection, About::Evaluating);
        }
        if statement.starts_with("update outbox") && statement.contains("set lease_id = $3") {
            return hand.after(Step::AfterLease);
        }
        if statement.contains("from automation_runs") && statement.contains("for update") {
            return hand.before(Step::BeforeExecution);
        }
        if statement.starts_with("insert into messages") {
            hand.about.insert(connection, About::Executing);
        }
        let is_executing = hand.about.get(&connection) == Some(&About::Executing);
        if statement.starts_with("delete from outbox") && !is_executing {
            hand.about.insert(connection, About::Settling);
            return hand.before(Step::BeforeSettled);
        }
        Fate::Passes
    }
}

impl Hand {
    /// Kills the process if that is what it is armed for.
    fn pull(&mut self, step: Step) -> bool {
        let Some((_, pid)) = self.armed.take_if(|(armed, _)| *armed == step) else {
            return false;
        };
        kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).expect("it runs");
        self.killed = true;
        self.about.clear();
        true
    }

    /// Killed now, and Postgres never hears of the statement.
    fn before(&mut self, step: Step) -> Fate {
        if self.pull(step) {
            Fate::Unheard
        } else {
            Fate::Passes
        }
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

/// Clients that make checkouts, each again and again until it is acknowledged.
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
                    let mut n = writer;
                    while !stop.load(Ordering::Relaxed) {
                        insist(&target, n).await;
                        acknowledged.fetch_add(1, Ordering::Relaxed);
                        n += CLIENTS;
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

    /// How many records are acknowledged.
    fn acknowledged(&self) -> usize {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits for some more of them.
    async fn proceed(&self) {
        let before = self.acknowledged();
        eventually("writes go on", || async {
            (self.acknowledged() > before + CLIENTS).then_some(())
        })
        .await;
    }

    /// Ends them; gives how many records there are.
    async fn stop(self) -> i64 {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("no panic");
        }
        i64::try_from(self.acknowledged.load(Ordering::Relaxed)).expect("few")
    }
}

/// Writes one record until it is acknowledged.
async fn insist(target: &Target, n: usize) {
    let phone = format!("+336{n:08}");
    let body = checkout_of(&phone, &format!("B-{n}"), "abandoned");
    loop {
        if let Ok(answer) = target.post("checkouts", &body).await {
            if answer.status.is_success() {
                return;
            }
            assert_eq!(answer.status, 503, "{}", answer.text);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn expire_leases(pool: &PgPool) {
    sqlx::query(
        "update outbox
        set lease_until = now() - interval '1 second'
        where id = any(array(
            select id from outbox where lease_until is not null for update skip locked
        ))",
    )
    .execute(pool)
    .await
    .expect("the outbox can be changed");
}

/// Automations that fire at once, and after a while.
const AUTOMATIONS: i64 = 2;

async fn prepare(base: &str, pool: &PgPool) -> Target {
    let (target, template) = store(base, pool).await;
    let at_once = json!({ "delay_seconds": 0, "reentry": "every_change" });
    automate(&target, "at-once", "checkouts", template, &at_once).await;
    let later = json!({ "delay_seconds": 1, "reentry": "once_per_record" });
    automate(&target, "later", "checkouts", template, &later).await;
    target
}

/// Fails unless each of so many records has one event, one run of each automation, and one message of
/// each run, all of them done.
async fn check(pool: &PgPool, records: i64) {
    let events = "select count(*) from events where resource = 'checkouts'";
    assert_eq!(number(pool, events).await, records, "one event a change");
    let odd = "select count(*)
        from events e
        cross join automations a
        where e.resource = 'checkouts'
            and (
                select count(*)
                from automation_runs r
                join messages m on m.store_id = r.store_id and m.id = r.message_id
                where r.automation_id = a.id
                    and r.record_id = e.record_id
                    and r.occasion = decode(replace(e.id::text, '-', ''), 'hex')
                    and r.status = 'sent'
                    and m.status = 'delivered'
            ) <> 1";
    assert_eq!(number(pool, odd).await, 0, "changes without just one run");
    for (what, statement) in [
        ("runs", "select count(*) from automation_runs"),
        ("messages", "select count(*) from messages"),
        (
            "messages, each of a run",
            "select count(distinct message_id) from automation_runs",
        ),
    ] {
        assert_eq!(
            number(pool, statement).await,
            AUTOMATIONS * records,
            "{what}"
        );
    }
    assert_eq!(number(pool, "select count(*) from outbox").await, 0);
    let behind = "select count(*)
        from event_consumers c
        join event_feeds f using (store_id)
        where c.position <> f.last_position";
    assert_eq!(number(pool, behind).await, 0, "all is evaluated");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_killed_at_any_step_makes_one_run_and_one_message_of_each_change() {
    let url = database::fresh().await;
    let pool = PgPool::connect_lazy(&url).expect("an address");
    let switch = Switch::default();
    let seen = switch.clone();
    let road = Proxy::watch(&url, Duration::ZERO, move |asking| seen.sees(asking)).await;
    let mut process = Process::serve(&road.url);
    let target = prepare(&process.base, &pool).await;
    let address = process.base.trim_start_matches("http://").to_owned();
    let settings = [("KEYFOLD_LISTEN", address.as_str())];
    let writers = Writers::start(&target);
    let mut kills: BTreeMap<Step, usize> = BTreeMap::new();
    // What the killed ones had in hand: rows leased, by kind.
    let mut left: BTreeMap<(Step, String), i64> = BTreeMap::new();
    for round in 0..rounds(5) {
        for step in STEPS {
            writers.proceed().await;
            switch.arm(step, process.pid());
            eventually(&format!("round {round}: killed {step:?}"), || async {
                switch.is_done().then_some(())
            })
            .await;
            drop(process);
            *kills.entry(step).or_default() += 1;
            let leased: Vec<(String, i64)> = sqlx::query_as(
                "select kind, count(*) from outbox where lease_until is not null group by 1",
            )
            .fetch_all(&pool)
            .await
            .expect("the outbox can be read");
            for (kind, count) in leased {
                *left.entry((step, kind)).or_default() += count;
            }
            // Nobody works any more, so every lease is one that would run out.
            expire_leases(&pool).await;
            process = Process::serve_with(&road.url, &settings);
        }
    }
    let records = writers.stop().await;
    // A fresh process ends what they began.
    drop(process);
    expire_leases(&pool).await;
    let process = Process::serve(&url);
    at_rest(&pool).await;
    println!("{records} changes; kills: {kills:?}; leased then: {left:?}");
    check(&pool, records).await;
    drop(process);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_works_beside_a_process_that_is_killed_and_takes_its_leases_does_nothing_twice() {
    let url = database::fresh().await;
    let pool = PgPool::connect_lazy(&url).expect("an address");
    let switch = Switch::default();
    let seen = switch.clone();
    let road = Proxy::watch(&url, Duration::ZERO, move |asking| seen.sees(asking)).await;
    let survivor = Process::serve(&url);
    let mut process = Process::serve(&road.url);
    let target = prepare(&survivor.base, &pool).await;
    let address = process.base.trim_start_matches("http://").to_owned();
    let settings = [("KEYFOLD_LISTEN", address.as_str())];
    // Half of the writers go to each.
    let writers = [
        Writers::start(&target),
        Writers::start(&Target {
            base: process.base.clone(),
            ..target.clone()
        }),
    ];
    let ending = Arc::new(AtomicBool::new(false));
    // All leases run out all the time: what one of them does, the other begins as well.
    let expiring = tokio::spawn({
        let (pool, ending) = (pool.clone(), Arc::clone(&ending));
        async move {
            while !ending.load(Ordering::Relaxed) {
                expire_leases(&pool).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    });
    let steps = [
        Step::BeforeEvaluated,
        Step::AfterEvaluated,
        Step::BeforeExecution,
        Step::BeforeExecuted,
        Step::AfterExecuted,
        Step::BeforeSettled,
    ];
    for round in 0..rounds(2) {
        for step in steps {
            writers[0].proceed().await;
            switch.arm(step, process.pid());
            eventually(&format!("round {round}: killed {step:?}"), || async {
                switch.is_done().then_some(())
            })
            .await;
            drop(process);
            process = Process::serve_with(&road.url, &settings);
        }
    }
    let [first, second] = writers;
    // Both write the same records: each of them is there once.
    let records = first.stop().await.max(second.stop().await);
    at_rest(&pool).await;
    ending.store(true, Ordering::Relaxed);
    expiring.await.expect("no panic");
    let there = number(&pool, "select count(*) from checkouts").await;
    assert!(there >= records, "{there} of {records}");
    println!("{there} changes");
    check(&pool, there).await;
    drop((process, survivor));
}
