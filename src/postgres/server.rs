//! One run of the server process: start, wait until ready, stop.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::error::PostgresError;
use super::folder::Folder;
use super::log::RunLog;
use super::owner::Owner;

/// How long the server may take until it accepts connections; it may have a crash to repair.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// How long each step of stopping may take: first asked politely, then at once.
const STOP_STEPS: [(Signal, Duration); 3] = [
    (Signal::SIGINT, Duration::from_secs(10)),
    (Signal::SIGQUIT, Duration::from_secs(5)),
    (Signal::SIGKILL, Duration::from_secs(5)),
];

/// How often a process is looked at.
const POLL: Duration = Duration::from_millis(20);

/// How the owner of the server says that it should end; a dropped sender says so too.
#[derive(Debug)]
pub(super) struct StopSignal(pub(super) Receiver<()>);

impl StopSignal {
    /// Waits this long, or until stopping is asked for.
    pub(super) fn within(&self, time: Duration) -> bool {
        self.0.recv_timeout(time) != Err(RecvTimeoutError::Timeout)
    }
}

/// Everything that is needed to start the same server again.
#[derive(Debug)]
pub(super) struct Launcher {
    pub(super) folder: Folder,
    pub(super) owner: Owner,
    pub(super) program: PathBuf,
    pub(super) settings: Vec<String>,
}

impl Launcher {
    /// Starts the server and waits until it accepts connections; `None` when a stop came between.
    ///
    /// # Errors
    /// `Ended` or `NotReady` with the end of its log; `NotTraversable`, `Io`.
    pub(super) fn launch(&self, stop: &StopSignal) -> Result<Option<Process>, PostgresError> {
        let (log, mut process) = self.spawn()?;
        let deadline = Instant::now() + READY_LIMIT;
        while !is_ready(&self.folder.data(), process.pid()) {
            if let Some(status) = process.ended() {
                return Err(PostgresError::Ended {
                    status,
                    log_tail: log.tail(),
                });
            }
            if Instant::now() > deadline {
                let waited_s = READY_LIMIT.as_secs();
                return Err(PostgresError::NotReady {
                    waited_s,
                    log_tail: log.tail(),
                });
            }
            if stop.within(POLL) {
                return Ok(None);
            }
        }
        Ok(Some(process))
    }

    fn spawn(&self) -> Result<(RunLog, Process), PostgresError> {
        let (log, file) = RunLog::open(self.folder.log())?;
        let copy = file
            .try_clone()
            .map_err(PostgresError::io("open", &self.folder.log()))?;
        let mut command = self.owner.command(&self.program, self.folder.root());
        command.arg("-D").arg(self.folder.data());
        for setting in &self.settings {
            command.arg("-c").arg(OsString::from(setting));
        }
        let child = command
            .stdout(Stdio::from(copy))
            .stderr(Stdio::from(file))
            .spawn()
            .map_err(|error| self.owner.explain(error, &self.program, self.folder.root()))?;
        Ok((log, Process { child }))
    }
}

/// A running server; dropping it stops it.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
}

impl Process {
    pub(super) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// How it ended, if it has.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    fn ends_within(&mut self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        while self.ended().is_none() {
            if Instant::now() > deadline {
                return false;
            }
            thread::sleep(POLL);
        }
        true
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        for (signal, patience) in STOP_STEPS {
            // A child that was waited for has no pid any more; one that was not keeps its own.
            if self.ended().is_some() {
                return;
            }
            let _ = kill(Pid::from_raw(self.pid()), signal);
            if self.ends_within(patience) {
                return;
            }
            tracing::warn!(pid = self.pid(), "Postgres did not end after {signal}");
        }
    }
}

/// What `postmaster.pid` says: the process on the first line, its state on the eighth.
fn is_ready(data: &Path, pid: i32) -> bool {
    let Ok(text) = fs::read_to_string(data.join("postmaster.pid")) else {
        return false;
    };
    let mut lines = text.lines().map(str::trim);
    lines.next().is_some_and(|line| line.parse() == Ok(pid)) && lines.nth(6) == Some("ready")
}

/// Waits for a server that outlived its keyfold to end: killed, we can't stop it, but the kernel
/// told it to stop. Called with the lock held, so that no keyfold is behind it any more.
///
/// # Errors
/// `Leftover` when it does not end.
pub(super) fn wait_for_leftover(data: &Path, limit: Duration) -> Result<(), PostgresError> {
    let deadline = Instant::now() + limit;
    let mut asked = false;
    while let Some(pid) = leftover(data) {
        if Instant::now() > deadline {
            let data_dir = data.to_owned();
            return Err(PostgresError::Leftover {
                pid,
                data_dir,
                waited_s: limit.as_secs(),
            });
        }
        // Elsewhere than on Linux no kernel told it.
        if !cfg!(target_os = "linux") && !asked {
            asked = kill(Pid::from_raw(pid), Signal::SIGINT).is_ok();
        }
        thread::sleep(POLL);
    }
    Ok(())
}

fn leftover(data: &Path) -> Option<i32> {
    let file = data.join("postmaster.pid");
    let text = fs::read_to_string(&file).ok()?;
    // A negative one is that of a single-user session.
    let pid = text
        .lines()
        .next()?
        .trim()
        .parse::<i32>()
        .ok()?
        .checked_abs()
        .filter(|p| *p > 0)?;
    if !Path::new("/proc/self/cwd").exists() {
        return kill(Pid::from_raw(pid), None).is_ok().then_some(pid);
    }
    if fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|folder| folder == data) {
        return Some(pid);
    }
    // The number is free, or by now another program's (in a restarted container this is the rule).
    // Postgres would take any process of that number for a server and refuse to start.
    let _ = fs::remove_file(&file);
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_only_what_this_process_says() {
        let root = tempfile::tempdir().expect("folder");
        let write =
            |text: &str| fs::write(root.path().join("postmaster.pid"), text).expect("write");
        assert!(!is_ready(root.path(), 42));
        write("42\n/data\n1700000000\n5432\n/run\n\n  123 0\nstarting\n");
        assert!(!is_ready(root.path(), 42));
        write("42\n/data\n1700000000\n5432\n/run\n\n  123 0\nready   \n");
        assert!(is_ready(root.path(), 42));
        assert!(!is_ready(root.path(), 43));
    }

    #[test]
    fn a_pid_file_of_an_unrelated_process_does_not_stand_in_the_way() {
        let root = tempfile::tempdir().expect("folder");
        let file = root.path().join("postmaster.pid");
        fs::write(&file, format!("{}\n/data\n", std::process::id())).expect("write");
        if cfg!(target_os = "linux") {
            wait_for_leftover(root.path(), Duration::ZERO).expect("nothing to wait for");
            assert!(!file.exists());
        }
    }
}
