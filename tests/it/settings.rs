//! `.env.example` names every setting, with the default that counts.

use std::cell::RefCell;
use std::collections::BTreeSet;

use keyfold::config::Config;

/// Read, but not through `Config::read`: one by paths, one by the tests.
const ELSEWHERE: [&str; 2] = ["PG_BIN_DIR", "KEYFOLD_TEST_DATABASE_URL"];

fn listed() -> Vec<(&'static str, &'static str)> {
    include_str!("../../.env.example")
        .lines()
        .filter_map(|line| line.strip_prefix('#').unwrap_or(line).split_once('='))
        .filter(|(name, _)| !name.contains(' '))
        .collect()
}

#[test]
fn the_example_names_exactly_the_settings_that_are_read() {
    let read = RefCell::new(BTreeSet::from(ELSEWHERE.map(str::to_owned)));
    let _ = Config::read(|name| {
        read.borrow_mut().insert(name.to_owned());
        Ok(None)
    });
    let listed: BTreeSet<String> = listed()
        .iter()
        .map(|(name, _)| (*name).to_owned())
        .collect();
    assert_eq!(listed, read.into_inner());
}

#[test]
fn the_example_shows_the_defaults() {
    let shown = |name: &str| {
        let found = listed().into_iter().find(|(listed, _)| *listed == name);
        Ok(found.map(|(_, value)| value.to_owned()))
    };
    let (shown, default) = (Config::read(shown).expect("valid"), Config::default());
    assert_eq!(shown.listen, default.listen);
    assert_eq!(
        shown.database_max_connections,
        default.database_max_connections
    );
    assert_eq!(
        shown.max_connections_per_address,
        default.max_connections_per_address
    );
    assert_eq!(shown.rate_limit_per_minute, default.rate_limit_per_minute);
    assert_eq!(shown.event_retention_days, default.event_retention_days);
    assert_eq!(
        shown.idempotency_retention_hours,
        default.idempotency_retention_hours
    );
    assert_eq!(shown.idempotency_replay_5xx, default.idempotency_replay_5xx);
    assert_eq!(shown.whatsapp_base_url, default.whatsapp_base_url);
    assert_eq!(shown.allow_private_targets, default.allow_private_targets);
    assert_eq!(shown.log, default.log);
    assert_eq!(shown.log_format, default.log_format);
}
