//! Query parameters, and what PATCH refuses.

use super::case::{Case, Want, example, get, json};

pub fn cases() -> Vec<Case> {
    [queries(), patches()].into_iter().flatten().collect()
}

fn queries() -> Vec<Case> {
    const UNKNOWN: &str = "is not a known parameter";
    const TWICE: &str = "is given twice";
    const FLAG: &str = "must be true or false";
    const LIMIT: &str = "must be a number from 1 to 200";
    const POSITION: &str = "must be a position, 0 or more";
    const BYTES: &str = "has a broken percent-escape or one that is not UTF-8";
    let refused = |path: &str, sentence: &str| {
        Want::invalid(&[(path, sentence)]).with_code(400, "query_invalid")
    };
    let mut cases = Vec::new();
    for (query, path, sentence) in [
        ("orders?limit=0", "limit", LIMIT),
        ("orders?limit=201", "limit", LIMIT),
        ("orders?limit=-1", "limit", LIMIT),
        ("orders?limit=", "limit", LIMIT),
        ("orders?limit", "limit", LIMIT),
        ("orders?limit=1.0", "limit", LIMIT),
        ("orders?limit=1e2", "limit", LIMIT),
        ("orders?limit=99999999999999999999", "limit", LIMIT),
        ("orders?limit=+5", "limit", LIMIT),
        ("orders?limit=%2B5", "limit", LIMIT),
        ("orders?limit=5&limit=5", "limit", TWICE),
        ("orders?Limit=5", "Limit", UNKNOWN),
        ("orders?offset=5", "offset", UNKNOWN),
        ("orders?=5", "", UNKNOWN),
        ("orders?id=x", "id", "must be a UUID"),
        ("orders?id=", "id", "must be a UUID"),
        (
            "customers?customer_external_id=x",
            "customer_external_id",
            UNKNOWN,
        ),
        (
            "shipments?customer_external_id=x",
            "customer_external_id",
            UNKNOWN,
        ),
        ("orders/A-1001?dry_run=true", "dry_run", UNKNOWN),
        ("orders/A-1001?x", "x", UNKNOWN),
        ("events?after=-1", "after", POSITION),
        ("events?after=x", "after", POSITION),
        ("events?after=9223372036854775808", "after", POSITION),
        ("events?after=", "after", POSITION),
        ("events?after=%2B1", "after", POSITION),
        (
            "events?resource=refunds",
            "resource",
            "must be the path of a resource",
        ),
        (
            "events?resource=",
            "resource",
            "must be the path of a resource",
        ),
        ("events?cursor=x", "cursor", UNKNOWN),
        (
            "orders?customer_external_id=%ff",
            "customer_external_id",
            BYTES,
        ),
        (
            "orders?customer_external_id=%zz",
            "customer_external_id",
            BYTES,
        ),
        (
            "orders?customer_external_id=%",
            "customer_external_id",
            BYTES,
        ),
    ] {
        cases.push(get(&format!("{{store}}/{query}"), refused(path, sentence)));
    }
    for (query, path, sentence) in [
        ("orders?dry_run=1", "dry_run", FLAG),
        ("orders?dry_run=", "dry_run", FLAG),
        ("orders?dry_run=TRUE", "dry_run", FLAG),
        ("orders?dry_run=yes", "dry_run", FLAG),
        ("orders?dry_run=true&dry_run=true", "dry_run", TWICE),
        ("orders?dryrun=true", "dryrun", UNKNOWN),
        ("orders?atomic=true", "atomic", UNKNOWN),
        ("orders/bulk?atomic=1", "atomic", FLAG),
        ("orders/bulk?results=failed", "results", UNKNOWN),
    ] {
        let body = if query.contains("bulk") {
            r#"{"items":[]}"#.to_owned()
        } else {
            example("orders").to_string()
        };
        cases.push(json(
            &format!("POST {query}"),
            "POST",
            &format!("{{store}}/{query}"),
            &body,
            refused(path, sentence),
        ));
    }
    for cursor in [
        "x",
        "",
        "AAAA",
        "%00",
        "%F0%9F%98%80",
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "';--",
    ] {
        let want = Want::refused(400, "cursor_invalid");
        cases.push(get(&format!("{{store}}/orders?cursor={cursor}"), want));
    }
    for after in ["1000000", "9223372036854775807"] {
        let want = Want::refused(400, "cursor_invalid");
        cases.push(get(&format!("{{store}}/events?after={after}"), want));
    }
    for query in [
        "orders?",
        "orders?limit=200",
        "orders?limit=007",
        "orders?customer_external_id=%00",
        "orders?customer_external_id=",
        "orders?customer_external_id='%20or%201=1--",
        "orders?id=00000000-0000-0000-0000-000000000000",
    ] {
        cases.push(get(&format!("{{store}}/{query}"), Want::taken(200)));
    }
    cases
}

