//! What each kind of field refuses, and the sentence that says so.

use super::case::quoted;

const STRING: &str = "must be a string";
const NUL: &str = "must not contain U+0000";
const TIME: &str = "must be an RFC 3339 time with an offset";
const YEARS: &str = "must be in the years 1970 to 9999 (UTC)";
const PHONE: &str = "must be a possible phone number";
const NATIONAL: &str = "must be in international form (+…): the store has no default country";
const CURRENCY: &str = "must be an ISO 4217 currency code";
const LOCALE: &str = "must be a BCP 47 language tag like \"pt-BR\"";
const EMAIL: &str = "must be an email address";
const URL: &str = "must be an absolute http or https URL";
const AMOUNT: &str = "must be a number or a decimal string";
const DECIMAL: &str = "must be a decimal like \"49.90\"";
const DECIMALS: &str = "must have at most 4 decimals";
const BIG: &str = "must be less than 10^15";
const NEGATIVE: &str = "must not be negative";
const INTEGER: &str = "must be an integer";
const MOST: &str = "must be at most 9223372036854775807";
const NUMBER: &str = "must have at most 40 significant digits and an exponent within ±40";
const OBJECT: &str = "must be an object";
const ARRAY: &str = "must be an array";
const CONTROL: &str = "must not contain control characters";
const GROWN: &str = "must not be more than twice as long with numbers like 1e40 written out";
const ID_LENGTH: &str = "must have 1 to 255 characters";
const ID_DOTS: &str = "must not be . or ..";

