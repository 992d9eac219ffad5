use std::os::unix::fs::symlink;

use super::*;

/// Writes a folder with fake programs. A shell writes them, for a file that this process holds
/// open for writing can't be run while another test forks ("text file busy").
fn fake(folder: &Path, version: &str) {
    fs::create_dir_all(folder).expect("create");
    for program in ["initdb", "postgres"] {
        let written = Command::new("/bin/sh")
            .arg("-c")
            .arg(r#"printf '#!/bin/sh\necho "postgres (PostgreSQL) %s"\n' "$2" > "$1"; chmod +x "$1""#)
            .arg("sh")
            .arg(folder.join(program))
            .arg(version)
            .status();
        assert!(written.expect("sh").success());
    }
}

fn options(data_dir: &Path, bin_dir: &Path) -> Options {
    Options {
        bin_dir: Some(bin_dir.to_owned()),
        ..Options::new(data_dir)
    }
}

#[test]
fn versions_of_all_kinds_of_builds_are_read() {
    for (output, major, text) in [
        (
            "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n",
            15,
            "15.18",
        ),
        ("postgres (PostgreSQL) 17beta1", 17, "17beta1"),
        ("postgres (PostgreSQL) 18devel", 18, "18devel"),
        ("postgres (PostgreSQL) 9.6.24", 9, "9.6.24"),
        (
            "postgres (EnterpriseDB Advanced Server) 16.2.0",
            16,
            "16.2.0",
        ),
    ] {
        let version = Version::of_output(output).expect(output);
        assert_eq!((version.major, version.to_string().as_str()), (major, text));
    }
    assert_eq!(Version::of_output("command not found"), None);
    assert_eq!(Version::parse("15\n").map(|v| v.major), Some(15));
}

#[test]
fn the_search_path_comes_first_and_newer_majors_before_older() {
    let root = tempfile::tempdir().expect("folder");
    let at = |path: &str| root.path().join(path);
    for (folder, version) in [
        ("usr/lib/postgresql/9.6/bin", "9.6.24"),
        ("usr/lib/postgresql/9/bin", "9"),
        ("usr/lib/postgresql/15/bin", "15.1"),
        ("usr/lib/postgresql/16/bin", "16.1"),
        ("usr/pgsql-17/bin", "17.1"),
        ("usr/libexec/postgresql18", "18.1"),
        ("opt/homebrew/opt/postgresql@15/bin", "15.2"),
        ("opt/homebrew/opt/postgresql@16/bin", "16.2"),
        ("home/me/bin", "15.9"),
    ] {
        fake(&at(folder), version);
    }
    fs::create_dir_all(at("usr/local/bin")).expect("create");
    let linked = fs::canonicalize(at("usr/lib/postgresql/15/bin")).expect("real");
    symlink(linked.join("postgres"), at("usr/local/bin/postgres")).expect("link");
    let path = std::env::join_paths([
        at("nothing/here"),
        PathBuf::from("relative"),
        at("home/me/bin"),
        at("usr/local/bin"),
    ])
    .expect("path");

    let found = candidates(Some(&path), root.path());
    let names: Vec<_> = found
        .iter()
        .map(|folder| {
            folder
                .strip_prefix(root.path())
                .expect("within")
                .to_str()
                .expect("text")
        })
        .collect();
    assert_eq!(
        names,
        [
            "home/me/bin",
            "usr/lib/postgresql/15/bin",
            "usr/local/bin",
            "usr/lib/postgresql/16/bin",
            "usr/lib/postgresql/9/bin",
            "usr/pgsql-17/bin",
            "usr/libexec/postgresql18",
            "opt/homebrew/opt/postgresql@16/bin",
            "opt/homebrew/opt/postgresql@15/bin",
        ]
    );
}

#[test]
fn a_folder_counts_only_with_both_programs_and_a_new_enough_version() {
    let root = tempfile::tempdir().expect("folder");
    let (half, old, good) = (
        root.path().join("half"),
        root.path().join("old"),
        root.path().join("good"),
    );
    fake(&half, "16.1");
    fs::remove_file(half.join("initdb")).expect("remove");
    fake(&old, "14.11");
    fake(&good, "16.3");
    assert!(
        Programs::inspect(&half)
            .expect_err("no initdb")
            .contains("initdb is missing")
    );
    assert!(Programs::inspect(&old).expect_err("old").contains("14.11"));
    assert_eq!(Programs::inspect(&good).expect("usable").version.major, 16);
}

#[test]
fn existing_data_pick_their_major_among_all() {
    let programs = |major: u32| Programs {
        folder: PathBuf::from(format!("/pg/{major}")),
        version: Version::parse(&format!("{major}.1")).expect("version"),
    };
    let all = || {
        [
            Ok(programs(17)),
            Err((PathBuf::from("/x"), "old".to_owned())),
            Ok(programs(15)),
        ]
    };
    let data = Path::new("/data");
    assert_eq!(choose(all(), None, data).expect("first").version.major, 17);
    assert_eq!(
        choose(all(), Some(15), data).expect("second").version.major,
        15
    );
    let message = choose(all(), Some(14), data).expect_err("none").to_string();
    assert!(
        message.contains("Postgres 14") && message.contains("15.1"),
        "{message}"
    );
    let message = choose([], Some(15), data)
        .expect_err("none at all")
        .to_string();
    assert!(message.contains("DATABASE_URL"), "{message}");
}

#[test]
fn an_unusable_bin_dir_is_an_error_even_when_others_are_there() {
    let root = tempfile::tempdir().expect("folder");
    let old = root.path().join("old");
    fake(&old, "13.2");
    let error = find(&options(root.path(), &old), None).expect_err("too old");
    assert!(matches!(&error, PostgresError::BinDir { .. }), "{error}");
    let error = find(&options(root.path(), root.path()), None).expect_err("empty");
    assert!(error.to_string().contains("initdb is missing"), "{error}");
}
