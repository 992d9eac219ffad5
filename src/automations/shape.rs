//! What can stand where in a record, by the schema of its answer: so that a condition or a pointer
//! that can never lead anywhere is refused when it is saved.

use serde_json::{Value, json};

use crate::resources::catalog::Entry;

/// Where schemas are referred to.
const REFERENCE: &str = "#/components/schemas/";

/// The shape of something.
#[derive(Clone, Copy)]
pub struct Shape<'a> {
    named: &'a Value,
    schema: &'a Value,
}

/// What a place can hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A text, a number, true or false.
    Scalar(Scalar),
    /// A list of texts.
    Tags,
    /// An object or a list.
    Nested,
    /// Anything: it is the caller's own data.
    Free,
}

/// Which single values a place can hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scalar {
    /// Texts.
    pub text: bool,
    /// The only texts; empty: any.
    pub choices: Vec<String>,
    /// Whole numbers.
    pub number: bool,
    /// True and false.
    pub boolean: bool,
    /// Nothing.
    pub null: bool,
    /// The name of its schema, where it has one.
    pub name: Option<String>,
}

impl<'a> Shape<'a> {
    /// Of the records of a resource.
    #[must_use]
    pub fn of(entry: &'a Entry) -> Self {
        let (named, schema) = &entry.schema;
        Self { named, schema }
    }