/// A value as it is sent, the path of the fault inside the field, and the sentence there.
pub type Bad = (String, &'static str, String);

/// A value whose fault is the field's own.
fn of(value: &str, sentence: &str) -> Bad {
    at(value, "", sentence)
}

fn at(value: &str, path: &'static str, sentence: &str) -> Bad {
    (value.to_owned(), path, sentence.to_owned())
}

/// Strings with the same fault, given without their quotes.
fn texts(sentence: &str, values: &[&str]) -> Vec<Bad> {
    values
        .iter()
        .map(|text| of(&quoted(text), sentence))
        .collect()
}

/// Values with the same fault, as they are sent.
fn raw(sentence: &str, values: &[&str]) -> Vec<Bad> {
    values.iter().map(|value| of(value, sentence)).collect()
}

/// What no string field takes.
fn no_string() -> Vec<Bad> {
    let mut bad = raw(STRING, &["12", "true", r#"["a"]"#, r#"{"a":1}"#]);
    bad.push(of(r#""a\u0000b""#, NUL));
    bad
}

pub fn time() -> Vec<Bad> {
    let malformed = [
        "infinity",
        "-infinity",
        "now",
        "epoch",
        "today",
        "allballs",
        "",
        "2026-01-15",
        "2026-01-15T24:00:00Z",
        "2016-12-31T23:59:60Z",
        "10000-01-01T00:00:00Z",
        "2026-01-15T09:30:00",
        "2026-01-15 09:30:00Z",
        "2026-01-15T09:30Z",
        "2026-01-15T09:30:00+24:00",
        "2026-01-15T09:30:00+02",
        "2026-02-30T00:00:00Z",
        "2026-01-15T09:30:00.Z",
        "20260115T093000Z",
        "2026-01-15T09:30:00Z\n",
        "-001-01-01T00:00:00Z",
        "2026-01-15T09:30:00 Europe/Paris",
    ];
    let outside = [
        "1969-12-31T23:59:59Z",
        "1970-01-01T00:00:00+00:01",
        "9999-12-31T23:59:59-00:01",
        "0001-01-01T00:00:00Z",
    ];
    [no_string(), texts(TIME, &malformed), texts(YEARS, &outside)].concat()
}

pub fn money() -> Vec<Bad> {
    let huge = "9".repeat(4_000);
    let text = [
        "",
        "-",
        "1e3",
        "+1",
        " 1",
        "1 ",
        "1.",
        ".5",
        "01",
        "1,5",
        "1_000",
        "NaN",
        "Infinity",
        "0x10",
        "٣",
        "49.90 EUR",
    ];
    [
        texts(DECIMAL, &text),
        raw(AMOUNT, &["true", "[1]", "{}"]),
        raw(NEGATIVE, &["-0.01", "-1e-9", r#""-5""#]),
        raw(
            BIG,
            &[
                "1e15",
                "1000000000000000",
                "1e999999",
                r#""1000000000000000.00""#,
                &huge,
            ],
        ),
        raw(
            DECIMALS,
            &[
                "0.00001",
                "1e-5",
                "999999999999999.99999",
                r#""0.00001""#,
                "1e-999999",
            ],
        ),
        raw(DECIMAL, &[r#""1\u0000""#]),
    ]
    .concat()
}

pub fn phone() -> Vec<Bad> {
    let (long, spread) = (
        format!("+{}", "1".repeat(40)),
        format!("+3361234{}5678", " ".repeat(40)),
    );
    let text = [
        "",
        "+",
        "+1",
        "+0",
        "phone",
        "+33612345678;ext=5",
        "+33612345678 ext. 5",
        "tel:+33612345678",
        "1;phone-context=a.com;x=tel:",
        "+33 6 12 34 56 7x",
        "+999999999999",
        "＋33612345678",
        "+٣٣٦١٢٣٤٥٦٧٨",
        "+33612345678\n",
        "+33612345678#",
        "+1-800-FLOWERS",
        &long,
        &spread,
    ];
    let national = ["0612345678", "06 12 34 56 78", "33612345678"];
    [no_string(), texts(PHONE, &text), texts(NATIONAL, &national)].concat()
}

pub fn currency() -> Vec<Bad> {
    let text = [
        "",
        "EU",
        "EURO",
        "XXX",
        "XTS",
        "XAU",
        "HRK",
        "978",
        "€",
        " EUR",
        "ＥＵＲ",
    ];
    [no_string(), texts(CURRENCY, &text)].concat()
}

pub fn locale() -> Vec<Bad> {
    let text = [
        "",
        "e",
        "en_US",
        "en-",
        "-en",
        "english language",
        "123",
        "fr FR",
        "en-US.UTF-8",
    ];
    let mut bad = [no_string(), texts(LOCALE, &text)].concat();
    bad.push(of(
        &quoted(&"a".repeat(36)),
        "must have at most 35 characters",
    ));
    bad
}

pub fn email() -> Vec<Bad> {
    let text = [
        "",
        "ada",
        "@example.com",
        "ada@",
        "ada@@example.com",
        "ada@example..com",
        "Ada <ada@example.com>",
        "ada@example.com\r\nBcc: x@example.com",
        "ada@[127.0.0.1]",
        "a b@example.com",
        "ada@example.com,eve@example.com",
    ];
    let mut bad = [no_string(), texts(EMAIL, &text)].concat();
    let long = format!("{}@example.com", "a".repeat(243));
    bad.push(of(&quoted(&long), "must have at most 254 characters"));
    bad
}

pub fn url() -> Vec<Bad> {
    let text = [
        "",
        "example.com",
        "//example.com/a",
        "/cart",
        "ftp://example.com",
        "javascript:alert(1)",
        "data:text/html,x",
        "http://",
        "http:///a",
        "http:\\\\example.com",
        "https://exa mple.com",
        "https://example.com:99999",
        "https://example.com/\n",
        "file:///etc/passwd",
        "https://[::1",
    ];
    let mut bad = [no_string(), texts(URL, &text)].concat();
    let long = format!("https://example.com/{}", "a".repeat(1_005));
    bad.push(of(&quoted(&long), "must have at most 1024 characters"));
    bad
}

/// Text of at most so many characters.
pub fn text(most: usize) -> Vec<Bad> {
    let mut bad = no_string();
    let sentence = format!("must have at most {most} characters");
    bad.push(of(&quoted(&"é".repeat(most + 1)), &sentence));
    bad.push(of(&quoted(&"😀".repeat(most + 1)), &sentence));
    bad
}

pub fn external_id() -> Vec<Bad> {
    let long = "😀".repeat(256);
    [
        no_string(),
        texts(ID_LENGTH, &["", &long]),
        texts(ID_DOTS, &[".", ".."]),
        texts(CONTROL, &["a\n", "\t", "a\u{7f}", "\u{85}"]),
    ]
    .concat()
}

pub fn tags() -> Vec<Bad> {
    let many = format!("[{}\"x\"]", "\"x\",".repeat(250));
    let long = format!("[\"a\",{}]", quoted(&"é".repeat(256)));
    [
        raw(ARRAY, &[r#""vip""#, "{}", "1", "true"]),
        vec![
            of(&many, "must have at most 250 items"),
            at(&long, "1", "must have at most 255 characters"),
            at(r#"["a",1]"#, "1", STRING),
            at("[null]", "0", STRING),
            at(r#"[["a"]]"#, "0", STRING),
            at(r#"[{"a":1}]"#, "0", STRING),
            at(r#"["\u0000"]"#, "0", NUL),
        ],
    ]
    .concat()
}

pub fn count() -> Vec<Bad> {
    [
        raw(
            INTEGER,
            &["0.5", "1e-1", r#""5""#, "true", "[5]", "{}", "1e-999999"],
        ),
        raw(NEGATIVE, &["-1", "-1e3", "-9223372036854775809"]),
        raw(MOST, &["9223372036854775808", "1e19", "1e999999"]),
    ]
    .concat()
}

/// What `jsonb` can't hold or would blow up, inside an object.
fn no_jsonb() -> Vec<Bad> {
    let digits = format!(r#"{{"n":{}}}"#, "9".repeat(41));
    vec![
        at(&digits, "n", NUMBER),
        at(r#"{"n":1e41}"#, "n", NUMBER),
        at(r#"{"n":-1e-41}"#, "n", NUMBER),
        at(r#"{"n":1e131071}"#, "n", NUMBER),
        at(r#"{"a":[0,{"n":1e999999}]}"#, "a.1.n", NUMBER),
        at(r#"{"a":"\u0000"}"#, "a", NUL),
        at(r#"{"a":{"b\u0000c":1}}"#, "a.b\0c", NUL),
    ]
}

pub fn metadata() -> Vec<Bad> {
    let big = format!(r#"{{"a":"{}"}}"#, "x".repeat(65_537 - 8));
    let grown = format!(r#"{{"a":[{}1]}}"#, "1e40,".repeat(1_600));
    let mut bad = raw(OBJECT, &["[]", "[{}]", r#""{}""#, "1", "false"]);
    bad.extend(no_jsonb());
    bad.extend([
        of(&big, "must have at most 65536 bytes in compact form"),
        of(&grown, GROWN),
    ]);
    bad
}

pub fn line_items() -> Vec<Bad> {
    let many = format!("[{}{{}}]", "{},".repeat(5_000));
    let grown = format!(r#"[{{"a":[{}1]}}]"#, "1e40,".repeat(25_000));
    // Fits into a body as it is sent.
    let (long, numbers) = ("x".repeat(900_000), "1e6,".repeat(20_000));
    let big = format!(r#"[{{"a":"{long}","b":[{numbers}1]}}]"#);
    [
        raw(ARRAY, &["{}", r#""[]""#, "1", "false"]),
        vec![
            of(&many, "must have at most 5000 items"),
            of(&big, "must have at most 1048576 bytes in compact form"),
            of(&grown, GROWN),
            at("[1]", "0", OBJECT),
            at("[{},null]", "1", OBJECT),
            at("[{},{},[]]", "2", OBJECT),
            at(r#"["{}"]"#, "0", OBJECT),
            at(r#"[{},{"a":[{"n":1e41}]}]"#, "1.a.0.n", NUMBER),
            at(r#"[{"a":"\u0000"}]"#, "0.a", NUL),
        ],
    ]
    .concat()
}

/// One of these words.
pub fn choice(words: &str) -> Vec<Bad> {
    let sentence = format!("must be one of {words}");
    let mut bad = no_string();
    bad.extend(texts(
        &sentence,
        &["", "unknown", "PENDING", "Active", " active"],
    ));
    bad
}
