//! The store's events: one for each version of each record, and no others.

use std::collections::BTreeMap;

use serde_json::Value;

use super::bodies;
use super::check::{Case, Wrong};
use super::client::{Client, Round};
use super::rules::Kind;

/// Compares the events of a round with its records.
///
/// # Errors
/// The first record whose events are others.
pub fn check(cases: &[Case<'_>], events: &[Value]) -> Result<(), Wrong> {
    let mut of: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
    for event in events {
        let record = event["record_id"].as_str().expect("an id");
        of.entry(record).or_default().push(event);
    }
    for case in cases {
        let events = case.id.as_str().and_then(|id| of.remove(id));
        let told: Vec<String> = events.iter().flatten().map(|event| line(event)).collect();
        let expected = expected(case);
        if told != expected {
            return Err(case.wrong(format!("its events are {told:#?}, not {expected:#?}")));
        }
    }
    assert!(of.is_empty(), "events of unknown records: {of:?}");
    Ok(())
}

fn line(event: &Value) -> String {
    format!(
        "{} {} {} {}",
        event["resource"], event["type"], event["version"], event["external_id"]
    )
}

/// The events of a record, in the order of the feed.
fn expected(case: &Case<'_>) -> Vec<String> {
    let rules = case.target.kind.rules();
    let event = |version| {
        let verb = if version == 1 { "created" } else { "updated" };
        let (resource, singular) = (rules.path, rules.singular);
        let external_id = external_id(case);
        format!("\"{resource}\" \"{singular}.{verb}\" {version} {external_id}")
    };
    (1..=case.newest).map(event).collect()
}

/// The name of a customer is looked up when events are read.
fn external_id(case: &Case<'_>) -> Value {
    match case.target.kind {
        Kind::Customers => {
            let last = case.ops.last().and_then(|op| op.shown());
            last.map_or(Value::Null, |shown| shown.body["external_id"].clone())
        }
        _ => bodies::name(case.target).into(),
    }
}

impl Round<'_> {
    /// All events of the store.
    pub async fn events(&self, client: &Client) -> Vec<Value> {
        let (mut events, mut after) = (Vec::new(), 0);
        loop {
            let page = self
                .get(client, format!("events?after={after}&limit=200"))
                .await;
            events.extend(page["data"].as_array().expect("a list").iter().cloned());
            after = page["next_after"].as_i64().expect("never null");
            if page["has_more"] == false {
                return events;
            }
        }
    }

    /// How many customers the store has.
    pub async fn customers(&self, client: &Client) -> usize {
        let page = self.get(client, "customers?limit=200".to_owned()).await;
        page["data"].as_array().expect("a list").len()
    }
}
