//! The command line: what it prints, how it ends, and that `dev` needs nothing.

mod automations;
mod exports;
mod messaging;

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use sqlx::{Connection as _, Executor as _, PgConnection};

use crate::support::app::client;
use crate::support::database;
use crate::support::process::{Process, keyfold};

const COMMANDS: &[&[&str]] = &[
    &[],
    &["dev"],
    &["serve"],
    &["migrate"],
    &["team"],
    &["team", "create"],
    &["team", "list"],
    &["store"],
    &["store", "create"],
    &["store", "list"],
    &["store", "pause"],
    &["store", "resume"],
    &["key"],
    &["key", "create"],
    &["key", "list"],
    &["key", "revoke"],
    &["work"],
    &["channel"],
    &["channel", "set"],
    &["channel", "show"],
    &["template"],
    &["template", "sync"],
    &["automation"],
    &["automation", "list"],
    &["automation", "runs"],
    &["outbox"],
    &["outbox", "list"],
    &["outbox", "retry"],
    &["openapi"],
    &["completions"],
];

fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().expect("it runs")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

/// The one line that a failed command says why with.
#[track_caller]
fn failure(output: &Output) -> String {
    let said = String::from_utf8(output.stderr.clone()).expect("UTF-8");
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(stdout(output), "");
    let mut lines = said.lines();
    let line = lines.next().expect("a reason").to_owned();
    assert_eq!(lines.next(), None, "one line only: {said}");
    assert!(line.starts_with("keyfold: "), "{line}");
    line
}

/// Runs a command with `--json` on a database; gives the one object that it prints.
#[track_caller]
fn json_of(database_url: &str, arguments: &[&str]) -> Value {
    let output = run(keyfold()
        .args(arguments)
        .arg("--json")
        .env("DATABASE_URL", database_url));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {said}");
    let object: Value = serde_json::from_str(&stdout(&output)).expect("one JSON value");
    assert!(object.is_object(), "{object}");
    object
}

#[track_caller]
fn members(object: &Value) -> Vec<&str> {
    let object = object.as_object().expect("an object");
    object.keys().map(String::as_str).collect()
}

