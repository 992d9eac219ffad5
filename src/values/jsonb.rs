//! JSON as Postgres stores and prints it (`jsonb_out`), so that what was sent and what is read back
//! are one text.
//!
//! Members are sorted by the length of the name in bytes, then by its bytes; numbers are `numeric`s
//! with their scale; see `lengthCompareJsonbString`, `escape_json` and `numeric_out` in Postgres.

use std::fmt::Write;

use super::faults::{Faults, shown};
use super::json::{Node, Value};
use super::number::Exact;

/// A number without sign and exponent that is no longer than this is moderate.
const PLAIN_BYTES: usize = 40;

/// What a value may always grow to, in bytes.
const SMALL_BYTES: usize = 4096;

/// Prints a value exactly as Postgres does, less the spaces after `:` and `,` in at most
/// `most_compact_bytes` and at most twice what was sent. Printing ends soon after: `1e40` is ten
/// times as long printed as sent, so a document of 16 MiB would become 140 MiB.
///
/// # Errors
/// What `jsonb` can't hold or would blow up, each at its path; or that the whole is too big.
pub(super) fn print(node: &Node, most_compact_bytes: usize) -> Result<String, Faults> {
    let twice = SMALL_BYTES.max(2 * node.raw.len());
    let mut printer = Printer {
        most_compact_bytes: most_compact_bytes.min(twice),
        ..Printer::default()
    };
    printer.value(node);
    let is_full = printer.is_full();
    printer.faults.into_result()?;
    if !is_full {
        return Ok(printer.text);
    }
    Err(Faults::one(if most_compact_bytes <= twice {
        format!("must have at most {most_compact_bytes} bytes in compact form")
    } else {
        "must not be more than twice as long with numbers like 1e40 written out".to_owned()
    }))
}

/// Members in the order of `jsonb`.
pub(super) fn sorted<K: AsRef<str>, V>(members: &[(K, V)]) -> Vec<(&str, &V)> {
    let mut sorted: Vec<_> = members
        .iter()
        .map(|(name, value)| (name.as_ref(), value))
        .collect();
    sorted.sort_unstable_by_key(|(name, _)| (name.len(), *name));
    sorted
}

#[derive(Default)]
struct Printer<'n> {
    text: String,
    spaces: usize,
    most_compact_bytes: usize,
    path: Vec<Step<'n>>,
    faults: Faults,
}

/// One level of a path; only a fault makes it a string.
enum Step<'n> {
    Member(&'n str),
    Item(usize),
}

impl<'n> Printer<'n> {
    fn value(&mut self, node: &'n Node) {
        if self.is_full() {
            return;
        }
        match &node.value {
            Value::Null => self.text.push_str("null"),
            Value::Bool(true) => self.text.push_str("true"),
            Value::Bool(false) => self.text.push_str("false"),
            Value::Number(text) => self.number(text),
            Value::String(text) => self.string(text),
            Value::Array(items) => self.array(items),
            Value::Object(members) => self.object(members),
        }
    }

    /// Whether more has been printed than is taken.
    fn is_full(&self) -> bool {
        self.text.len() - self.spaces > self.most_compact_bytes
    }

    fn array(&mut self, items: &'n [Node]) {
        self.text.push('[');
        for (index, item) in items.iter().enumerate() {
            self.separate(index, ", ");
            self.path.push(Step::Item(index));
            self.value(item);
            self.path.pop();
        }
        self.text.push(']');
    }

    fn object<K: AsRef<str>>(&mut self, members: &'n [(K, Node)]) {
        self.text.push('{');
        for (index, (name, value)) in sorted(members).into_iter().enumerate() {
            self.separate(index, ", ");
            self.path.push(Step::Member(name));
            self.string(name);
            self.separate(1, ": ");
            self.value(value);
            self.path.pop();
        }
        self.text.push('}');
    }

    /// Between two parts, so not before the first.
    fn separate(&mut self, index: usize, separator: &str) {
        if index > 0 {
            self.text.push_str(separator);
            self.spaces += 1;
        }
    }

