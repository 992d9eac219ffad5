//! Free-form JSON of the caller, stored as `jsonb`.

use std::sync::Arc;

use serde::ser::Error as _;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{AdditionalProperties, ArrayBuilder, ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use super::faults::{Checked, Faults};
use super::json::{Node, Value, parse};
use super::jsonb::{print, sorted};
use super::number::Exact;

/// JSON in the text that Postgres prints for it. Equal when the content is: neither the order of
/// members nor `1.0` against `1` counts. Clones share the text.
#[derive(Clone, Debug)]
pub struct FreeJson(Arc<str>);

/// The schema of a free object. Only names the schema.
#[derive(Clone, Copy, Debug)]
pub struct FreeObject;

/// The schema of an array of free objects. Only names the schema.
#[derive(Clone, Copy, Debug)]
pub struct FreeObjects;

/// Items of a [`FreeObjects`] array.
const MAX_ITEMS: usize = 5_000;

impl FreeJson {
    /// Reads an object of at most `max_compact_bytes` as Postgres prints it, less the spaces.
    ///
    /// # Errors
    /// Not an object, too big, or something in it that `jsonb` can't hold, at its path.
    pub fn object(node: &Node, max_compact_bytes: usize) -> Checked<Self> {
        if !matches!(node.value, Value::Object(_)) {
            return Err(Faults::one("must be an object"));
        }
        print(node, max_compact_bytes).map(Self::from_stored)
    }

    /// Reads an array of at most `max_items` objects and `max_compact_bytes`, counted as for
    /// [`FreeJson::object`].
    ///
    /// # Errors
    /// Not an array, too many items, too big, an item that is no object (at its index), or
    /// something in it that `jsonb` can't hold, at its path.
    pub fn objects(node: &Node, max_items: usize, max_compact_bytes: usize) -> Checked<Self> {
        let Value::Array(items) = &node.value else {
            return Err(Faults::one("must be an array"));
        };
        if items.len() > max_items {
            return Err(Faults::one(format!("must have at most {max_items} items")));
        }
        let mut faults = Faults::default();
        for (index, item) in items.iter().enumerate() {
            if !matches!(item.value, Value::Object(_)) {
                faults.add(index.to_string(), "must be an object");
            }
        }
        match print(node, max_compact_bytes) {
            Ok(text) => faults.into_result().map(|()| Self::from_stored(text)),
            Err(inner) => {
                faults.nest("", inner);
                Err(faults)
            }
        }
    }

    /// JSON that the database holds, as it prints it.
    #[must_use]
    pub fn from_stored(text: String) -> Self {
        Self(text.into())
    }

    /// `{}`
    #[must_use]
    pub fn empty_object() -> Self {
        Self("{}".into())
    }

    /// `[]`
    #[must_use]
    pub fn empty_array() -> Self {
        Self("[]".into())
    }

    /// The text, as Postgres prints it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl PartialEq for FreeJson {
    /// The texts differ for equal content only by zeros at the end of decimals, so a difference is
    /// looked at closely.
    fn eq(&self, other: &Self) -> bool {
        let (ours, theirs) = (self.as_str(), other.as_str());
        if ours == theirs {
            return true;
        }
        match (parse(ours.as_bytes()), parse(theirs.as_bytes())) {
            (Ok(a), Ok(b)) => same(&a, &b),
            _ => false,
        }
    }
}

impl Eq for FreeJson {}

impl Serialize for FreeJson {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let raw: &RawValue = serde_json::from_str(&self.0).map_err(S::Error::custom)?;
        raw.serialize(serializer)
    }
}

/// Equal content, as `jsonb` compares it.
fn same(a: &Node, b: &Node) -> bool {
    match (&a.value, &b.value) {
        (Value::Null, Value::Null) => true,
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::String(a), Value::String(b)) => a == b,
        (Value::Number(a), Value::Number(b)) => a == b || Exact::of(a) == Exact::of(b),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            let pairs = || sorted(a).into_iter().zip(sorted(b));
            a.len() == b.len() && pairs().all(|((n, a), (m, b))| n == m && same(a, b))
        }
        _ => false,
    }
}

/// An object with any members.
fn free_object() -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::Object)
        .additional_properties(Some(AdditionalProperties::FreeForm(true)))
}

impl PartialSchema for FreeObject {
    fn schema() -> RefOr<Schema> {
        free_object()
            .description(Some(
                "Any JSON object. Its numbers have at most 40 significant digits and an exponent \
                 within ±40; no text or name contains U+0000.",
            ))
            .examples([serde_json::json!({"source": "pos-7"})])
            .into()
    }
}

impl ToSchema for FreeObject {}

impl PartialSchema for FreeObjects {
    fn schema() -> RefOr<Schema> {
        ArrayBuilder::new()
            .items(free_object())
            .max_items(Some(MAX_ITEMS))
            .description(Some(
                "Any JSON objects, within the bounds of free JSON; at most 1 MiB in compact form, \
                 and (above 4 KiB) no more than twice as long with numbers like 1e40 written out.",
            ))
            .examples([serde_json::json!([{"sku": "TEA-1", "quantity": 2}])])
            .into()
    }
}

impl ToSchema for FreeObjects {}

#[cfg(test)]
mod tests;
