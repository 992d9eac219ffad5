//! The document as it is served: made once a process, however many ask for it.

use std::io::Write as _;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use sha2::{Digest as _, Sha256};
use tokio::sync::OnceCell;

use crate::edge::SharedBytes;
use crate::error::Error;

/// The document as YAML.
pub static YAML: Served = Served::new("application/yaml", || super::yaml().into_bytes());
/// The document as JSON.
pub static JSON: Served = Served::new("application/json", || {
    // A tree of strings and numbers always serialises.
    serde_json::to_vec(&super::document()).unwrap_or_default()
});

/// Something that is the same for everybody until the process ends.
pub struct Served {
    kind: HeaderValue,
    make: fn() -> Vec<u8>,
    made: OnceCell<Made>,
}

/// Its two forms (RFC 9110, section 8.4), each with an entity tag of its own.
struct Made {
    plain: Form,
    packed: Form,
}

struct Form {
    bytes: Bytes,
    etag: HeaderValue,
}

impl Form {
    fn of(bytes: Vec<u8>) -> Result<Self, Error> {
        let digest = Sha256::digest(&bytes);
        let number = digest.iter().take(8);
        let number = number.fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        let etag = HeaderValue::try_from(format!("\"{number:016x}\"")).map_err(Error::internal)?;
        Ok(Self {
            bytes: bytes.into(),
            etag,
        })
    }
}

impl Served {
    const fn new(kind: &'static str, make: fn() -> Vec<u8>) -> Self {
        Self {
            kind: HeaderValue::from_static(kind),
            make,
            made: OnceCell::const_new(),
        }
    }

    /// Makes it, on a thread that no request waits for, unless it is made.
    async fn made(&'static self) -> Result<&'static Made, Error> {
        let make = || async {
            let making = tokio::task::spawn_blocking(|| {
                let plain = (self.make)();
                let mut packed = GzEncoder::new(Vec::new(), Compression::best());
                packed.write_all(&plain).map_err(Error::internal)?;
                let packed = packed.finish().map_err(Error::internal)?;
                Ok(Made {
                    plain: Form::of(plain)?,
                    packed: Form::of(packed)?,
                })
            });
            making.await.map_err(Error::internal)?
        };
        self.made.get_or_try_init(make).await
    }

    /// The answer to a GET with these headers.
    ///
    /// # Errors
    /// When it could not be made.
    pub async fn answer(&'static self, request: &HeaderMap) -> Result<Response, Error> {
        let made = self.made().await?;
        let takes_gzip = takes_gzip(request);
        let form = if takes_gzip {
            &made.packed
        } else {
            &made.plain
        };
        let is_known = tags(request).any(|tag| tag == form.etag || tag == "*");
        let mut response = if is_known {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            Body::from(form.bytes.clone()).into_response()
        };
        response.extensions_mut().insert(SharedBytes);
        let headers = response.headers_mut();
        headers.insert(header::ETAG, form.etag.clone());
        headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        if !is_known {
            headers.insert(header::CONTENT_TYPE, self.kind.clone());
            if takes_gzip {
                let gzip = HeaderValue::from_static("gzip");
                headers.insert(header::CONTENT_ENCODING, gzip);
            }
        }
        Ok(response)
    }
}

/// The elements of a header that is a list.
fn list(request: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let values = request.get_all(name).into_iter();
    let texts = values.filter_map(|value| value.to_str().ok());
    texts.flat_map(|text| text.split(',').map(str::trim))
}

/// The entity tags of `If-None-Match`, compared weakly (RFC 9110, section 13.1.2).
fn tags(request: &HeaderMap) -> impl Iterator<Item = &str> {
    let tags = list(request, header::IF_NONE_MATCH);
    tags.map(|tag| tag.strip_prefix("W/").unwrap_or(tag))
}

/// Whether `Accept-Encoding` takes gzip (RFC 9110, section 12.5.3).
fn takes_gzip(request: &HeaderMap) -> bool {
    list(request, header::ACCEPT_ENCODING).any(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, "q=1"));
        let weight = weight.trim().strip_prefix("q=").unwrap_or("1");
        let is_refused = weight.trim().parse() == Ok(0.0_f32);
        name.trim().eq_ignore_ascii_case("gzip") && !is_refused
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_taken_where_it_is_named_and_not_refused() {
        let takes = |accepted: &'static str| {
            let mut headers = HeaderMap::new();
            let accepted = HeaderValue::from_static(accepted);
            headers.insert(header::ACCEPT_ENCODING, accepted);
            takes_gzip(&headers)
        };
        for accepted in ["gzip", "br, GZIP", "deflate, gzip;q=0.5", "gzip ; q=1"] {
            assert!(takes(accepted), "{accepted}");
        }
        for accepted in ["", "br", "gzip;q=0", "gzip; q=0.000", "identity, x-gzip"] {
            assert!(!takes(accepted), "{accepted}");
        }
        assert!(!takes_gzip(&HeaderMap::new()));
    }
}
