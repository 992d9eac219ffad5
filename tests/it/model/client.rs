//! The clients: each takes the next step of the plan, sends it, and writes down what was answered.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use http::{HeaderName, Method, header};
use serde_json::Value;
use tokio::sync::Semaphore;

use super::bodies;
use super::history::{Answer, Op, Shown};
use super::notes::Notes;
use super::plan::{Condition, Doing, Naming, Shape, Single, Source, Step, Target, Then, targets};
use super::rules::{Change, Kind, Members, Outcome, Request};
use crate::support::app;
use crate::support::scale::eventually;

/// Bulk requests that may write one record at the same time.
const BULKS: usize = 2;

/// A store, and the servers that lead to it.
pub struct Shop {
    pub servers: Vec<String>,
    pub store_id: i64,
    pub key: String,
}

/// One of the clients.
pub struct Client {
    pub at: usize,
    pub http: reqwest::Client,
}

impl Client {
    pub fn new(at: usize) -> Self {
        let http = app::client();
        Self { at, http }
    }
}

/// A round on its way.
pub struct Round<'a> {
    shop: &'a Shop,
    began: Instant,
    plan: Mutex<std::vec::IntoIter<Step>>,
    pub(super) notes: Notes,
    /// How many more bulk requests may write a record at the same time.
    pub(super) turns: BTreeMap<Target, Semaphore>,
    numbers: AtomicU64,
    ticks: AtomicU64,
    history: Mutex<Vec<Op>>,
}

/// Whether an answer came with a record.
#[derive(PartialEq, Eq)]
enum Found {
    Yes,
    No,
    /// The server had no time to look.
    Busy,
}

/// A request as it goes out.
pub(super) struct Outgoing {
    pub server: usize,
    pub method: Method,
    pub path: String,
    pub headers: Vec<(HeaderName, String)>,
    pub body: String,
}

impl<'a> Round<'a> {
    pub fn new(shop: &'a Shop, plan: Vec<Step>) -> Self {
        Self {
            shop,
            began: Instant::now(),
            plan: Mutex::new(plan.into_iter()),
            notes: Notes::default(),
            turns: targets()
                .map(|target| (target, Semaphore::new(BULKS)))
                .collect(),
            numbers: AtomicU64::new(1),
            // Room for times that are late from the beginning.
            ticks: AtomicU64::new(1_000),
            history: Mutex::default(),
        }
    }

    /// What was asked and answered, in order of numbers.
    pub fn into_history(self) -> Vec<Op> {
        let mut history = self.history.into_inner().expect("no client died");
        history.sort_by_key(|op| op.number);
        history
    }

    /// One client, until the plan is done.
    pub async fn work(&self, client: &Client) {
        while let Some(step) = self.next() {
            match step {
                Step::One(single) => self.single(client, &single).await,
                Step::Many(bulk) => self.bulk(client, &bulk).await,
                Step::Read(target) => self.read(client, self.server(client), target).await,
            }
        }
    }

    fn next(&self) -> Option<Step> {
        self.plan.lock().expect("no client died").next()
    }

    /// Reads every record through every server.
    pub async fn look_at_all(&self, client: &Client) {
        for server in 0..self.shop.servers.len() {
            for target in targets() {
                let found = self.look(client, server, target, Naming::ByBoth).await;
                if found == Found::No && target.kind == Kind::Customers {
                    self.look(client, server, target, Naming::ByPhone).await;
                }
            }
        }
    }

    /// Reads a record, however busy the server is.
    async fn look(&self, client: &Client, server: usize, target: Target, by: Naming) -> Found {
        eventually("the record is read", || async {
            let request = Request::of(Change::Read(by));
            let found = self
                .ask(client, server, target, request, self.number())
                .await;
            (found != Found::Busy).then_some(found)
        })
        .await
    }

    pub(super) fn server(&self, client: &Client) -> usize {
        client.at % self.shop.servers.len()
    }

    pub(super) fn now(&self) -> u64 {
        let nanos = self.began.elapsed().as_nanos();
        u64::try_from(nanos).expect("a round is no century")
    }

    pub(super) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn write_down(&self, op: Op) {
        self.history.lock().expect("no client died").push(op);
    }

    pub(super) async fn send(&self, client: &Client, outgoing: Outgoing) -> reqwest::Response {
        let base = &self.shop.servers[outgoing.server];
        let path = format!("stores/{}/{}", self.shop.store_id, outgoing.path);
        let url = format!("{base}/api/v1/{path}");
        let mut request = client.http.request(outgoing.method, url);
        for (name, value) in outgoing.headers {
            request = request.header(name, value);
        }
        let sent = request.bearer_auth(&self.shop.key).body(outgoing.body);
        sent.send().await.expect("the server answers")
    }

    /// The JSON of another answer, however busy the server is.
    pub(super) async fn get(&self, client: &Client, path: String) -> Value {
        let answer = eventually("it is answered", || async {
            let outgoing = Outgoing {
                server: self.server(client),
                method: Method::GET,
                path: path.clone(),
                headers: Vec::new(),
                body: String::new(),
            };
            let answer = app::answer(self.send(client, outgoing).await).await;
            (answer.status != 503).then_some(answer)
        });
        answer.await.expect(200).json()
    }

