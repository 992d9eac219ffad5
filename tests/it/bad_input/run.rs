//! Sends the cases and compares the answers.

use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::Value;
use sqlx::AssertSqlSafe;

use super::case::{Body, Case, Errors, Sent, Want, example};
use super::limits::{self, Accepted};
use super::wire::{self, Response};
use crate::support::app::App;

/// What was sent so far, and what came back otherwise than it should.
pub struct Run<'a> {
    app: &'a App,
    address: String,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    requests: u64,
    slowest: (Duration, String),
    failures: Vec<String>,
}

impl fmt::Display for Run<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seen = self.seen.lock().expect("no panic");
        let (took, name) = &seen.slowest;
        write!(
            f,
            "{} requests; the slowest took {took:?}: {name}",
            seen.requests
        )
    }
}

impl<'a> Run<'a> {
    /// Puts the first example of each resource into the store, so that a change would be seen.
    pub async fn start(app: &'a App) -> Self {
        for resource in ["orders", "checkouts", "customers", "shipments"] {
            app.post(resource, &example(resource)).await;
        }
        // The feed numbers its events when it is first read.
        app.events().await;
        Self {
            app,
            address: address(app),
            seen: Mutex::default(),
        }
    }

    /// Fails the test with all that came back otherwise.
    pub fn expect_sound(&self, within: Duration) {
        let Seen {
            slowest, failures, ..
        } = &*self.seen.lock().expect("no panic");
        assert!(
            failures.is_empty(),
            "{} failures:\n{}",
            failures.len(),
            failures.join("\n")
        );
        assert!(slowest.0 < within, "{slowest:?}");
    }

    /// Every row of every table, but for when a key was last used.
    pub async fn rows(&self) -> Vec<(String, String)> {
        let tables: Vec<String> = sqlx::query_scalar(
            "select tablename::text from pg_tables where schemaname = 'public' order by 1",
        )
        .fetch_all(&self.app.pool)
        .await
        .expect("tables");
        let mut rows = Vec::new();
        for table in tables {
            let statement = format!(
                "select coalesce(string_agg(row, e'\\n' order by row), '') from (
                    select (to_jsonb(t) - 'last_used_at')::text as row from {table} t
                ) rows"
            );
            let all: String = sqlx::query_scalar(AssertSqlSafe(statement))
                .fetch_one(&self.app.pool)
                .await
                .expect("rows");
            rows.push((table, all));
        }
        rows
    }

    /// Sends a case in every way that it has.
    pub async fn case(&self, case: &Case) {
        let body = match &case.sent {
            Sent::Body(body) => body,
            Sent::Request { .. } => {
                let response = self.send(&case.name, &one(self.app, case)).await;
                self.compare(&case.name, &case.want, &response);
                return;
            }
        };
        let response = self
            .post(&case.name, body.resource, "application/json", &body.text)
            .await;
        self.compare(&case.name, &case.want, &response);
        if body.can_be_wrapped {
            self.wrapped(&case.name, body, &case.want).await;
        }
    }

    /// The same as an item of a document, of one that is all or nothing, and as a line.
    async fn wrapped(&self, name: &str, body: &Body, want: &Want) {
        let bulk = format!("{}/bulk", body.resource);
        let document = [b"{\"items\":[", body.text.as_slice(), b"]}"].concat();
        for (way, path) in [
            ("item", bulk.clone()),
            ("atomic", format!("{bulk}?atomic=true")),
        ] {
            let name = format!("{name} ({way})");
            let response = self.post(&name, &path, "application/json", &document).await;
            let want = match (body.breaks_document, way) {
                (true, _) => want.clone(),
                (false, "atomic") => in_whole(want, &response),
                (false, _) => want.clone(),
            };
            self.compare(&name, &want, &response);
        }
        let name = format!("{name} (line)");
        let response = self
            .post(&name, &bulk, "application/x-ndjson", &body.text)
            .await;
        self.compare(&name, want, &response);
    }

    /// Stores a value at its limit, reads it back, and sends it once more.
    pub async fn accepted(&self, row: &Accepted, at: usize) {
        let (resource, field, value, answer) = row;
        let shown: String = value.chars().take(40).collect();
        let name = format!("{resource}: {field} = {shown}");
        let text = limits::body(row, at);
        let posted = self
            .post(&name, resource, "application/json", text.as_bytes())
            .await;
        if posted.status != 201 || !posted.body.contains(answer.as_str()) {
            self.fail(&name, &format!("201 with {answer:.200}"), &posted);
            return;
        }
        let target = format!("{}/limit-{at}", self.app.path(resource));
        let read = self.send(&name, &get(self.app, &target)).await;
        if (read.status, &read.body) != (200, &posted.body) {
            self.fail(&format!("{name} (read back)"), "what POST answered", &read);
        }
        let line = self
            .post(
                &name,
                &format!("{resource}/bulk"),
                "application/x-ndjson",
                text.as_bytes(),
            )
            .await;
        if !line.body.contains("\"outcome\":\"unchanged\"") {
            self.fail(&format!("{name} (sent again)"), "unchanged", &line);
        }
    }

    async fn post(&self, name: &str, path: &str, kind: &str, body: &[u8]) -> Response {
        let request = post(self.app, path, kind, body);
        self.send(name, &request).await
    }

    async fn send(&self, name: &str, request: &[u8]) -> Response {
        let started = Instant::now();
        let response = wire::exchange(&self.address, request).await;
        let took = started.elapsed();
        let mut seen = self.seen.lock().expect("no panic");
        if took > seen.slowest.0 {
            seen.slowest = (took, name.to_owned());
        }
        seen.requests += 1;
        response
    }

    fn compare(&self, name: &str, want: &Want, response: &Response) {
        let got = got(response);
        let sound = is_sound(response);
        if got != *want || !sound {
            let sound = if sound {
                ""
            } else {
                " in a sound problem body"
            };
            self.fail(name, &format!("{want:?}{sound}"), response);
        }
    }

    fn fail(&self, name: &str, want: &str, response: &Response) {
        let Response { status, head, body } = response;
        self.seen.lock().expect("no panic").failures.push(format!(
            "{name}\n  wanted {want:.600}\n  got    {status} {body:.600}\n         {head:.300}"
        ));
    }
}

