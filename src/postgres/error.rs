//! Why a private Postgres could not be had, each with the way out.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

/// A failure to start the private server; the text is meant for the person at the terminal.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// No usable programs on this machine.
    #[error("no Postgres 15 or newer was found on this machine{seen}. {advice}")]
    NotFound {
        /// What was found and refused; empty or beginning with ` (`.
        seen: String,
        /// The ways out on this system.
        advice: String,
    },
    /// `PG_BIN_DIR` was given and does not serve; nothing else is tried then.
    #[error("PG_BIN_DIR is {}, but {reason}", folder.display())]
    BinDir {
        /// The folder as given.
        folder: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The data were written by another major version than the programs at hand.
    #[error(
        "the data in {} were written by Postgres {wanted}, but this machine has only {found}: \
         install Postgres {wanted} (15 is the oldest that is supported), or move the folder away \
         to start with an empty database",
        data_dir.display()
    )]
    OtherMajor {
        /// The data folder.
        data_dir: PathBuf,
        /// The major version in its `PG_VERSION`.
        wanted: u32,
        /// The versions that were found.
        found: String,
    },
    /// Another process holds the lock.
    #[error("another keyfold is using this data folder: {}", data_dir.display())]
    InUse {
        /// The data folder.
        data_dir: PathBuf,
    },
    /// A server that outlived its parent does not end.
    #[error(
        "a Postgres of an earlier run (process {pid}) still has {} open and has not ended within \
         {waited_s} s; `kill -INT {pid}` ends it",
        data_dir.display()
    )]
    Leftover {
        /// Its process id.
        pid: i32,
        /// The data folder.
        data_dir: PathBuf,
        /// How long it was waited for, in seconds.
        waited_s: u64,
    },
    /// We are root, and the user that Postgres runs as can't come to the files.
    #[error(
        "Postgres does not run as root, and user {user} may not enter {}: choose a folder that \
         it can reach, or open this one with `chmod o+x`",
        folder.display()
    )]
    NotTraversable {
        /// The first closed folder on the way.
        folder: PathBuf,
        /// The user's name.
        user: String,
    },
    /// We are root, and there is nobody to run Postgres as.
    #[error("Postgres does not run as root, and this system has no user postgres or nobody")]
    NoUser,
    /// The data belong to another user and we may not become that one.
    #[error("{} belongs to user id {uid}: start as that user", folder.display())]
    WrongOwner {
        /// The data folder.
        folder: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// Something else lives where the data should.
    #[error("{} is not empty and holds no Postgres data; it was left as it is", folder.display())]
    Foreign {
        /// The folder.
        folder: PathBuf,
    },
    /// A loopback port was asked for and the password that guards it is gone.
    #[error(
        "the password of the loopback port is missing: write one to {} (mode 0600) and set it \
         with `alter role postgres password`",
        file.display()
    )]
    PasswordMissing {
        /// Where it should be.
        file: PathBuf,
    },
    /// `initdb` failed.
    #[error("initdb failed ({status}):\n{output}")]
    Initdb {
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        output: String,
    },
    /// The server ended before it was ready.
    #[error("Postgres ended before it was ready ({status}); its last words:\n{log_tail}")]
    Ended {
        /// How it ended.
        status: ExitStatus,
        /// The last lines of its log.
        log_tail: String,
    },
    /// The server neither ended nor became ready.
    #[error("Postgres was not ready within {waited_s} s; its last words:\n{log_tail}")]
    NotReady {
        /// How long it was waited for, in seconds.
        waited_s: u64,
        /// The last lines of its log.
        log_tail: String,
    },
    /// The operating system refused something.
    #[error("can't {doing} {}: {source}", path.display())]
    Io {
        /// A verb, as in "can't create".
        doing: &'static str,
        /// What it was tried on.
        path: PathBuf,
        /// The refusal.
        source: io::Error,
    },
}

impl PostgresError {
    /// For `map_err`: adds what was tried, and on what.
    pub(super) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            doing,
            path,
            source,
        }
    }
}
