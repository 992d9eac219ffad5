//! A module uses only layers below its own; uses among siblings are listed with their reasons.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The layers table of ARCHITECTURE.md, from the bottom. Modules that are still to come have their
/// place already.
const LAYERS: &[&[&str]] = &[
    &[
        "config",
        "clock",
        "database",
        "error",
        "secrets",
        "shares",
        "targets",
        "telemetry",
        "tls",
        "turns",
        "values",
        "vitals",
        "postgres",
    ],
    &["state", "schema"],
    &["edge", "auth", "tenancy", "outbox"],
    &["engine", "erasure"],
    &["resources"],
    &["messaging"],
    &["automations", "exports"],
    &["app", "openapi", "maintenance"],
    &["cli"],
];

/// Uses of a module of the same layer.
const SIBLINGS: &[(&str, &str, &str)] = &[
    ("config", "telemetry", "the log format is a setting"),
    (
        "config",
        "targets",
        "the private targets that are allowed are a setting",
    ),
    (
        "shares",
        "turns",
        "stores that wait for a share of a pot take turns",
    ),
    ("targets", "shares", "stores share the look-ups of names"),
    (
        "targets",
        "tls",
        "all requests that we make trust the same roots",
    ),
    (
        "error",
        "values",
        "the faults of fields are an error's content",
    ),
    (
        "secrets",
        "config",
        "the key that secrets are sealed under is a setting",
    ),
    (
        "auth",
        "tenancy",
        "keys and stores are looked up by tenancy's statements",
    ),
    (
        "auth",
        "edge",
        "the requests of a store take memory on its account",
    ),
    (
        "engine",
        "erasure",
        "the erasers that modules register are handed on to the deletion",
    ),
    ("app", "openapi", "the document is served"),
    (
        "app",
        "maintenance",
        "the cleaners live as long as the service",
    ),
];

fn layer(module: &str) -> usize {
    let found = LAYERS.iter().position(|layer| layer.contains(&module));
    found.unwrap_or_else(|| panic!("`{module}` has no place in the layers table"))
}

#[test]
fn every_module_uses_only_layers_below_its_own() {
    let mut siblings = BTreeSet::new();
    let mut wrong = Vec::new();
    for Use { from, to, file } in uses() {
        if from == to {
            continue;
        }
        let (above, below) = (layer(&from), layer(&to));
        if above == below {
            siblings.insert((from, to));
        } else if above < below {
            wrong.push(format!(
                "{from} (layer {above}) uses {to} (layer {below}): {}",
                file.display()
            ));
        }
    }
    assert_eq!(wrong, [""; 0], "uses upwards");
    let listed: BTreeSet<(String, String)> = SIBLINGS
        .iter()
        .map(|(from, to, _)| ((*from).to_owned(), (*to).to_owned()))
        .collect();
    let unlisted: Vec<_> = siblings.difference(&listed).collect();
    assert!(
        unlisted.is_empty(),
        "siblings used without a listed reason: {unlisted:?}"
    );
    let unused: Vec<_> = listed.difference(&siblings).collect();
    assert!(
        unused.is_empty(),
        "listed, but not used any more: {unused:?}"
    );
}

#[test]
fn every_module_of_the_crate_has_its_layer() {
    let source = fs::read_to_string(source().join("lib.rs")).expect("lib.rs is there");
    let modules = source
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    let modules: Vec<&str> = modules.collect();
    assert!(modules.len() > 10);
    for module in modules {
        layer(module);
    }
}

#[test]
fn of_the_other_resources_only_customers_may_be_named() {
    let folder = source().join("resources");
    let names = |entry: fs::DirEntry| {
        let path = entry.path();
        Some(path.file_stem()?.to_str()?.to_owned()).filter(|name| name != "mod")
    };
    let entries = fs::read_dir(&folder)
        .expect("the folder is there")
        .flatten();
    let resources: Vec<String> = entries.filter_map(names).collect();
    assert!(resources.len() >= 4, "{resources:?}");
    for file in files(&folder) {
        if file == folder.join("mod.rs") {
            continue;
        }
        let own = module_of(file.strip_prefix(&folder).expect("inside"));
        let code = code_of(&file);
        let direct = file.parent() == Some(&folder);
        for other in resources
            .iter()
            .filter(|name| **name != own && *name != "customers")
        {
            let mut ways = vec![
                format!("resources::{other}"),
                format!("super::super::{other}"),
            ];
            if direct {
                ways.push(format!("super::{other}"));
            }
            for way in ways {
                assert!(!code.contains(&way), "{} uses {way}", file.display());
            }
        }
    }
}

#[test]
fn only_config_reads_the_environment_and_only_clock_tells_the_time() {
    // The private server reads PATH where it is started, and the process groups its children.
    let may_read = ["config", "cli", "postgres"];
    for file in files(&source()) {
        let module = module_of(file.strip_prefix(source()).expect("inside"));
        let code = code_of(&file);
        let reads = code.contains("env::var");
        assert!(
            !reads || may_read.contains(&module.as_str()),
            "{}",
            file.display()
        );
        for way in ["Utc::now", "SystemTime::now", "Uuid::now_v7", "Local::now"] {
            let tells = code.contains(way) && module != "clock";
            assert!(!tells, "{} asks {way}", file.display());
        }
    }
}

struct Use {
    from: String,
    to: String,
    file: PathBuf,
}

/// Every `crate::x` of the sources, also in groups: `crate::{x, y::z}`.
fn uses() -> Vec<Use> {
    let mut uses = Vec::new();
    for file in files(&source()) {
        let from = module_of(file.strip_prefix(source()).expect("inside"));
        if ["main", "lib"].contains(&from.as_str()) {
            continue;
        }
        for rest in code_of(&file).split("crate::").skip(1) {
            for to in first_names(rest) {
                let (from, file) = (from.clone(), file.clone());
                uses.push(Use { from, to, file });
            }
        }
    }
    assert!(uses.len() > 50, "the sources were read");
    uses
}

/// The modules that a path names after `crate::`.
fn first_names(rest: &str) -> Vec<String> {
    let name = |text: &str| {
        let is_part = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
        let text = text.trim_start();
        text[..text.find(|letter| !is_part(letter)).unwrap_or(text.len())].to_owned()
    };
    let Some(group) = rest.strip_prefix('{') else {
        return vec![name(rest)];
    };
    let (mut depth, mut start, mut names) = (0, 0, Vec::new());
    for (at, letter) in group.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            '}' | ',' if depth == 0 => {
                names.push(name(&group[start..at]));
                start = at + 1;
                if letter == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

#[test]
fn groups_of_paths_are_understood() {
    assert_eq!(first_names("error::Error;"), ["error"]);
    assert_eq!(
        first_names("{a::{b, c}, d, self_::e,\n    f,\n};"),
        ["a", "d", "self_", "f"]
    );
}

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// `a/b.rs` and `a.rs` belong to `a`.
fn module_of(path: &Path) -> String {
    let first = path.components().next().expect("not empty");
    let name = first.as_os_str().to_str().expect("UTF-8");
    name.strip_suffix(".rs").unwrap_or(name).to_owned()
}

/// A file without its comment lines.
fn code_of(file: &Path) -> String {
    let text = fs::read_to_string(file).expect("the file can be read");
    let lines = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("the folder is there") {
        let path = entry.expect("it can be read").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}