/// What an answer says, wherever it says it: in a problem, in the result of an item, in a line.
fn got(response: &Response) -> Want {
    let first_line = response.body.lines().next().unwrap_or_default();
    let json: Value = serde_json::from_str(first_line).unwrap_or_default();
    let result = json.pointer("/results/0").unwrap_or(&json);
    let status = match result["outcome"].as_str() {
        Some(_) => result["status"]
            .as_u64()
            .and_then(|status| status.try_into().ok()),
        None => Some(response.status),
    };
    Want {
        status: status.expect("a status"),
        code: result["code"].as_str().unwrap_or_default().to_owned(),
        errors: serde_json::from_value::<Option<Errors>>(result["errors"].clone())
            .expect("paths and sentences")
            .unwrap_or_default(),
    }
}

/// A problem says the same in its body, its status line and its headers.
fn is_sound(response: &Response) -> bool {
    let id = response.header("x-request-id");
    if response.status < 400 {
        return !id.is_empty();
    }
    if response.body.is_empty() {
        // hyper's own answer to what is no HTTP.
        return response.status == 400 && id.is_empty();
    }
    let json: Value = serde_json::from_str(&response.body).unwrap_or_default();
    let length = response.header("content-length").parse::<usize>();
    response.header("content-type") == "application/problem+json"
        && length == Ok(response.body.len())
        && json["status"] == response.status
        && json["request_id"] == id
        && json["type"]
            == format!(
                "urn:keyfold:problem:{}",
                json["code"].as_str().unwrap_or_default()
            )
        && ["title", "detail"]
            .iter()
            .all(|name| json[name].as_str().is_some_and(|text| !text.is_empty()))
        && (response.status == 405) != response.header("allow").is_empty()
        && (response.status == 401) != response.header("www-authenticate").is_empty()
}

/// The same faults in a document that is all or nothing.
fn in_whole(want: &Want, response: &Response) -> Want {
    let mut whole = Want::refused(422, "validation_failed");
    for (path, sentences) in &want.errors {
        let is_cut = path.is_empty()
            && sentences
                .iter()
                .any(|sentence| sentence.contains("more faults"));
        let path = match path.as_str() {
            "" if is_cut => String::new(),
            "" => "items.0".to_owned(),
            path => format!("items.0.{path}"),
        };
        whole.errors.insert(path, sentences.clone());
    }
    if want.errors.is_empty() {
        // The sentence is the detail of the single answer; which one depends on where it stands.
        let got = got(response);
        let is_one = got.errors.len() == 1 && got.errors.contains_key("items.0");
        whole.errors = if is_one { got.errors } else { Errors::new() };
    }
    whole
}

/// Host and port.
pub fn address(app: &App) -> String {
    app.base.trim_start_matches("http://").to_owned()
}

/// A POST below the store.
pub fn post(app: &App, path: &str, kind: &str, body: &[u8]) -> Vec<u8> {
    let headers = [
        ("Content-Type".to_owned(), kind.as_bytes().to_vec()),
        (
            "Content-Length".to_owned(),
            body.len().to_string().into_bytes(),
        ),
        key(app),
    ];
    wire::request(&format!("POST {}", app.path(path)), &headers, body)
}

/// A GET.
pub fn get(app: &App, target: &str) -> Vec<u8> {
    wire::request(&format!("GET {target}"), &[key(app)], b"")
}

fn key(app: &App) -> (String, Vec<u8>) {
    (
        "Authorization".to_owned(),
        format!("Bearer {}", app.key).into_bytes(),
    )
}

/// A case that is one request.
fn one(app: &App, case: &Case) -> Vec<u8> {
    let Sent::Request {
        method,
        target,
        headers,
        body,
    } = &case.sent
    else {
        panic!("{} is a body", case.name);
    };
    let store = app.path("");
    let mut target = target.replace("{store}", store.trim_end_matches('/'));
    if let Some((before, length)) = target.split_once("{pad:") {
        let length: usize = length.trim_end_matches('}').parse().expect("a length");
        // Ends in a broken escape: what is not too long is read.
        target = format!("{before}{}%", "a".repeat(length - before.len() - 1));
    }
    let mut headers = headers.clone();
    if !headers.iter().any(|(name, _)| name == "Authorization") {
        headers.push(key(app));
    }
    for (_, value) in headers
        .iter_mut()
        .filter(|(_, value)| value.as_slice() == b"{key}")
    {
        *value = key(app).1;
    }
    wire::request(&format!("{method} {target}"), &headers, body)
}
