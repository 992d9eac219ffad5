//! Values of the domain: parsed once, carried as proof.
//!
//! A body is read in two steps: [`parse`] makes a tree of it (400 if it can't), [`Fields`] reads an
//! object of the tree with one `read` per field (422 with every fault there is).

// What is wrong, and where.
mod faults;
// The body as a tree, and one object of it.
mod fields;
mod json;
// Kinds of fields.
mod count;
mod country;
mod currency;
mod email;
mod external_id;
mod free_json;
mod http_url;
mod locale;
mod money;
mod phone;
mod tags;
mod text;
mod timestamp;
// What they share.
mod jsonb;
mod number;

pub use count::Count;
pub use country::Country;
pub use currency::{Currency, CurrencyInput};
pub use email::Email;
pub use external_id::ExternalId;
pub use faults::{Checked, Faults, MAX_FAULTS};
pub use fields::{Fields, Patch};
pub use free_json::{FreeJson, FreeObject, FreeObjects};
pub use http_url::HttpUrl;
pub use json::{JsonError, MAX_DEPTH, Node, Part, Value, outline, parse};
pub use locale::Locale;
pub use money::{Money, MoneyInput};
pub use phone::{Phone, PhoneInput};
pub use tags::Tags;
pub use text::{Text, choice, choice_schema, text};
pub use timestamp::{Timestamp, TimestampInput};

/// Most bytes of a `metadata`, in compact form.
pub const METADATA_BYTES: usize = 64 * 1024;

/// Most bytes of `line_items`, in compact form: as much as a body may have, so only numbers that
/// are written out (`1e40`) can pass it.
pub const LINE_ITEMS_BYTES: usize = 1024 * 1024;

/// Most items of `line_items`.
pub const LINE_ITEMS: usize = 5_000;
