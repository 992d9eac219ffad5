//! What makes two states of a record the same content, and the key of a call.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// Members that say when, not what.
const TIMES: &[&str] = &["version", "created_at", "updated_at", "source_updated_at"];

/// The digest of a record's content: all of a body but its version and times.
///
/// # Errors
/// When the body is no JSON object, which is a fault of ours.
pub fn digest(body: &str) -> serde_json::Result<[u8; 32]> {
    let members: BTreeMap<String, &RawValue> = serde_json::from_str(body)?;
    let mut hash = Sha256::new();
    hash.update(b"keyfold content 1\0");
    for (name, raw) in &members {
        if TIMES.contains(&name.as_str()) {
            continue;
        }
        for part in [name.as_bytes(), raw.get().as_bytes()] {
            add(&mut hash, part);
        }
    }
    Ok(hash.finalize().into())
}

/// What an idempotency key is made of.
#[derive(Clone, Copy, Debug)]
pub struct Keyed<'a> {
    /// Whose call it is.
    pub export_id: Uuid,
    /// The resource's path.
    pub resource: &'a str,
    /// What is sent.
    pub record_id: Uuid,
    /// The content's digest, if another content is another call.
    pub content: Option<[u8; 32]>,
    /// Earlier calls that the receiver took.
    pub successes: i64,
}

impl Keyed<'_> {
    /// The key: the same until the receiver has taken the call.
    #[must_use]
    pub fn key(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(b"keyfold export key 1\0");
        hash.update(self.export_id.as_bytes());
        add(&mut hash, self.resource.as_bytes());
        hash.update(self.record_id.as_bytes());
        add(
            &mut hash,
            self.content.as_ref().map_or(&[], |content| content),
        );
        hash.update(self.successes.to_be_bytes());
        format!("kfx_{}", URL_SAFE_NO_PAD.encode(hash.finalize()))
    }
}

/// Adds a part of any length, so that two lists of parts never look the same.
fn add(hash: &mut Sha256, part: &[u8]) {
    let length = u64::try_from(part.len()).unwrap_or(u64::MAX);
    hash.update(length.to_be_bytes());
    hash.update(part);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_and_times_are_no_content() {
        let one = r#"{"id":"1","total":"1.00","version":1,"updated_at":"a","created_at":"a"}"#;
        let other =
            r#"{"total":"1.00","id":"1","version":2,"updated_at":"b","source_updated_at":"c"}"#;
        let third = r#"{"total":"1.01","id":"1"}"#;
        assert_eq!(digest(one).unwrap(), digest(other).unwrap());
        assert_ne!(digest(one).unwrap(), digest(third).unwrap());
        let nested = |version| format!(r#"{{"customer":{{"version":{version}}}}}"#);
        assert_ne!(digest(&nested(1)).unwrap(), digest(&nested(2)).unwrap());
        assert!(digest("[]").is_err());
    }

    #[test]
    fn a_key_changes_with_each_of_its_parts() {
        let first = Keyed {
            export_id: Uuid::from_u128(1),
            resource: "orders",
            record_id: Uuid::from_u128(2),
            content: None,
            successes: 0,
        };
        let others = [
            Keyed {
                export_id: Uuid::from_u128(3),
                ..first
            },
            Keyed {
                resource: "customers",
                ..first
            },
            Keyed {
                record_id: Uuid::from_u128(3),
                ..first
            },
            Keyed {
                content: Some([0; 32]),
                ..first
            },
            Keyed {
                successes: 1,
                ..first
            },
        ];
        // Stored and sent: it must never change.
        assert_eq!(first.key().len(), 47);
        for other in others {
            assert_ne!(other.key(), first.key());
        }
        assert_eq!(first.key(), first.clone().key());
    }
}
