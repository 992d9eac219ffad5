//! What is wrong with a bulk request as a whole, and the sizes of bodies.

use super::case::{Case, Want, example, json, quoted, request};
use super::wire::chunked;

const MIB: usize = 1024 * 1024;
const JSON: (&str, &[u8]) = ("Content-Type", b"application/json");
const LINES: (&str, &[u8]) = ("Content-Type", b"application/x-ndjson");
const POST: (&str, &str) = ("POST", "{store}/orders");
const BULK: (&str, &str) = ("POST", "{store}/orders/bulk");

pub fn cases() -> Vec<Case> {
    [documents(), streams(), sizes()]
        .into_iter()
        .flatten()
        .collect()
}

fn documents() -> Vec<Case> {
    const UNKNOWN: &str = "is not a known field";
    let invalid = |path: &str, sentence: &str| Want::invalid(&[(path, sentence)]);
    let malformed = || Want::refused(400, "json_invalid");
    let too_many = format!(r#"{{"items":[{}0]}}"#, "0,".repeat(1_000));
    let deep = format!(r#"{{"items":{}"#, "[".repeat(10_000));
    let extra = format!(r#"{{"items":[{}],"atomic":true}}"#, example("orders"));
    let rows = [
        ("no items", "{}", invalid("items", "is required")),
        (
            "items null",
            r#"{"items":null}"#,
            invalid("items", "must be an array"),
        ),
        (
            "items an object",
            r#"{"items":{}}"#,
            invalid("items", "must be an array"),
        ),
        (
            "items text",
            r#"{"items":"[]"}"#,
            invalid("items", "must be an array"),
        ),
        (
            "1,001 items",
            &too_many,
            invalid("items", "must have at most 1000 items"),
        ),
        ("an unknown member", &extra, invalid("atomic", UNKNOWN)),
        (
            "another name",
            r#"{"Items":[]}"#,
            Want::invalid(&[("Items", UNKNOWN), ("items", "is required")]),
        ),
        ("an array", "[]", invalid("", "must be an object")),
        ("null", "null", invalid("", "must be an object")),
        ("text", r#""items""#, invalid("", "must be an object")),
        (
            "items twice",
            r#"{"items":[],"items":[]}"#,
            Want::refused(400, "json_duplicate_member"),
        ),
        (
            "items twice, escaped",
            r#"{"items":[],"\u0069tems":[]}"#,
            Want::refused(400, "json_duplicate_member"),
        ),
        ("nothing", "", malformed()),
        ("a cut document", r#"{"items":[{}"#, malformed()),
        (
            "a second document",
            r#"{"items":[]}{"items":[]}"#,
            malformed(),
        ),
        ("lines", "{}\n{}", malformed()),
        ("a trailing comma", r#"{"items":[],}"#, malformed()),
        ("NaN as an item", r#"{"items":[NaN]}"#, malformed()),
        ("a byte order mark", "\u{feff}{\"items\":[]}", malformed()),
        ("10,000 levels", &deep, Want::refused(400, "json_too_deep")),
        ("no items at all", r#"{"items":[]}"#, Want::taken(200)),
    ];
    rows.into_iter()
        .map(|(name, text, want)| json(&format!("a document: {name}"), BULK.0, BULK.1, text, want))
        .collect()
}

fn streams() -> Vec<Case> {
    let order = example("orders").to_string();
    let results = ("POST", "{store}/orders/bulk?results=some");
    let atomic = ("POST", "{store}/orders/bulk?atomic=true");
    let refused =
        |path, sentence| Want::invalid(&[(path, sentence)]).with_code(400, "query_invalid");
    let line = |name: &str, body: &[u8], want: Want| {
        request(&format!("a stream: {name}"), BULK, &[LINES], body, want)
    };
    vec![
        request(
            "a stream: results=some",
            results,
            &[LINES],
            b"",
            refused("results", "must be all or failed"),
        ),
        request(
            "a stream: atomic",
            atomic,
            &[LINES],
            b"",
            refused("atomic", "is not a known parameter"),
        ),
        line(
            "a form feed before the record",
            format!("\x0c{order}").as_bytes(),
            Want::refused(400, "json_invalid"),
        ),
        line(
            "a byte order mark",
            format!("\u{feff}{order}").as_bytes(),
            Want::refused(400, "json_invalid"),
        ),
        line(
            "carriage returns",
            format!("\r\n \t\r\n{order}\r\n\r\n").as_bytes(),
            Want::taken(200),
        ),
        line("no line end", order.as_bytes(), Want::taken(200)),
        line(
            "two records in a line",
            format!("{order} {order}").as_bytes(),
            Want::refused(400, "json_invalid"),
        ),
        line(
            "a record over two lines",
            order.replacen(',', "\n,", 1).as_bytes(),
            Want::refused(400, "json_invalid"),
        ),
    ]
}

/// The example as a body of just this size, padded in `metadata`: far more than that may hold, so
/// what is refused is refused for what it says and not for its size.
fn padded(bytes: usize) -> String {
    let empty = super::case::with("orders", "metadata", Some("{\"a\":\"\"}"));
    let text = format!("{{\"a\":{}}}", quoted(&"x".repeat(bytes - empty.len())));
    super::case::with("orders", "metadata", Some(&text))
}

fn sizes() -> Vec<Case> {
    let large = || Want::refused(413, "body_too_large");
    let read = || Want::invalid(&[("metadata", "must have at most 65536 bytes in compact form")]);
    let (most, over) = (padded(MIB), padded(MIB + 1));
    let document = |bytes: usize| {
        let text = r#"{"items":[]}"#;
        format!("{text}{}", " ".repeat(bytes - text.len()))
    };
    let item = |bytes: usize| format!(r#"{{"items":[{}]}}"#, padded(bytes));
    let blanks = |bytes: usize| format!("{}{}", " ".repeat(bytes - 2), "{}");
    let (most_document, over_document) = (document(16 * MIB), document(16 * MIB + 1));
    let chunks: (&str, &[u8]) = ("Transfer-Encoding", b"chunked");
    let in_chunks = |text: &str| chunked(text.as_bytes(), 64 * 1024);
    let sized = |name: &str, place, headers: &[(&str, &[u8])], body: &[u8], want| {
        request(&format!("the size of {name}"), place, headers, body, want)
    };
    let required = || {
        let fields = ["external_id", "placed_at", "total_price", "customer"];
        Want::invalid(&fields.map(|field| (field, "is required")))
    };
    vec![
        sized("a record of 1 MiB", POST, &[JSON], most.as_bytes(), read()),
        sized(
            "a record of 1 MiB and a byte",
            POST,
            &[JSON],
            over.as_bytes(),
            large(),
        ),
        sized(
            "a record of 1 MiB in chunks",
            POST,
            &[JSON, chunks],
            &in_chunks(&most),
            read(),
        ),
        sized(
            "a record of 1 MiB and a byte in chunks",
            POST,
            &[JSON, chunks],
            &in_chunks(&over),
            large(),
        ),
        sized(
            "a record of 3 MiB",
            POST,
            &[JSON],
            padded(3 * MIB).as_bytes(),
            large(),
        ),
        sized(
            "a PATCH of 1 MiB and a byte",
            ("PATCH", "{store}/orders/A-1001"),
            &[JSON],
            over.as_bytes(),
            large(),
        ),
        sized(
            "a document of 16 MiB",
            BULK,
            &[JSON],
            most_document.as_bytes(),
            Want::taken(200),
        ),
        sized(
            "a document of 16 MiB and a byte",
            BULK,
            &[JSON],
            over_document.as_bytes(),
            large(),
        ),
        sized(
            "a document of 16 MiB and a byte in chunks",
            BULK,
            &[JSON, chunks],
            &in_chunks(&over_document),
            large(),
        ),
        sized(
            "an item of 1 MiB",
            BULK,
            &[JSON],
            item(MIB).as_bytes(),
            read(),
        ),
        sized(
            "an item of 1 MiB and a byte",
            BULK,
            &[JSON],
            item(MIB + 1).as_bytes(),
            large(),
        ),
        sized("a line of 1 MiB", BULK, &[LINES], most.as_bytes(), read()),
        sized(
            "a line of 1 MiB with its end",
            BULK,
            &[LINES],
            format!("{most}\r\n").as_bytes(),
            read(),
        ),
        sized(
            "a line of 1 MiB and a byte",
            BULK,
            &[LINES],
            over.as_bytes(),
            large(),
        ),
        sized(
            "a line of 1 MiB with blanks",
            BULK,
            &[LINES],
            blanks(MIB).as_bytes(),
            required(),
        ),
        sized(
            "a line of 1 MiB and a byte with blanks",
            BULK,
            &[LINES],
            blanks(MIB + 1).as_bytes(),
            large(),
        ),
        sized(
            "a line of 5 MiB",
            BULK,
            &[LINES],
            padded(5 * MIB).as_bytes(),
            large(),
        ),
        sized(
            "a body of fewer bytes than said",
            POST,
            &[JSON, ("Content-Length", b"1x")],
            b"{}",
            Want::refused(400, ""),
        ),
    ]
}
