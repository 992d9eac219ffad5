//! What is sent, and what exactly comes back.

use std::collections::BTreeMap;

use keyfold::engine::Resource;
use keyfold::resources::checkouts::Checkout;
use keyfold::resources::customers::Customer;
use keyfold::resources::orders::Order;
use keyfold::resources::shipments::Shipment;
use serde_json::Value;

/// Path of a fault → its sentences.
pub type Errors = BTreeMap<String, Vec<String>>;

/// The exact answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    pub status: u16,
    /// Empty for what is taken.
    pub code: String,
    /// Empty where the answer has no `errors`.
    pub errors: Errors,
}

impl Want {
    /// Taken with this status.
    pub fn taken(status: u16) -> Self {
        Self::refused(status, "")
    }

    /// Refused as a whole.
    pub fn refused(status: u16, code: &str) -> Self {
        Self {
            status,
            code: code.to_owned(),
            errors: Errors::new(),
        }
    }

    /// 422 for these fields.
    pub fn invalid(faults: &[(&str, &str)]) -> Self {
        let mut want = Self::refused(422, "validation_failed");
        for (path, sentence) in faults {
            let sentences = want.errors.entry((*path).to_owned()).or_default();
            sentences.push((*sentence).to_owned());
        }
        want
    }

    /// The same faults under another status and code.
    pub fn with_code(mut self, status: u16, code: &str) -> Self {
        (self.status, self.code) = (status, code.to_owned());
        self
    }
}

/// One row of the table.
pub struct Case {
    pub name: String,
    pub sent: Sent,
    pub want: Want,
}

pub enum Sent {
    /// A POST body: alone, as an item of a document, and as a line of a stream.
    Body(Body),
    /// One request as it stands. `{store}` in the target is the path of the store.
    Request {
        method: &'static str,
        target: String,
        headers: Vec<(String, Vec<u8>)>,
        body: Vec<u8>,
    },
}

/// A record as it is posted.
pub struct Body {
    pub resource: &'static str,
    pub text: Vec<u8>,
    /// A document that holds it is no JSON as a whole.
    pub breaks_document: bool,
    /// It means the same inside brackets and on one line.
    pub can_be_wrapped: bool,
}

/// A POST body of a resource.
pub fn body(name: impl Into<String>, resource: &'static str, text: &str, want: Want) -> Case {
    bytes(name, resource, text.as_bytes(), want)
}

/// The same for what is no text.
pub fn bytes(name: impl Into<String>, resource: &'static str, text: &[u8], want: Want) -> Case {
    let name = name.into();
    Case {
        name: format!("{resource}: {name}"),
        sent: Sent::Body(Body {
            resource,
            breaks_document: want.code == "json_invalid",
            can_be_wrapped: !text.contains(&b'\n'),
            text: text.to_vec(),
        }),
        want,
    }
}

/// One request with JSON's media type.
pub fn json(name: &str, method: &'static str, target: &str, body: &str, want: Want) -> Case {
    let headers: &[(&str, &[u8])] = &[("Content-Type", b"application/json")];
    request(name, (method, target), headers, body.as_bytes(), want)
}

/// A GET.
pub fn get(target: &str, want: Want) -> Case {
    request(
        &format!("GET {}", &target[..target.len().min(60)]),
        ("GET", target),
        &[],
        b"",
        want,
    )
}

/// One request.
pub fn request(
    name: &str,
    (method, target): (&'static str, &str),
    headers: &[(&str, &[u8])],
    body: &[u8],
    want: Want,
) -> Case {
    Case {
        name: name.to_owned(),
        sent: Sent::Request {
            method,
            target: target.to_owned(),
            headers: headers
                .iter()
                .map(|(name, value)| ((*name).to_owned(), value.to_vec()))
                .collect(),
            body: body.to_vec(),
        },
        want,
    }
}

/// The first example of a resource: what the store already holds when the table begins.
pub fn example(resource: &str) -> Value {
    let [example, _] = match resource {
        "orders" => Order::examples(),
        "checkouts" => Checkout::examples(),
        "customers" => Customer::examples(),
        "shipments" => Shipment::examples(),
        other => panic!("no resource {other}"),
    };
    example
}

/// The example with the member at a dotted path replaced by this text, or left out.
pub fn with(resource: &str, path: &str, text: Option<&str>) -> String {
    replaced(&example(resource), path, text)
}

fn replaced(object: &Value, path: &str, text: Option<&str>) -> String {
    let (name, inner) = path.split_once('.').unwrap_or((path, ""));
    let mut is_there = false;
    let mut members = Vec::new();
    for (known, value) in object.as_object().expect("an object") {
        let value = match (known == name, inner) {
            (false, _) => Some(value.to_string()),
            (true, "") => text.map(str::to_owned),
            (true, inner) => Some(replaced(value, inner, text)),
        };
        is_there |= known == name;
        members.extend(value.map(|value| member(known, &value)));
    }
    if !is_there {
        members.extend(text.map(|text| member(name, text)));
    }
    format!("{{{}}}", members.join(","))
}

fn member(name: &str, value: &str) -> String {
    format!("{}:{value}", Value::from(name))
}

/// A JSON string of this text.
pub fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}
