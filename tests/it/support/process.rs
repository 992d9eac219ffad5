//! The real binary as a process of its own.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

/// A running `keyfold serve`; killed when dropped.
pub struct Process {
    child: Child,
    /// `http://127.0.0.1:…`
    pub base: String,
}

/// The binary under test, without the settings of the caller's shell.
pub fn keyfold() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keyfold"));
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
        let mut child = keyfold()
            .arg("serve")
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
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, base }
    }

    /// The process's id.
    pub fn pid(&self) -> u32 {
        self.child.id()
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
