//! Signatures of calls, by Standard Webhooks (standardwebhooks.com): `v1`, HMAC-SHA256 over id,
//! time and body.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, Utc};
use ring::hmac;

use crate::config::Secret;
use crate::values::{Checked, Faults, Node, Value};

const PREFIX: &str = "whsec_";
/// Bytes of a secret that is made here.
const MADE_BYTES: usize = 32;

/// A new secret.
#[must_use]
pub fn new_secret() -> String {
    let bytes: [u8; MADE_BYTES] = rand::random();
    format!("{PREFIX}{}", STANDARD.encode(bytes))
}

/// Reads a secret from a body.
///
/// # Errors
/// Anything but `whsec_` and the base64 of 24 to 64 bytes.
pub fn read_secret(node: &Node<'_>) -> Checked<Secret> {
    let Value::String(text) = &node.value else {
        return Err(Faults::one("must be a string"));
    };
    if Signer::of(text).is_some() {
        Ok(Secret::new(text))
    } else {
        Err(Faults::one(
            "must be whsec_ and the base64 of 24 to 64 bytes",
        ))
    }
}

/// Signs calls under one secret.
#[derive(Clone)]
pub struct Signer(hmac::Key);

impl Signer {
    /// A signer under a secret that was read or made here.
    #[must_use]
    pub fn of(secret: &str) -> Option<Self> {
        let bytes = STANDARD.decode(secret.strip_prefix(PREFIX)?).ok()?;
        let fits = (24..=64).contains(&bytes.len());
        fits.then(|| Self(hmac::Key::new(hmac::HMAC_SHA256, &bytes)))
    }

    /// The same for a secret that was sealed.
    #[must_use]
    pub fn of_sealed(secret: &Secret) -> Option<Self> {
        Self::of(secret.expose())
    }

    /// `webhook-signature` of a call.
    #[must_use]
    pub fn sign(&self, id: &str, at: DateTime<Utc>, body: &[u8]) -> String {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(id.as_bytes());
        context.update(format!(".{}.", at.timestamp()).as_bytes());
        context.update(body);
        format!("v1,{}", STANDARD.encode(context.sign()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_the_one_of_the_standards_example() {
        // From the reference implementations' own tests.
        let signer = Signer::of("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let at = DateTime::from_timestamp(1_614_265_330, 0).unwrap();
        let signature = signer.sign(
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            at,
            br#"{"test": 2432232314}"#,
        );
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn a_secret_has_its_prefix_and_its_length() {
        assert!(Signer::of(&new_secret()).is_some());
        let of = |bytes: usize| format!("{PREFIX}{}", STANDARD.encode(vec![1; bytes]));
        for bytes in [24, 64] {
            assert!(Signer::of(&of(bytes)).is_some());
        }
        for secret in [
            of(23),
            of(65),
            of(32).replace(PREFIX, ""),
            "whsec_é".to_owned(),
        ] {
            assert!(Signer::of(&secret).is_none(), "{secret}");
        }
    }
}
