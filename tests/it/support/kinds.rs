//! The registered resources as plain descriptions, so that a test can loop over them without naming
//! any.

use keyfold::engine::Resource;
use keyfold::openapi;
use keyfold::resources::{self, Visitor};
use serde_json::{Map, Value};

/// What a resource says of itself.
pub struct Kind {
    pub path: &'static str,
    pub singular: &'static str,
    pub mutable: &'static [&'static str],
    pub immutable: &'static [&'static str],
    pub kept_when_left_out: &'static [&'static str],
    pub has_customer: bool,
    pub is_person: bool,
    pub examples: [Value; 2],
    pub patch: Option<Value>,
}

/// All of them, in the order of the registry.
pub fn kinds() -> Vec<Kind> {
    struct Kinds(Vec<Kind>);
    impl Visitor for Kinds {
        fn visit<R: Resource>(&mut self) {
            self.0.push(Kind {
                path: R::PATH,
                singular: R::SINGULAR,
                mutable: R::MUTABLE,
                immutable: R::IMMUTABLE,
                kept_when_left_out: R::KEPT_WHEN_LEFT_OUT,
                has_customer: R::HAS_CUSTOMER,
                is_person: R::IS_PERSON,
                examples: R::examples(),
                patch: R::patch_example(),
            });
        }
    }
    let mut kinds = Kinds(Vec::new());
    resources::for_each(&mut kinds);
    assert!(!kinds.0.is_empty(), "something is registered");
    kinds.0
}

/// The resource whose records are people.
pub fn person() -> Kind {
    let mut people = kinds().into_iter().filter(|kind| kind.is_person);
    people.next().expect("one resource is people")
}

impl Kind {
    /// The first example under another key, without the caller's own time.
    pub fn first(&self, key: &str) -> Value {
        keyed(&without(&self.examples[0], "source_updated_at"), key)
    }

    /// The second example under another key, without the caller's own time.
    pub fn second(&self, key: &str) -> Value {
        keyed(&without(&self.examples[1], "source_updated_at"), key)
    }

    /// Only what must be there, from the second example.
    pub fn least(&self, key: &str) -> Value {
        let required = self.required();
        let mut body = keyed(&self.examples[1], key);
        let members = body.as_object_mut().expect("an object");
        members.retain(|name, _| name == "external_id" || required.contains(name));
        body
    }

    /// A body that lacks the member of that name, which is required.
    pub fn faulty(&self, key: &str) -> (Value, String) {
        let mut required = self.required().into_iter();
        let missing = required.find(|name| name != "external_id");
        let missing = missing.expect("more than the key is required");
        (without(&self.first(key), &missing), missing)
    }

    /// The schema of a POST body.
    pub fn input_schema(&self) -> Value {
        self.schema("", "post", "application/json")
    }

    /// The schema of a PATCH body.
    pub fn patch_schema(&self) -> Value {
        self.schema("/{external_id}", "patch", "application/merge-patch+json")
    }

    fn schema(&self, rest: &str, method: &str, kind: &str) -> Value {
        let document = openapi::document();
        let path = format!("/api/v1/stores/{{store_id}}/{}{rest}", self.path);
        let content = &document["paths"][&path][method]["requestBody"]["content"];
        let pointer = content[kind]["schema"]["$ref"]
            .as_str()
            .expect("a reference");
        let found = document.pointer(pointer.strip_prefix('#').expect("inside"));
        found.expect("the schema is there").clone()
    }

    /// Members that a POST body must have.
    pub fn required(&self) -> Vec<String> {
        let schema = self.input_schema();
        let required = schema["required"].as_array().expect("a list");
        let name = |value: &Value| value.as_str().expect("a name").to_owned();
        required.iter().map(name).collect()
    }

    /// Members that a POST body may have.
    pub fn members(&self) -> Vec<String> {
        let schema = self.input_schema();
        let properties = schema["properties"].as_object().expect("an object");
        properties.keys().cloned().collect()
    }

    /// The path of a record under the store.
    pub fn one(&self, segment: &str) -> String {
        format!("{}/{segment}", self.path)
    }
}

/// A body under another key.
pub fn keyed(body: &Value, key: &str) -> Value {
    with(body, "external_id", key.into())
}

/// A body with another value of a member.
pub fn with(body: &Value, name: &str, value: Value) -> Value {
    let mut body = body.clone();
    body[name] = value;
    body
}

/// A body without a member.
pub fn without(body: &Value, name: &str) -> Value {
    let mut body = body.clone();
    // Keeps the order of the others.
    body.as_object_mut().expect("an object").shift_remove(name);
    body
}

/// An answer without what differs between two records of equal content.
pub fn content_of(answer: &Value) -> Map<String, Value> {
    let own = [
        "id",
        "external_id",
        "version",
        "created_at",
        "updated_at",
        "source_updated_at",
    ];
    let mut members = answer.as_object().expect("an object").clone();
    members.retain(|name, _| !own.contains(&name.as_str()));
    members
}

/// Fails unless the answer holds everything that the body says, at every depth of objects.
#[track_caller]
pub fn assert_holds(answer: &Value, body: &Value, what: &str) {
    match (answer, body) {
        (Value::Object(answer), Value::Object(body)) => {
            for (name, value) in body {
                let held = answer.get(name).unwrap_or(&Value::Null);
                assert_holds(held, value, &format!("{what}.{name}"));
            }
        }
        _ => assert_eq!(answer, body, "{what}"),
    }
}
