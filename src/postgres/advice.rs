//! What to tell someone whose machine has no Postgres.

use std::fs;

/// The ways out on this system, as sentences.
pub(super) fn here() -> String {
    let os_release = fs::read_to_string("/etc/os-release")
        .or_else(|_| fs::read_to_string("/usr/lib/os-release"))
        .unwrap_or_default();
    ways_out(package_command(&os_release, cfg!(target_os = "macos")))
}

fn ways_out(command: Option<&str>) -> String {
    let install = match command {
        Some(command) => format!("Install it with `{command}`"),
        None => "Install PostgreSQL 15 or newer with your package manager".to_owned(),
    };
    format!(
        "{install}; or set PG_BIN_DIR to the folder of its programs initdb and postgres; or set \
         DATABASE_URL to a database that runs elsewhere"
    )
}

/// The command of this system's package manager; `ID` counts before the families in `ID_LIKE`.
fn package_command(os_release: &str, macos: bool) -> Option<&'static str> {
    if macos {
        return Some("brew install postgresql@17");
    }
    let like = field(os_release, "ID_LIKE").unwrap_or_default();
    field(os_release, "ID")
        .into_iter()
        .chain(like.split_ascii_whitespace())
        .find_map(command_of_family)
}

fn command_of_family(id: &str) -> Option<&'static str> {
    Some(match id {
        "debian" | "ubuntu" => "apt-get install postgresql",
        "fedora" | "rhel" | "centos" | "rocky" | "almalinux" => "dnf install postgresql-server",
        "alpine" => "apk add postgresql",
        "arch" => "pacman -S postgresql",
        "suse" | "opensuse" => "zypper install postgresql-server",
        _ => return None,
    })
}

/// One value of an os-release file (`NAME=value`, with or without quotes).
fn field<'a>(os_release: &'a str, name: &str) -> Option<&'a str> {
    os_release
        .lines()
        .find_map(|line| line.trim().strip_prefix(name)?.strip_prefix('='))
        .map(|value| value.trim_matches(['"', '\'']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_package_command_fits_the_distribution() {
        for (os_release, command) in [
            (
                "PRETTY_NAME=\"Debian 12\"\nVERSION_ID=\"12\"\nID=debian\n",
                "apt-get",
            ),
            ("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n", "apt-get"),
            ("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n", "dnf"),
            ("ID=\"amzn\"\nID_LIKE='fedora'\n", "dnf"),
            ("ID=alpine\n", "apk"),
            ("ID=manjaro\nID_LIKE=arch\n", "pacman"),
            (
                "ID=\"opensuse-leap\"\nID_LIKE=\"suse opensuse\"\n",
                "zypper",
            ),
        ] {
            let advised = package_command(os_release, false).expect(os_release);
            assert!(advised.starts_with(command), "{os_release} got {advised}");
        }
        assert_eq!(
            package_command("", true),
            Some("brew install postgresql@17")
        );
    }

    #[test]
    fn an_unknown_system_still_gets_ways_out() {
        assert_eq!(
            package_command("ID=plan9\nVERSION_ID=debian\n", false),
            None
        );
        let text = ways_out(None);
        assert!(
            text.contains("DATABASE_URL") && text.contains("PG_BIN_DIR"),
            "{text}"
        );
    }
}
