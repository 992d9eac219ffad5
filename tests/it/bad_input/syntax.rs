//! Bodies that are no JSON, or JSON that two parsers would read differently.

use super::case::{Case, Want, body, bytes, with};

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.extend(not_wrapped());
    cases.extend(grammar());
    cases.extend(values_that_are_no_json());
    cases.extend(bytes_that_are_no_text());
    cases.extend(duplicates());
    cases.extend(depth());
    cases
}

fn malformed() -> Want {
    Want::refused(400, "json_invalid")
}

/// What would mean something else inside brackets or on a line of its own.
fn not_wrapped() -> Vec<Case> {
    let texts = ["", " ", "\r\n\t", "{},{}", "{}]", "{}\n{}"];
    let alone = |text: &&str| {
        let mut case = body(format!("the body {text:?}"), "orders", text, malformed());
        if let super::case::Sent::Body(body) = &mut case.sent {
            body.can_be_wrapped = false;
        }
        case
    };
    texts.iter().map(alone).collect()
}

fn grammar() -> Vec<Case> {
    let texts = [
        "{",
        "}",
        "{]",
        "{\"a\":1,}",
        "{,}",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\" 1}",
        "{a:1}",
        "{'a':1}",
        "{\"a\":1 \"b\":2}",
        "{1:2}",
        "{null:1}",
        "{\"a\":[1,]}",
        "{\"a\":[,]}",
        "{\"a\":[1 2]}",
        "{} {}",
        "{}x",
        "{\"a\":1}/* c */",
        "{/* c */}",
        "{\"a\":1}//",
        "{\"a\":\"b}",
        "{\"a",
        "\u{b}{}",
        "\u{a0}{}",
        "{}\u{2028}",
        "{}\0",
        "\0",
        "[1,2",
        "{\"a\":[[]}",
        "\u{feff}{}",
    ];
    texts
        .iter()
        .map(|text| body(format!("the body {text:?}"), "orders", text, malformed()))
        .collect()
}

