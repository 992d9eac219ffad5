//! Reading a body as a whole or as a stream, decoded and within bounds.
//!
//! The order of the checks is the contract's: encoding (415), size (413), what arrives (400, 408).

use std::error::Error as StdError;
use std::io;
use std::ops::Deref;
use std::time::Duration;

use async_compression::tokio::bufread::GzipDecoder;
use axum::body::{Body, HttpBody};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt};
use http::{HeaderMap, HeaderValue, header};
use tokio_util::io::{ReaderStream, StreamReader};

use super::arriving::Cut;
use crate::edge::pot::Portion;
use crate::error::Error;

/// The smallest piece by which a body's memory grows, in bytes.
const STEP_BYTES: usize = 16 * 1024;

/// A body in memory, which counts until it is dropped.
pub struct WholeBody {
    bytes: Vec<u8>,
    held: Portion,
}

impl WholeBody {
    /// What it takes, for what is made of it.
    #[must_use]
    pub fn into_held(self) -> Portion {
        self.held
    }
}

impl Deref for WholeBody {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Reads a body of at most `limit_bytes`, counted after decoding, on the account of a portion that is
/// empty so far.
///
/// # Errors
/// `UnsupportedContentEncoding`, `BodyTooLarge`, `Overloaded` when too much is held already,
/// `RequestTimeout`, `BodyUnreadable`.
pub async fn read_whole(
    body: Body,
    headers: &HeaderMap,
    limit_bytes: usize,
    held: Portion,
    within: Duration,
) -> Result<WholeBody, Error> {
    let encoding = Encoding::of(headers)?;
    let sent_bytes = body.size_hint();
    let known_bytes = match encoding {
        Encoding::Identity => sent_bytes
            .exact()
            .map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
        Encoding::Gzip => None,
    };
    if known_bytes.is_some_and(|known| known > limit_bytes) {
        return Err(Error::BodyTooLarge { limit_bytes });
    }
    let mut buffer = Buffer::new(limit_bytes, known_bytes, held);
    let collect = async {
        let mut chunks = decoded(body, encoding).into_data_stream();
        while let Some(chunk) = chunks.next().await {
            buffer.append(&chunk.map_err(fault)?)?;
        }
        Ok(buffer.finish())
    };
    let collected = tokio::time::timeout(within, collect).await;
    collected.unwrap_or(Err(Error::RequestTimeout))
}

/// Reads a body of any size as chunks of at most 64 KiB, decoded.
///
/// An item's error is `RequestTimeout` or `BodyUnreadable` and the last one.
///
/// # Errors
/// `UnsupportedContentEncoding`.
pub fn stream(
    body: Body,
    headers: &HeaderMap,
) -> Result<impl Stream<Item = Result<Bytes, Error>> + Send + Unpin + use<>, Error> {
    let encoding = Encoding::of(headers)?;
    Ok(decoded(body, encoding).into_data_stream().map_err(fault))
}

/// How a body is encoded for the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Identity,
    Gzip,
}

impl Encoding {
    fn of(headers: &HeaderMap) -> Result<Self, Error> {
        let mut values = headers.get_all(header::CONTENT_ENCODING).iter();
        let (first, None) = (values.next(), values.next()) else {
            return Err(Error::UnsupportedContentEncoding);
        };
        match first.map(HeaderValue::as_bytes) {
            None => Ok(Self::Identity),
            Some(name) if name.eq_ignore_ascii_case(b"identity") => Ok(Self::Identity),
            Some(name) if name.eq_ignore_ascii_case(b"gzip") => Ok(Self::Gzip),
            Some(_) => Err(Error::UnsupportedContentEncoding),
        }
    }
}

/// The body as it was before it was encoded, in chunks of bounded size however well it was packed.
fn decoded(body: Body, encoding: Encoding) -> Body {
    if encoding == Encoding::Identity {
        return body;
    }
    let packed = StreamReader::new(body.into_data_stream().map_err(io::Error::other));
    let mut decoder = GzipDecoder::new(packed);
    // A gzip file is a series of members (RFC 1952, 2.2); without this the others are lost.
    decoder.multiple_members(true);
    Body::from_stream(ReaderStream::with_capacity(decoder, STEP_BYTES))
}

/// Why a body could not be read: its client stalled, or its bytes are no body.
fn fault(error: axum::Error) -> Error {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(&error);
    while let Some(found) = cause {
        if let Some(Cut::Stalled) = found.downcast_ref() {
            return Error::RequestTimeout;
        }
        cause = found.source();
    }
    Error::BodyUnreadable(error.into_inner())
}

/// Memory that grows with what has really arrived: a client that only announces a large body costs
/// nothing.
struct Buffer {
    bytes: Vec<u8>,
    held: Portion,
    limit_bytes: usize,
    /// What the body can have at most: its announced length, or the limit.
    most_bytes: usize,
}

impl Buffer {
    fn new(limit_bytes: usize, known: Option<usize>, held: Portion) -> Self {
        Self {
            bytes: Vec::new(),
            held,
            limit_bytes,
            most_bytes: known.unwrap_or(limit_bytes),
        }
    }

    fn append(&mut self, chunk: &[u8]) -> Result<(), Error> {
        let needed = self.bytes.len() + chunk.len();
        if needed > self.limit_bytes {
            return Err(Error::BodyTooLarge {
                limit_bytes: self.limit_bytes,
            });
        }
        let has = self.bytes.capacity();
        if needed > has {
            // Doubled, so that each byte is moved once on average.
            let grown = (2 * has).max(STEP_BYTES).min(self.most_bytes).max(needed);
            self.held.grow(grown - has)?;
            self.bytes.reserve_exact(grown - self.bytes.len());
        }
        self.bytes.extend_from_slice(chunk);
        Ok(())
    }

    fn finish(self) -> WholeBody {
        WholeBody {
            bytes: self.bytes,
            held: self.held,
        }
    }
}
