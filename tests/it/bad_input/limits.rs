//! The most that each field takes, and how it is answered.

use super::case::{quoted, with};

/// A resource, a field, the value as it is sent, and the text that the answer must hold.
pub type Accepted = (&'static str, &'static str, String, String);

/// Values that are answered as they were sent.
fn kept(resource: &'static str, field: &'static str, values: &[&str]) -> Vec<Accepted> {
    let row = |value: &&str| same(resource, field, (*value).to_owned());
    values.iter().map(row).collect()
}

fn same(resource: &'static str, field: &'static str, value: String) -> Accepted {
    let name = field.rsplit('.').next().expect("a name");
    let answer = format!("\"{name}\":{value}");
    (resource, field, value, answer)
}

/// Values that are answered in another form.
fn turned(resource: &'static str, field: &'static str, values: &[(&str, &str)]) -> Vec<Accepted> {
    let name = field.rsplit('.').next().expect("a name");
    let row = |(sent, answer): &(&str, &str)| {
        (
            resource,
            field,
            (*sent).to_owned(),
            format!("\"{name}\":{answer}"),
        )
    };
    values.iter().map(row).collect()
}

pub fn accepted() -> Vec<Accepted> {
    [
        times_and_amounts(),
        words(),
        free_json(),
        contacts(),
        absent(),
    ]
    .concat()
}

