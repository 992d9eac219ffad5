//! The private Postgres of `keyfold dev` and of the tests: found on this machine, started in a
//! folder of its own, reachable only through a socket that nobody else can open, started again
//! when it dies and ended when we end, also after `kill -9` (Linux).
//!
//! Plain blocking code: on Linux the server ends with the thread that spawned it, so a thread of
//! its own owns it, which no runtime parks or retires.

mod advice;
mod create;
mod error;
mod find;
mod folder;
mod keeper;
mod log;
mod owner;
mod server;
mod settings;
#[cfg(test)]
mod tests;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::geteuid;
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};

pub use self::error::PostgresError;
use self::folder::{Folder, Lock, SocketFolder};
use self::keeper::Keeper;
use self::server::Launcher;

/// How long a start waits for the server of a killed keyfold to end.
const LEFTOVER_LIMIT: Duration = Duration::from_secs(15);

/// What a crash may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Nothing that was committed; for people's data.
    Kept,
    /// Everything, on a power cut: writes are not forced to the disk, for speed. Commits are still
    /// waited for, so that the order of things is the real one.
    ForTests,
}

/// How to start a private server.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where its files live; created if missing. See [`default_data_dir`].
    pub data_dir: PathBuf,
    /// A port on 127.0.0.1 to open as well, with a password, for psql and its like.
    pub loopback_port: Option<u16>,
    /// What a crash may take.
    pub durability: Durability,
    /// `PG_BIN_DIR`: the only folder whose programs are considered.
    pub bin_dir: Option<PathBuf>,
    /// `PATH`: where programs are looked for first.
    pub search_path: Option<OsString>,
    /// More server settings, name and value; these win over ours.
    pub settings: Vec<(String, String)>,
}

impl Options {
    /// A durable server on a socket only, with the programs of the usual folders.
    #[must_use]
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            loopback_port: None,
            durability: Durability::Kept,
            bin_dir: None,
            search_path: None,
            settings: Vec::new(),
        }
    }
}

/// A running server, ours alone. Dropping it stops it; its data stay.
#[derive(Debug)]
pub struct PrivateServer {
    // Fields are dropped in this order: the process, then what it used, the lock last.
    keeper: Keeper,
    socket_folder: SocketFolder,
    loopback: Option<Loopback>,
    description: String,
    _lock: Lock,
}

#[derive(Debug)]
struct Loopback {
    port: u16,
    password: String,
}

impl PrivateServer {
    /// Finds the programs, creates the data if there are none, starts the server, and returns when
    /// it accepts connections. Blocks: seconds at the first start, below one later.
    ///
    /// # Errors
    /// See [`PostgresError`]; nothing is left running.
    pub fn start(options: &Options) -> Result<Self, PostgresError> {
        let (folder, owner, lock) = Folder::open(&options.data_dir)?;
        let major = folder.major()?;
        let programs = find::find(options, major)?;
        if major.is_none() {
            create::create_data(&folder, &owner, &programs, options.durability)?;
        }
        let loopback = Loopback::read(options.loopback_port, &folder)?;
        server::wait_for_leftover(&folder.data(), LEFTOVER_LIMIT)?;
        settings::write_access_rules(&folder)?;
        let socket_folder = SocketFolder::create(folder.root(), &owner)?;
        let settings =
            settings::settings(options, &folder, socket_folder.path(), &owner, &programs)?;
        let description = format!("{programs}, data in {}", folder.root().display());
        let program = programs.postgres();
        let keeper = Keeper::start(Launcher {
            folder,
            owner,
            program,
            settings,
        })?;
        Ok(Self {
            keeper,
            socket_folder,
            loopback,
            description,
            _lock: lock,
        })
    }

    /// The address of a database on this server, over the socket; the user is `postgres`.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        let database = percent_encode(database.as_bytes(), NON_ALPHANUMERIC);
        let folder = self.socket_folder.path().as_os_str().as_bytes();
        let folder = percent_encode(folder, NON_ALPHANUMERIC);
        let port = self
            .loopback
            .as_ref()
            .map_or(settings::SOCKET_PORT, |loopback| loopback.port);
        format!("postgres://postgres@localhost:{port}/{database}?host={folder}")
    }

    /// The address of a database over the loopback port, if one was asked for. Holds the password:
    /// for the person at the terminal, not for a log.
    #[must_use]
    pub fn loopback_url(&self, database: &str) -> Option<String> {
        let Loopback { port, password } = self.loopback.as_ref()?;
        let password = percent_encode(password.as_bytes(), NON_ALPHANUMERIC);
        let database = percent_encode(database.as_bytes(), NON_ALPHANUMERIC);
        Some(format!(
            "postgres://postgres:{password}@127.0.0.1:{port}/{database}"
        ))
    }

    /// Which Postgres was taken and where its data are, for a line that is always printed.
    #[must_use]
    pub fn description(&self) -> &str {
        &self.description
    }

    /// The process id of the server; `None` while it is down and being started again, which
    /// happens by itself and without end.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        self.keeper.pid()
    }

    /// Ends the server: open connections are cut and transactions rolled back. Blocks for some
    /// ten milliseconds as a rule, 20 seconds at most.
    pub fn stop(self) {
        drop(self);
    }
}

impl Loopback {
    fn read(port: Option<u16>, folder: &Folder) -> Result<Option<Self>, PostgresError> {
        let Some(port) = port else { return Ok(None) };
        let file = folder.password();
        let text = fs::read_to_string(&file).unwrap_or_default();
        match text.trim() {
            "" => Err(PostgresError::PasswordMissing { file }),
            password => Ok(Some(Self {
                port,
                password: password.to_owned(),
            })),
        }
    }
}

/// Where `dev` keeps its data: the XDG data folder, and for root `/var/lib`, for the server's user
/// can't enter root's home. The arguments are the environment's values; `None` when there is no
/// home either.
#[must_use]
pub fn default_data_dir(xdg_data_home: Option<&OsStr>, home: Option<&OsStr>) -> Option<PathBuf> {
    if geteuid().is_root() {
        return Some(PathBuf::from("/var/lib/keyfold/postgres"));
    }
    data_dir_in_home(xdg_data_home, home)
}

/// The XDG rule: a path that is not absolute is as good as none.
fn data_dir_in_home(xdg_data_home: Option<&OsStr>, home: Option<&OsStr>) -> Option<PathBuf> {
    let absolute = |value: Option<&OsStr>| {
        value
            .map(Path::new)
            .filter(|path| path.is_absolute())
            .map(Path::to_owned)
    };
    let base =
        absolute(xdg_data_home).or_else(|| absolute(home).map(|home| home.join(".local/share")))?;
    Some(base.join("keyfold/postgres"))
}
