//! What lies in the data folder:
//!
//! ```text
//! <data_dir>/lock          flocked by the keyfold that runs
//! <data_dir>/data/         what Postgres calls its data directory, 0700, the server user's
//! <data_dir>/data.new/     an initdb under way, or one that was cut short and is thrown away
//! <data_dir>/run/          the socket, 0700, the server user's
//! <data_dir>/password      of the loopback port, 0600
//! <data_dir>/pg_hba.conf   who may connect, written at each start
//! <data_dir>/postgres.log
//! ```
//!
//! Only `data` and `run` are the server user's to write in: a root that wrote a file there could
//! be led elsewhere by a link.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::mkdtemp;

use super::error::PostgresError;
use super::find::Version;
use super::owner::{Owner, create_path};

/// Longest path of the socket's folder, in bytes: the kernel takes 107 with the socket's name.
const SOCKET_FOLDER_MAX_BYTES: usize = 80;

/// How long a lock is tried: the kernel needs a moment to clear away a keyfold that was killed.
const LOCK_GRACE: Duration = Duration::from_secs(1);

/// The data folder of one server, absolute and without links.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    root: PathBuf,
}

impl Folder {
    /// Creates the folder where it is missing, and locks it.
    ///
    /// # Errors
    /// `InUse` when another holds the lock, `WrongOwner`, `NoUser`, `Io`.
    pub(super) fn open(data_dir: &Path) -> Result<(Self, Owner, Lock), PostgresError> {
        let root = std::path::absolute(data_dir).map_err(PostgresError::io("find", data_dir))?;
        let owner = Owner::choose(&root.join("data"))?;
        create_path(&root, owner.mode_of_parents())?;
        let root = fs::canonicalize(&root).map_err(PostgresError::io("find", &root))?;
        let lock = Lock::take(&root)?;
        Ok((Self { root }, owner, lock))
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    pub(super) fn staging(&self) -> PathBuf {
        self.root.join("data.new")
    }

    pub(super) fn password(&self) -> PathBuf {
        self.root.join("password")
    }

    pub(super) fn access_rules(&self) -> PathBuf {
        self.root.join("pg_hba.conf")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.root.join("postgres.log")
    }

    /// The major version of the data; `None` when there are none yet.
    ///
    /// # Errors
    /// `Foreign` when something else is in its place, `Io`.
    pub(super) fn major(&self) -> Result<Option<u32>, PostgresError> {
        let foreign = || PostgresError::Foreign {
            folder: self.data(),
        };
        let file = self.data().join("PG_VERSION");
        match fs::read_to_string(&file) {
            Ok(text) => Version::parse(&text)
                .map(|v| Some(v.major))
                .ok_or_else(foreign),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // rename() replaces an empty folder; anything else is not ours to remove.
                let empty = fs::read_dir(self.data()).map_or(true, |mut it| it.next().is_none());
                if empty { Ok(None) } else { Err(foreign()) }
            }
            Err(error) => Err(PostgresError::io("read", &file)(error)),
        }
    }
}

/// Keeps a second keyfold out. The kernel lifts it when the process ends, however it ends.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Lock {
    fn take(root: &Path) -> Result<Self, PostgresError> {
        let path = root.join("lock");
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(PostgresError::io("open", &path))?;
        let deadline = Instant::now() + LOCK_GRACE;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self(file)),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(20));
                }
                Err(TryLockError::WouldBlock) => {
                    let data_dir = root.to_owned();
                    return Err(PostgresError::InUse { data_dir });
                }
                Err(TryLockError::Error(error)) => {
                    return Err(PostgresError::io("lock", &path)(error));
                }
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough: a child forked meanwhile by another thread has a copy until exec.
        let _ = self.0.unlock();
    }
}

/// Where the socket lies; nobody but the server's user (and root) comes in.
#[derive(Debug)]
pub(super) struct SocketFolder {
    path: PathBuf,
    temporary: bool,
}

impl SocketFolder {
    /// `<data_dir>/run`, or a fresh folder in `/tmp` where that path is too long for a socket.
    ///
    /// Called with the lock held and no server left over: a lock file beside the socket is then
    /// stale, but Postgres would refuse to start for any process that has its number.
    pub(super) fn create(root: &Path, owner: &Owner) -> Result<Self, PostgresError> {
        let usual = root.join("run");
        let folder = if usual.as_os_str().as_bytes().len() <= SOCKET_FOLDER_MAX_BYTES {
            remove_folder(&usual)?;
            create_path(&usual, 0o700)?;
            Self {
                path: usual,
                temporary: false,
            }
        } else {
            // Not $TMPDIR: where that is set, it is often long itself.
            let template = Path::new("/tmp/keyfold-XXXXXX");
            let path = mkdtemp(template)
                .map_err(|error| PostgresError::io("create", template)(error.into()))?;
            Self {
                path,
                temporary: true,
            }
        };
        owner.take(&folder.path, 0o700)?;
        Ok(folder)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFolder {
    fn drop(&mut self) {
        if self.temporary {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Removes a folder with all that is in it (never through a link), if it is there.
pub(super) fn remove_folder(path: &Path) -> Result<(), PostgresError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(PostgresError::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_with_other_things_in_it_is_left_alone() {
        let root = tempfile::tempdir().expect("folder");
        let folder = Folder {
            root: root.path().to_owned(),
        };
        assert_eq!(folder.major().expect("nothing there"), None);
        fs::create_dir(folder.data()).expect("create");
        assert_eq!(folder.major().expect("empty"), None);
        fs::write(folder.data().join("diary.txt"), "dear").expect("write");
        assert!(matches!(folder.major(), Err(PostgresError::Foreign { .. })));
        fs::write(folder.data().join("PG_VERSION"), "16\n").expect("write");
        assert_eq!(folder.major().expect("data"), Some(16));
    }
}
