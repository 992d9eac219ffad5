//! Bulk requests of the clients: as a document, all or nothing, and as a stream.

use std::collections::{BTreeSet, HashMap};

use http::{Method, header};
use serde_json::{Value, json};
use tokio::sync::SemaphorePermit;

use super::bodies;
use super::client::{Client, Outgoing, Round, text_of};
use super::history::{Answer, Op, Place};
use super::plan::{Bulk, Form, Item, Shape, Target, What};
use super::rules::{Change, Fallback, Kind, Members, Outcome, Request};
use crate::support::app;

/// A bulk request on its way.
struct Parcel<'b> {
    number: u64,
    form: Form,
    items: &'b [(Target, Members)],
    start: u64,
}

impl Round<'_> {
    pub(super) async fn bulk(&self, client: &Client, bulk: &Bulk) {
        let _turns = self.turns(bulk).await;
        let items = self.items(client, bulk);
        for _ in 0..bulk.times {
            let parcel = Parcel {
                number: self.number(),
                form: bulk.form,
                items: &items,
                start: self.now(),
            };
            let path = bulk.kind.rules().path;
            match bulk.form {
                Form::Stream => self.stream(client, path, &parcel).await,
                Form::Document => self.document(client, format!("{path}/bulk"), &parcel).await,
                Form::Atomic => {
                    let path = format!("{path}/bulk?atomic=true");
                    self.document(client, path, &parcel).await;
                }
            }
            if let Some(last) = bulk.items.last() {
                self.then(client, bulk.then, last.of(bulk.kind)).await;
            }
        }
    }

    /// Waits until few enough other bulk requests write the same records. Results of bulk items have
    /// no version: where many such requests met, far too many orders of them would do. Single
    /// requests never wait.
    async fn turns(&self, bulk: &Bulk) -> Vec<SemaphorePermit<'_>> {
        if bulk.kind == Kind::Customers {
            return Vec::new();
        }
        // In order of records, so that no two wait for each other.
        let records: BTreeSet<Target> = bulk.items.iter().map(|item| item.of(bulk.kind)).collect();
        let mut turns = Vec::new();
        for record in records {
            let turn = self.turns[&record].acquire().await;
            turns.push(turn.expect("it is never closed"));
        }
        turns
    }

    /// The bodies of a request, in order.
    fn items(&self, client: &Client, bulk: &Bulk) -> Vec<(Target, Members)> {
        let mut before: HashMap<Target, Members> = HashMap::new();
        let mut items = Vec::with_capacity(bulk.items.len());
        for item in &bulk.items {
            let target = item.of(bulk.kind);
            let body = self.item(client, target, item, before.get(&target));
            if is_whole(target, &body) {
                before.insert(target, body.clone());
            }
            items.push((target, body));
        }
        items
    }

    fn item(
        &self,
        client: &Client,
        target: Target,
        item: &Item,
        before: Option<&Members>,
    ) -> Members {
        let (owner, mark) = (Some(client.at), self.number());
        let known = match &item.what {
            What::New(shape) => return self.new_body(target, mark, shape, owner),
            What::Faulty(shape) => {
                let mut body = bodies::post(target, mark, shape);
                body.remove(required_of(target));
                return body;
            }
            What::Again => before.cloned(),
            What::Known(back) => self.notes.claim(target, *back, client.at),
        };
        let plain = || self.new_body(target, mark, &Shape::PLAIN, owner);
        known.unwrap_or_else(plain)
    }

    async fn document(&self, client: &Client, path: String, parcel: &Parcel<'_>) {
        let items: Vec<&Members> = parcel.items.iter().map(|(_, body)| body).collect();
        let body = json!({ "items": items }).to_string();
        let outgoing = outgoing(self.server(client), path, "application/json", body);
        let answer = app::answer(self.send(client, outgoing).await).await;
        let end = self.now();
        if parcel.form == Form::Atomic && answer.status == 422 {
            assert_eq!(answer.faulty(), faults_of(parcel.items), "{}", answer.text);
            return self.settle_all(client, parcel, end, || Answer::Dropped);
        }
        if answer.status != 200 {
            let refusal = || Answer::refusal(answer.status.as_u16(), &answer.code());
            return self.settle_all(client, parcel, end, refusal);
        }
        let answer = answer.json();
        let results = answer["results"].as_array().expect("a list");
        for (index, result) in results.iter().enumerate() {
            self.settle(
                client,
                parcel,
                index,
                end,
                read_result(parcel, index, result),
            );
        }
        check_summary(parcel, results, &answer["summary"]);
    }

    /// Each result counts as answered when its line arrives.
    async fn stream(&self, client: &Client, path: &str, parcel: &Parcel<'_>) {
        let lines: String = parcel
            .items
            .iter()
            .map(|(_, body)| text_of(body) + "\n")
            .collect();
        let path = format!("{path}/bulk");
        // A store may have only so many streams open: one that is refused was not begun.
        let mut response = loop {
            let kind = "application/x-ndjson";
            let outgoing = outgoing(self.server(client), path.clone(), kind, lines.clone());
            let response = self.send(client, outgoing).await;
            if response.status() != 503 {
                break response;
            }
        };
        if response.status() != 200 {
            let answer = app::answer(response).await;
            let refusal = || Answer::refusal(answer.status.as_u16(), &answer.code());
            return self.settle_all(client, parcel, self.now(), refusal);
        }
        let (mut text, mut results) = (Vec::new(), Vec::new());
        while let Some(chunk) = response.chunk().await.expect("the stream goes on") {
            let end = self.now();
            text.extend_from_slice(&chunk);
            while let Some(at) = text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = text.drain(..=at).collect();
                let line: Value = serde_json::from_slice(&line).expect("JSON");
                let index = results.len();
                if index < parcel.items.len() {
                    let answer = read_result(parcel, index, &line);
                    self.settle(client, parcel, index, end, answer);
                }
                results.push(line);
            }
        }
        let last = results.pop().expect("a last line");
        assert_eq!(last["complete"], true, "{last}");
        check_summary(parcel, &results, &last["summary"]);
    }

    /// Writes down what became of a request that was not taken.
    fn settle_all(
        &self,
        client: &Client,
        parcel: &Parcel<'_>,
        end: u64,
        answer: impl Fn() -> Answer,
    ) {
        for index in 0..parcel.items.len() {
            self.settle(client, parcel, index, end, answer());
        }
    }

    /// Writes down what became of an item.
    fn settle(&self, client: &Client, parcel: &Parcel<'_>, index: usize, end: u64, answer: Answer) {
        let (target, body) = &parcel.items[index];
        self.write_down(Op {
            number: self.number(),
            client: client.at,
            server: self.server(client),
            target: *target,
            request: Request::of(Change::Put(body.clone())),
            place: Some(Place {
                bulk: parcel.number,
                index,
                form: parcel.form,
            }),
            start: parcel.start,
            end,
            answer,
        });
    }
}

