//! Every field of every resource with every value that it refuses, one at a time; then bodies in
//! which more is wrong than one value.

use super::case::{Case, Want, body, example, with};
use super::kinds::{self, Bad};

const CHECKOUT: &str = "active, abandoned, recovered, completed, expired";
const SHIPMENT: &str = "pending, in_transit, delivered, failed, returned";
const REQUIRED: &str = "is required";
const UNKNOWN: &str = "is not a known field";
const OBJECT: &str = "must be an object";

/// A field and what it refuses.
type Field = (&'static str, &'static str, fn() -> Vec<Bad>);

const FIELDS: &[Field] = &[
    ("orders", "external_id", kinds::external_id),
    ("orders", "placed_at", kinds::time),
    ("orders", "total_price", kinds::money),
    ("orders", "currency", kinds::currency),
    ("orders", "financial_status", || kinds::text(64)),
    ("orders", "fulfillment_status", || kinds::text(64)),
    ("orders", "customer", || kinds::metadata()[..5].to_vec()),
    ("orders", "customer.external_id", kinds::external_id),
    ("orders", "customer.phone", kinds::phone),
    ("orders", "customer.first_name", || kinds::text(255)),
    ("orders", "customer.last_name", || kinds::text(255)),
    ("orders", "customer.email", kinds::email),
    ("orders", "customer.locale", kinds::locale),
    ("orders", "customer.tags", kinds::tags),
    ("orders", "customer.lifetime_value", kinds::count),
    ("orders", "customer.orders_count", kinds::count),
    ("orders", "line_items", kinds::line_items),
    ("orders", "tags", kinds::tags),
    ("orders", "metadata", kinds::metadata),
    ("orders", "source_updated_at", kinds::time),
    ("checkouts", "external_id", kinds::external_id),
    ("checkouts", "abandoned_at", kinds::time),
    ("checkouts", "total_price", kinds::money),
    ("checkouts", "currency", kinds::currency),
    ("checkouts", "recovery_url", kinds::url),
    ("checkouts", "status", || kinds::choice(CHECKOUT)),
    ("checkouts", "customer.phone", kinds::phone),
    ("checkouts", "line_items", kinds::line_items),
    ("checkouts", "tags", kinds::tags),
    ("checkouts", "metadata", kinds::metadata),
    ("checkouts", "source_updated_at", kinds::time),
    ("customers", "external_id", kinds::external_id),
    ("customers", "phone", kinds::phone),
    ("customers", "first_name", || kinds::text(255)),
    ("customers", "last_name", || kinds::text(255)),
    ("customers", "email", kinds::email),
    ("customers", "locale", kinds::locale),
    ("customers", "tags", kinds::tags),
    ("customers", "lifetime_value", kinds::count),
    ("customers", "orders_count", kinds::count),
    ("customers", "metadata", kinds::metadata),
    ("customers", "source_updated_at", kinds::time),
    ("shipments", "external_id", kinds::external_id),
    ("shipments", "order_external_id", kinds::external_id),
    ("shipments", "tracking_number", || kinds::text(255)),
    ("shipments", "tracking_url", kinds::url),
    ("shipments", "carrier", || kinds::text(255)),
    ("shipments", "status", || kinds::choice(SHIPMENT)),
    ("shipments", "metadata", kinds::metadata),
    ("shipments", "source_updated_at", kinds::time),
];

/// Fields that must be there.
const MUST: &[(&str, &[&str])] = &[
    (
        "orders",
        &[
            "external_id",
            "placed_at",
            "total_price",
            "customer",
            "customer.phone",
        ],
    ),
    (
        "checkouts",
        &[
            "external_id",
            "abandoned_at",
            "total_price",
            "customer",
            "customer.phone",
        ],
    ),
    ("customers", &["phone"]),
    ("shipments", &["external_id", "order_external_id"]),
];

pub fn cases() -> Vec<Case> {
    [refused_values(), required(), several_faults(), no_objects()]
        .into_iter()
        .flatten()
        .collect()
}

fn refused_values() -> Vec<Case> {
    let mut cases = Vec::new();
    for (resource, field, bad) in FIELDS {
        for (value, path, sentence) in bad() {
            let path = if path.is_empty() {
                (*field).to_owned()
            } else {
                format!("{field}.{path}")
            };
            let shown: String = value.chars().take(40).collect();
            let text = with(resource, field, Some(&value));
            let want = Want::invalid(&[(&path, &sentence)]);
            cases.push(body(format!("{field} = {shown}"), resource, &text, want));
        }
    }
    cases
}