    /// Of what a webhook is called with.
    #[must_use]
    pub fn of_webhook() -> Shape<'static> {
        static SCHEMA: std::sync::LazyLock<Value> = std::sync::LazyLock::new(|| {
            json!({
                "type": "object",
                "properties": {
                    "phone_number": { "type": "string" },
                    "external_id": { "type": ["string", "null"] },
                    "variables": {
                        "type": "object",
                        "additionalProperties": { "type": "string" }
                    }
                }
            })
        });
        Shape {
            named: &Value::Null,
            schema: &SCHEMA,
        }
    }

    /// What a member holds; none: there is no such member.
    #[must_use]
    pub fn member(self, name: &str) -> Option<Place> {
        self.pointer(&[name.to_owned()])
    }

    /// What a pointer of these tokens leads to; none: it can't lead anywhere.
    #[must_use]
    pub fn pointer(self, tokens: &[String]) -> Option<Place> {
        let Some((first, rest)) = tokens.split_first() else {
            return Some(self.place());
        };
        let mut found: Option<Place> = None;
        for schema in self.alternatives() {
            let member = schema.schema["properties"].get(first);
            let more = &schema.schema["additionalProperties"];
            let items = &schema.schema["items"];
            let is_index = first.bytes().all(|byte| byte.is_ascii_digit())
                && (first == "0" || !first.starts_with('0'))
                && !first.is_empty();
            let next = if let Some(member) = member {
                schema.at(member).pointer(rest)
            } else if more == &Value::Bool(true) {
                Some(Place::Free)
            } else if more.is_object() {
                schema.at(more).pointer(rest)
            } else if items.is_object() && is_index {
                schema.at(items).pointer(rest)
            } else {
                None
            };
            found = found.or(next);
        }
        found
    }

    fn at(self, schema: &'a Value) -> Self {
        Self { schema, ..self }
    }

    /// The schemas that this one may be, without references.
    fn alternatives(self) -> Vec<Self> {
        let resolved = self.resolved();
        match resolved.schema["oneOf"].as_array() {
            Some(several) => several
                .iter()
                .flat_map(|one| resolved.at(one).alternatives())
                .collect(),
            None => vec![resolved],
        }
    }

    fn resolved(self) -> Self {
        let mut shape = self;
        while let Some(name) = shape.name() {
            shape = shape.at(&shape.named[name]);
        }
        shape
    }

    fn name(self) -> Option<&'a str> {
        self.schema["$ref"].as_str()?.strip_prefix(REFERENCE)
    }

    fn place(self) -> Place {
        let mut scalar = Scalar::default();
        let names = [self].into_iter().chain(
            self.schema["oneOf"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|one| self.at(one)),
        );
        scalar.name = names.filter_map(Self::name).next().map(str::to_owned);
        for one in self.alternatives() {
            let kinds = match &one.schema["type"] {
                Value::String(kind) => vec![kind.as_str()],
                Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
                _ => Vec::new(),
            };
            for kind in kinds {
                match kind {
                    "string" => scalar.text = true,
                    "integer" | "number" => scalar.number = true,
                    "boolean" => scalar.boolean = true,
                    "null" => scalar.null = true,
                    "array" if one.schema["items"]["type"] == "string" => return Place::Tags,
                    _ => return Place::Nested,
                }
            }
            let choices = one.schema["enum"].as_array().into_iter().flatten();
            let choices = choices.filter_map(Value::as_str).map(str::to_owned);
            scalar.choices.extend(choices);
        }
        Place::Scalar(scalar)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::catalog;

    fn tokens(pointer: &str) -> Vec<String> {
        pointer.split('/').skip(1).map(str::to_owned).collect()
    }

    #[test]
    fn every_member_of_an_example_can_be_pointed_at_and_nothing_else() {
        for entry in catalog::ALL.iter() {
            let shape = Shape::of(entry);
            for name in ["id", "version", "external_id", "created_at"] {
                let place = shape.pointer(&tokens(&format!("/{name}")));
                assert!(
                    matches!(place, Some(Place::Scalar(_))),
                    "{} {name}",
                    entry.path
                );
            }
            for name in ["/nothing", "/id/x", "/created_at/0", "/", "/0"] {
                assert_eq!(shape.pointer(&tokens(name)), None, "{} {name}", entry.path);
            }
            assert_eq!(shape.member("metadata"), Some(Place::Nested));
            assert_eq!(shape.pointer(&tokens("/metadata/a/b/0")), Some(Place::Free));
        }
    }

    #[test]
    fn places_of_an_order_are_known() {
        let order = Shape::of(catalog::entry("orders").expect("it is there"));
        let at = |pointer: &str| order.pointer(&tokens(pointer));
        assert!(matches!(at("/customer/first_name"), Some(Place::Scalar(scalar)) if scalar.null));
        assert!(
            matches!(at("/customer/lifetime_value"), Some(Place::Scalar(scalar)) if scalar.number)
        );
        assert_eq!(at("/customer"), Some(Place::Nested));
        assert_eq!(at("/customer/nickname"), None);
        assert_eq!(at("/tags"), Some(Place::Tags));
        assert!(matches!(at("/tags/0"), Some(Place::Scalar(_))));
        assert_eq!(at("/tags/00"), None);
        assert_eq!(at("/line_items/0/title"), Some(Place::Free));
        assert_eq!(at("/line_items/first/title"), None);
        let money = at("/total_price");
        let name = Some("Money".to_owned());
        assert!(matches!(money, Some(Place::Scalar(scalar)) if scalar.name == name));
        let currency = at("/currency");
        let name = Some("Currency".to_owned());
        assert!(
            matches!(currency, Some(Place::Scalar(scalar)) if scalar.name == name && scalar.null)
        );
    }

    #[test]
    fn a_checkouts_status_has_its_choices() {
        let checkout = Shape::of(catalog::entry("checkouts").expect("it is there"));
        let Some(Place::Scalar(status)) = checkout.member("status") else {
            panic!("a text");
        };
        assert!(status.choices.contains(&"recovered".to_owned()));
    }

    #[test]
    fn a_webhook_has_its_variables() {
        let at = |pointer: &str| Shape::of_webhook().pointer(&tokens(pointer));
        assert!(matches!(at("/variables/anything"), Some(Place::Scalar(_))));
        assert!(matches!(at("/phone_number"), Some(Place::Scalar(_))));
        assert_eq!(at("/variables/a/b"), None);
        assert_eq!(at("/status"), None);
    }
}
