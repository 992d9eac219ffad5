//! With real servers, in folders of their own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use sqlx::{Connection, PgConnection};
use tempfile::TempDir;

use super::*;

/// A folder that the server's user can enter, also when we are root.
fn open_folder() -> TempDir {
    let folder = tempfile::tempdir().expect("folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711)).expect("mode");
    folder
}

fn for_tests(data_dir: &Path) -> Options {
    Options {
        durability: Durability::ForTests,
        ..Options::new(data_dir)
    }
}

/// One statement on a connection of its own; the first column of the first row, as text.
fn ask(url: &str, statement: &'static str) -> Result<String, sqlx::Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("runtime").block_on(async {
        let mut connection = PgConnection::connect(url).await?;
        let answer: Option<String> = sqlx::query_scalar(statement)
            .fetch_optional(&mut connection)
            .await?;
        connection.close().await?;
        Ok(answer.unwrap_or_default())
    })
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("metadata").permissions().mode() & 0o777
}

#[test]
fn data_outlive_their_server_and_only_its_folder_leads_to_it() {
    let root = open_folder();
    let data_dir = root.path().join("deep/er");
    let server = PrivateServer::start(&Options::new(&data_dir)).expect("first start");
    let url = server.url("postgres");
    assert_eq!(ask(&url, "show fsync").expect("answer"), "on");
    assert_eq!(ask(&url, "show synchronous_commit").expect("answer"), "on");
    assert_eq!(ask(&url, "show listen_addresses").expect("answer"), "");
    assert_eq!(ask(&url, "show data_checksums").expect("answer"), "on");
    assert_eq!(ask(&url, "show server_encoding").expect("answer"), "UTF8");
    assert_eq!(mode(&data_dir.join("run")), 0o700);
    assert_eq!(mode(&data_dir.join("data")), 0o700);
    assert_eq!(mode(&data_dir.join("password")), 0o600);
    assert!(
        server.description().starts_with("Postgres 1"),
        "{}",
        server.description()
    );
    runs_unprivileged(server.pid().expect("up"));
    ask(&url, "create table kept as select 'still here' as word").expect("create");

    let refused = PrivateServer::start(&Options::new(&data_dir)).expect_err("in use");
    assert!(
        refused
            .to_string()
            .contains("another keyfold is using this data folder"),
        "{refused}"
    );
    server.stop();
    assert!(!data_dir.join("data/postmaster.pid").exists());

    let again = PrivateServer::start(&Options::new(&data_dir)).expect("second start");
    assert_eq!(
        ask(&again.url("postgres"), "select word from kept").expect("answer"),
        "still here"
    );
}

/// Neither root nor any of root's groups.
fn runs_unprivileged(pid: i32) {
    if !cfg!(target_os = "linux") {
        return;
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let field = |name: &str| {
        let line = status
            .lines()
            .find(|line| line.starts_with(name))
            .expect("field");
        line[name.len()..]
            .split_ascii_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert!(field("Uid:").iter().all(|uid| uid != "0"), "{status}");
    assert!(field("Gid:").iter().all(|gid| gid != "0"), "{status}");
    if geteuid().is_root() {
        assert_eq!(field("Groups:"), [""; 0]);
    }
}

#[test]
fn a_loopback_port_wants_the_password() {
    let root = open_folder();
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr());
    let port = free.expect("port").port();
    let options = Options {
        loopback_port: Some(port),
        ..for_tests(root.path())
    };
    let server = PrivateServer::start(&options).expect("start");
    let url = server.loopback_url("postgres").expect("asked for");
    assert_eq!(ask(&url, "select 'in'").expect("with the password"), "in");
    let guessed = format!("postgres://postgres:guessed@127.0.0.1:{port}/postgres");
    assert!(
        ask(&guessed, "select 'in'")
            .expect_err("refused")
            .to_string()
            .contains("password")
    );
    assert_eq!(
        ask(&server.url("postgres"), "select 'in'").expect("over the socket"),
        "in"
    );
}

#[test]
fn a_killed_server_is_started_again() {
    let root = open_folder();
    let server = PrivateServer::start(&for_tests(root.path())).expect("start");
    let first = server.pid().expect("up");
    kill(Pid::from_raw(first), Signal::SIGKILL).expect("kill");
    let deadline = Instant::now() + Duration::from_secs(15);
    while server.pid().is_none_or(|pid| pid == first) {
        assert!(Instant::now() < deadline, "not healed");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(
        ask(&server.url("postgres"), "select 'healed'").expect("answer"),
        "healed"
    );
}

#[test]
fn an_initdb_cut_short_is_thrown_away_and_a_long_path_gets_a_short_socket() {
    let root = open_folder();
    let data_dir = root.path().join("long-".repeat(20));
    fs::create_dir_all(data_dir.join("data.new/base")).expect("create");
    fs::write(data_dir.join("data.new/PG_VERSION"), "15\n").expect("write");
    for folder in [&data_dir, &data_dir.join("data.new")] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o711)).expect("mode");
    }
    let server = PrivateServer::start(&for_tests(&data_dir)).expect("start");
    assert!(!data_dir.join("data.new").exists());
    let socket_folder = server.socket_folder.path().to_owned();
    assert!(
        socket_folder.starts_with("/tmp"),
        "{}",
        socket_folder.display()
    );
    assert_eq!(mode(&socket_folder), 0o700);
    assert_eq!(
        ask(&server.url("postgres"), "select 'here'").expect("answer"),
        "here"
    );
    server.stop();
    assert!(!socket_folder.exists());
}

