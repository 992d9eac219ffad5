//! Creates the data of a new server, whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Output;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::Durability;
use super::error::PostgresError;
use super::find::Programs;
use super::folder::{Folder, remove_folder};
use super::owner::{Owner, create_path};

/// Runs `initdb` beside the final place and renames at the end, so that one that was cut short is
/// never taken for data.
///
/// # Errors
/// `Initdb` with its words, `NotTraversable`, `Io`.
pub(super) fn create_data(
    folder: &Folder,
    owner: &Owner,
    programs: &Programs,
    durability: Durability,
) -> Result<(), PostgresError> {
    write_password(&folder.password(), owner)?;
    let mut output = initdb(folder, owner, programs, durability, "C.UTF-8")?;
    if !output.status.success() && words_of(&output).contains("invalid locale name") {
        output = initdb(folder, owner, programs, durability, "C")?;
    }
    if !output.status.success() {
        let words = words_of(&output);
        return Err(PostgresError::Initdb {
            status: output.status,
            output: words,
        });
    }
    let (from, to) = (folder.staging(), folder.data());
    fs::rename(&from, &to).map_err(PostgresError::io("rename", &from))?;
    // The rename itself must survive a power cut.
    File::open(folder.root())
        .and_then(|root| root.sync_all())
        .map_err(PostgresError::io("sync", folder.root()))
}

fn initdb(
    folder: &Folder,
    owner: &Owner,
    programs: &Programs,
    durability: Durability,
    locale: &str,
) -> Result<Output, PostgresError> {
    let staging = folder.staging();
    remove_folder(&staging)?;
    create_path(&staging, 0o700)?;
    owner.take(&staging, 0o700)?;
    let mut command = owner.command(&programs.initdb(), folder.root());
    command.arg("-D").arg(&staging);
    command.args([
        "-U",
        "postgres",
        "-A",
        "trust",
        "--encoding=UTF8",
        "--data-checksums",
    ]);
    command.args(["--no-instructions", "--locale", locale]);
    command.arg("--pwfile").arg(folder.password());
    if durability == Durability::ForTests {
        command.arg("--no-sync");
    }
    command
        .output()
        .map_err(|error| owner.explain(error, &programs.initdb(), folder.root()))
}

fn words_of(output: &Output) -> String {
    let words = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    words.concat().trim().to_owned()
}

/// Every server gets a password, used only where a loopback port is opened later. It is written
/// before the data, so that data without it can't come about; one that is there stays.
fn write_password(path: &Path, owner: &Owner) -> Result<(), PostgresError> {
    if fs::metadata(path).is_ok_and(|found| found.len() > 0) {
        return owner.take(path, 0o600);
    }
    let password = URL_SAFE_NO_PAD.encode(rand::random::<[u8; 24]>());
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(password.as_bytes()))
        .map_err(PostgresError::io("write", path))?;
    owner.take(path, 0o600)
}
