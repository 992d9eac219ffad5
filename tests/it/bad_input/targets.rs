//! Paths and methods.

use super::case::{Case, Want, get, json};

pub fn cases() -> Vec<Case> {
    [paths(), methods()].into_iter().flatten().collect()
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