fn outgoing(server: usize, path: String, kind: &str, body: String) -> Outgoing {
    Outgoing {
        server,
        method: Method::POST,
        path,
        headers: vec![(header::CONTENT_TYPE, kind.to_owned())],
        body,
    }
}

/// A required member that is not the key.
fn required_of(target: Target) -> &'static str {
    let members = target.kind.rules().members.iter();
    let mut required = members.filter(|(_, fallback)| matches!(fallback, Fallback::Required));
    required.next_back().expect("something is required").0
}

fn is_whole(target: Target, body: &Members) -> bool {
    body.contains_key(required_of(target))
}

fn faults_of(items: &[(Target, Members)]) -> Vec<String> {
    let faulty = items.iter().enumerate();
    let faulty = faulty.filter(|(_, (target, body))| !is_whole(*target, body));
    let path = |(at, (target, _)): (usize, &(Target, Members))| {
        format!("items.{at}.{}", required_of(*target))
    };
    let mut paths: Vec<String> = faulty.map(path).collect();
    paths.sort();
    paths
}

fn read_result(parcel: &Parcel<'_>, index: usize, result: &Value) -> Answer {
    let (target, body) = &parcel.items[index];
    assert_eq!(result["index"], index, "{result}");
    let key = body.get("external_id").unwrap_or(&Value::Null);
    assert_eq!(&result["external_id"], key, "{result} for {target:?}");
    let status = result["status"].as_u64().expect("a status");
    let status = u16::try_from(status).expect("a status");
    match result["outcome"].as_str().and_then(Outcome::parse) {
        Some(outcome) => Answer::Listed {
            status,
            outcome,
            id: result["id"].clone(),
        },
        None => {
            assert_eq!(result["outcome"], "failed", "{result}");
            Answer::refusal(status, result["code"].as_str().unwrap_or_default())
        }
    }
}

/// The results add up to the summary, and there is one for each item.
fn check_summary(parcel: &Parcel<'_>, results: &[Value], summary: &Value) {
    assert_eq!(results.len(), parcel.items.len(), "{summary}");
    for (outcome, count) in summary.as_object().expect("an object") {
        let told = results
            .iter()
            .filter(|result| result["outcome"] == **outcome);
        assert_eq!(told.count() as u64, *count, "{outcome} in {summary}");
    }
}
