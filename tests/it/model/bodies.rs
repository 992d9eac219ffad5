//! Bodies: each holds a number that no other body has, in every member that can hold one.

use std::fmt::Write as _;

use chrono::{DateTime, SecondsFormat};
use serde_json::{Value, json};

use super::plan::{Naming, Person, Shape, Target, records_of};
use super::rules::{Fallback, Kind, Members};

/// The name of a record in paths and bodies.
pub fn name(target: Target) -> String {
    let letter = match target.kind {
        Kind::Orders => "O",
        Kind::Checkouts => "K",
        Kind::Shipments => "S",
        Kind::Customers => "C",
    };
    format!("{letter}{}", target.at)
}

/// The phone of a customer. Each has one of its own and keeps it, so that who is meant by a phone
/// doesn't depend on the order of writes.
pub fn phone(at: usize) -> String {
    format!("+3361000{at:04}")
}

/// The record that a customer's phone belongs to.
pub fn customer_of(phone: &str) -> Option<usize> {
    phone.strip_prefix("+3361000")?.parse().ok()
}

/// A time of the caller's own system.
pub fn time(tick: u64) -> Value {
    let seconds = 1_767_225_600 + i64::try_from(tick).expect("few ticks");
    let time = DateTime::from_timestamp(seconds, 0).expect("in range");
    time.to_rfc3339_opts(SecondsFormat::Secs, true).into()
}

/// The body of a POST.
pub fn post(target: Target, mark: u64, shape: &Shape) -> Members {
    let rules = target.kind.rules();
    let mut body = Members::new();
    let mut bit = 0;
    for (member, fallback) in rules.members {
        let is_sent = match (*member, fallback) {
            (_, Fallback::Required) => true,
            ("external_id", _) => shape.person.naming == Naming::ByBoth,
            (member, _) if member == rules.mark.0 => true,
            _ => {
                bit += 1;
                shape.members >> bit & 1 == 1
            }
        };
        if is_sent {
            body.insert((*member).to_owned(), value(target, member, mark, shape));
        }
    }
    body
}

/// The body of a PATCH.
pub fn patch(target: Target, mark: u64, shape: &Shape) -> Members {
    let mutable = target.kind.rules().mutable.iter().enumerate();
    let is_sent = |(bit, _): &(usize, &&str)| shape.members >> bit & 1 == 1;
    let member = |(bit, member): (usize, &&str)| {
        let clears = *member != "status" && shape.clears >> bit & 3 == 3;
        let value = if clears {
            Value::Null
        } else {
            value(target, member, mark, shape)
        };
        ((*member).to_owned(), value)
    };
    mutable.filter(is_sent).map(member).collect()
}

fn value(target: Target, member: &str, mark: u64, shape: &Shape) -> Value {
    match member {
        "external_id" => name(target).into(),
        "phone" => phone(target.at).into(),
        "placed_at" | "abandoned_at" => "2026-01-01T00:00:00Z".into(),
        "total_price" => format!("{mark}.50").into(),
        "customer" => Value::Object(customer(shape.person, mark)),
        "currency" => "EUR".into(),
        "line_items" => json!([{ "mark": mark }]),
        "tags" => json!([format!("t{mark}"), "web"]),
        "metadata" => json!({ "mark": mark }),
        "status" => status(target.kind, mark).into(),
        "order_external_id" => {
            let kind = Kind::Orders;
            let at = usize::try_from(mark).expect("few bodies") % records_of(kind);
            name(Target { kind, at }).into()
        }
        "lifetime_value" | "orders_count" => mark.into(),
        "email" => format!("p{mark}@example.com").into(),
        "locale" => ["fr", "en-GB"][usize::from(mark.is_multiple_of(2))].into(),
        "recovery_url" | "tracking_url" => format!("https://shop.example/{mark}").into(),
        text => {
            let mut value = text.to_owned();
            write!(value, " {mark}").expect("a string takes everything");
            value.into()
        }
    }
}

fn status(kind: Kind, mark: u64) -> &'static str {
    let statuses = match kind {
        Kind::Checkouts => ["active", "abandoned", "recovered", "completed"],
        _ => ["pending", "in_transit", "delivered", "returned"],
    };
    statuses[usize::try_from(mark % 4).expect("below 4")]
}

/// Members of a customer that an order may carry besides its names.
const CARRIED: &[&str] = &[
    "first_name",
    "last_name",
    "email",
    "tags",
    "lifetime_value",
    "orders_count",
];

fn customer(person: Person, mark: u64) -> Members {
    let target = Target {
        kind: Kind::Customers,
        at: person.at,
    };
    // Nothing of the order goes into its customer.
    let shape = Shape {
        members: 0,
        clears: 0,
        source: super::plan::Source::None,
        person,
    };
    let mut body = Members::new();
    let mut say = |member: &str| {
        body.insert(member.to_owned(), value(target, member, mark, &shape));
    };
    say("phone");
    if person.naming == Naming::ByBoth {
        say("external_id");
    }
    for (bit, member) in CARRIED.iter().enumerate() {
        if person.members >> bit & 1 == 1 {
            say(member);
        }
    }
    body
}
