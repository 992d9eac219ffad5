//! What is called for a record, or why it is not called.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use serde_json::json;
use url::Url;

use super::content::{self, Keyed};
use super::definitions::{Secrets, Stored};
use super::deliveries::Due;
use super::destination::{Destination, Names};
use super::input::PRIMARY_KEY;
use super::settle::Came;
use crate::resources::catalog::{self, Snapshot};
use crate::targets::Call;

const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

/// What the calls of an export have in common.
pub struct Plan {
    /// As it was read.
    pub export: Stored,
    destination: Destination,
    method: Method,
    secrets: Secrets,
    headers: HeaderMap,
    /// The header that carries the key, if one does.
    key_header: Option<HeaderName>,
}

/// A call that can be made.
pub struct Decided {
    /// Where to.
    pub url: Url,
    /// Its idempotency key.
    pub key: String,
    /// The digest of what is sent.
    pub content: [u8; 32],
    /// What is sent.
    pub body: Bytes,
}

impl Plan {
    /// The plan of an export whose secrets are open.
    #[must_use]
    pub fn of(export: Stored, secrets: Secrets) -> Self {
        let mut headers = secrets.headers.to_map();
        let json = HeaderValue::from_static("application/json");
        headers.insert(header::CONTENT_TYPE, json);
        let name = export.idempotency_header.as_deref();
        let name = name.filter(|_| export.idempotency_enabled);
        Self {
            destination: Destination::from_stored(export.url.clone()),
            method: Method::from_bytes(export.method.as_bytes()).unwrap_or(Method::POST),
            key_header: name.and_then(|name| HeaderName::from_bytes(name.as_bytes()).ok()),
            headers,
            secrets,
            export,
        }
    }

    /// The call of a delivery, or what comes of it without one. `latest` is the digest of what the
    /// log keeps as sent last.
    ///
    /// # Errors
    /// What comes of it without a call.
    pub fn decide(
        &self,
        due: &Due,
        snapshot: Option<Snapshot>,
        latest: Option<&Vec<u8>>,
    ) -> Result<Decided, Came> {
        let (body, segment) = match (due.erased_at, snapshot) {
            (Some(erased_at), _) => {
                let notice = erasure_notice(self.export.store_id, due, erased_at);
                (notice, due.record_id.to_string())
            }
            (None, Some(snapshot)) => (snapshot.body, snapshot.path_segment),
            // Erased a moment ago: the event that tells of it lets it wait again.
            (None, None) => return Err(Came::Nothing),
        };
        let content = content::digest(&body).map_err(|_| failed("body_invalid"))?;
        if self.skips(due, content, latest) {
            return Err(Came::Skipped);
        }
        let names = Names {
            resource: &due.resource,
            id: due.record_id,
            segment: &segment,
        };
        let url = self.destination.of(names);
        Ok(Decided {
            url: url.map_err(|_| failed("url_invalid"))?,
            key: self.key(due, content),
            content,
            body: body.into(),
        })
    }

    /// Whether a record is not sent, since the log says that it was.
    fn skips(&self, due: &Due, content: [u8; 32], latest: Option<&Vec<u8>>) -> bool {
        let (export, Some(latest)) = (&self.export, latest) else {
            return false;
        };
        // That somebody was erased is told once, whatever was sent of them before.
        let once = export.strategy == PRIMARY_KEY || !export.resend_on_change;
        // What was called since may have left the receiver with another state.
        let is_there = latest[..] == content && !due.unsure;
        is_there || once && due.erased_at.is_none()
    }

    fn key(&self, due: &Due, content: [u8; 32]) -> String {
        let counts = self.export.strategy != PRIMARY_KEY || due.erased_at.is_some();
        let keyed = Keyed {
            export_id: self.export.id,
            resource: &due.resource,
            record_id: due.record_id,
            content: counts.then_some(content),
            successes: due.successes,
        };
        keyed.key()
    }

    /// The request, signed for now.
    #[must_use]
    pub fn request(&self, url: Url, key: &str, body: Bytes, now: DateTime<Utc>) -> Call {
        let mut headers = self.headers.clone();
        let mut add = |name: &HeaderName, value: &str| {
            // Keys, numbers and base64 are visible ASCII.
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name.clone(), value);
            }
        };
        if let Some(name) = &self.key_header {
            add(name, key);
        }
        add(&WEBHOOK_ID, key);
        add(&WEBHOOK_TIMESTAMP, &now.timestamp().to_string());
        let signature = self.secrets.signer.sign(key, now, &body);
        add(&WEBHOOK_SIGNATURE, &signature);
        Call {
            method: self.method.clone(),
            url,
            headers,
            body,
        }
    }
}

fn failed(code: &str) -> Came {
    Came::Failed {
        code: code.to_owned(),
        status: None,
        asked: None,
    }
}

/// What a receiver is told of a person who was erased.
fn erasure_notice(store_id: i64, due: &Due, erased_at: DateTime<Utc>) -> String {
    let singular = catalog::entry(&due.resource).map_or("", |entry| entry.singular);
    json!({
        "type": format!("{singular}.erased"),
        "resource": due.resource,
        "id": due.record_id,
        "store_id": store_id,
        "erased_at": erased_at,
    })
    .to_string()
}
