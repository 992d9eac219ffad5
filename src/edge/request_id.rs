//! The id under which a request is found again, by the caller and in the log.

use std::fmt;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};
use uuid::fmt::Hyphenated;

use crate::clock::Clock;

/// The header that carries the id, both ways.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest id that a caller may choose, in bytes.
const MAX_BYTES: usize = 128;

/// A request's id: 1–128 visible ASCII characters. An extension of every request behind the edge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(Arc<str>);

impl RequestId {
    /// The caller's id if there is exactly one and it is well-formed, else a new UUIDv7.
    #[must_use]
    pub fn of(headers: &HeaderMap, clock: &Clock) -> Self {
        Self::sent(headers).unwrap_or_else(|| {
            let mut text = [0_u8; Hyphenated::LENGTH];
            Self(Arc::from(
                &*clock.new_id().hyphenated().encode_lower(&mut text),
            ))
        })
    }

    fn sent(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(REQUEST_ID).iter();
        let (value, None) = (values.next()?.as_bytes(), values.next()) else {
            return None;
        };
        let fits = (1..=MAX_BYTES).contains(&value.len());
        if !fits || !value.iter().all(u8::is_ascii_graphic) {
            return None;
        }
        std::str::from_utf8(value)
            .ok()
            .map(|text| Self(Arc::from(text)))
    }

    /// The id as it was sent or made.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id as the value of a header.
    pub(super) fn to_header(&self) -> HeaderValue {
        HeaderValue::from_str(&self.0).expect("visible ASCII is a header value")
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id_of(values: &[&[u8]]) -> String {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(
                REQUEST_ID,
                HeaderValue::from_bytes(value).expect("a header value"),
            );
        }
        RequestId::of(&headers, &Clock::system())
            .as_str()
            .to_owned()
    }

    #[test]
    fn a_well_formed_id_is_kept_and_any_other_replaced() {
        let longest = [b'~'; 128];
        for kept in [&b"!"[..], b"order-7/try:2", &longest] {
            assert_eq!(id_of(&[kept]).as_bytes(), kept);
        }
        let too_long = [b'a'; 129];
        let refused: [&[&[u8]]; 6] = [
            &[],
            &[b""],
            &[b"a b"],
            &[b"caf\xc3\xa9"],
            &[&too_long],
            &[b"one", b"two"],
        ];
        for values in refused {
            let made = uuid::Uuid::parse_str(&id_of(values)).expect("a UUID");
            assert_eq!(made.get_version_num(), 7);
        }
    }
}
