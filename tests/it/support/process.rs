//! The real binary as a process of its own.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A running `keyfold serve`; killed when dropped.
pub struct Process {
    child: Child,
    /// `http://127.0.0.1:…`
    pub base: String,
    log: Arc<Mutex<Vec<String>>>,
}

/// The binary under test (`KEYFOLD_TEST_BINARY`, else the one built with the tests), without the
/// settings of the caller's shell.
pub fn keyfold() -> Command {
    let built = || env!("CARGO_BIN_EXE_keyfold").into();
    let mut command = Command::new(std::env::var_os("KEYFOLD_TEST_BINARY").unwrap_or_else(built));
    for (name, _) in std::env::vars_os() {
        let is_ours = name.to_string_lossy().starts_with("KEYFOLD_");
        if is_ours || name == "DATABASE_URL" {
            command.env_remove(name);
        }
    }
    // No `.env` of the project may take part.
    command.current_dir(std::env::temp_dir());
    command
}

impl Process {
    /// Starts a server on a database and waits until it says where it listens.
    pub fn serve(database_url: &str) -> Self {
        Self::serve_with(database_url, &[])
    }

    /// The same with more settings.
    pub fn serve_with(database_url: &str, settings: &[(&str, &str)]) -> Self {
        Self::start(&["serve"], database_url, settings)
    }

    /// A server that leaves the outbox to others.
    pub fn serve_alone(database_url: &str) -> Self {
        Self::start(&["serve", "--no-worker"], database_url, &[])
    }

    fn start(arguments: &[&str], database_url: &str, settings: &[(&str, &str)]) -> Self {
        let mut child = keyfold()
            .args(arguments)
            .env("DATABASE_URL", database_url)
            .env("KEYFOLD_LISTEN", "127.0.0.1:0")
            .envs(settings.iter().copied())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let base = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| Some(line.split_once("keyfold serves on ")?.1.trim().to_owned()))
            .expect("the server says where it listens");
        // Whatever it says later must not fill the pipe.
        let log = Arc::<Mutex<Vec<String>>>::default();
        let kept = Arc::clone(&log);
        std::thread::spawn(move || {
            let said = lines.map_while(Result::ok);
            said.for_each(|line| kept.lock().expect("no panic").push(line));
        });
        Self { child, base, log }
    }

    /// The process's id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it logged since it listens.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().expect("no panic").clone()
    }

    /// Most memory that it had so far, in KiB, and what it has now (`VmHWM`, `VmRSS`).
    pub fn memory_kib(&self) -> (usize, usize) {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid()));
        let text = text.expect("it runs, on Linux");
        let of = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            let number = line.and_then(|line| line.split_whitespace().nth(1));
            number
                .and_then(|number| number.parse().ok())
                .expect("a number of KiB")
        };
        (of("VmHWM:"), of("VmRSS:"))
    }

    /// SIGTERM: asks it to end.
    pub fn ask_to_end(&self) {
        let pid = Pid::from_raw(self.pid().cast_signed());
        kill(pid, Signal::SIGTERM).expect("it runs");
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("our child")
    }

    /// `kill -9`.
    pub fn kill(mut self) {
        self.child.kill().expect("it was running");
        self.child.wait().expect("it ended");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