    fn number(&mut self, text: &str) {
        // What most numbers look like is what Postgres prints.
        let is_plain = |byte: u8| byte.is_ascii_digit() || byte == b'.';
        if text.len() <= PLAIN_BYTES && text.bytes().all(is_plain) {
            return self.text.push_str(text);
        }
        let number = Exact::of(text);
        if number.is_moderate() {
            self.text.push_str(&number.plain());
        } else {
            self.fault("must have at most 40 significant digits and an exponent within ±40");
        }
    }

    fn string(&mut self, text: &str) {
        self.text.push('"');
        if !text
            .bytes()
            .any(|byte| byte < b' ' || byte == b'"' || byte == b'\\')
        {
            self.text.push_str(text);
            return self.text.push('"');
        }
        for c in text.chars() {
            match c {
                '\0' => return self.fault("must not contain U+0000"),
                '\u{8}' => self.text.push_str("\\b"),
                '\u{c}' => self.text.push_str("\\f"),
                '\n' => self.text.push_str("\\n"),
                '\r' => self.text.push_str("\\r"),
                '\t' => self.text.push_str("\\t"),
                '"' => self.text.push_str("\\\""),
                '\\' => self.text.push_str("\\\\"),
                ' '.. => self.text.push(c),
                control => self.escape(control),
            }
        }
        self.text.push('"');
    }

    fn escape(&mut self, control: char) {
        // Writing to a string can't fail.
        let _ = write!(self.text, "\\u{:04x}", u32::from(control));
    }

    fn fault(&mut self, message: &str) {
        let steps = self.path.iter().map(|step| match step {
            Step::Member(name) => shown(name).into_owned(),
            Step::Item(index) => index.to_string(),
        });
        if !self.faults.is_cut() {
            self.faults
                .add(steps.collect::<Vec<_>>().join("."), message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::json::parse;
    use super::*;

    fn printed(json: &str, most_compact_bytes: usize) -> Result<String, Faults> {
        print(&parse(json.as_bytes()).unwrap(), most_compact_bytes)
    }

    /// Checked by hand against Postgres 15.18, beside 3,000 random documents.
    #[test]
    fn values_are_printed_as_postgres_prints_them() {
        let cases = [
            ("{}", "{}"),
            ("[ ]", "[]"),
            (" null ", "null"),
            (
                r#"{"b":1,"a":[1,2,{}],"":null}"#,
                r#"{"": null, "a": [1, 2, {}], "b": 1}"#,
            ),
            (
                r#"{"aa":1,"b":2,"é":3,"zz":4}"#,
                r#"{"b": 2, "aa": 1, "zz": 4, "é": 3}"#,
            ),
            (
                r#""\u0001\u001F\u007f\/\b\f\n\r\t\"\\""#,
                "\"\\u0001\\u001f\u{7f}/\\b\\f\\n\\r\\t\\\"\\\\\"",
            ),
            (r#""\ud83d\ude00\u00e9""#, "\"😀é\""),
            (
                "[1e2,1.50,1E-3,-0,-0.0,1.5e1]",
                "[100, 1.50, 0.001, 0, 0.0, 15]",
            ),
        ];
        for (json, text) in cases {
            assert_eq!(printed(json, 1_000).as_deref(), Ok(text), "{json}");
        }
    }

    #[test]
    fn the_compact_size_has_no_spaces() {
        let json = r#"{ "a" : [ 1 , "x, y: z" ] , "b" : {} }"#;
        let compact_bytes = r#"{"a":[1,"x, y: z"],"b":{}}"#.len();
        let text = r#"{"a": [1, "x, y: z"], "b": {}}"#.to_owned();
        assert_eq!(printed(json, compact_bytes), Ok(text));
        assert!(printed(json, compact_bytes - 1).is_err());
    }

    #[test]
    fn what_jsonb_cannot_hold_is_named_with_its_path() {
        let json = r#"{"a":[0,{"b\u0000":1}],"n":1e41,"s":"\u0000","k":{"ok":0e99}}"#;
        let faults = printed(json, 1_000).unwrap_err();
        let said: Vec<_> = faults
            .as_map()
            .iter()
            .map(|(at, s)| (at.as_str(), &*s[0]))
            .collect();
        let expected = [
            ("a.1.b\0", "must not contain U+0000"),
            (
                "n",
                "must have at most 40 significant digits and an exponent within ±40",
            ),
            ("s", "must not contain U+0000"),
        ];
        assert_eq!(said, expected);
    }
}
