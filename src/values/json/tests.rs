use proptest::prelude::*;

use super::*;

fn error(json: &str) -> JsonError {
    parse(json.as_bytes())
        .map(|node| format!("{node:?}"))
        .unwrap_err()
}

fn is_syntax(json: &str) -> bool {
    matches!(parse(json.as_bytes()), Err(JsonError::Syntax { .. }))
}

fn duplicate(path: &str) -> JsonError {
    JsonError::DuplicateMember {
        path: path.to_owned(),
    }
}

#[test]
fn parts_keep_the_text_they_were_read_from() {
    let node = parse(b" { \"a\" : [ 1.50 , \"x\\n\" ] , \"b\":null } \n").unwrap();
    assert_eq!(node.raw, r#"{ "a" : [ 1.50 , "x\n" ] , "b":null }"#);
    let Value::Object(members) = node.value else {
        panic!("an object")
    };
    let Value::Array(items) = &members[0].1.value else {
        panic!("an array")
    };
    assert_eq!(members[0].1.raw, r#"[ 1.50 , "x\n" ]"#);
    assert!(matches!(items[0].value, Value::Number("1.50")));
    assert_eq!(items[1].raw, r#""x\n""#);
    assert!(matches!(&items[1].value, Value::String(text) if text == "x\n"));
    assert!(matches!(members[1].1.value, Value::Null));
}

#[test]
fn strings_are_borrowed_unless_escaped() {
    let cases = [
        (r#""""#, "", true),
        (r#""aé😀""#, "aé😀", true),
        (r#""\\""#, "\\", false),
        (r#""\\\\""#, "\\\\", false),
        (r#""\"\\\"""#, "\"\\\"", false),
        (r#""\u00e9\ud83d\ude00\/""#, "é😀/", false),
        (r#""\u0000""#, "\0", false),
    ];
    for (json, text, borrowed) in cases {
        let object = format!("{{ \n {json} : {json} }}");
        let node = parse(object.as_bytes()).unwrap();
        let Value::Object(members) = &node.value else {
            panic!("an object")
        };
        let Value::String(value) = &members[0].1.value else {
            panic!("a string")
        };
        for read in [&members[0].0, value] {
            assert_eq!(read, text, "{json}");
            assert_eq!(matches!(read, Cow::Borrowed(_)), borrowed, "{json}");
        }
    }
}

#[test]
fn numbers_are_kept_as_written() {
    for number in [
        "0",
        "-0",
        "1e999999",
        "0.10",
        "-1.5E+3",
        "99999999999999999999.99",
        "0e-0",
    ] {
        let node = parse(number.as_bytes()).unwrap();
        assert!(
            matches!(node.value, Value::Number(text) if text == number),
            "{number}"
        );
    }
}

#[test]
fn what_breaks_the_grammar_is_refused() {
    let cases = [
        "",
        " ",
        "nul",
        "nulll",
        "True",
        "NaN",
        "Infinity",
        "-Infinity",
        "-",
        "+1",
        "01",
        "-01",
        "1.",
        ".5",
        "1e",
        "1e+",
        "0x1",
        "1_0",
        "--1",
        "'a'",
        "\"a",
        "\"\\x\"",
        "\"\\u12\"",
        "\"\\u00g0\"",
        "\"\t\"",
        "\"\n\"",
        "\"\u{1}\"",
        "\"\u{0}\"",
        "\"\\ud800\"",
        "\"\\udc00\"",
        "\"\\ud800\\ud800\"",
        "\"\\ud800x\"",
        "[",
        "]",
        "[1,]",
        "[,]",
        "[1 2]",
        "[1}",
        "{",
        "}",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1,}",
        "{,}",
        "{a:1}",
        "{1:1}",
        "{\"a\" 1}",
        "{\"a\":1]",
        "{\"a\":1 \"b\":2}",
        "1 2",
        "{} {}",
        "[]]",
        "// c\n1",
        "/**/1",
        "\u{a0}1",
        "1\u{a0}",
        "\u{b}1",
        "\u{feff}{}",
        "{}\u{0}",
        "\u{0}",
    ];
    for json in cases {
        assert!(is_syntax(json), "{json:?}");
    }
}

#[test]
fn a_syntax_error_tells_the_place_in_bytes() {
    let place = |json| match error(json) {
        JsonError::Syntax { line, column, .. } => (line, column),
        other => panic!("{other}"),
    };
    assert_eq!(place("{\"é\":1,\n \"b\" 2}"), (2, 6));
    assert_eq!(place(""), (1, 1));
    assert_eq!(place("\u{feff}1"), (1, 1));
    assert_eq!(place("[1,\n"), (2, 1));
}

#[test]
fn what_is_not_utf8_is_refused() {
    for bytes in [
        &b"\"\xff\""[..],
        b"\"\xc3\"",
        b"\"\xed\xa0\x80\"",
        b"\xfe\xff\0{\0}",
    ] {
        assert_eq!(parse(bytes).map(|_| ()), Err(JsonError::NotUtf8));
    }
}

#[test]
fn thirty_two_levels_are_the_most() {
    let arrays = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    let objects = |levels: usize| format!("{}0{}", "{\"a\":".repeat(levels), "}".repeat(levels));
    for nested in [arrays, objects] {
        assert!(parse(nested(MAX_DEPTH).as_bytes()).is_ok());
        assert_eq!(error(&nested(MAX_DEPTH + 1)), JsonError::TooDeep);
    }
    assert_eq!(error(&"[".repeat(1 << 20)), JsonError::TooDeep);
}

#[test]
fn a_member_may_stand_only_once_in_its_object() {
    let many: String = (0..40).map(|i| format!("\"m{i}\":{i},")).collect();
    let cases = [
        (r#"{"a":1,"a":1}"#.to_owned(), "a"),
        (r#"{"a":1,"\u0061":1}"#.to_owned(), "a"),
        (r#"{"x":[{},{"y":{"":1,"":2}}]}"#.to_owned(), "x.1.y."),
        (format!("{{{many}\"m7\":1}}"), "m7"),
        (
            format!("[{{\"{0}\":1,\"{0}\":1}}]", "n".repeat(200)),
            &format!("0.{}…", "n".repeat(100)),
        ),
    ];
    for (json, path) in &cases {
        assert_eq!(error(json), duplicate(path), "{json}");
    }
    assert!(parse(br#"{"a":1,"A":{"a":1},"e\u0301":1,"\u00e9":1}"#).is_ok());
    assert!(parse(format!("{{{many}\"m\":1}}").as_bytes()).is_ok());
}

/// Generous for an unoptimised build; what is meant is that nothing is quadratic.
#[test]
fn a_megabyte_of_anything_is_read_in_linear_time() {
    let members: String = (0..100_000).map(|i| format!("\"{i:x}\":0,")).collect();
    let big = [
        format!("{{{members}\"z\":0}}"),
        "[".repeat(1 << 20),
        format!("[{}0]", "0,".repeat(1 << 19)),
        format!("[{}0]", "{},".repeat(1 << 18)),
        format!("{{{}\"a\":0}}", " ".repeat(1 << 20)),
        format!("0.{}", "1".repeat(1 << 20)),
        "9".repeat(1 << 20),
        format!("\"{}\"", "\\u00e9".repeat(1 << 17)),
        format!("[{}0]", "\"\\n\",".repeat(1 << 17)),
    ];
    for json in big {
        let began = std::time::Instant::now();
        let _ = parse(json.as_bytes());
        assert!(began.elapsed().as_secs() < 3, "{}", &json[..20]);
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = parse(&bytes);
    }

    #[test]
    fn random_json_like_text_agrees_with_serde_json(
        parts in prop::collection::vec(
            prop::sample::select(vec![
                "{", "}", "[", "]", ",", ":", "\"a\"", "\"b\"", "\"\\u0041\"", "1", "-0.5e1", "01",
                "null", "true", " ", "\n", "\"", "\\", "é",
            ]),
            0..12,
        ),
    ) {
        let json = parts.concat();
        let ours = parse(json.as_bytes());
        // Not `serde_json::Value`, which refuses what a binary float can't hold, like `1e999`.
        let theirs: Result<&serde_json::value::RawValue, _> = serde_json::from_str(&json);
        match ours {
            Ok(_) | Err(JsonError::DuplicateMember { .. }) => prop_assert!(theirs.is_ok(), "{}", json),
            Err(_) => prop_assert!(theirs.is_err(), "{}", json),
        }
    }
}
