//! Secrets at rest: sealed with AES-256-GCM under `KEYFOLD_SECRET_KEY`.
//!
//! What is stored is a version byte, four bytes that tell which key it was (so that a wrong one is
//! told from damage), a random nonce, and the ciphertext with its tag. The place where a secret
//! belongs is part of what is authenticated: a token copied to another store does not open there.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use sha2::{Digest as _, Sha256};

use crate::config::{Secret, SecretKey};

const VERSION: u8 = 1;
const KEY_ID_BYTES: usize = 4;

/// Why a secret could not be sealed or opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// There is no key.
    #[error(
        "KEYFOLD_SECRET_KEY is not set: secrets are stored only under it (make one with \
         `openssl rand -base64 32`)"
    )]
    NoKey,
    /// It was sealed under another key.
    #[error("the secret was sealed under another KEYFOLD_SECRET_KEY")]
    OtherKey,
    /// It was altered, or belongs elsewhere.
    #[error("the secret can't be opened: it was altered or belongs elsewhere")]
    Broken,
}

/// Seals a secret for one place, for example `channel 7`.
///
/// # Errors
/// When there is no key.
pub fn seal(key: Option<&SecretKey>, place: &str, secret: &str) -> Result<Vec<u8>, SecretError> {
    let key = key.ok_or(SecretError::NoKey)?;
    let nonce: [u8; NONCE_LEN] = rand::random();
    let mut sealed = secret.as_bytes().to_vec();
    cipher(key)?
        .seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(place),
            &mut sealed,
        )
        .map_err(|_| SecretError::Broken)?;
    let mut stored = vec![VERSION];
    stored.extend(key_id(key));
    stored.extend(nonce);
    stored.append(&mut sealed);
    Ok(stored)
}

/// Opens a secret in the place that it was sealed for.
///
/// # Errors
/// Without the right key, or when it was altered.
pub fn open(key: Option<&SecretKey>, place: &str, stored: &[u8]) -> Result<Secret, SecretError> {
    let key = key.ok_or(SecretError::NoKey)?;
    let (head, rest) = stored
        .split_at_checked(1 + KEY_ID_BYTES)
        .ok_or(SecretError::Broken)?;
    let (nonce, sealed) = rest
        .split_at_checked(NONCE_LEN)
        .ok_or(SecretError::Broken)?;
    if head[0] != VERSION {
        return Err(SecretError::Broken);
    }
    if head[1..] != key_id(key) {
        return Err(SecretError::OtherKey);
    }
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SecretError::Broken)?;
    let mut sealed = sealed.to_vec();
    let secret = cipher(key)?
        .open_in_place(nonce, Aad::from(place), &mut sealed)
        .map_err(|_| SecretError::Broken)?;
    let text = std::str::from_utf8(secret).map_err(|_| SecretError::Broken)?;
    Ok(Secret::new(text))
}

fn cipher(key: &SecretKey) -> Result<LessSafeKey, SecretError> {
    let key = UnboundKey::new(&AES_256_GCM, key.expose()).map_err(|_| SecretError::Broken)?;
    Ok(LessSafeKey::new(key))
}

/// Names a key without telling anything of it.
fn key_id(key: &SecretKey) -> [u8; KEY_ID_BYTES] {
    let mut hash = Sha256::new();
    hash.update(b"keyfold secret key id\0");
    hash.update(key.expose());
    let digest: [u8; 32] = hash.finalize().into();
    let mut id = [0; KEY_ID_BYTES];
    id.copy_from_slice(&digest[..KEY_ID_BYTES]);
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> SecretKey {
        use base64::Engine as _;
        let text = base64::engine::general_purpose::STANDARD.encode([byte; 32]);
        SecretKey::parse(&text).expect("32 bytes")
    }

    #[test]
    fn a_sealed_secret_opens_only_in_its_place_and_under_its_key() {
        let stored = seal(Some(&key(1)), "channel 7", "EAAG-token").expect("a key is there");
        let text = String::from_utf8_lossy(&stored).into_owned();
        assert!(!text.contains("EAAG"));
        let opened = open(Some(&key(1)), "channel 7", &stored).expect("the right key");
        assert_eq!(opened.expose(), "EAAG-token");
        let failed = |key: Option<&SecretKey>, place: &str, stored: &[u8]| {
            open(key, place, stored).expect_err("it must not open")
        };
        assert_eq!(
            failed(Some(&key(1)), "channel 8", &stored),
            SecretError::Broken
        );
        assert_eq!(
            failed(Some(&key(2)), "channel 7", &stored),
            SecretError::OtherKey
        );
        assert_eq!(failed(None, "channel 7", &stored), SecretError::NoKey);
        for at in 0..stored.len() {
            let mut altered = stored.clone();
            altered[at] ^= 1;
            failed(Some(&key(1)), "channel 7", &altered);
            failed(Some(&key(1)), "channel 7", &stored[..at]);
        }
    }

    #[test]
    fn the_same_secret_is_never_stored_the_same_way() {
        let once = seal(Some(&key(1)), "channel 7", "x").expect("a key is there");
        let again = seal(Some(&key(1)), "channel 7", "x").expect("a key is there");
        assert_ne!(once, again);
    }

    #[test]
    fn without_a_key_nothing_is_sealed() {
        assert_eq!(seal(None, "channel 7", "x"), Err(SecretError::NoKey));
    }
}
