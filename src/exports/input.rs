//! The body of an export.

use serde::Serialize;
use utoipa::ToSchema;

use super::destination::Destination;
use super::headers::{self, Headers};
use super::signing;
use crate::config::Secret;
use crate::resources::catalog;
use crate::targets::Guard;
use crate::values::{Checked, Count, ExternalId, Faults, Fields, Node, Patch, Value, choice};

/// `active` sends, `paused` only collects.
pub const ACTIVE: &str = "active";
/// See [`ACTIVE`].
pub const PAUSED: &str = "paused";
/// Changes are sent as they happen.
pub const LIVE: &str = "live";
/// Only runs send.
const MANUAL: &str = "manual";
const STATUSES: &[&str] = &[ACTIVE, PAUSED];
const MODES: &[&str] = &[LIVE, MANUAL];
const METHODS: &[&str] = &["POST", "PUT", "PATCH"];
/// A record that was sent once is not sent again while its entry is kept.
pub const PRIMARY_KEY: &str = "primary_key";
/// The same while its content is the same.
const PRIMARY_KEY_AND_HASH: &str = "primary_key_and_hash";
const STRATEGIES: &[&str] = &[PRIMARY_KEY_AND_HASH, PRIMARY_KEY];
const KEY_HEADER: &str = "Idempotency-Key";
const RETENTION_DAYS: i32 = 7;
const MOST_RETENTION_DAYS: i32 = 3_650;

/// How calls are kept from being made twice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = ExportIdempotency)]
pub struct Idempotency {
    /// Whether the log is asked before a call, and a key is sent.
    pub enabled: bool,
    /// `primary_key_and_hash`: sent again when the content is another. `primary_key`: once, while
    /// its entry in the log is kept.
    #[schema(example = "primary_key_and_hash")]
    pub strategy: String,
    /// The header that carries the key; null: it is kept inside.
    #[schema(example = "Idempotency-Key")]
    pub header: Option<String>,
    /// With `primary_key_and_hash`: false keeps another content from being sent, too.
    pub resend_on_change: bool,
}

impl Default for Idempotency {
    fn default() -> Self {
        Self {
            enabled: true,
            strategy: PRIMARY_KEY_AND_HASH.to_owned(),
            header: Some(KEY_HEADER.to_owned()),
            resend_on_change: true,
        }
    }
}

/// What a caller sets of an export, besides its name and its signing secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// See [`ExportInput`].
    pub status: String,
    /// See [`ExportInput`].
    pub resources: Vec<String>,
    /// See [`ExportInput`].
    pub mode: String,
    /// See [`ExportInput`].
    pub destination: Destination,
    /// See [`ExportInput`].
    pub method: String,
    /// See [`ExportInput`].
    pub headers: Headers,
    /// See [`ExportInput`].
    pub idempotency: Idempotency,
    /// See [`ExportInput`].
    pub retention_days: i32,
}

/// An export as it is posted, read and checked.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Its key.
    pub external_id: ExternalId,
    /// All else.
    pub settings: Settings,
    /// None: the stored one stays, or one is made.
    pub signing_secret: Option<Secret>,
}

/// An export as it is posted.
#[derive(ToSchema)]
#[schema(as = ExportInput)]
#[expect(dead_code, reason = "only names the schema: see `Wanted`")]
pub struct ExportInput {
    /// The export's key; kept exactly.
    external_id: ExternalId,
    /// `active` (the default) sends; `paused` only collects changes, which are sent when it is
    /// active again.
    #[schema(value_type = Option<String>, pattern = "^(active|paused)$", example = "active")]
    status: Option<String>,
    /// The paths of the resources whose records are sent, each once.
    #[schema(value_type = Vec<String>, min_items = 1)]
    resources: Vec<String>,
    /// `live` (the default): changes are sent as they happen. `manual`: only runs send.
    #[schema(value_type = Option<String>, pattern = "^(live|manual)$", example = "live")]
    mode: Option<String>,
    /// Where to: may have `{resource}`, `{id}` and `{external_id}` in its path or query, which are
    /// percent-encoded; the phone stands for a customer without external id. Addresses inside the
    /// operator's network are refused.
    #[schema(
        min_length = 8,
        max_length = 1024,
        pattern = r"^[Hh][Tt][Tt][Pp][Ss]?://[^\s\u0000/\\{}@#]+(?:[/?](?:[^\s\u0000{}#]|\{(?:resource|id|external_id)\})*)?$",
        example = "https://erp.example.com/{resource}/{external_id}"
    )]
    url: String,
    /// `POST` (the default), `PUT` or `PATCH`.
    #[schema(value_type = Option<String>, pattern = "^(POST|PUT|PATCH)$", example = "PUT")]
    method: Option<String>,
    /// At most 50 headers of each call; stored encrypted and never shown again. Left out: none.
    #[schema(value_type = Option<Object>)]
    headers: Option<Headers>,
    /// How calls are kept from being made twice.
    idempotency: Option<IdempotencyInput>,
    /// For how many days the log keeps what was sent; 7 if left out.
    #[schema(minimum = 1, maximum = 3650)]
    retention_days: Option<i32>,
    /// `whsec_` and the base64 of 24 to 64 bytes, which calls are signed with (Standard Webhooks).
    /// Left out: the stored one stays, or one is made and shown once.
    #[schema(value_type = Option<String>, pattern = "^whsec_[A-Za-z0-9+/]{32,86}={0,2}$", example = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")]
    signing_secret: Option<String>,
}

