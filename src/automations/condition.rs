//! Conditions on the present state of a record: names of members and the values that they may have.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use super::shape::{Place, Scalar, Shape};
use crate::values::{Checked, Count, Currency, Faults, Money, Node, Phone, Timestamp, Value};

/// Members of one condition.
const MOST_MEMBERS: usize = 20;
/// Values of one member.
const MOST_VALUES: usize = 50;
/// Characters of a value.
const VALUE_CHARS: usize = 1_024;

/// All members must have one of their values. Empty: any record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Condition(Map<String, Json>);

impl Condition {
    /// Reads the `when` of a trigger on records of this shape.
    ///
    /// # Errors
    /// Every member that records don't have or that can't be compared, and every value that it can
    /// never have.
    pub fn read(node: &Node<'_>, shape: Shape<'_>) -> Checked<Self> {
        let Value::Object(members) = &node.value else {
            return Err(Faults::one("must be an object"));
        };
        if members.len() > MOST_MEMBERS {
            let message = format!("must have at most {MOST_MEMBERS} members");
            return Err(Faults::one(message));
        }
        let (mut faults, mut read) = (Faults::default(), Map::new());
        for (name, node) in members {
            let shown: String = name.chars().take(100).collect();
            let wanted = match shape.member(name) {
                None => Err(Faults::one("is not a member of the resource")),
                Some(Place::Nested | Place::Free) => Err(Faults::one(
                    "can't be compared: only single values and tags can",
                )),
                Some(Place::Scalar(scalar)) => wanted(node, &scalar),
                Some(Place::Tags) => wanted(node, &tag()),
            };
            match wanted {
                Ok(wanted) => {
                    read.insert(name.clone().into_owned(), wanted);
                }
                Err(inner) => faults.nest(&shown, inner),
            }
        }
        faults.into_result()?;
        Ok(Self(read))
    }

    /// Whether a record, as it is answered, meets the condition.
    #[must_use]
    pub fn matches(&self, record: &Node<'_>) -> bool {
        self.0.iter().all(|(name, wanted)| {
            let present = record.member(name);
            let any = |value: &Json| present.is_some_and(|present| is(present, value));
            match wanted {
                Json::Array(several) => several.iter().any(any),
                one => any(one),
            }
        })
    }
}

/// A tag: any text.
fn tag() -> Scalar {
    Scalar {
        text: true,
        ..Scalar::default()
    }
}

/// One value, or a list of them.
fn wanted(node: &Node<'_>, scalar: &Scalar) -> Checked<Json> {
    let Value::Array(items) = &node.value else {
        return value(node, scalar);
    };
    if items.is_empty() || items.len() > MOST_VALUES {
        let message = format!("must have 1 to {MOST_VALUES} values");
        return Err(Faults::one(message));
    }
    let (mut faults, mut read) = (Faults::default(), Vec::new());
    for (index, item) in items.iter().enumerate() {
        match value(item, scalar) {
            Ok(value) => read.push(value),
            Err(inner) => faults.nest(&index.to_string(), inner),
        }
    }
    faults.into_result()?;
    Ok(Json::Array(read))
}

/// A value as records spell it.
fn value(node: &Node<'_>, scalar: &Scalar) -> Checked<Json> {
    let named = |name: &str| scalar.name.as_deref() == Some(name);
    match &node.value {
        Value::Null if scalar.null => Ok(Json::Null),
        Value::Bool(value) if scalar.boolean => Ok(Json::Bool(*value)),
        Value::Number(_) | Value::String(_) if named("Money") => spelled(&Money::read(node)?),
        Value::String(_) if named("Phone") => spelled(&Phone::read(node, None)?),
        Value::String(_) if named("Timestamp") => spelled(&Timestamp::read(node)?),
        Value::String(_) if named("Currency") => spelled(&Currency::read(node)?),
        Value::Number(_) if scalar.number => spelled(&Count::read(node)?),
        Value::String(_) if scalar.text => {
            let text = crate::values::text(VALUE_CHARS)(node)?;
            if scalar.choices.is_empty() || scalar.choices.contains(&text) {
                Ok(Json::String(text))
            } else {
                let choices = scalar.choices.join(", ");
                Err(Faults::one(format!("must be one of {choices}")))
            }
        }
        _ => Err(Faults::one(format!(
            "must be {}, or a list of such values",
            kinds(scalar)
        ))),
    }
}

fn spelled(value: &impl Serialize) -> Checked<Json> {
    serde_json::to_value(value).map_err(|_| Faults::one("could not be read"))
}

