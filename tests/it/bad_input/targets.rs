//! Paths, methods and queries.

use super::case::{Case, Want, example, json, request};

pub fn cases() -> Vec<Case> {
    let tables = [paths(), methods(), queries(), patches()];
    tables.into_iter().flatten().collect()
}

fn get(target: &str, want: Want) -> Case {
    request(
        &format!("GET {}", &target[..target.len().min(60)]),
        ("GET", target),
        &[],
        b"",
        want,
    )
}

fn paths() -> Vec<Case> {
    let broken = || Want::refused(400, "path_invalid");
    let unknown = || Want::refused(404, "not_found");
    let no_route = || Want::refused(404, "route_not_found");
    let no_store = || Want::refused(404, "store_not_found");
    let mut cases = Vec::new();
    for id in [
        "%",
        "%z",
        "%zz",
        "%4",
        "a%",
        "a%2",
        "%%41",
        "%ff",
        "%c3",
        "%c0%80",
        "%ed%a0%80",
        "%u0041",
    ] {
        cases.push(get(&format!("{{store}}/orders/{id}"), broken()));
    }
    let (longest, too_long) = ("%F0%9F%98%80".repeat(255), "%F0%9F%98%80".repeat(256));
    for id in [
        "%00",
        "a%00",
        ".",
        "..",
        "%2E",
        "%2E%2E",
        "%2e.",
        "+",
        "A+1001",
        "A%2F7",
        "a-1001",
        "A-1001%20",
        "%0A",
        "%7F",
        "A-1001%23",
        "%2541-1001",
        "*",
        "~",
        "A-1001;x=1",
        "%C2%85",
        &longest,
        &too_long,
    ] {
        cases.push(get(&format!("{{store}}/orders/{id}"), unknown()));
    }
    for id in ["A-1001", "%41-1001", "A%2D1001", "%41%2d%31%30%30%31"] {
        cases.push(get(&format!("{{store}}/orders/{id}"), Want::taken(200)));
    }
    for target in [
        "/",
        "//",
        "/api",
        "/api/v1",
        "/api/v1/",
        "/api/v2/stores/1/orders",
        "{store}",
        "{store}/",
        "{store}/Orders",
        "{store}/orders/",
        "{store}//orders",
        "/{store}/orders",
        "{store}/orders/A/7",
        "{store}/orders/A-1001/",
        "{store}/%6Frders",
        "{store}/refunds",
        "{store}/../1/orders",
        "{store}/orders/bulk/",
        "/healthz/",
        "/.env",
        "/docs/../healthz",
        "{store}/orders\\A-1001",
        "{store}/events/1",
        "/openapi.yml",
    ] {
        cases.push(get(target, no_route()));
    }
    for id in [
        "0",
        "-1",
        "01",
        "+1",
        "1.0",
        "1e0",
        "abc",
        "%31",
        "9223372036854775808",
        "2147483648",
        "0x1",
        "%00",
        "..",
        "1%20",
        "٣",
    ] {
        cases.push(get(&format!("/api/v1/stores/{id}/orders"), no_store()));
    }
    for (length, want) in [
        (8_192, broken()),
        (8_193, Want::refused(414, "target_too_long")),
    ] {
        cases.push(get(&format!("{{store}}/orders/{{pad:{length}}}"), want));
    }
    cases.push(get("", Want::refused(400, "")));
    cases.push(get("/api/v1/stores//orders", no_store()));
    cases.push(get("{store}/customers/%2B33612345678", unknown()));
    cases.push(get("{store}/customers/C-1001", Want::taken(200)));
    cases
}

fn methods() -> Vec<Case> {
    let wrong = || Want::refused(405, "method_not_allowed");
    let mut cases = Vec::new();
    for (method, target) in [
        ("PUT", "{store}/orders"),
        ("DELETE", "{store}/orders"),
        ("PATCH", "{store}/orders"),
        ("PUT", "{store}/orders/A-1001"),
        ("POST", "{store}/orders/A-1001"),
        ("DELETE", "{store}/orders/A-1001"),
        ("DELETE", "{store}/checkouts/B-1001"),
        ("DELETE", "{store}/shipments/S-1001"),
        ("PATCH", "{store}/customers/C-1001"),
        ("PATCH", "{store}/shipments/S-1001"),
        ("POST", "{store}/events"),
        ("OPTIONS", "{store}/orders"),
        ("TRACE", "{store}/orders"),
        ("PROPFIND", "{store}/orders"),
        ("get", "{store}/orders"),
        ("PUT", "{store}/orders/bulk"),
        ("POST", "/healthz"),
        ("DELETE", "/metrics"),
    ] {
        cases.push(json(
            &format!("{method} {target}"),
            method,
            target,
            "{}",
            wrong(),
        ));
    }
    cases
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
