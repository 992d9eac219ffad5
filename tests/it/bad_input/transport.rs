//! What stands around a body: media types, keys, preconditions, sizes of headers.

use super::case::{Case, Want, example, request};

pub fn cases() -> Vec<Case> {
    let tables = [
        media_types(),
        credentials(),
        preconditions(),
        header_sizes(),
    ];
    tables.into_iter().flatten().collect()
}

pub const POST: (&str, &str) = ("POST", "{store}/orders");
const BULK: (&str, &str) = ("POST", "{store}/orders/bulk");
const PATCH: (&str, &str) = ("PATCH", "{store}/orders/A-1001");

/// The example once more: taken, and changes nothing.
fn replayed(name: &str, headers: &[(&str, &[u8])], want: Want) -> Case {
    request(
        name,
        POST,
        headers,
        example("orders").to_string().as_bytes(),
        want,
    )
}

fn media_types() -> Vec<Case> {
    let taken: [&[u8]; 8] = [
        b"application/json",
        b"APPLICATION/JSON",
        b"application/json;charset=utf-8",
        b"application/json; charset=UTF-8",
        b"application/json; charset=\"utf-8\"",
        b"application/json;",
        b"application/json; v=1",
        b"application/json ; Charset=Utf-8",
    ];
    let refused: [&[u8]; 16] = [
        b"",
        b"text/plain",
        b"text/json",
        b"application/x-www-form-urlencoded",
        b"multipart/form-data",
        b"application/x-ndjson",
        b"application/merge-patch+json",
        b"application/vnd.api+json",
        b"application/json; charset=utf-16",
        b"application/json; charset=latin1",
        b"application/json; charset=utf-8; charset=utf-16",
        b"application/json, text/plain",
        b"application/json; charset",
        b"application/*",
        b"*/*",
        b"application/json\xe9",
    ];
    let mut cases = Vec::new();
    let unsupported = || Want::refused(415, "unsupported_media_type");
    for value in taken {
        let name = format!("Content-Type {}", String::from_utf8_lossy(value));
        cases.push(replayed(
            &name,
            &[("Content-Type", value)],
            Want::taken(200),
        ));
    }
    for value in refused {
        let name = format!("Content-Type {}", String::from_utf8_lossy(value));
        cases.push(replayed(&name, &[("Content-Type", value)], unsupported()));
    }
    cases.push(replayed("no Content-Type", &[], unsupported()));
    let twice: &[(&str, &[u8])] = &[
        ("Content-Type", b"application/json"),
        ("content-type", b"application/json"),
    ];
    cases.push(replayed("Content-Type twice", twice, unsupported()));
    cases.push(request(
        "a POST without a body and type",
        POST,
        &[],
        b"",
        unsupported(),
    ));
    cases.push(request(
        "an empty JSON body",
        POST,
        &[JSON],
        b"",
        Want::refused(400, "json_invalid"),
    ));
    for (name, place, kind) in [
        ("ndjson on PATCH", PATCH, b"application/x-ndjson".as_slice()),
        ("merge-patch on bulk", BULK, b"application/merge-patch+json"),
        ("text on bulk", BULK, b"text/plain"),
        (
            "ndjson in UTF-16",
            BULK,
            b"application/x-ndjson; charset=utf-16",
        ),
    ] {
        cases.push(request(
            name,
            place,
            &[("Content-Type", kind)],
            b"{}",
            unsupported(),
        ));
    }
    for kind in [
        b"application/merge-patch+json".as_slice(),
        b"application/json",
    ] {
        let headers: &[(&str, &[u8])] = &[("Content-Type", kind)];
        cases.push(request(
            "an empty merge patch",
            PATCH,
            headers,
            b"{}",
            Want::taken(200),
        ));
    }
    cases
}

pub const JSON: (&str, &[u8]) = ("Content-Type", b"application/json");