/// How calls are kept from being made twice.
#[derive(ToSchema)]
#[schema(as = ExportIdempotencyInput)]
#[expect(dead_code, reason = "only names the schema: see `Idempotency`")]
pub struct IdempotencyInput {
    /// Whether the log is asked before a call, and a key is sent; true if left out.
    enabled: Option<bool>,
    /// `primary_key_and_hash` (the default): sent again when the content is another. `primary_key`:
    /// once, while its entry in the log is kept.
    #[schema(value_type = Option<String>, pattern = "^(primary_key|primary_key_and_hash)$")]
    strategy: Option<String>,
    /// The header that carries the key, `Idempotency-Key` if left out; null: it is kept inside.
    #[schema(value_type = Option<String>, max_length = 128, pattern = "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")]
    header: Option<String>,
    /// With `primary_key_and_hash`: false keeps another content from being sent, too; true if left
    /// out.
    resend_on_change: Option<bool>,
}

impl Wanted {
    /// Reads a body.
    ///
    /// # Errors
    /// Every faulty field.
    pub fn read(node: &Node<'_>, guard: &Guard) -> Checked<Self> {
        let mut fields = Fields::of(node)?;
        let external_id = fields.required("external_id", ExternalId::read);
        let status = fields.optional("status", choice(STATUSES));
        let resources = fields.required("resources", resources);
        let mode = fields.optional("mode", choice(MODES));
        let destination = fields.required("url", |node| Destination::read(node, guard));
        let method = fields.optional("method", choice(METHODS));
        let headers = fields.optional("headers", Headers::read);
        let idempotency = fields.optional("idempotency", idempotency);
        let retention_days = fields.optional("retention_days", retention_days);
        let signing_secret = fields.optional("signing_secret", signing::read_secret);
        let headers = headers.unwrap_or_default();
        let idempotency = idempotency.unwrap_or_default();
        let key_header = idempotency.header.as_deref();
        if let Some(spelling) = key_header.and_then(|name| headers.spelling(name)) {
            let path = format!("headers.{spelling}");
            fields.add_fault(path, "carries the idempotency key");
        }
        fields.finish()?;
        let (Some(external_id), Some(resources), Some(destination)) =
            (external_id, resources, destination)
        else {
            return Err(Faults::one("could not be read"));
        };
        let settings = Settings {
            status: status.unwrap_or(ACTIVE).to_owned(),
            resources,
            mode: mode.unwrap_or(LIVE).to_owned(),
            destination,
            method: method.unwrap_or(METHODS[0]).to_owned(),
            headers,
            idempotency,
            retention_days: retention_days.unwrap_or(RETENTION_DAYS),
        };
        Ok(Self {
            external_id,
            settings,
            signing_secret,
        })
    }
}

fn resources(node: &Node<'_>) -> Checked<Vec<String>> {
    let Value::Array(items) = &node.value else {
        return Err(Faults::one("must be an array"));
    };
    if items.is_empty() {
        return Err(Faults::one("must not be empty"));
    }
    let (mut faults, mut paths) = (Faults::default(), Vec::new());
    for (index, item) in items.iter().enumerate() {
        if faults.is_cut() {
            break;
        }
        let known = match &item.value {
            Value::String(text) => catalog::entry(text),
            _ => None,
        };
        let fault = match known {
            None => Some(format!("must be one of {}", known_paths())),
            Some(entry) if paths.iter().any(|path| path == entry.path) => {
                Some("is given twice".to_owned())
            }
            Some(entry) => {
                paths.push(entry.path.to_owned());
                None
            }
        };
        if let Some(fault) = fault {
            faults.add(index.to_string(), fault);
        }
    }
    faults.into_result()?;
    Ok(paths)
}