fn required() -> Vec<Case> {
    let mut cases = Vec::new();
    for (resource, fields) in MUST {
        for field in *fields {
            let want = Want::invalid(&[(field, REQUIRED)]);
            let absent = with(resource, field, None);
            cases.push(body(
                format!("without {field}"),
                resource,
                &absent,
                want.clone(),
            ));
            let null = with(resource, field, Some("null"));
            cases.push(body(format!("{field} = null"), resource, &null, want));
        }
    }
    let null = with("checkouts", "status", Some("null"));
    let want = Want::invalid(&[("status", "can't be null")]);
    cases.push(body("status = null", "checkouts", &null, want));
    cases
}

fn several_faults() -> Vec<Case> {
    let nothing = [
        (
            "orders",
            ["external_id", "placed_at", "total_price", "customer"].as_slice(),
        ),
        (
            "checkouts",
            &["external_id", "abandoned_at", "total_price", "customer"],
        ),
        ("customers", &["phone"]),
        ("shipments", &["external_id", "order_external_id"]),
    ];
    let mut cases = Vec::new();
    for (resource, fields) in nothing {
        let missing: Vec<_> = fields.iter().map(|field| (*field, REQUIRED)).collect();
        cases.push(body(
            "an empty object",
            resource,
            "{}",
            Want::invalid(&missing),
        ));
        for name in [
            "id",
            "store_id",
            "version",
            "created_at",
            "External_id",
            "__proto__",
        ] {
            let text = with(resource, name, Some("1"));
            cases.push(body(
                format!("unknown {name}"),
                resource,
                &text,
                Want::invalid(&[(name, UNKNOWN)]),
            ));
        }
    }
    let everything = r#"{"external_id":1,"placed_at":"now","total_price":"x","currency":"XXX","tags":[1,"a",2],
        "customer":{"phone":"1","nickname":"x","metadata":{}},"line_items":[0],"metadata":[],"extra":null}"#;
    let faults = [
        ("external_id", "must be a string"),
        ("placed_at", "must be an RFC 3339 time with an offset"),
        ("total_price", "must be a decimal like \"49.90\""),
        ("currency", "must be an ISO 4217 currency code"),
        ("tags.0", "must be a string"),
        ("tags.2", "must be a string"),
        (
            "customer.phone",
            "must be in international form (+…): the store has no default country",
        ),
        ("customer.nickname", UNKNOWN),
        ("customer.metadata", UNKNOWN),
        ("line_items.0", OBJECT),
        ("metadata", OBJECT),
        ("extra", UNKNOWN),
    ];
    let one_line: String = everything.lines().map(str::trim).collect();
    cases.push(body(
        "all faulty fields at once",
        "orders",
        &one_line,
        Want::invalid(&faults),
    ));
    cases.extend(strange_names());
    cases
}

/// Names of unknown members as paths.
fn strange_names() -> Vec<Case> {
    let long = "n".repeat(150);
    let shown = format!("{}…", "n".repeat(100));
    let mut cases = Vec::new();
    for (name, path) in [
        ("\0", "\0"),
        ("é😀", "é😀"),
        (long.as_str(), shown.as_str()),
        ("$where", "$where"),
    ] {
        let text = with("customers", name, Some("{}"));
        let want = Want::invalid(&[(path, UNKNOWN)]);
        cases.push(body(
            format!("a member named {path:?}"),
            "customers",
            &text,
            want,
        ));
    }
    let nested = with("orders", "customer.id", Some("\"x\""));
    cases.push(body(
        "unknown customer.id",
        "orders",
        &nested,
        Want::invalid(&[("customer.id", UNKNOWN)]),
    ));
    let members: Vec<String> = (0..120).map(|at| format!("\"x{at:03}\":0")).collect();
    let known = example("customers").to_string();
    let text = format!("{},{}}}", &known[..known.len() - 1], members.join(","));
    let listed: Vec<String> = (0..100).map(|at| format!("x{at:03}")).collect();
    let mut faults: Vec<_> = listed.iter().map(|path| (path.as_str(), UNKNOWN)).collect();
    faults.push(("", "has more faults than the 100 that are listed"));
    cases.push(body(
        "more faults than are listed",
        "customers",
        &text,
        Want::invalid(&faults),
    ));
    cases
}

/// JSON of another kind where the record belongs.
fn no_objects() -> Vec<Case> {
    let mut cases = Vec::new();
    for resource in ["orders", "checkouts", "customers", "shipments"] {
        let inside = format!("[{}]", example(resource));
        for text in [
            "[]",
            &inside,
            r#"["x",1.5,2]"#,
            "null",
            "true",
            "12",
            r#""{}""#,
        ] {
            let shown: String = text.chars().take(20).collect();
            cases.push(body(
                format!("the body {shown}"),
                resource,
                text,
                Want::invalid(&[("", OBJECT)]),
            ));
        }
    }
    cases
}