fn kinds(scalar: &Scalar) -> String {
    let kinds = [
        (scalar.text, "a string"),
        (scalar.number, "a whole number"),
        (scalar.boolean, "true or false"),
        (scalar.null, "null"),
    ];
    let kinds: Vec<&str> = kinds
        .into_iter()
        .filter(|(may_be, _)| *may_be)
        .map(|(_, kind)| kind)
        .collect();
    kinds.join(" or ")
}

/// Whether a member is this value, or a list that has it.
fn is(present: &Node<'_>, wanted: &Json) -> bool {
    match (&present.value, wanted) {
        (Value::Array(items), wanted) => items.iter().any(|item| is(item, wanted)),
        (Value::String(text), Json::String(wanted)) => text == wanted,
        (Value::Number(number), Json::Number(wanted)) => *number == wanted.to_string(),
        (Value::Bool(value), Json::Bool(wanted)) => value == wanted,
        (Value::Null, Json::Null) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::catalog;
    use crate::values::parse;

    fn read(resource: &str, text: &str) -> Checked<Condition> {
        let entry = catalog::entry(resource).expect("a resource");
        let bytes = text.as_bytes();
        Condition::read(&parse(bytes).expect("JSON"), Shape::of(entry))
    }

    fn matches(resource: &str, condition: &str, record: &str) -> bool {
        let condition = read(resource, condition).expect("a condition");
        condition.matches(&parse(record.as_bytes()).expect("JSON"))
    }

    #[test]
    fn a_value_a_list_of_values_and_tags_are_compared() {
        let record = r#"{"status":"abandoned","currency":null,"tags":["web","vip"],
            "total_price":"49.90","customer":{"first_name":"status"}}"#;
        let is = |condition: &str| matches("checkouts", condition, record);
        assert!(is("{}"));
        assert!(is(r#"{"status":"abandoned"}"#));
        assert!(is(r#"{"status":["expired","abandoned"]}"#));
        assert!(!is(r#"{"status":["expired","active"]}"#));
        assert!(is(r#"{"currency":null}"#));
        assert!(is(r#"{"currency":["EUR",null]}"#));
        assert!(!is(r#"{"currency":"EUR"}"#));
        assert!(is(r#"{"tags":"vip"}"#));
        assert!(is(r#"{"tags":["no","web"]}"#));
        assert!(!is(r#"{"tags":"v"}"#));
        assert!(is(r#"{"total_price":49.9}"#));
        assert!(is(r#"{"total_price":"49.9000"}"#));
        assert!(!is(r#"{"total_price":49.91}"#));
        assert!(!is(r#"{"status":"abandoned","tags":"no"}"#));
    }

    #[test]
    fn numbers_are_compared_as_numbers() {
        let record = r#"{"orders_count":3,"lifetime_value":null}"#;
        assert!(matches("customers", r#"{"orders_count":3}"#, record));
        assert!(matches("customers", r#"{"orders_count":[1,3.0]}"#, record));
        assert!(!matches("customers", r#"{"orders_count":30}"#, record));
        assert!(matches("customers", r#"{"lifetime_value":null}"#, record));
    }

    #[test]
    fn what_can_never_be_true_is_refused_by_name() {
        for (resource, text, path) in [
            ("orders", r#"{"state":"paid"}"#, "state"),
            ("orders", r#"{"customer":"x"}"#, "customer"),
            ("orders", r#"{"metadata":{}}"#, "metadata"),
            ("orders", r#"{"line_items":[]}"#, "line_items"),
            ("checkouts", r#"{"status":"lost"}"#, "status"),
            ("checkouts", r#"{"status":["expired","lost"]}"#, "status.1"),
            ("checkouts", r#"{"status":null}"#, "status"),
            ("checkouts", r#"{"status":[]}"#, "status"),
            ("checkouts", r#"{"status":[["expired"]]}"#, "status.0"),
            ("orders", r#"{"financial_status":5}"#, "financial_status"),
            ("orders", r#"{"total_price":"abc"}"#, "total_price"),
            ("orders", r#"{"currency":"EURO"}"#, "currency"),
            ("customers", r#"{"orders_count":"3"}"#, "orders_count"),
            ("customers", r#"{"orders_count":-1}"#, "orders_count"),
            ("orders", r#"{"tags":5}"#, "tags"),
            ("orders", "[]", ""),
        ] {
            let faults = read(resource, text).expect_err(text);
            let paths: Vec<&String> = faults.as_map().keys().collect();
            assert_eq!(paths, [path], "{text}");
        }
    }
}
