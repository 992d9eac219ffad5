//! What the server is told on its command line, where nothing in its files can overrule it.

use std::fs;
use std::path::Path;

use super::error::PostgresError;
use super::find::Programs;
use super::folder::Folder;
use super::owner::Owner;
use super::{Durability, Options};

/// The port in the socket's name when no port is opened.
pub(super) const SOCKET_PORT: u16 = 5432;

/// The settings as `name=value`, those of the caller last, for the last one counts.
///
/// # Errors
/// `Io`, `NotTraversable`: the programs are asked what they were built with.
pub(super) fn settings(
    options: &Options,
    folder: &Folder,
    socket_folder: &Path,
    owner: &Owner,
    programs: &Programs,
) -> Result<Vec<String>, PostgresError> {
    let mut all = vec![
        format!("unix_socket_directories={}", list_item(socket_folder)),
        format!("hba_file={}", folder.access_rules().display()),
        format!("port={}", options.loopback_port.unwrap_or(SOCKET_PORT)),
        match options.loopback_port {
            Some(_) => "listen_addresses=127.0.0.1".to_owned(),
            None => "listen_addresses=".to_owned(),
        },
    ];
    let fixed = FIXED
        .iter()
        .chain(durability(options.durability))
        .map(|text| (*text).to_owned());
    all.extend(fixed);
    let best = "wal_compression=lz4";
    let compression = if accepts(best, folder, owner, programs)? {
        best
    } else {
        "wal_compression=on"
    };
    all.push(compression.to_owned());
    all.extend(
        options
            .settings
            .iter()
            .map(|(name, value)| format!("{name}={value}")),
    );
    Ok(all)
}

const FIXED: [&str; 16] = [
    "unix_socket_permissions=0700",
    "cluster_name=keyfold",
    "max_connections=200",
    "synchronous_commit=on",
    "timezone=UTC",
    "log_timezone=UTC",
    "log_destination=stderr",
    "logging_collector=off",
    // No personal data in the log: neither statements and their values, nor the texts of errors
    // ("Key (phone)=(…) already exists"), which the client gets anyway. `terse` drops details,
    // `log` drops errors and keeps what concerns the server as a whole.
    "log_statement=none",
    "log_min_duration_statement=-1",
    "log_min_error_statement=panic",
    "log_min_messages=log",
    "log_error_verbosity=terse",
    "log_parameter_max_length=0",
    "log_parameter_max_length_on_error=0",
    // A line every five minutes for ever, in a log that only a start cuts.
    "log_checkpoints=off",
];

fn durability(durability: Durability) -> &'static [&'static str] {
    match durability {
        Durability::Kept => &["fsync=on", "full_page_writes=on", "shared_buffers=256MB"],
        Durability::ForTests => &["fsync=off", "full_page_writes=off", "shared_buffers=128MB"],
    }
}

/// Whether these programs take a setting: they check it, print it and end.
fn accepts(
    setting: &str,
    folder: &Folder,
    owner: &Owner,
    programs: &Programs,
) -> Result<bool, PostgresError> {
    let name = setting.split('=').next().unwrap_or(setting);
    let program = programs.postgres();
    owner
        .command(&program, folder.root())
        .arg("-D")
        .arg(folder.data())
        .args(["-C", name, "-c", setting])
        .output()
        .map(|output| output.status.success())
        .map_err(|error| owner.explain(error, &program, folder.root()))
}

/// An item of a comma-separated setting, in the quotes that keep commas and blanks.
fn list_item(path: &Path) -> String {
    format!("\"{}\"", path.display().to_string().replace('"', "\"\""))
}

/// Writes who may connect: all who can open the socket, for its folder lets in nobody else; and
/// through a port, which is open to every user of the machine, only with the password.
///
/// # Errors
/// `Io`.
pub(super) fn write_access_rules(folder: &Folder) -> Result<(), PostgresError> {
    let rules = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n";
    let path = folder.access_rules();
    fs::write(&path, rules).map_err(PostgresError::io("write", &path))?;
    // Nothing secret, and the server's user has to read it whatever our umask.
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .map_err(PostgresError::io("change the mode of", &path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_in_a_list_keeps_its_commas_and_quotes() {
        assert_eq!(list_item(Path::new("/a b/c,d\"e")), "\"/a b/c,d\"\"e\"");
    }
}