fn patches() -> Vec<Case> {
    const FIXED: &str = "can't be changed by PATCH";
    const UNKNOWN: &str = "is not a known field";
    let immutable =
        |path: &str| Want::invalid(&[(path, FIXED)]).with_code(422, "field_not_mutable");
    let mut cases = Vec::new();
    let mut patch = |target: &str, body: &str, want: Want| {
        let name = format!(
            "PATCH {target} {}",
            body.chars().take(40).collect::<String>()
        );
        cases.push(json(
            &name,
            "PATCH",
            &format!("{{store}}/{target}"),
            body,
            want,
        ));
    };
    for field in [
        "external_id",
        "placed_at",
        "total_price",
        "currency",
        "customer",
        "line_items",
    ] {
        patch(
            "orders/A-1001",
            &format!("{{\"{field}\":null}}"),
            immutable(field),
        );
    }
    for field in [
        "external_id",
        "abandoned_at",
        "total_price",
        "currency",
        "customer",
        "line_items",
    ] {
        patch(
            "checkouts/B-1001",
            &format!("{{\"{field}\":1}}"),
            immutable(field),
        );
    }
    for (target, body, path, sentence) in [
        ("orders/A-1001", r#"{"status":"paid"}"#, "status", UNKNOWN),
        ("orders/A-1001", r#"{"id":null}"#, "id", UNKNOWN),
        (
            "orders/A-1001",
            r#"{"financial_status":1}"#,
            "financial_status",
            "must be a string",
        ),
        (
            "orders/A-1001",
            r#"{"tags":"a"}"#,
            "tags",
            "must be an array",
        ),
        (
            "orders/A-1001",
            r#"{"tags":[null]}"#,
            "tags.0",
            "must be a string",
        ),
        (
            "orders/A-1001",
            r#"{"metadata":[]}"#,
            "metadata",
            "must be an object",
        ),
        (
            "orders/A-1001",
            r#"{"metadata":{"a":"\u0000"}}"#,
            "metadata.a",
            "must not contain U+0000",
        ),
        (
            "orders/A-1001",
            r#"{"source_updated_at":"now"}"#,
            "source_updated_at",
            "must be an RFC 3339 time with an offset",
        ),
        ("orders/A-1001", "[]", "", "must be an object"),
        ("orders/A-1001", "null", "", "must be an object"),
        (
            "orders/unknown",
            r#"{"tags":1}"#,
            "tags",
            "must be an array",
        ),
        ("orders/%00", r#"{"tags":1}"#, "tags", "must be an array"),
        (
            "checkouts/B-1001",
            r#"{"status":null}"#,
            "status",
            "can't be null",
        ),
        (
            "checkouts/B-1001",
            r#"{"status":"Active"}"#,
            "status",
            "must be one of active, abandoned, recovered, completed, expired",
        ),
        (
            "checkouts/B-1001",
            r#"{"recovery_url":"/x"}"#,
            "recovery_url",
            "must be an absolute http or https URL",
        ),
    ] {
        patch(target, body, Want::invalid(&[(path, sentence)]));
    }
    patch(
        "orders/A-1001",
        r#"{"tags":[],"tags":[]}"#,
        Want::refused(400, "json_duplicate_member"),
    );
    patch("orders/A-1001", "{", Want::refused(400, "json_invalid"));
    patch("orders/%zz", "{}", Want::refused(400, "path_invalid"));
    for id in ["unknown", "%00", ".", "..", "%2E%2E"] {
        patch(
            &format!("orders/{id}"),
            "{}",
            Want::refused(404, "not_found"),
        );
    }
    cases
}
