//! Where the values of a template's variables come from: JSON pointers (RFC 6901) into the record,
//! and literals.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::shape::{Place, Shape};
use crate::messaging::input::VALUE_CHARS;
use crate::values::{Checked, Faults, Node, Value};

/// Characters of a pointer.
const POINTER_CHARS: usize = 512;

/// The names of a template's variables, each with the text that says where its value comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sources(pub BTreeMap<String, String>);

/// Where one value comes from.
#[derive(Debug, PartialEq, Eq)]
enum Source<'a> {
    /// From nowhere else.
    Literal(&'a str),
    /// From here in the record.
    Pointer(Vec<String>),
}

impl<'a> Source<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        if let Some(literal) = text.strip_prefix('=') {
            return Some(Self::Literal(literal));
        }
        let tokens = text.strip_prefix('/')?.split('/').map(unescaped);
        tokens.collect::<Option<_>>().map(Self::Pointer)
    }
}

/// A token of a pointer: `~1` is `/` and `~0` is `~`.
fn unescaped(token: &str) -> Option<String> {
    let mut parts = token.split('~');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.strip_prefix('0').map(|rest| ('~', rest));
        let (sign, rest) = rest.or_else(|| Some(('/', part.strip_prefix('1')?)))?;
        text.push(sign);
        text.push_str(rest);
    }
    Some(text)
}

/// Why a value can't be had from a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The stable code.
    pub code: &'static str,
    /// Which variable it is.
    pub name: String,
}

impl Sources {
    /// Reads the `variables` of an action on records of this shape.
    ///
    /// # Errors
    /// Every text that is neither a pointer nor a literal, and every pointer that leads nowhere or
    /// to more than one value.
    pub fn read(node: &Node<'_>, shape: Shape<'_>) -> Checked<Self> {
        // A literal stands behind a sign.
        let read = crate::messaging::input::texts(node, VALUE_CHARS + 1)?;
        let mut faults = Faults::default();
        for (name, text) in &read {
            if let Err(message) = check(text, shape) {
                faults.add(name.chars().take(100).collect::<String>(), message);
            }
        }
        faults.into_result()?;
        Ok(Self(read.into_iter().collect()))
    }

    /// The names that have a source.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// The values for a record, as it is answered.
    ///
    /// # Errors
    /// The first value that is not there, is no single value, or is too long for a message.
    pub fn values(&self, record: &Node<'_>) -> Result<Vec<(String, String)>, Missing> {
        let mut values = Vec::with_capacity(self.0.len());
        for (name, text) in &self.0 {
            let missing = |code| Missing {
                code,
                name: name.clone(),
            };
            let value = match Source::parse(text) {
                Some(Source::Literal(literal)) => literal.to_owned(),
                Some(Source::Pointer(tokens)) => match found(record, &tokens).map(|n| &n.value) {
                    Some(Value::String(text)) => text.clone().into_owned(),
                    Some(Value::Number(number)) => (*number).to_owned(),
                    Some(Value::Bool(value)) => value.to_string(),
                    Some(Value::Array(_) | Value::Object(_)) => {
                        return Err(missing("variable_not_single"));
                    }
                    Some(Value::Null) | None => return Err(missing("variable_missing")),
                },
                None => return Err(missing("variable_missing")),
            };
            if value.chars().nth(VALUE_CHARS).is_some() {
                return Err(missing("variable_too_long"));
            }
            values.push((name.clone(), value));
        }
        Ok(values)
    }

    /// The members of a call's `variables` that a source points at.
    #[must_use]
    pub fn called(&self) -> Vec<String> {
        let pointers = self
            .0
            .values()
            .filter_map(|text| match Source::parse(text) {
                Some(Source::Pointer(tokens)) => Some(tokens),
                _ => None,
            });
        pointers
            .filter(|tokens| tokens.first().is_some_and(|first| first == "variables"))
            .filter_map(|tokens| tokens.into_iter().nth(1))
            .collect()
    }
}

fn check(text: &str, shape: Shape<'_>) -> Result<(), &'static str> {
    match Source::parse(text) {
        Some(Source::Literal(_)) => Ok(()),
        Some(Source::Pointer(_)) if text.chars().nth(POINTER_CHARS).is_some() => {
            Err("must have at most 512 characters")
        }
        Some(Source::Pointer(tokens)) => match shape.pointer(&tokens) {
            Some(Place::Scalar(_) | Place::Free) => Ok(()),
            Some(Place::Nested | Place::Tags) => {
                Err("leads to an object or a list, which is no value of a variable")
            }
            None => Err("leads nowhere: the record has no such member"),
        },
        None => Err(
            "must be a JSON pointer (RFC 6901) into the record, like /customer/first_name, or a \
             literal after an equals sign, like =Hello",
        ),
    }
}

fn found<'n, 'a>(record: &'n Node<'a>, tokens: &[String]) -> Option<&'n Node<'a>> {
    let mut node = record;
    for token in tokens {
        node = match &node.value {
            Value::Array(items) => items.get(token.parse::<usize>().ok()?)?,
            _ => node.member(token)?,
        };
    }
    Some(node)
}

/// The text at a pointer, if there is one.
#[must_use]
pub fn text_at<'n>(record: &'n Node<'_>, pointer: &str) -> Option<&'n str> {
    let Some(Source::Pointer(tokens)) = Source::parse(pointer) else {
        return None;
    };
    match &found(record, &tokens)?.value {
        Value::String(text) => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::catalog;
    use crate::values::parse;

    fn sources(pairs: &[(&str, &str)]) -> Sources {
        let pairs = pairs
            .iter()
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
        Sources(pairs.collect())
    }

    #[test]
    fn pointers_and_literals_give_values() {
        let record = br#"{"a":{"b/c":"x","~":1.50,"t":true,"n":null,"l":["p","q"]},"":"empty"}"#;
        let record = parse(record).expect("JSON");
        let values = sources(&[
            ("1", "/a/b~1c"),
            ("2", "/a/~0"),
            ("3", "=/a"),
            ("4", "/a/t"),
            ("5", "/a/l/1"),
            ("6", "="),
            ("7", "/"),
        ]);
        let values = values.values(&record).expect("all are there");
        let values: Vec<&str> = values.iter().map(|(_, value)| value.as_str()).collect();
        assert_eq!(values, ["x", "1.50", "/a", "true", "q", "", "empty"]);
        for (pointer, code) in [
            ("/a/n", "variable_missing"),
            ("/a/x", "variable_missing"),
            ("/a/l/2", "variable_missing"),
            ("/a/l", "variable_not_single"),
            ("/a", "variable_not_single"),
        ] {
            let missing = sources(&[("v", pointer)]).values(&record);
            let missing = missing.expect_err(pointer);
            assert_eq!((missing.code, missing.name.as_str()), (code, "v"));
        }
    }

    #[test]
    fn what_leads_nowhere_is_refused_when_it_is_saved() {
        let order = Shape::of(catalog::entry("orders").expect("a resource"));
        let read = |text: &str| {
            let body = serde_json::json!({ "v": text }).to_string();
            Sources::read(&parse(body.as_bytes()).expect("JSON"), order)
        };
        for text in [
            "/customer/first_name",
            "/metadata/x/y",
            "=",
            "=x",
            "/line_items/0/sku",
        ] {
            assert!(read(text).is_ok(), "{text}");
        }
        for text in [
            "",
            "x",
            "/customer",
            "/tags",
            "/customer/x",
            "/a~2b",
            "/",
            "customer/phone",
        ] {
            let faults = read(text).expect_err(text);
            assert!(faults.as_map().contains_key("v"), "{text}");
        }
    }
}