/// Inside free JSON, where no field's own rule could be what refuses them.
fn values_that_are_no_json() -> Vec<Case> {
    let digits = "1".repeat(4_301);
    let values = [
        "NaN",
        "Infinity",
        "-Infinity",
        "nan",
        "inf",
        "-",
        "+1",
        "01",
        "-01",
        "00",
        "1.",
        ".5",
        "1e",
        "1e+",
        "1.e1",
        "0x10",
        "1_000",
        "1,000.5",
        "tru",
        "True",
        "nul",
        "None",
        "undefined",
        r#""\x41""#,
        r#""\u12""#,
        r#""\u12g4""#,
        r#""\""#,
        r#""\ud800""#,
        r#""\udc00""#,
        r#""\ud800\ud800""#,
        r#""\udc00\ud800""#,
        r#""\ud800x""#,
        "\"a\u{1}b\"",
        "\"a\tb\"",
        "\"a\u{1f}\"",
        &digits,
    ];
    let mut cases = Vec::new();
    for value in values {
        let shown: String = value.chars().take(20).collect();
        let text = with("customers", "metadata", Some(&format!("{{\"a\":{value}}}")));
        cases.push(body(
            format!("a value {shown:?}"),
            "customers",
            &text,
            malformed(),
        ));
    }
    let name = with("customers", "metadata", Some(r#"{"\ud800":1}"#));
    cases.push(body(
        "a lone surrogate in a name",
        "customers",
        &name,
        malformed(),
    ));
    cases
}

fn bytes_that_are_no_text() -> Vec<Case> {
    let text = with("customers", "metadata", Some(r#"{"a":"HERE"}"#));
    let (before, after) = text.split_once("HERE").expect("it is there");
    let broken: [(&str, &[u8]); 7] = [
        ("a lone 0xff", b"\xff"),
        ("a lone continuation", b"\x80"),
        ("half a character", b"\xc3"),
        ("an overlong NUL", b"\xc0\x80"),
        ("a surrogate in UTF-8", b"\xed\xa0\x80"),
        ("beyond U+10FFFF", b"\xf4\x90\x80\x80"),
        ("Latin-1", b"caf\xe9"),
    ];
    let mut cases: Vec<Case> = broken
        .iter()
        .map(|(name, bad)| {
            let whole = [before.as_bytes(), bad, after.as_bytes()].concat();
            bytes(*name, "customers", &whole, malformed())
        })
        .collect();
    let utf16: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    cases.push(bytes("UTF-16", "customers", &utf16, malformed()));
    let marked = [b"\xef\xbb\xbf", text.as_bytes()].concat();
    cases.push(bytes(
        "a byte order mark",
        "customers",
        &marked,
        malformed(),
    ));
    cases
}

/// The same name twice, wherever it is.
fn duplicates() -> Vec<Case> {
    let twice = || Want::refused(400, "json_duplicate_member");
    let top = |more: &str| {
        let text = super::case::example("orders").to_string();
        format!("{},{more}}}", &text[..text.len() - 1])
    };
    let inside = |field, value: &str| with("orders", field, Some(value));
    let many: Vec<String> = (0..40).map(|at| format!("\"m{at}\":0")).collect();
    let texts = [
        ("at the top", top(r#""external_id":"A-1001""#)),
        (
            "with an escape in one",
            top(r#""\u0065xternal_id":"A-1001""#),
        ),
        ("of an unknown member", top(r#""x":1,"x":2"#)),
        ("inside an unknown member", top(r#""x":{"y":1,"y":1}"#)),
        (
            "in the customer",
            inside(
                "customer",
                r#"{"phone":"+33612345678","phone":"+33612345679"}"#,
            ),
        ),
        ("in metadata", inside("metadata", r#"{"a":1,"a":1}"#)),
        (
            "deep in metadata",
            inside("metadata", r#"{"a":[[{"b":{"c":1,"c":2}}]]}"#),
        ),
        (
            "in an item",
            inside("line_items", r#"[{},{"sku":1,"sku":2}]"#),
        ),
        ("of the empty name", inside("metadata", r#"{"":1,"":2}"#)),
        (
            "among many",
            inside("metadata", &format!("{{{},\"m0\":1}}", many.join(","))),
        ),
        (
            "where an array is refused anyway",
            r#"[{"a":1,"a":2}]"#.to_owned(),
        ),
    ];
    let case =
        |(name, text): &(&str, String)| body(format!("twice {name}"), "orders", text, twice());
    texts.iter().map(case).collect()
}

/// One level more than is taken.
fn depth() -> Vec<Case> {
    let deep = || Want::refused(400, "json_too_deep");
    let arrays = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    let objects = |levels: usize| format!("{}1{}", "{\"a\":".repeat(levels), "}".repeat(levels));
    let texts = [
        (
            "in metadata",
            with("orders", "metadata", Some(&objects(32))),
        ),
        (
            "in arrays in metadata",
            with(
                "orders",
                "metadata",
                Some(&format!("{{\"a\":{}}}", arrays(31))),
            ),
        ),
        (
            "in line_items",
            with("orders", "line_items", Some(&format!("[{}]", objects(31)))),
        ),
        (
            "in an unknown member",
            with("orders", "x", Some(&arrays(32))),
        ),
        (
            "in an unknown member of the customer",
            with("orders", "customer.x", Some(&arrays(31))),
        ),
        ("of arrays alone", arrays(33)),
        (
            "in a field of another kind",
            with("orders", "placed_at", Some(&arrays(32))),
        ),
    ];
    let mut cases: Vec<Case> = texts
        .iter()
        .map(|(name, text)| body(format!("33 levels {name}"), "orders", text, deep()))
        .collect();
    let bottomless = with("orders", "x", Some(&"[".repeat(100_000)));
    let mut bottomless = body("100,000 levels", "orders", &bottomless, deep());
    if let super::case::Sent::Body(body) = &mut bottomless.sent {
        body.breaks_document = true;
    }
    cases.push(bottomless);
    cases
}