#[test]
fn every_command_explains_itself() {
    for arguments in COMMANDS {
        let output = run(keyfold().args(*arguments).arg("--help"));
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(stdout(&output).contains("Usage: keyfold"), "{arguments:?}");
        assert!(output.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn wrong_usage_ends_with_2() {
    for arguments in [
        &["upsert"][..],
        &["team", "create"],
        &["team", "create", "--name", ""],
        &["store", "pause", "first"],
        &[
            "store",
            "create",
            "--team",
            "1",
            "--name",
            "A",
            "--default-country",
            "XX",
        ],
        &["key", "revoke", "1"],
        &["dev", "--listen", "nowhere"],
        &["openapi", "--format", "xml"],
        &["completions", "cmd"],
    ] {
        let output = run(keyfold().args(arguments));
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert_eq!(stdout(&output), "", "{arguments:?}");
        assert!(!output.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn without_a_database_the_way_out_is_named() {
    for arguments in [&["serve"][..], &["migrate"], &["team", "list"]] {
        let line = failure(&run(keyfold().args(arguments)));
        assert!(line.contains("DATABASE_URL is not set"), "{line}");
        assert!(line.contains("keyfold dev"), "{line}");
    }
}

#[test]
fn faults_of_the_settings_are_reported_at_once_and_without_their_values() {
    let output = run(keyfold()
        .arg("migrate")
        .env("DATABASE_URL", "mysql://root:hunter2@localhost/shop")
        .env("KEYFOLD_LISTEN", "nowhere")
        .env("KEYFOLD_LOG_FORMAT", "xml")
        .env("KEYFOLD_DATABASE_MAX_CONNECTIONS", "1")
        .env("KEYFOLD_RATE_LIMIT_PER_MINUTE", "-1")
        .env("KEYFOLD_EVENT_RETENTION_DAYS", "0"));
    let line = failure(&output);
    for name in [
        "DATABASE_URL",
        "KEYFOLD_LISTEN",
        "KEYFOLD_LOG_FORMAT",
        "KEYFOLD_DATABASE_MAX_CONNECTIONS",
        "KEYFOLD_RATE_LIMIT_PER_MINUTE",
        "KEYFOLD_EVENT_RETENTION_DAYS",
    ] {
        assert!(line.contains(name), "{name}: {line}");
    }
    assert!(!line.contains("hunter2"), "{line}");
}

#[tokio::test]
async fn migrating_twice_and_from_two_places_at_once_is_safe() {
    let database_url = database::empty().await;
    let start = || {
        keyfold()
            .args(["migrate", "--json"])
            .env("DATABASE_URL", &database_url)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts")
    };
    let both = [start(), start()];
    let mut applied = Vec::new();
    for child in both {
        let output = child.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{said}");
        let object: Value = serde_json::from_slice(&output.stdout).expect("one object");
        assert_eq!(members(&object), ["applied", "current"]);
        applied.push(object["applied"].as_array().expect("a list").len());
    }
    let again = json_of(&database_url, &["migrate"]);
    assert_eq!(again["applied"], json!([]));
    assert!(applied.iter().any(|count| *count > 0), "{applied:?}");
}

#[tokio::test]
async fn serve_refuses_a_database_that_is_not_migrated() {
    let database_url = database::empty().await;
    let output = run(keyfold()
        .arg("serve")
        .env("DATABASE_URL", &database_url)
        .env("KEYFOLD_LISTEN", "127.0.0.1:0"));
    assert!(failure(&output).contains("`keyfold migrate`"));
}

#[tokio::test]
async fn a_database_of_something_else_is_refused_and_left_as_it_is() {
    let database_url = database::empty().await;
    let mut connection = PgConnection::connect(&database_url)
        .await
        .expect("it is there");
    connection
        .execute("create table wp_posts (id bigint primary key)")
        .await
        .expect("made");
    for arguments in [&["migrate"][..], &["dev", "--listen", "127.0.0.1:0"]] {
        let output = run(keyfold().args(arguments).env("DATABASE_URL", &database_url));
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("wp_posts"), "{arguments:?}: {said}");
    }
    let tables: Vec<String> =
        sqlx::query_scalar("select tablename::text from pg_tables where schemaname = 'public'")
            .fetch_all(&mut connection)
            .await
            .expect("listed");
    assert_eq!(tables, ["wp_posts"]);
}

#[tokio::test]
async fn teams_stores_and_keys_are_made_shown_and_taken_away() {
    let url = database::fresh().await;
    let team = json_of(&url, &["team", "create", "--name", "Acme"]);
    let team_id = team["id"].as_i64().expect("a number");
    assert_eq!(team, json!({ "id": team_id, "name": "Acme" }));
    assert_eq!(json_of(&url, &["team", "list"]), json!({ "data": [team] }));

    let team_arg = team_id.to_string();
    let named = [
        "--name",
        "Paris",
        "--external-id",
        "fr-1",
        "--default-country",
        "fr",
    ];
    let create = ["store", "create", "--team", &team_arg];
    let store = json_of(&url, &[&create[..], &named[..]].concat());
    let store_id = store["id"].as_i64().expect("a number");
    let mut expected = json!({
        "id": store_id, "team_id": team_id, "name": "Paris", "external_id": "fr-1",
        "default_country": "FR", "status": "active"
    });
    assert_eq!(store, expected);
    let store_arg = store_id.to_string();
    expected["status"] = json!("paused");
    assert_eq!(json_of(&url, &["store", "pause", &store_arg]), expected);
    assert_eq!(
        json_of(&url, &["store", "list"]),
        json!({ "data": [expected] })
    );
    assert_eq!(json_of(&url, &["store", "resume", &store_arg]), store);

    let key = json_of(
        &url,
        &[
            "key", "create", "--team", &team_arg, "--store", &store_arg, "--name", "till",
        ],
    );
    assert_eq!(members(&key), ["id", "key", "name", "team_id", "store_id"]);
    let secret = key["key"].as_str().expect("the key");
    assert!(secret.starts_with("kf_") && secret.len() >= 43, "{secret}");
    let listed = json_of(&url, &["key", "list", "--team", &team_arg]);
    assert_eq!(listed["data"][0]["id"], key["id"]);
    assert_eq!(listed["data"][0]["last_used_at"], Value::Null);
    assert!(!listed.to_string().contains(secret), "shown once only");
    let key_id = key["id"].as_str().expect("an id");
    let revoked = json_of(&url, &["key", "revoke", key_id]);
    assert!(revoked["revoked_at"].is_string(), "{revoked}");
}

#[tokio::test]
async fn what_is_not_there_is_said_in_one_line() {
    let url = database::fresh().await;
    let nobody = "01890000-0000-7000-8000-000000000000";
    for arguments in [
        &["store", "create", "--team", "77", "--name", "A"][..],
        &["store", "pause", "77"],
        &["key", "create", "--team", "77", "--name", "a"],
        &["key", "revoke", nobody],
    ] {
        failure(&run(keyfold().args(arguments).env("DATABASE_URL", &url)));
    }
}

#[tokio::test]
async fn a_signal_ends_serve_well() {
    let process = Process::serve(&database::fresh().await);
    let health = client()
        .get(format!("{}/readyz", process.base))
        .send()
        .await;
    assert_eq!(health.expect("it answers").status(), 200);
    interrupt(process.pid());
    wait_until_gone(process.pid());
}

#[tokio::test]
async fn serve_starts_again_after_a_kill() {
    let database_url = database::fresh().await;
    Process::serve(&database_url).kill();
    let process = Process::serve_with(&database_url, &[("KEYFOLD_LOG_FORMAT", "json")]);
    let health = client()
        .get(format!("{}/healthz", process.base))
        .send()
        .await;
    assert_eq!(health.expect("it answers").status(), 200);
}

#[test]
fn completions_and_the_document_are_printed() {
    let script = run(keyfold().args(["completions", "bash"]));
    assert_eq!(script.status.code(), Some(0));
    assert!(stdout(&script).contains("complete -F _keyfold"));
    let document = run(keyfold().args(["openapi", "--format", "json"]));
    let document: Value = serde_json::from_str(&stdout(&document)).expect("JSON");
    assert_eq!(document, keyfold::openapi::document());
    let yaml = run(keyfold().arg("openapi"));
    assert_eq!(stdout(&yaml), keyfold::openapi::yaml());
}

/// A running `keyfold dev`; killed when dropped.
struct Dev {
    child: Child,
    said: Value,
}

impl Dev {
    fn start(data_dir: &std::path::Path) -> Self {
        let mut child = keyfold()
            .args(["dev", "--json", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(data_dir)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().expect("piped"))
            .read_line(&mut line)
            .expect("readable");
        if line.is_empty() {
            let mut said = String::new();
            let errors = child.stderr.as_mut().expect("piped");
            errors.read_to_string(&mut said).expect("readable");
            panic!("{said}");
        }
        let said = serde_json::from_str(&line).expect("one JSON object");
        Self { child, said }
    }

    fn text(&self, name: &str) -> &str {
        self.said[name].as_str().expect("a text")
    }

    async fn orders(&self) -> reqwest::RequestBuilder {
        let url = format!(
            "{}/api/v1/stores/{}/orders",
            self.text("listen"),
            self.said["store_id"]
        );
        client().get(url).bearer_auth(self.text("key"))
    }

    /// The process id of its Postgres.
    fn postgres(&self, data_dir: &std::path::Path) -> u32 {
        let file = data_dir.join("data/postmaster.pid");
        let text = std::fs::read_to_string(file).expect("it runs");
        text.lines()
            .next()
            .and_then(|pid| pid.parse().ok())
            .expect("a pid")
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn interrupt(pid: u32) {
    let pid = Pid::from_raw(i32::try_from(pid).expect("a pid"));
    kill(pid, Signal::SIGINT).expect("it runs");
}

/// Waits until a process has ended; a zombie counts as ended.
fn wait_until_gone(pid: u32) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while is_running(pid) {
        assert!(Instant::now() < deadline, "{pid} does not end");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn is_running(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit(')')
        .next()
        .and_then(|rest| rest.trim().chars().next());
    state.is_some_and(|state| state != 'Z')
}

#[tokio::test]
async fn dev_needs_nothing_and_finds_its_data_again() {
    let folder = tempfile::tempdir().expect("a folder");
    // Postgres runs as a user of its own and has to get through.
    let passable = std::fs::Permissions::from_mode(0o711);
    std::fs::set_permissions(folder.path(), passable).expect("ours");
    let data_dir = folder.path().join("dev");

    let mut first = Dev::start(&data_dir);
    assert_eq!(
        members(&first.said),
        ["listen", "store_id", "key", "database_url"]
    );
    let (store_id, key) = (first.said["store_id"].clone(), first.text("key").to_owned());
    let [order, _] = <keyfold::resources::orders::Order as keyfold::engine::Resource>::examples();
    let url = format!("{}/api/v1/stores/{store_id}/orders", first.text("listen"));
    let created = client()
        .post(url)
        .bearer_auth(&key)
        .json(&order)
        .send()
        .await;
    assert_eq!(created.expect("an answer").status(), 201);
    let postgres = first.postgres(&data_dir);
    interrupt(first.child.id());
    assert_eq!(first.child.wait().expect("it ends").code(), Some(0));
    wait_until_gone(postgres);

    let mut second = Dev::start(&data_dir);
    assert_eq!(
        (&second.said["store_id"], second.text("key")),
        (&store_id, &*key)
    );
    assert_eq!(count(&second).await, 1);
    let postgres = second.postgres(&data_dir);
    second.child.kill().expect("it was running");
    second.child.wait().expect("it ended");
    wait_until_gone(postgres);

    let third = Dev::start(&data_dir);
    assert_eq!(third.text("key"), key);
    assert_eq!(count(&third).await, 1);
}

/// How many orders there are.
async fn count(dev: &Dev) -> usize {
    let answer = dev.orders().await.send().await.expect("an answer");
    assert_eq!(answer.status(), 200);
    let page: Value = answer.json().await.expect("JSON");
    page["data"].as_array().expect("a list").len()
}
