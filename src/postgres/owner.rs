//! Who runs the server: Postgres refuses root, so root hands its files and processes to another
//! user; and every process started here ends with us, however we end.

use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{fs, iter};

use nix::unistd::{Pid, Uid, User, geteuid, getppid, setsid};

use super::error::PostgresError;

/// The user of the server's files and processes.
#[derive(Clone, Debug)]
pub(super) enum Owner {
    /// Whoever we are.
    Ourselves,
    /// We are root and step down to this one.
    Other { uid: u32, gid: u32, name: String },
}

impl Owner {
    /// Chooses the user: the owner of data that exist, else `postgres`, else `nobody`.
    ///
    /// # Errors
    /// `WrongOwner` when the data are another's and we are not root; `NoUser`.
    pub(super) fn choose(data: &Path) -> Result<Self, PostgresError> {
        let held_by = fs::metadata(data)
            .ok()
            .map(|found| (found.uid(), found.gid()));
        match held_by {
            Some((uid, _)) if !geteuid().is_root() && uid != geteuid().as_raw() => {
                Err(PostgresError::WrongOwner {
                    folder: data.to_owned(),
                    uid,
                })
            }
            _ if !geteuid().is_root() => Ok(Self::Ourselves),
            Some((uid, gid)) if uid != 0 => Ok(Self::Other {
                uid,
                gid,
                name: name_of(uid),
            }),
            _ => ["postgres", "nobody"]
                .into_iter()
                .find_map(|name| {
                    User::from_name(name)
                        .ok()?
                        .filter(|user| !user.uid.is_root())
                })
                .map(Self::from)
                .ok_or(PostgresError::NoUser),
        }
    }

    /// The mode of folders above the data: only we come in, and the user that we step down to.
    pub(super) fn mode_of_parents(&self) -> u32 {
        match self {
            Self::Ourselves => 0o700,
            Self::Other { .. } => 0o711,
        }
    }

    /// Gives a file or folder to the server's user, with this mode.
    pub(super) fn take(&self, path: &Path, mode: u32) -> Result<(), PostgresError> {
        if let Self::Other { uid, gid, .. } = self {
            chown(path, Some(*uid), Some(*gid)).map_err(PostgresError::io("chown", path))?;
        }
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
            .map_err(PostgresError::io("change the mode of", path))
    }

    /// A program that runs as this user, in `folder`, without our environment (it may hold
    /// secrets, and `PGPORT` and its like change what Postgres does), and that ends with us.
    pub(super) fn command(&self, program: &Path, folder: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(folder)
            .env_clear()
            .env("LC_ALL", "C")
            .stdin(Stdio::null());
        if let Self::Other { uid, gid, .. } = self {
            // As root, std also clears the supplementary groups.
            command.uid(*uid).gid(*gid);
        }
        tie_to_us(&mut command);
        command
    }

    /// Explains why a program did not start: mostly a folder that its user may not enter.
    pub(super) fn explain(&self, error: io::Error, program: &Path, folder: &Path) -> PostgresError {
        if error.kind() == io::ErrorKind::PermissionDenied
            && let Self::Other { uid, gid, name } = self
            && let Some(closed) = [folder, program]
                .into_iter()
                .find_map(|path| closed_folder(path, *uid, *gid))
        {
            return PostgresError::NotTraversable {
                folder: closed,
                user: name.clone(),
            };
        }
        PostgresError::io("run", program)(error)
    }
}

impl From<User> for Owner {
    fn from(user: User) -> Self {
        Self::Other {
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
            name: user.name,
        }
    }
}

fn name_of(uid: u32) -> String {
    match User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(user)) => user.name,
        _ => uid.to_string(),
    }
}

/// The outermost folder on the way to `path`, itself included, that its mode closes to a user.
fn closed_folder(path: &Path, uid: u32, gid: u32) -> Option<PathBuf> {
    let mut way: Vec<&Path> = path.ancestors().collect();
    way.reverse();
    way.into_iter()
        .find(|folder| fs::metadata(folder).is_ok_and(|found| !may_enter(&found, uid, gid)))
        .map(Path::to_owned)
}

fn may_enter(found: &fs::Metadata, uid: u32, gid: u32) -> bool {
    let needed = match () {
        () if found.uid() == uid => 0o100,
        () if found.gid() == gid => 0o010,
        () => 0o001,
    };
    found.mode() & needed != 0
}

/// Makes a child leave our terminal's group, so that Ctrl-C reaches us and not it, and get a
/// SIGINT (to Postgres: a fast and clean shutdown) when we are gone.
///
/// The kernel counts the spawning *thread* as the parent: it must live as long as the child may.
/// std runs this after it changed the user, which would have cleared the parent-death signal.
#[expect(
    unsafe_code,
    reason = "between fork and exec only async-signal-safe calls are made"
)]
fn tie_to_us(command: &mut Command) {
    let parent = Pid::this();
    // SAFETY: setsid, prctl and getppid are plain system calls; nothing allocates or locks.
    unsafe {
        command.pre_exec(move || {
            setsid()?;
            end_with_parent(parent)
        });
    }
}

#[cfg(target_os = "linux")]
fn end_with_parent(parent: Pid) -> io::Result<()> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGINT)?;
    // A parent that died before the call above sends no signal any more.
    if getppid() == parent {
        Ok(())
    } else {
        Err(nix::errno::Errno::ESRCH.into())
    }
}

#[cfg(not(target_os = "linux"))]
fn end_with_parent(parent: Pid) -> io::Result<()> {
    if getppid() == parent {
        Ok(())
    } else {
        Err(nix::errno::Errno::ESRCH.into())
    }
}

/// Creates a folder and what is missing above it, each with this mode whatever the umask.
pub(super) fn create_path(path: &Path, mode: u32) -> Result<(), PostgresError> {
    let mut missing: Vec<&Path> = iter::successors(Some(path), |path| path.parent())
        .take_while(|path| !path.is_dir())
        .collect();
    missing.reverse();
    for folder in missing {
        fs::create_dir(folder).map_err(PostgresError::io("create", folder))?;
        fs::set_permissions(folder, fs::Permissions::from_mode(mode))
            .map_err(PostgresError::io("change the mode of", folder))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outermost_closed_folder_is_named() {
        let root = tempfile::tempdir().expect("folder");
        let (open, closed) = (root.path().join("a"), root.path().join("a/b"));
        create_path(&closed.join("c"), 0o700).expect("create");
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o711)).expect("mode");
        fs::set_permissions(&open, fs::Permissions::from_mode(0o711)).expect("mode");
        let nobody = 65_534;
        assert_eq!(
            closed_folder(&closed.join("c"), nobody, nobody),
            Some(closed.clone())
        );
        assert_eq!(closed_folder(&open, nobody, nobody), None);
        let owner = fs::metadata(&closed).expect("metadata");
        assert_eq!(closed_folder(&closed, owner.uid(), owner.gid()), None);
    }
}
