//! The bytes of an answer, from when it is made until the client has taken it.
//!
//! A client that asks for large pages and does not read would otherwise fill the memory: each answer
//! is whole before its first byte is sent.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};

use super::pot::{Holder, Portion, Pot, SMALL_BYTES};
use crate::error::Error;

/// Handed to hyper at a time: it takes the next part when the client has taken most of this one.
const PART_BYTES: usize = SMALL_BYTES;

/// An extension of answers whose bytes are there anyway, for all clients together.
#[derive(Clone, Copy)]
pub struct SharedBytes;

/// Counts a large answer until it is sent, on the account that its extension [`Holder`] names.
pub(super) fn counted(response: Response, answers: &Pot) -> Result<Response, Error> {
    let bytes = response.body().size_hint().exact().unwrap_or(0);
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    let extensions = response.extensions();
    if bytes <= SMALL_BYTES || extensions.get::<SharedBytes>().is_some() {
        return Ok(response);
    }
    let holder = extensions.get().copied().unwrap_or(Holder::Nobody);
    let held = answers.take(holder, bytes)?;
    Ok(response.map(|body| {
        Body::new(Counted {
            body,
            rest: Bytes::new(),
            _held: held,
        })
    }))
}

/// A body in parts.
struct Counted {
    body: Body,
    /// Of the last frame.
    rest: Bytes,
    _held: Portion,
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        if this.rest.is_empty() {
            let Some(frame) = ready!(Pin::new(&mut this.body).poll_frame(cx)?) else {
                return Poll::Ready(None);
            };
            match frame.into_data() {
                Ok(data) => this.rest = data,
                Err(other) => return Poll::Ready(Some(Ok(other))),
            }
        }
        let part = this.rest.len().min(PART_BYTES);
        Poll::Ready(Some(Ok(Frame::data(this.rest.split_to(part)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.len() as u64;
        let mut hint = self.body.size_hint();
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(hint.lower() + rest);
        hint
    }
}