fn times_and_amounts() -> Vec<Accepted> {
    let times = [
        (r#""1970-01-01T00:00:00Z""#, r#""1970-01-01T00:00:00Z""#),
        (
            r#""1969-12-31T23:00:00-01:00""#,
            r#""1970-01-01T00:00:00Z""#,
        ),
        (
            r#""9999-12-31T23:59:59.999999Z""#,
            r#""9999-12-31T23:59:59.999999Z""#,
        ),
        (
            r#""2026-01-15t09:30:00.1234567z""#,
            r#""2026-01-15T09:30:00.123456Z""#,
        ),
        (
            r#""2026-01-15T09:30:00+23:59""#,
            r#""2026-01-14T09:31:00Z""#,
        ),
    ];
    let zeros = format!("49.9{}", "0".repeat(500));
    let long = format!("\"0.{}\"", "0".repeat(5_000));
    let amounts = [
        ("999999999999999.9999", "\"999999999999999.9999\""),
        ("\"999999999999999.9999\"", "\"999999999999999.9999\""),
        ("90071992547409.9301", "\"90071992547409.9301\""),
        ("0.1", "\"0.10\""),
        ("-0", "\"0.00\""),
        ("\"-0.00\"", "\"0.00\""),
        ("0e999999", "\"0.00\""),
        ("1E+3", "\"1000.00\""),
        ("123456e-4", "\"12.3456\""),
        (&zeros, "\"49.90\""),
        (&long, "\"0.00\""),
    ];
    let counts = [
        ("9223372036854775807", "9223372036854775807"),
        ("9007199254740993", "9007199254740993"),
        ("5.0", "5"),
        ("1e18", "1000000000000000000"),
        ("-0", "0"),
    ];
    [
        turned("orders", "placed_at", &times),
        turned("checkouts", "abandoned_at", &times[..2]),
        turned("orders", "source_updated_at", &times[2..3]),
        turned("orders", "total_price", &amounts),
        turned("checkouts", "total_price", &amounts[..3]),
        turned("customers", "lifetime_value", &counts),
        turned("customers", "orders_count", &counts[..2]),
        turned("orders", "customer.lifetime_value", &counts[..1]),
    ]
    .concat()
}

fn words() -> Vec<Accepted> {
    let text = |most: usize| quoted(&"😀".repeat(most));
    let tags = format!(
        "[{}]",
        (0..250)
            .map(|at| at.to_string())
            .map(|tag| quoted(&tag))
            .collect::<Vec<_>>()
            .join(",")
    );
    let long_tag = format!("[{}]", text(255));
    let mut rows = vec![
        same("orders", "financial_status", text(64)),
        same("orders", "fulfillment_status", text(64)),
        same("orders", "customer.first_name", text(255)),
        same("orders", "customer.last_name", text(255)),
        same("orders", "tags", tags.clone()),
        same("orders", "tags", long_tag.clone()),
        same("checkouts", "tags", tags.clone()),
        same("customers", "tags", tags),
        same("customers", "tags", long_tag),
        same("customers", "first_name", text(255)),
        same("customers", "last_name", text(255)),
        same("customers", "first_name", quoted("")),
        same(
            "customers",
            "first_name",
            quoted("' or 1=1; drop table orders; --"),
        ),
        same(
            "customers",
            "first_name",
            quoted("\u{1}\u{7f}\u{202e}\u{feff}\u{ffff}"),
        ),
        same("shipments", "tracking_number", text(255)),
        same("shipments", "carrier", text(255)),
        same("shipments", "order_external_id", text(255)),
    ];
    rows.extend(turned(
        "orders",
        "tags",
        &[(r#"["a","b","a"]"#, r#"["a","b"]"#), ("[]", "[]")],
    ));
    for status in ["active", "abandoned", "recovered", "completed", "expired"] {
        rows.push(same("checkouts", "status", quoted(status)));
    }
    for status in ["pending", "in_transit", "delivered", "failed", "returned"] {
        rows.push(same("shipments", "status", quoted(status)));
    }
    rows
}

fn free_json() -> Vec<Accepted> {
    let most = format!(r#"{{"a": "{}"}}"#, "x".repeat(65_536 - 8));
    let deep = format!("{{\"a\": {}1{}}}", "[".repeat(30), "]".repeat(30));
    let (digits, tiny) = ("9".repeat(40), format!("0.{}1", "0".repeat(39)));
    let grown = format!("1{}", "0".repeat(40));
    let integer = format!(r#"{{"n": {digits}}}"#);
    let items = format!("[{}{{}}]", "{}, ".repeat(4_999));
    let texts = [
        r#"{"n": 123456789012345678901234567890}"#,
        r#"{"n": 9007199254740993, "x": -0.000000000000000000000000000001}"#,
        r#"{"n": 1.50, "o": 12.300}"#,
        r#"{"": null, "a": [true, false, null, {}, []]}"#,
        r#"{"a.b": 1, "é😀": "\u0001\"\\"}"#,
        &most,
        &deep,
        &integer,
    ];
    let (big, small) = (format!("{{\"n\": {grown}}}"), format!("{{\"n\": {tiny}}}"));
    let written = [
        (r#"{"n":1e40}"#, big.as_str()),
        (r#"{"n":1E-40}"#, &small),
        (r#"{"n":-0}"#, r#"{"n": 0}"#),
    ];
    [
        kept("orders", "metadata", &texts),
        kept("checkouts", "metadata", &texts[..1]),
        kept("customers", "metadata", &texts[..6]),
        kept("shipments", "metadata", &texts[..1]),
        turned("orders", "metadata", &written),
        kept(
            "orders",
            "line_items",
            &[&items, r#"[{"n": 123456789012345678901234567890}]"#, "[]"],
        ),
        kept("checkouts", "line_items", &[&items]),
    ]
    .concat()
}

fn contacts() -> Vec<Accepted> {
    let label = "d".repeat(61);
    let email = quoted(&format!("{}@{label}.{label}.{label}.com", "a".repeat(64)));
    let url = quoted(&format!("https://example.com/{}", "é".repeat(1_004)));
    let phones = [
        (r#""+33 6 12 34 56 78""#, r#""+33612345678""#),
        (r#""(+33) 6.12.34.56.78""#, r#""+33612345678""#),
        (r#""+33 (0)6 12 34 56 78""#, r#""+33612345678""#),
        (r#""++33612345678""#, r#""+33612345678""#),
        (r#""+49 30 901820123456""#, r#""+4930901820123456""#),
    ];
    [
        turned("customers", "phone", &phones),
        turned("orders", "customer.phone", &phones[..2]),
        vec![
            same("customers", "email", email.clone()),
            same("orders", "customer.email", email),
            same("checkouts", "recovery_url", url.clone()),
            same("shipments", "tracking_url", url),
        ],
        kept(
            "customers",
            "email",
            &[r#""é+tag@exämple.de""#, r#""\"a b\"@example.com""#],
        ),
        kept(
            "customers",
            "locale",
            &[
                r#""pt-BR""#,
                r#""zh-Hant-TW""#,
                r#""en-US-u-hc-h12-nu-latn-ca-gregory""#,
            ],
        ),
        turned(
            "orders",
            "currency",
            &[("\"eur\"", "\"EUR\""), ("\"Jpy\"", "\"JPY\"")],
        ),
        kept("checkouts", "currency", &["\"VES\""]),
    ]
    .concat()
}

/// Null is the same as left out, wherever a field may be left out.
fn absent() -> Vec<Accepted> {
    let mut rows = Vec::new();
    for (field, answer) in [
        ("currency", "null"),
        ("financial_status", "null"),
        ("fulfillment_status", "null"),
        ("line_items", "[]"),
        ("tags", "[]"),
        ("metadata", "{}"),
        ("source_updated_at", "null"),
    ] {
        rows.extend(turned("orders", field, &[("null", answer)]));
    }
    for (field, answer) in [
        ("first_name", "null"),
        ("last_name", "null"),
        ("email", "null"),
        ("locale", "null"),
        ("tags", "[]"),
        ("lifetime_value", "null"),
        ("orders_count", "null"),
        ("metadata", "{}"),
    ] {
        rows.extend(turned("customers", field, &[("null", answer)]));
    }
    rows.extend(turned("checkouts", "recovery_url", &[("null", "null")]));
    rows.extend(turned("shipments", "status", &[("null", "\"pending\"")]));
    rows
}

/// Ids that are kept exactly, and the segment that finds each again.
pub const IDS: &[(&str, &str)] = &[
    ("A/7", "A%2F7"),
    ("a%2Fb", "a%252Fb"),
    ("a+b", "a%2Bb"),
    ("a+c", "a+c"),
    (" a ", "%20a%20"),
    ("...", "..."),
    ("é", "%C3%A9"),
    ("e\u{301}", "e%CC%81"),
    ("A-1", "A-1"),
    ("a-1", "a-1"),
    ("?x=1&y#z", "%3Fx=1&y%23z"),
    ("bulk", "bulk"),
    ("😀", "%f0%9f%98%80"),
];

/// The body of a row, under external ids of its own.
pub fn body((resource, field, value, _): &Accepted, at: usize) -> String {
    let text = with(resource, field, Some(value));
    let own = serde_json::from_str::<
        std::collections::BTreeMap<String, &serde_json::value::RawValue>,
    >(&text);
    let mut members: Vec<String> = own
        .expect("an object")
        .into_iter()
        .filter(|(name, _)| name != "external_id")
        .map(|(name, value)| format!("{}:{value}", quoted(&name)))
        .collect();
    members.push(format!("\"external_id\":\"limit-{at}\""));
    // A customer of its own as well: rows on their way at the same time must not meet.
    format!("{{{}}}", members.join(",")).replace("\"C-1001\"", &format!("\"limit-{at}\""))
}
