use proptest::prelude::*;

use super::*;

fn object(json: &str) -> Checked<FreeJson> {
    FreeJson::object(&parse(json.as_bytes()).unwrap(), 65_536)
}

fn objects(json: &str) -> Checked<FreeJson> {
    FreeJson::objects(&parse(json.as_bytes()).unwrap(), 3, 1_000)
}

fn stored(json: &str) -> FreeJson {
    FreeJson::from_stored(json.to_owned())
}

#[test]
fn numbers_are_kept_exactly_within_the_bounds() {
    let (forty, decimals) = ("9".repeat(40), format!("0.{}1", "0".repeat(39)));
    let kept = [
        ("9007199254740993", "9007199254740993"),
        (
            "123456789012345678901234567890",
            "123456789012345678901234567890",
        ),
        (forty.as_str(), forty.as_str()),
        ("1e-40", decimals.as_str()),
        ("1.50", "1.50"),
        ("0e99", "0"),
        ("-0", "0"),
    ];
    for (number, text) in kept {
        let read = object(&format!("{{\"n\":{number}}}"));
        assert_eq!(
            read.unwrap().as_str(),
            format!("{{\"n\": {text}}}"),
            "{number}"
        );
    }
    let most = object(r#"{"n":1e40}"#).unwrap();
    assert_eq!(most.as_str().len(), "{\"n\": }".len() + 41);
    let too_long = "9".repeat(41);
    for number in [
        too_long.as_str(),
        "1e41",
        "1e-41",
        "1e131071",
        "1e-999999999999999999999",
    ] {
        let message = "must have at most 40 significant digits and an exponent within ±40";
        let read = object(&format!("{{\"n\":{number}}}"));
        assert_eq!(read, Err(Faults::at("n", message)), "{number}");
    }
}

#[test]
fn only_an_object_is_an_object() {
    for json in ["[]", "[{}]", "null", "1", "\"{}\""] {
        assert_eq!(
            object(json),
            Err(Faults::one("must be an object")),
            "{json}"
        );
    }
    assert_eq!(object("{ }").unwrap(), FreeJson::empty_object());
}

#[test]
fn the_size_counts_the_compact_form() {
    let of_size = |size: usize| format!("{{ \"a\" : \"{}\" }}", "x".repeat(size - 8));
    assert!(object(&of_size(65_536)).is_ok());
    let message = "must have at most 65536 bytes in compact form";
    assert_eq!(object(&of_size(65_537)), Err(Faults::one(message)));
    // What counts is what will be stored, not what was sent.
    let escaped = format!("{{\"a\":\"{}\"}}", "\\u0061".repeat(65_528));
    assert!(object(&escaped).is_ok());
    let grown = |count: usize| object(&format!("{{\"a\":[{}1]}}", "1e40,".repeat(count)));
    assert!(grown(97).is_ok());
    let message = "must not be more than twice as long with numbers like 1e40 written out";
    for count in [98, 2_000] {
        assert_eq!(grown(count), Err(Faults::one(message)), "{count}");
    }
    let most = format!("{{\"a\":[{}1]}}", "1e9,".repeat(5_000));
    assert_eq!(object(&most), Err(Faults::one(message)));
    let fits = format!("{{\"a\":[{}1]}}", "1e6,".repeat(7_000));
    assert!(object(&fits).is_ok());
}

#[test]
fn an_array_is_measured_as_it_will_be_stored() {
    let numbers = |count: usize| format!("[{{\"a\":[{}1]}}]", "1e40,".repeat(count));
    assert!(objects(&numbers(23)).is_ok());
    let message = "must have at most 1000 bytes in compact form";
    assert_eq!(objects(&numbers(24)), Err(Faults::one(message)));
    assert_eq!(objects(&numbers(1_000_000)), Err(Faults::one(message)));
}

#[test]
fn an_array_holds_objects_only() {
    assert_eq!(objects("[]").unwrap(), FreeJson::empty_array());
    assert_eq!(
        objects("[{},{\"a\":1}]").unwrap().as_str(),
        "[{}, {\"a\": 1}]"
    );
    assert_eq!(objects("{}"), Err(Faults::one("must be an array")));
    assert!(objects("[{},{},{}]").is_ok());
    assert_eq!(
        objects("[{},{},{},{}]"),
        Err(Faults::one("must have at most 3 items"))
    );
    let faults = objects("[{},1,{\"n\":1e41}]").unwrap_err();
    assert_eq!(faults.as_map().keys().collect::<Vec<_>>(), ["1", "2.n"]);
}

#[test]
fn equality_is_by_content() {
    let equal = [
        (r#"{"a": 1.0, "b": [1e2]}"#, r#"{"b": [100], "a": 1}"#),
        (r#"{"a": -0}"#, r#"{"a": 0.00}"#),
        (r#"{"a": "\u0061"}"#, r#"{"a": "a"}"#),
    ];
    for (a, b) in equal {
        assert_eq!(stored(a), stored(b), "{a}");
    }
    let different = [
        (r#"{"a": 1}"#, r#"{"a": "1"}"#),
        (r#"{"a": 1}"#, r#"{"a": 1, "b": null}"#),
        (r#"{"a": 1}"#, r#"{"b": 1}"#),
        ("[1, 2]", "[2, 1]"),
        ("[]", "{}"),
        ("[1, 2]", "[1]"),
        ("[9007199254740993]", "[9007199254740992]"),
    ];
    for (a, b) in different {
        assert_ne!(stored(a), stored(b), "{a}");
    }
}

#[test]
fn it_is_answered_as_json_and_not_as_text() {
    #[derive(Serialize)]
    struct Record {
        metadata: FreeJson,
    }
    let metadata = object(r#"{"b":123456789012345678901234567890,"a":1.50}"#).unwrap();
    let json = serde_json::to_string(&Record { metadata }).unwrap();
    assert_eq!(
        json,
        r#"{"metadata":{"a": 1.50, "b": 123456789012345678901234567890}}"#
    );
}

/// JSON text with odd names, escapes and spellings of numbers, and the same with all members
/// reversed.
fn documents() -> impl Strategy<Value = (String, String)> {
    let number = prop_oneof![
        "-?(0|[1-9][0-9]{0,15})(\\.[0-9]{1,12})?([eE][+-]?[0-9])?",
        "-?0(\\.0{1,9})?(e-?[0-9]{1,2})?",
    ];
    let text = prop::collection::vec(any::<char>().prop_filter("NUL", |c| *c != '\0'), 0..6);
    let text = text.prop_map(|c| serde_json::to_string(&c.iter().collect::<String>()).unwrap());
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        number.prop_map(|number| number.clone()),
        text.clone(),
    ];
    let leaf = leaf.prop_map(|json| (json.clone(), json));
    let value = leaf.prop_recursive(5, 40, 6, move |inner| {
        let items = prop::collection::vec(inner.clone(), 0..6);
        let members = prop::collection::hash_map(text.clone(), inner, 0..6);
        prop_oneof![
            items.prop_map(|items| {
                let (a, b): (Vec<_>, Vec<_>) = items.into_iter().unzip();
                (format!("[{}]", a.join(",")), format!("[{}]", b.join(" , ")))
            }),
            members.prop_map(|members| {
                let pairs = members
                    .into_iter()
                    .map(|(name, (a, b))| (format!("{name}:{a}"), format!("{name} : {b}")));
                let (a, mut b): (Vec<_>, Vec<_>) = pairs.unzip();
                b.reverse();
                (
                    format!("{{{}}}", a.join(",")),
                    format!("{{{}}}", b.join(",")),
                )
            }),
        ]
    });
    value.prop_map(|(a, b)| (format!("{{\"d\":{a}}}"), format!("{{\"d\":{b}}}")))
}

proptest! {
    #[test]
    fn the_canonical_text_reads_as_itself((json, _) in documents()) {
        let once = object(&json).unwrap();
        let twice = object(once.as_str()).unwrap();
        prop_assert_eq!(once.as_str(), twice.as_str());
    }

    #[test]
    fn the_order_of_members_does_not_count((json, shuffled) in documents()) {
        let (a, b) = (object(&json).unwrap(), object(&shuffled).unwrap());
        prop_assert_eq!(a.as_str(), b.as_str());
        prop_assert_eq!(&stored(&json), &stored(&shuffled));
        prop_assert_eq!(&stored(&json), &a);
    }
}