#[test]
fn data_of_another_major_are_refused_with_both_named() {
    let root = open_folder();
    fs::create_dir(root.path().join("data")).expect("create");
    fs::write(root.path().join("data/PG_VERSION"), "12\n").expect("write");
    let message = PrivateServer::start(&for_tests(root.path()))
        .expect_err("refused")
        .to_string();
    assert!(message.contains("written by Postgres 12"), "{message}");
    assert!(message.contains("only Postgres 1"), "{message}");
    assert_eq!(
        fs::read_dir(root.path().join("data"))
            .expect("kept")
            .count(),
        1
    );
}

#[test]
fn what_customers_are_called_does_not_reach_the_log() {
    let root = open_folder();
    let server = PrivateServer::start(&for_tests(root.path())).expect("start");
    let url = server.url("postgres");
    ask(&url, "create table people (phone text primary key)").expect("create");
    ask(&url, "insert into people values ('+4915112345678')").expect("insert");
    ask(&url, "insert into people values ('+4915112345678')").expect_err("there already");
    ask(&url, "select ('+49151' || '12345678x')::int::text").expect_err("not a number");
    let log = fs::read_to_string(root.path().join("postgres.log")).expect("log");
    assert!(log.contains("ready to accept connections"), "{log}");
    assert!(!log.contains("12345678"), "{log}");
}

#[test]
fn a_folder_closed_to_the_servers_user_is_named() {
    if !geteuid().is_root() {
        return;
    }
    let root = open_folder();
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o700)).expect("mode");
    let error = PrivateServer::start(&for_tests(&root.path().join("x"))).expect_err("closed");
    let PostgresError::NotTraversable { folder, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(folder, root.path());
}

#[test]
fn a_server_that_refuses_to_start_is_quoted() {
    let root = open_folder();
    let settings = vec![(
        "shared_preload_libraries".to_owned(),
        "no_such_library".to_owned(),
    )];
    let options = Options {
        settings,
        ..for_tests(root.path())
    };
    let error = PrivateServer::start(&options).expect_err("refused");
    assert!(matches!(&error, PostgresError::Ended { .. }), "{error}");
    assert!(error.to_string().contains("no_such_library"), "{error}");
}

#[test]
fn the_data_folder_follows_the_xdg_rules() {
    let dir = |xdg: &str, home: &str| {
        data_dir_in_home(Some(OsStr::new(xdg)), Some(OsStr::new(home)))
            .map(|path| path.display().to_string())
    };
    assert_eq!(
        dir("/x", "/home/me").as_deref(),
        Some("/x/keyfold/postgres")
    );
    let usual = "/home/me/.local/share/keyfold/postgres";
    assert_eq!(dir("", "/home/me").as_deref(), Some(usual));
    assert_eq!(dir("relative", "/home/me").as_deref(), Some(usual));
    assert_eq!(dir("", ""), None);
}
