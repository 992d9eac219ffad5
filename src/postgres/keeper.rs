//! The thread that owns the server process and starts it again when it dies.
//!
//! ```text
//!            ready                 died
//! starting --------> up (pid set) ------> waiting (0.5 s, 1 s, 2 s, 4 s, 5 s, 5 s, ...)
//!    |  refused       | stop               ^  | time is up          | stop
//!    v  at first      v                    |  v                     v
//!  error            ended                 starting ------ready--> up
//! ```
//!
//! It never gives up: a full disk is emptied at some time. The waits make at most fourteen tries a
//! minute, also of a server that comes up and dies at once, for only a minute of life resets them.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::error::PostgresError;
use super::server::{Launcher, Process, StopSignal};

/// How often the server is looked at while it runs.
const WATCH: Duration = Duration::from_millis(200);

const SHORTEST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// So long a life proves a server sound.
const SOUND_AFTER: Duration = Duration::from_secs(60);

/// How long the first start waits for the processes of a killed server to let go of its memory.
const LET_GO_LIMIT: Duration = Duration::from_secs(15);

/// A handle on the thread; dropping it stops the server and waits for its end.
#[derive(Debug)]
pub(super) struct Keeper {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
    /// Zero while no server is up.
    pid: Arc<AtomicI32>,
}

impl Keeper {
    /// Starts the thread, and returns when the server accepts connections.
    ///
    /// # Errors
    /// Those of [`Launcher::launch`]; a thread that can't be had is an `Io`.
    pub(super) fn start(launcher: Launcher) -> Result<Self, PostgresError> {
        let (stop, stopped) = mpsc::channel();
        let (report, first) = mpsc::channel();
        let pid = Arc::new(AtomicI32::new(0));
        let program = launcher.program.clone();
        let shared = Arc::clone(&pid);
        let thread = thread::Builder::new()
            .name("postgres-keeper".to_owned())
            .spawn(move || keep(&launcher, &StopSignal(stopped), &shared, &report))
            .map_err(PostgresError::io("start a thread for", &program))?;
        let keeper = Self {
            stop: Some(stop),
            thread: Some(thread),
            pid,
        };
        match first.recv() {
            Ok(started) => started.map(|()| keeper),
            Err(_) => {
                let ended = std::io::Error::other("its thread ended");
                Err(PostgresError::io("start", &program)(ended))
            }
        }
    }

    /// The server's process; `None` while it is down and being started again.
    pub(super) fn pid(&self) -> Option<i32> {
        Some(self.pid.load(Ordering::Relaxed)).filter(|pid| *pid != 0)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn keep(
    launcher: &Launcher,
    stop: &StopSignal,
    pid: &AtomicI32,
    report: &Sender<Result<(), PostgresError>>,
) {
    let mut server = match launch_first(launcher, stop) {
        Ok(Some(server)) => server,
        Ok(None) => return,
        Err(error) => {
            let _ = report.send(Err(error));
            return;
        }
    };
    let mut wait = SHORTEST_WAIT;
    pid.store(server.pid(), Ordering::Relaxed);
    let _ = report.send(Ok(()));
    loop {
        let since = Instant::now();
        let stopping = watch(&mut server, stop);
        pid.store(0, Ordering::Relaxed);
        if stopping {
            return;
        }
        if since.elapsed() >= SOUND_AFTER {
            wait = SHORTEST_WAIT;
        }
        match relaunch(launcher, stop, &mut wait) {
            Some(again) => server = again,
            None => return,
        }
        pid.store(server.pid(), Ordering::Relaxed);
        tracing::info!(pid = server.pid(), "Postgres is up again");
    }
}

/// A server whose parent was killed with all its kind leaves children that hold its memory for a
/// moment; until they are gone, a new one is refused.
fn launch_first(launcher: &Launcher, stop: &StopSignal) -> Result<Option<Process>, PostgresError> {
    let deadline = Instant::now() + LET_GO_LIMIT;
    loop {
        match launcher.launch(stop) {
            Err(PostgresError::Ended { log_tail, .. })
                if log_tail.contains("pre-existing shared memory") && Instant::now() < deadline => {
            }
            settled => return settled,
        }
        if stop.within(SHORTEST_WAIT) {
            return Ok(None);
        }
    }
}

/// Returns whether stopping was asked for (`true`) or the server died (`false`).
fn watch(server: &mut Process, stop: &StopSignal) -> bool {
    loop {
        if stop.within(WATCH) {
            return true;
        }
        if let Some(status) = server.ended() {
            tracing::warn!(
                pid = server.pid(),
                "Postgres died ({status}); starting it again"
            );
            return false;
        }
    }
}

fn relaunch(launcher: &Launcher, stop: &StopSignal, wait: &mut Duration) -> Option<Process> {
    loop {
        if stop.within(*wait) {
            return None;
        }
        *wait = LONGEST_WAIT.min(*wait * 2);
        match launcher.launch(stop) {
            Ok(started) => return started,
            Err(error) => tracing::warn!("{error}; next try in {wait:?}"),
        }
    }
}