fn credentials() -> Vec<Case> {
    let wrong: [&[u8]; 10] = [
        b"",
        b"Bearer",
        b"Bearer ",
        b"Basic dXNlcjpwYXNz",
        b"Bearer kf_",
        b"Bearer kf_short",
        b"kf_000000000000000000000000000000000000000000000000",
        b"Bearer \xff\xfe",
        b"Bearer kf_0000000000000000000000000000000000000000000000000",
        b"Bearer kf_0000000000000000000000000000000000000000000000000 x",
    ];
    let want = || Want::refused(401, "unauthorized");
    let mut cases: Vec<Case> = wrong
        .iter()
        .map(|value| {
            let name = format!("Authorization {:?}", String::from_utf8_lossy(value));
            replayed(&name, &[JSON, ("Authorization", value)], want())
        })
        .collect();
    let two: &[(&str, &[u8])] = &[("Authorization", b"{key}"), ("Authorization", b"{key}")];
    cases.push(replayed("Authorization twice", two, want()));
    cases
}

fn preconditions() -> Vec<Case> {
    let failed = || Want::refused(412, "precondition_failed");
    let mut cases = Vec::new();
    let unmet: [&[u8]; 11] = [
        b"\"2\"",
        b"1",
        b"W/\"1\"",
        b"\"01\"",
        b"\"1",
        b"",
        b"\"\"",
        b"\"99999999999999999999\"",
        b"garbage",
        b"\xff",
        b"\"2\", \"3\"",
    ];
    for value in unmet {
        let name = format!("If-Match {:?}", String::from_utf8_lossy(value));
        cases.push(replayed(&name, &[JSON, ("If-Match", value)], failed()));
    }
    for value in [b"\"1\"".as_slice(), b"*", b"\"0\", \"1\""] {
        let name = format!("If-Match {:?}", String::from_utf8_lossy(value));
        cases.push(replayed(
            &name,
            &[JSON, ("If-Match", value)],
            Want::taken(200),
        ));
    }
    for value in [b"*".as_slice(), b"\"1\"", b"W/\"1\""] {
        let name = format!("If-None-Match {:?}", String::from_utf8_lossy(value));
        cases.push(replayed(&name, &[JSON, ("If-None-Match", value)], failed()));
    }
    let refused = || Want::refused(400, "precondition_not_supported");
    for name in ["If-Match", "If-None-Match"] {
        for kind in [b"application/json".as_slice(), b"application/x-ndjson"] {
            let headers: &[(&str, &[u8])] = &[("Content-Type", kind), (name, b"*")];
            cases.push(request(
                &format!("{name} on bulk"),
                BULK,
                headers,
                b"{\"items\":[]}",
                refused(),
            ));
        }
    }
    let unread: &[(&str, &[u8])] = &[JSON, ("Idempotency-Key", b"\xff not \"a key\"")];
    cases.push(replayed(
        "a malformed Idempotency-Key",
        unread,
        Want::taken(200),
    ));
    cases
}

fn header_sizes() -> Vec<Case> {
    let large = || Want::refused(431, "headers_too_large");
    let mut cases = Vec::new();
    for (name, bytes, want) in [
        ("15 KiB of headers", 15 * 1024, Want::taken(200)),
        ("17 KiB of headers", 17 * 1024, large()),
        ("60 KiB of headers", 60 * 1024, large()),
    ] {
        let value = vec![b'a'; bytes];
        cases.push(replayed(name, &[JSON, ("X-Padding", &value)], want));
    }
    let id = "x".repeat(128);
    for (name, value) in [
        ("the longest X-Request-Id", id.as_bytes()),
        ("X-Request-Id of 129", "x".repeat(129).as_bytes()),
        ("X-Request-Id with a blank", b"a b"),
        ("X-Request-Id that is no ASCII", b"caf\xc3\xa9"),
        ("an empty X-Request-Id", b""),
    ] {
        cases.push(replayed(
            name,
            &[JSON, ("X-Request-Id", value)],
            Want::taken(200),
        ));
    }
    cases
}
