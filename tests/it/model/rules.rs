//! The rules of an upsert as the contract tells them (`POST` replaces, `PATCH` merges, what is stale
//! and what is a replay), for one record and one request at a time, in plain JSON. Nothing of the
//! service is used here.

use std::fmt;

use serde_json::{Map, Value, json};

use super::plan::Naming;

/// What can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Orders,
    Checkouts,
    Shipments,
    Customers,
}

/// What a member becomes when a POST leaves it out, or a PATCH clears it.
#[derive(Clone, Copy)]
pub enum Fallback {
    /// It can't be left out.
    Required,
    Null,
    List,
    Object,
    Text(&'static str),
    /// What is stored stays; this on creation.
    Kept(Option<&'static str>),
}

/// What the contract says of one resource.
pub struct Rules {
    pub path: &'static str,
    pub singular: &'static str,
    /// Members of the content.
    pub members: &'static [(&'static str, Fallback)],
    /// Members that PATCH can change; empty: there is no PATCH.
    pub mutable: &'static [&'static str],
    /// Where the content holds the number of the body that was posted, as a member and a pointer
    /// into it; PATCH can't change it.
    pub mark: (&'static str, &'static str),
}

const ORDERS: Rules = Rules {
    path: "orders",
    singular: "order",
    members: &[
        ("external_id", Fallback::Required),
        ("placed_at", Fallback::Required),
        ("total_price", Fallback::Required),
        ("customer", Fallback::Required),
        ("currency", Fallback::Null),
        ("financial_status", Fallback::Null),
        ("fulfillment_status", Fallback::Null),
        ("line_items", Fallback::List),
        ("tags", Fallback::List),
        ("metadata", Fallback::Object),
    ],
    mutable: &["financial_status", "fulfillment_status", "tags", "metadata"],
    mark: ("line_items", "/0/mark"),
};

const CHECKOUTS: Rules = Rules {
    path: "checkouts",
    singular: "checkout",
    members: &[
        ("external_id", Fallback::Required),
        ("abandoned_at", Fallback::Required),
        ("total_price", Fallback::Required),
        ("customer", Fallback::Required),
        ("currency", Fallback::Null),
        ("recovery_url", Fallback::Null),
        ("status", Fallback::Kept(Some("abandoned"))),
        ("line_items", Fallback::List),
        ("tags", Fallback::List),
        ("metadata", Fallback::Object),
    ],
    mutable: &["status", "recovery_url", "tags", "metadata"],
    mark: ("line_items", "/0/mark"),
};

const SHIPMENTS: Rules = Rules {
    path: "shipments",
    singular: "shipment",
    members: &[
        ("external_id", Fallback::Required),
        ("order_external_id", Fallback::Required),
        ("tracking_number", Fallback::Null),
        ("tracking_url", Fallback::Null),
        ("carrier", Fallback::Null),
        ("status", Fallback::Text("pending")),
        ("metadata", Fallback::Object),
    ],
    mutable: &[],
    mark: ("metadata", "/mark"),
};

const CUSTOMERS: Rules = Rules {
    path: "customers",
    singular: "customer",
    members: &[
        ("phone", Fallback::Required),
        ("external_id", Fallback::Kept(None)),
        ("first_name", Fallback::Null),
        ("last_name", Fallback::Null),
        ("email", Fallback::Null),
        ("locale", Fallback::Null),
        ("tags", Fallback::List),
        ("lifetime_value", Fallback::Null),
        ("orders_count", Fallback::Null),
        ("metadata", Fallback::Object),
    ],
    mutable: &[],
    mark: ("metadata", "/mark"),
};

impl Rules {
    /// The number of the body in what was posted or is stored.
    pub fn mark_in<'m>(&self, members: &'m Members) -> Option<&'m Value> {
        let (name, rest) = self.mark;
        members.get(name)?.pointer(rest)
    }
}

impl Kind {
    pub const ALL: [Self; 4] = [
        Self::Orders,
        Self::Checkouts,
        Self::Shipments,
        Self::Customers,
    ];

    pub fn rules(self) -> &'static Rules {
        match self {
            Self::Orders => &ORDERS,
            Self::Checkouts => &CHECKOUTS,
            Self::Shipments => &SHIPMENTS,
            Self::Customers => &CUSTOMERS,
        }
    }
}

/// Members by name.
pub type Members = Map<String, Value>;

/// What is asked of one record.
#[derive(Clone, Debug)]
pub struct Request {
    pub change: Change,
    /// A version that `If-Match` names.
    pub if_match: Option<usize>,
    /// `If-None-Match: *`.
    pub if_none_match: bool,
}

/// How the record is to change.
#[derive(Clone, Debug)]
pub enum Change {
    /// By its external id, or of a customer by its phone.
    Read(Naming),
    Put(Members),
    Patch(Members),
}

impl Request {
    pub fn of(change: Change) -> Self {
        Self {
            change,
            if_match: None,
            if_none_match: false,
        }
    }

    pub fn body(&self) -> Option<&Members> {
        match &self.change {
            Change::Read(_) => None,
            Change::Put(body) | Change::Patch(body) => Some(body),
        }
    }

    /// When the caller's own system changed the record. All times of this test are in UTC and
    /// written alike, so their texts are in order of time.
    pub fn source(&self) -> Option<&str> {
        self.body()?.get("source_updated_at")?.as_str()
    }
}

/// One record.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    pub version: usize,
    pub source: Option<String>,
    /// Without what the service adds. An order's customer is what the order carried.
    pub content: Members,
}

/// What a write came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    Created,
    Updated,
    Unchanged,
    Stale,
}

