//! What stands around a body: media types, encodings, keys, preconditions, sizes of headers.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder};

use super::case::{Case, Want, example, request};

pub fn cases() -> Vec<Case> {
    let tables = [
        media_types(),
        encodings(),
        credentials(),
        preconditions(),
        header_sizes(),
    ];
    tables.into_iter().flatten().collect()
}

const POST: (&str, &str) = ("POST", "{store}/orders");
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

const JSON: (&str, &[u8]) = ("Content-Type", b"application/json");

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

fn encodings() -> Vec<Case> {
    let order = example("orders").to_string().into_bytes();
    let packed = gzip(&order);
    let (first, second) = order.split_at(order.len() / 2);
    let two_members = [gzip(first), gzip(second)].concat();
    let mut wrong_sum = packed.clone();
    let at = wrong_sum.len() - 5;
    wrong_sum[at] ^= 1;
    let bomb = gzip(&vec![b' '; 64 * 1024 * 1024]);
    let padded = [order.clone(), vec![b' '; 1024 * 1024 - order.len()]].concat();
    let one_more = [padded.as_slice(), b" "].concat();
    let unreadable = || Want::refused(400, "body_unreadable");
    let large = || Want::refused(413, "body_too_large");
    let unsupported = || Want::refused(415, "unsupported_content_encoding");
    type Row<'a> = (&'a str, &'a [(&'a str, &'a [u8])], &'a [u8], Want);
    let g: (&str, &[u8]) = ("Content-Encoding", b"gzip");
    let rows: [Row; 20] = [
        ("gzip", &[g], &packed, Want::taken(200)),
        (
            "GZIP",
            &[("Content-Encoding", b"GZIP")],
            &packed,
            Want::taken(200),
        ),
        (
            "identity",
            &[("Content-Encoding", b"identity")],
            &order,
            Want::taken(200),
        ),
        ("gzip in two members", &[g], &two_members, Want::taken(200)),
        ("gzip of 1 MiB", &[g], &gzip(&padded), Want::taken(200)),
        (
            "gzip of 1 MiB and one byte",
            &[g],
            &gzip(&one_more),
            large(),
        ),
        ("a gzip bomb", &[g], &bomb, large()),
        (
            "gzip cut in the middle",
            &[g],
            &packed[..packed.len() / 2],
            unreadable(),
        ),
        (
            "gzip without its end",
            &[g],
            &packed[..packed.len() - 8],
            unreadable(),
        ),
        ("gzip with a wrong checksum", &[g], &wrong_sum, unreadable()),
        (
            "gzip with garbage behind",
            &[g],
            &[packed.as_slice(), b"garbage"].concat(),
            unreadable(),
        ),
        ("gzip that is plain", &[g], &order, unreadable()),
        (
            "gzip of nothing",
            &[g],
            &gzip(b""),
            Want::refused(400, "json_invalid"),
        ),
        (
            "gzip twice over",
            &[g],
            &gzip(&packed),
            Want::refused(400, "json_invalid"),
        ),
        (
            "deflate",
            &[("Content-Encoding", b"deflate")],
            &deflate(&order),
            unsupported(),
        ),
        ("br", &[("Content-Encoding", b"br")], &order, unsupported()),
        (
            "gzip, gzip",
            &[("Content-Encoding", b"gzip, gzip")],
            &gzip(&packed),
            unsupported(),
        ),
        (
            "gzip in two headers",
            &[g, g],
            &gzip(&packed),
            unsupported(),
        ),
        (
            "an empty encoding",
            &[("Content-Encoding", b"")],
            &order,
            unsupported(),
        ),
        (
            "an unknown encoding",
            &[("Content-Encoding", b"gz\xffip")],
            &order,
            unsupported(),
        ),
    ];
    rows.into_iter()
        .map(|(name, headers, body, want)| {
            let headers = [&[JSON], headers].concat();
            request(
                &format!("Content-Encoding: {name}"),
                POST,
                &headers,
                body,
                want,
            )
        })
        .collect()
}

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
