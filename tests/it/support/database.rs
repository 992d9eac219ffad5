//! The Postgres of the tests, and a database of its own for each.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::str::FromStr as _;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use keyfold::postgres::{Durability, Options, PrivateServer};
use keyfold::schema;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tokio::sync::OnceCell;

/// Begins the names of the tests' data folders.
const FOLDER: &str = "keyfold-test-";

/// The address of a server on which databases can be made, for a database of this name.
fn address(database: &str) -> String {
    static SERVER: OnceLock<(Option<PrivateServer>, Option<String>)> = OnceLock::new();
    let (server, given) = SERVER.get_or_init(|| match given_address() {
        Some(url) => (None, Some(url)),
        None => (Some(start()), None),
    });
    match (server, given) {
        (Some(server), _) => server.url(database),
        (None, given) => {
            let given = given.as_deref().expect("one of the two is there");
            let mut url = url::Url::parse(given).expect("KEYFOLD_TEST_DATABASE_URL is an address");
            url.set_path(&format!("/{database}"));
            url.to_string()
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a setting of the tests, not of the service"
)]
fn given_address() -> Option<String> {
    std::env::var("KEYFOLD_TEST_DATABASE_URL").ok()
}

/// A private server on a temporary folder; it ends with this process. Folders that earlier runs left
/// behind are removed.
fn start() -> PrivateServer {
    remove_leftovers();
    let folder = std::env::temp_dir().join(format!("{FOLDER}{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("the temporary folder can be written");
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o711)).expect("ours");
    let mut options = Options::new(folder);
    options.durability = Durability::ForTests;
    options.search_path = std::env::var_os("PATH");
    options.bin_dir = std::env::var_os("PG_BIN_DIR").map(PathBuf::from);
    PrivateServer::start(&options).expect("the tests need the Postgres programs")
}

/// Removes the folders of runs whose process is gone.
fn remove_leftovers() {
    let Ok(entries) = std::fs::read_dir(std::env::temp_dir()) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.strip_prefix(FOLDER)) else {
            continue;
        };
        if !std::path::Path::new("/proc").join(pid).exists() {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// An empty, migrated database of this test's own; gives its address.
pub async fn fresh() -> String {
    static TEMPLATE: OnceCell<String> = OnceCell::const_new();
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let run = std::process::id();
    let template = TEMPLATE
        .get_or_init(|| async move {
            let name = format!("template_{run}");
            execute(&format!("drop database if exists {name}")).await;
            execute(&format!("create database {name}")).await;
            schema::migrate(&address(&name))
                .await
                .expect("the migrations run");
            name
        })
        .await;
    let name = format!("test_{run}_{}", COUNT.fetch_add(1, Ordering::Relaxed));
    execute(&format!("drop database if exists {name}")).await;
    execute(&format!("create database {name} template {template}")).await;
    address(&name)
}

/// A database without any table; gives its address.
pub async fn empty() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!(
        "empty_{}_{}",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    );
    execute(&format!("drop database if exists {name}")).await;
    execute(&format!("create database {name}")).await;
    address(&name)
}

/// A server for one test alone, to be killed and stopped; it keeps what was committed.
pub struct OwnServer {
    options: Options,
    server: Option<PrivateServer>,
    /// A migrated database on it.
    pub url: String,
}

impl OwnServer {
    /// Starts it, with a migrated database.
    pub async fn start(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("{FOLDER}{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("the temporary folder can be written");
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o711)).expect("ours");
        let mut options = Options::new(folder.join(name));
        options.search_path = std::env::var_os("PATH");
        options.bin_dir = std::env::var_os("PG_BIN_DIR").map(PathBuf::from);
        let server = PrivateServer::start(&options).expect("the tests need the Postgres programs");
        let url = server.url("postgres");
        schema::migrate(&url).await.expect("the migrations run");
        Self {
            options,
            server: Some(server),
            url,
        }
    }

    /// Its process; none while it is started again.
    pub fn pid(&self) -> Option<i32> {
        self.server.as_ref().and_then(PrivateServer::pid)
    }

    /// Stops it; the data stay.
    pub fn stop(&mut self) {
        drop(self.server.take());
    }

    /// Starts it again where it was.
    pub fn start_again(&mut self) {
        let server = PrivateServer::start(&self.options).expect("it starts again");
        assert_eq!(server.url("postgres"), self.url);
        self.server = Some(server);
    }
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        self.stop();
        let _ = std::fs::remove_dir_all(&self.options.data_dir);
    }
}

async fn execute(statement: &str) {
    let options = PgConnectOptions::from_str(&address("postgres")).expect("a valid address");
    let mut connection = PgConnection::connect_with(&options)
        .await
        .expect("the server answers");
    connection
        .execute(AssertSqlSafe(statement.to_owned()))
        .await
        .expect("the statement runs");
    connection.close().await.expect("the connection closes");
}
