//! Finds the programs of a Postgres on this machine.

use std::cmp::Reverse;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::error::PostgresError;
use super::{Options, advice};

/// The oldest major version that Keyfold's schema runs on.
pub(super) const OLDEST_MAJOR: u32 = 15;

/// Where systems put one folder per major version: parent, what stands before the number, and
/// where the programs are within.
const VERSIONED_FOLDERS: [(&str, &str, &str); 8] = [
    ("usr/lib/postgresql", "", "bin"),                       // Debian
    ("usr", "pgsql-", "bin"),                                // Red Hat, from postgresql.org
    ("usr/libexec", "postgresql", ""),                       // Alpine
    ("usr/lib", "postgresql", "bin"),                        // SUSE
    ("usr/lib64", "postgresql-", "bin"),                     // Gentoo
    ("opt/homebrew/opt", "postgresql@", "bin"),              // Homebrew on ARM
    ("usr/local/opt", "postgresql@", "bin"),                 // Homebrew on Intel
    ("home/linuxbrew/.linuxbrew/opt", "postgresql@", "bin"), // Homebrew on Linux
];

/// A version such as `15.18` or `17beta1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) major: u32,
    text: String,
}

impl Version {
    /// Reads `postgres --version`: `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
    fn of_output(output: &str) -> Option<Self> {
        output.split_ascii_whitespace().find_map(Self::parse)
    }

    /// Reads a bare version, also that of a `PG_VERSION` file.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        Some(Self {
            major: text[..digits].parse().ok()?,
            text: text.to_owned(),
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

/// A folder with both `initdb` and `postgres`, new enough.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Programs {
    pub(super) folder: PathBuf,
    pub(super) version: Version,
}

impl Programs {
    pub(super) fn initdb(&self) -> PathBuf {
        self.folder.join("initdb")
    }

    pub(super) fn postgres(&self) -> PathBuf {
        self.folder.join("postgres")
    }

    /// Asks the programs in a folder; the error is the end of a sentence that begins with it.
    fn inspect(folder: &Path) -> Result<Self, String> {
        let programs = Self {
            folder: folder.to_owned(),
            version: Version {
                major: 0,
                text: String::new(),
            },
        };
        for program in [programs.initdb(), programs.postgres()] {
            if !program.is_file() {
                return Err(format!("{} is missing", program.display()));
            }
        }
        let version = ask_version(&programs.postgres())?;
        if version.major < OLDEST_MAJOR {
            return Err(format!(
                "its version {version} is older than {OLDEST_MAJOR}"
            ));
        }
        Ok(Self {
            version,
            ..programs
        })
    }
}

impl fmt::Display for Programs {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "Postgres {} from {}",
            self.version,
            self.folder.display()
        )
    }
}

fn ask_version(postgres: &Path) -> Result<Version, String> {
    let output = Command::new(postgres)
        .arg("--version")
        .env_clear()
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{} does not run: {error}", postgres.display()))?;
    Version::of_output(&String::from_utf8_lossy(&output.stdout))
        .ok_or_else(|| format!("{} --version names no version", postgres.display()))
}

/// Takes the first usable programs; `wanted` is the major version of data that exist already.
///
/// # Errors
/// `BinDir`, `OtherMajor` or `NotFound`, each with what was seen.
pub(super) fn find(options: &Options, wanted: Option<u32>) -> Result<Programs, PostgresError> {
    match &options.bin_dir {
        Some(folder) => {
            let programs = Programs::inspect(folder).map_err(|reason| PostgresError::BinDir {
                folder: folder.clone(),
                reason,
            })?;
            choose([Ok(programs)], wanted, &options.data_dir)
        }
        None => {
            let folders = candidates(options.search_path.as_deref(), Path::new("/"));
            let inspected = folders
                .iter()
                .map(|folder| Programs::inspect(folder).map_err(|reason| (folder.clone(), reason)));
            choose(inspected, wanted, &options.data_dir)
        }
    }
}

/// Lazy: candidates behind the first that serves are never run.
fn choose(
    inspected: impl IntoIterator<Item = Result<Programs, (PathBuf, String)>>,
    wanted: Option<u32>,
    data_dir: &Path,
) -> Result<Programs, PostgresError> {
    let mut other_majors = Vec::new();
    let mut refused = Vec::new();
    for candidate in inspected {
        match candidate {
            Ok(programs) if wanted.is_none_or(|major| major == programs.version.major) => {
                return Ok(programs);
            }
            Ok(programs) => other_majors.push(programs.to_string()),
            Err((folder, reason)) => refused.push(format!("{}: {reason}", folder.display())),
        }
    }
    if let (Some(wanted), false) = (wanted, other_majors.is_empty()) {
        let found = other_majors.join(", ");
        return Err(PostgresError::OtherMajor {
            data_dir: data_dir.to_owned(),
            wanted,
            found,
        });
    }
    let seen = match refused.is_empty() {
        true => String::new(),
        false => format!(" ({})", refused.join("; ")),
    };
    Err(PostgresError::NotFound {
        seen,
        advice: advice::here(),
    })
}

/// Folders that hold a `postgres`, best first, each once. `root` is `/` outside tests.
fn candidates(search_path: Option<&OsStr>, root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let usual = VERSIONED_FOLDERS
        .iter()
        .flat_map(|place| newest_first(root, *place));
    let folders = on_search_path(search_path)
        .into_iter()
        .chain(usual)
        .chain([root.join("usr/local/pgsql/bin")]);
    for folder in folders {
        if folder.join("postgres").is_file() && !found.contains(&folder) {
            found.push(folder);
        }
    }
    found
}

/// The folders of `PATH`; before each the one that its `postgres` links to, where the other
/// programs of the same version are.
fn on_search_path(search_path: Option<&OsStr>) -> Vec<PathBuf> {
    let folders = search_path.map(std::env::split_paths).into_iter().flatten();
    folders
        // An empty or relative entry would run whatever lies in the working directory.
        .filter(|folder| folder.is_absolute())
        .flat_map(|folder| {
            let target = fs::canonicalize(folder.join("postgres")).ok();
            let real = target.as_deref().and_then(Path::parent).map(Path::to_owned);
            real.into_iter().chain([folder])
        })
        .collect()
}

fn newest_first(root: &Path, (parent, prefix, inner): (&str, &str, &str)) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(root.join(parent)) else {
        return Vec::new();
    };
    let mut numbered: Vec<(u32, OsString)> = entries
        .filter_map(|entry| {
            let name = entry.ok()?.file_name();
            let number = name.to_str()?.strip_prefix(prefix)?.parse().ok()?;
            Some((number, name))
        })
        .collect();
    numbered.sort_by_key(|(number, _)| Reverse(*number));
    numbered
        .into_iter()
        .map(|(_, name)| root.join(parent).join(name).join(inner))
        .collect()
}

#[cfg(test)]
mod tests;