impl Outcome {
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "created" => Self::Created,
            "updated" => Self::Updated,
            "unchanged" => Self::Unchanged,
            "stale" => Self::Stale,
            _ => return None,
        })
    }

    /// Whether it makes a version.
    pub fn is_change(self) -> bool {
        matches!(self, Self::Created | Self::Updated)
    }
}

/// The answer of the model.
#[derive(Debug, PartialEq)]
pub enum Verdict {
    Refused(u16),
    Done(Outcome, State),
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            version,
            source,
            content,
        } = self;
        let source = source.as_deref().unwrap_or("no time");
        write!(
            f,
            "v{version} of {source} {}",
            Value::Object(content.clone())
        )
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(status) => write!(f, "{status}"),
            Self::Done(outcome, state) => write!(f, "{outcome:?} {state}"),
        }
    }
}

/// One request to one record, alone in the world.
pub fn apply(rules: &Rules, before: Option<&State>, request: &Request) -> Verdict {
    if is_faulty(rules, request) {
        return Verdict::Refused(422);
    }
    if before.is_none() && !matches!(request.change, Change::Put(_)) {
        return Verdict::Refused(404);
    }
    if !conditions_hold(before, request) {
        return Verdict::Refused(412);
    }
    let source = request.source().map(str::to_owned);
    let content = content_after(rules, before, request);
    let Some(before) = before else {
        let version = 1;
        let state = State {
            version,
            source,
            content,
        };
        return Verdict::Done(Outcome::Created, state);
    };
    if source.is_some() && source < before.source {
        return Verdict::Done(Outcome::Stale, before.clone());
    }
    let (version, outcome) = if content == before.content {
        (before.version, Outcome::Unchanged)
    } else {
        (before.version + 1, Outcome::Updated)
    };
    let source = source.max(before.source.clone());
    let state = State {
        version,
        source,
        content,
    };
    Verdict::Done(outcome, state)
}

fn is_faulty(rules: &Rules, request: &Request) -> bool {
    let Change::Put(body) = &request.change else {
        return false;
    };
    rules
        .members
        .iter()
        .any(|(name, fallback)| matches!(fallback, Fallback::Required) && !body.contains_key(*name))
}

fn conditions_hold(before: Option<&State>, request: &Request) -> bool {
    let version = before.map(|state| state.version);
    (request.if_match.is_none() || request.if_match == version)
        && !(request.if_none_match && before.is_some())
}

fn content_after(rules: &Rules, before: Option<&State>, request: &Request) -> Members {
    let stored = before.map(|state| &state.content);
    match &request.change {
        Change::Read(_) => stored.cloned().unwrap_or_default(),
        Change::Put(body) => put(rules, stored, body),
        Change::Patch(body) => patch(rules, stored, body),
    }
}

/// What a POST leaves.
pub fn put(rules: &Rules, stored: Option<&Members>, body: &Members) -> Members {
    let value = |name: &str, fallback: Fallback| {
        let sent = body.get(name).cloned();
        let kept = match fallback {
            Fallback::Kept(_) => stored.and_then(|stored| stored.get(name)).cloned(),
            _ => None,
        };
        sent.or(kept).unwrap_or_else(|| fallback.value())
    };
    let members = rules.members.iter();
    members
        .map(|(name, fallback)| ((*name).to_owned(), value(name, *fallback)))
        .collect()
}

fn patch(rules: &Rules, stored: Option<&Members>, body: &Members) -> Members {
    let mut content = stored.cloned().unwrap_or_default();
    for (name, fallback) in rules.members {
        match body.get(*name) {
            None => {}
            Some(Value::Null) => drop(content.insert((*name).to_owned(), fallback.value())),
            Some(value) => drop(content.insert((*name).to_owned(), value.clone())),
        }
    }
    content
}

impl Fallback {
    pub fn value(self) -> Value {
        match self {
            Self::Required | Self::Null | Self::Kept(None) => Value::Null,
            Self::List => json!([]),
            Self::Object => json!({}),
            Self::Text(text) | Self::Kept(Some(text)) => text.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(value: Value) -> Members {
        value.as_object().expect("an object").clone()
    }

    fn parcel(number: &str, source: Option<&str>) -> Request {
        let mut body = members(json!({"external_id": "S", "order_external_id": "O"}));
        body.insert("tracking_number".to_owned(), number.into());
        if let Some(source) = source {
            body.insert("source_updated_at".to_owned(), source.into());
        }
        Request::of(Change::Put(body))
    }

    /// Outcomes and versions of requests, one after the other.
    fn story(requests: &[Request]) -> Vec<(Outcome, usize)> {
        let mut state = None;
        let mut told = Vec::new();
        for request in requests {
            match apply(Kind::Shipments.rules(), state.as_ref(), request) {
                Verdict::Done(outcome, after) => {
                    told.push((outcome, after.version));
                    state = Some(after);
                }
                Verdict::Refused(status) => panic!("refused with {status}"),
            }
        }
        told
    }

    #[test]
    fn the_model_tells_replays_and_late_writes_from_changes() {
        let requests = [
            parcel("1", Some("2026-01-02T00:00:00Z")),
            parcel("1", Some("2026-01-02T00:00:00Z")),
            parcel("2", None),
            parcel("3", Some("2026-01-01T00:00:00Z")),
            parcel("2", Some("2026-01-03T00:00:00Z")),
            parcel("3", Some("2026-01-02T00:00:00Z")),
            parcel("1", Some("2026-01-03T00:00:00Z")),
        ];
        let told = [
            (Outcome::Created, 1),
            (Outcome::Unchanged, 1),
            (Outcome::Updated, 2),
            (Outcome::Stale, 2),
            (Outcome::Unchanged, 2),
            (Outcome::Stale, 2),
            (Outcome::Updated, 3),
        ];
        assert_eq!(story(&requests), told);
    }
}