    async fn read(&self, client: &Client, server: usize, target: Target) {
        let request = Request::of(Change::Read(Naming::ByBoth));
        let number = self.number();
        self.ask(client, server, target, request, number).await;
    }

    async fn single(&self, client: &Client, single: &Single) {
        let (number, target) = (self.number(), single.target);
        let mut request = Request::of(self.change(number, single));
        let version = self.notes.version(target);
        match single.condition {
            Condition::None => {}
            Condition::Newest => request.if_match = Some(version),
            Condition::Older => request.if_match = version.checked_sub(1),
            Condition::New => request.if_none_match = true,
        }
        let server = self.server(client);
        self.ask(client, server, target, request, number).await;
        self.then(client, single.then, target).await;
    }

    /// What comes after an answer.
    pub(super) async fn then(&self, client: &Client, then: Then, target: Target) {
        if then == Then::Looks {
            let other = (self.server(client) + 1) % self.shop.servers.len();
            self.read(client, other, target).await;
        }
    }

    /// What a step means now. Where there is nothing to repeat yet, it writes something new.
    fn change(&self, number: u64, single: &Single) -> Change {
        let target = single.target;
        let known = match &single.doing {
            Doing::Patch(shape) => {
                let body = bodies::patch(target, number, shape);
                return Change::Patch(self.dated(body, shape.source));
            }
            Doing::Replay(back) => self.notes.replay(target, *back),
            Doing::Newer => {
                let body = self.notes.newest(target);
                body.map(|body| self.dated(body, Source::Fresh))
            }
            Doing::Post(shape) => return Change::Put(self.new_body(target, number, shape, None)),
        };
        let plain = || self.new_body(target, number, &Shape::PLAIN, None);
        Change::Put(known.unwrap_or_else(plain))
    }

    /// A body that nobody sent before; only its owner, if it has one, repeats it in bulk.
    pub(super) fn new_body(
        &self,
        target: Target,
        mark: u64,
        shape: &Shape,
        owner: Option<usize>,
    ) -> Members {
        let body = self.dated(bodies::post(target, mark, shape), shape.source);
        self.notes.sends(target, &body, owner);
        body
    }

    pub(super) fn dated(&self, mut body: Members, source: Source) -> Members {
        let tick = match source {
            Source::None => return body,
            Source::Fresh => self.ticks.fetch_add(1, Ordering::Relaxed),
            Source::Late(ticks) => self.ticks.load(Ordering::Relaxed) - ticks,
        };
        body.insert("source_updated_at".to_owned(), bodies::time(tick));
        body
    }

    /// Sends a request to one record and writes down what became of it.
    async fn ask(
        &self,
        client: &Client,
        server: usize,
        target: Target,
        request: Request,
        number: u64,
    ) -> Found {
        let outgoing = outgoing(server, target, &request);
        let start = self.now();
        let answer = app::answer(self.send(client, outgoing).await).await;
        let end = self.now();
        let answer = read_answer(&answer);
        let found = match &answer {
            Answer::Shown(shown) => {
                self.notes.hears(target, &request.change, shown);
                Found::Yes
            }
            Answer::TurnedAway(_) => Found::Busy,
            _ => Found::No,
        };
        self.write_down(Op {
            number,
            client: client.at,
            server,
            target,
            request,
            place: None,
            start,
            end,
            answer,
        });
        found
    }
}

fn outgoing(server: usize, target: Target, request: &Request) -> Outgoing {
    let kind = target.kind.rules().path;
    let one = format!("{kind}/{}", bodies::name(target));
    let (method, path) = match request.change {
        Change::Read(Naming::ByPhone) => {
            let phone = bodies::phone(target.at).replace('+', "%2B");
            (Method::GET, format!("{kind}/{phone}"))
        }
        Change::Read(Naming::ByBoth) => (Method::GET, one),
        Change::Put(_) => (Method::POST, kind.to_owned()),
        Change::Patch(_) => (Method::PATCH, one),
    };
    let mut headers = vec![(header::CONTENT_TYPE, "application/json".to_owned())];
    if let Some(version) = request.if_match {
        headers.push((header::IF_MATCH, format!("\"{version}\"")));
    }
    if request.if_none_match {
        headers.push((header::IF_NONE_MATCH, "*".to_owned()));
    }
    let body = request.body().map(text_of).unwrap_or_default();
    Outgoing {
        server,
        method,
        path,
        headers,
        body,
    }
}

pub(super) fn text_of(body: &Members) -> String {
    serde_json::to_string(body).expect("JSON can be written")
}

fn read_answer(answer: &app::Answer) -> Answer {
    let status = answer.status.as_u16();
    if !answer.status.is_success() {
        return Answer::refusal(status, &answer.code());
    }
    let body = answer.json();
    let body = body.as_object().expect("a record").clone();
    Answer::Shown(Shown {
        status,
        etag: answer.header("etag").to_owned(),
        outcome: Outcome::parse(answer.outcome()),
        version: body["version"]
            .as_u64()
            .and_then(|version| usize::try_from(version).ok())
            .expect("a version"),
        body,
    })
}