fn known_paths() -> String {
    let paths: Vec<&str> = catalog::ALL.iter().map(|entry| entry.path).collect();
    paths.join(", ")
}

fn idempotency(node: &Node<'_>) -> Checked<Idempotency> {
    let mut fields = Fields::of(node)?;
    let default = Idempotency::default();
    let enabled = fields.optional("enabled", flag);
    let strategy = fields.optional("strategy", choice(STRATEGIES));
    let header = fields.patch("header", header);
    let resend_on_change = fields.optional("resend_on_change", flag);
    fields.finish()?;
    Ok(Idempotency {
        enabled: enabled.unwrap_or(default.enabled),
        strategy: strategy.map_or(default.strategy, str::to_owned),
        header: match header {
            Patch::Absent => default.header,
            Patch::Null => None,
            Patch::Value(name) => Some(name),
        },
        resend_on_change: resend_on_change.unwrap_or(default.resend_on_change),
    })
}

fn header(node: &Node<'_>) -> Checked<String> {
    let Value::String(name) = &node.value else {
        return Err(Faults::one("must be a string"));
    };
    headers::check_name(name)?;
    Ok(name.clone().into_owned())
}

fn flag(node: &Node<'_>) -> Checked<bool> {
    match node.value {
        Value::Bool(flag) => Ok(flag),
        _ => Err(Faults::one("must be true or false")),
    }
}

fn retention_days(node: &Node<'_>) -> Checked<i32> {
    let days = Count::read(node)?.get();
    i32::try_from(days)
        .ok()
        .filter(|days| (1..=MOST_RETENTION_DAYS).contains(days))
        .ok_or_else(|| Faults::one(format!("must be a number from 1 to {MOST_RETENTION_DAYS}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::targets::Allowed;
    use crate::values::parse;

    fn read(json: &str) -> Checked<Wanted> {
        let guard = Guard::new(Allowed::default());
        Wanted::read(&parse(json.as_bytes()).unwrap(), &guard)
    }

    #[test]
    fn secrets_are_not_printed() {
        let json = r#"{"external_id":"erp","resources":["orders"],"url":"https://a.example/",
            "headers":{"X-Key":"a canary"},
            "signing_secret":"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}"#;
        let printed = format!("{:?}", read(json).unwrap());
        assert!(!printed.contains("canary") && !printed.contains("whsec_"));
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let json = r#"{"external_id":"erp","resources":["orders"],"url":"https://a.example/"}"#;
        let settings = read(json).unwrap().settings;
        assert_eq!(
            (
                settings.status.as_str(),
                settings.mode.as_str(),
                settings.method.as_str(),
                settings.retention_days
            ),
            ("active", "live", "POST", 7)
        );
        assert_eq!(settings.idempotency, Idempotency::default());
        let nulls = json.replace('}', r#","idempotency":null,"headers":null}"#);
        assert_eq!(read(&nulls).unwrap().settings, settings);
        let inside = json.replace('}', r#","idempotency":{"header":null,"enabled":null}}"#);
        let inside = read(&inside).unwrap().settings.idempotency;
        assert_eq!(inside.header, None);
        assert!(inside.enabled);
    }

    #[test]
    fn every_faulty_field_is_named_at_once() {
        let json = r#"{
            "status": "off", "resources": ["orders", "orders", "carts", 1], "mode": 1,
            "url": "https://{id}.example", "method": "GET", "headers": {"Host": "a", "X-Key": "a"},
            "idempotency": {"enabled": 1, "strategy": "none", "header": "webhook-id", "more": 1},
            "retention_days": 0, "signing_secret": "whsec_", "more": null
        }"#;
        let faults = read(json).unwrap_err();
        let paths: Vec<&str> = faults.as_map().keys().map(String::as_str).collect();
        let expected = [
            "external_id",
            "headers.Host",
            "idempotency.enabled",
            "idempotency.header",
            "idempotency.more",
            "idempotency.strategy",
            "method",
            "mode",
            "more",
            "resources.1",
            "resources.2",
            "resources.3",
            "retention_days",
            "signing_secret",
            "status",
            "url",
        ];
        assert_eq!(paths, expected);
        let twice = r#"{"external_id":"a","resources":[],"url":"https://a.example/",
            "headers":{"idempotency-KEY":"a"}}"#;
        let faults = read(twice).unwrap_err();
        let paths: Vec<&str> = faults.as_map().keys().map(String::as_str).collect();
        assert_eq!(paths, ["headers.idempotency-KEY", "resources"]);
    }
}
