//! The one error type that reaches a client, its table of codes, and its `application/problem+json`
//! form (RFC 9457).
//!
//! What went wrong inside is logged once, at the edge; the client gets a fixed sentence and the
//! request id that finds the log line.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

use crate::values::{Faults, JsonError};

/// The media type of a problem document.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// A failure on our side of the wall: never shown, always logged.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Everything that can be answered instead of a result.
#[derive(Debug, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "each variant's message, and the table below, say it"
)]
pub enum Error {
    #[error("no such route")]
    RouteNotFound,
    #[error("method not allowed")]
    MethodNotAllowed,
    #[error("no valid API key")]
    Unauthorized,
    #[error("store unknown or paused")]
    StoreNotFound,
    #[error("key may not use this store")]
    StoreForbidden,
    #[error("record not found")]
    NotFound,
    #[error("rate limited")]
    RateLimited {
        /// Whole seconds until a request would be let through, at least 1.
        retry_after_s: u64,
    },
    #[error("overloaded")]
    Overloaded,
    #[error("database unavailable: {0}")]
    DatabaseUnavailable(Cause),
    #[error("outcome unknown: {0}")]
    OutcomeUnknown(Cause),
    #[error("outcome of a send unknown: {0}")]
    SendUnknown(Cause),
    #[error("unsupported media type")]
    UnsupportedMediaType {
        /// The types that this route takes.
        supported: &'static str,
    },
    #[error("unsupported content encoding")]
    UnsupportedContentEncoding,
    #[error("body larger than {limit_bytes} bytes")]
    BodyTooLarge {
        /// The limit that was passed, in decoded bytes.
        limit_bytes: usize,
    },
    #[error("target too long")]
    TargetTooLong,
    #[error("header block too large")]
    HeadersTooLarge,
    /// Not exactly one valid `Host` (RFC 9112, section 3.2).
    #[error("the host is invalid")]
    HostInvalid,
    #[error("no byte of the body arrived in time")]
    RequestTimeout,
    #[error("body could not be read: {0}")]
    BodyUnreadable(Cause),
    #[error(transparent)]
    Json(#[from] JsonError),
    #[error("path can't be decoded")]
    PathInvalid,
    #[error("query refused")]
    QueryInvalid(Faults),
    #[error("preconditions on bulk")]
    PreconditionOnBulk,
    #[error("cursor refused")]
    CursorInvalid,
    #[error("cursor expired")]
    CursorExpired {
        /// The oldest position from which reading can go on without a gap.
        oldest_after: i64,
    },
    #[error("fields refused")]
    Invalid(Faults),
    #[error("fields refused, some not mutable")]
    NotMutable(Faults),
    #[error("precondition failed")]
    PreconditionFailed,
    #[error("Idempotency-Key refused")]
    IdempotencyKeyInvalid,
    #[error("Idempotency-Key used with another body")]
    IdempotencyKeyMismatch,
    #[error("Idempotency-Key in use")]
    IdempotencyKeyInUse,
    #[error("template not found")]
    TemplateNotFound,
    #[error("outside the service window")]
    OutsideServiceWindow,
    #[error("contact opted out")]
    ContactOptedOut,
    #[error("the store's channel is no sandbox")]
    ChannelNotSandbox,
    #[error("templates come from the provider")]
    TemplatesFromProvider,
    #[error("automation paused")]
    AutomationPaused,
    #[error("export paused")]
    ExportPaused,
    #[error("another run of the export is running")]
    ExportRunning,
    #[error("no key to store secrets under")]
    SecretKeyMissing,
    #[error("signature of an event refused")]
    SignatureInvalid,
    #[error("verification of the webhook refused")]
    VerificationRefused,
    #[error("value refused by the database: {0}")]
    ValueRefused(Cause),
    #[error("internal: {0}")]
    Internal(Cause),
    /// One failure that is the answer to several writes.
    #[error(transparent)]
    Shared(Arc<Error>),
}

/// What the table below says of an error.
struct Entry {
    status: StatusCode,
    code: &'static str,
    title: &'static str,
    detail: String,
}

impl Error {
    /// Wraps a failure that is ours.
    pub fn internal(cause: impl Into<Cause>) -> Self {
        Self::Internal(cause.into())
    }

    /// The table: status, code (never renamed), title and the sentence for the client.
    fn entry(&self) -> Entry {
        use StatusCode as S;
        let fixed = |status, code, title, detail: &str| Entry {
            status,
            code,
            title,
            detail: detail.to_owned(),
        };
        match self {
            Self::RouteNotFound => fixed(
                S::NOT_FOUND,
                "route_not_found",
                "Unknown path",
                "There is nothing at this path; the reference is at /docs.",
            ),
            Self::MethodNotAllowed => fixed(
                S::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "Method not allowed",
                "This path does not take this method; Allow names those it takes.",
            ),
            Self::Unauthorized => fixed(
                S::UNAUTHORIZED,
                "unauthorized",
                "No valid API key",
                "Send a valid API key as `Authorization: Bearer <key>`.",
            ),
            Self::StoreNotFound => fixed(
                S::NOT_FOUND,
                "store_not_found",
                "Store not found",
                "There is no active store with this id.",
            ),
            Self::StoreForbidden => fixed(
                S::FORBIDDEN,
                "store_forbidden",
                "Store not allowed",
                "This API key may not use this store.",
            ),
            Self::NotFound => fixed(
                S::NOT_FOUND,
                "not_found",
                "Record not found",
                "The store has no such record.",
            ),
            Self::RateLimited { retry_after_s } => Entry {
                status: S::TOO_MANY_REQUESTS,
                code: "rate_limited",
                title: "Too many requests",
                detail: format!(
                    "The store's rate limit is used up; try again in {retry_after_s} s."
                ),
            },
            Self::Overloaded => fixed(
                S::SERVICE_UNAVAILABLE,
                "overloaded",
                "Overloaded",
                "The server has more work than it can do; nothing was done, try again.",
            ),
            Self::DatabaseUnavailable(_) => fixed(
                S::SERVICE_UNAVAILABLE,
                "database_unavailable",
                "Database unavailable",
                "The database can't be reached; nothing was done, try again.",
            ),
            Self::OutcomeUnknown(_) => fixed(
                S::SERVICE_UNAVAILABLE,
                "outcome_unknown",
                "Outcome unknown",
                "The connection to the database was lost while saving: the write may have been \
                 stored. Repeating the same request is safe.",
            ),
            Self::SendUnknown(_) => fixed(
                S::SERVICE_UNAVAILABLE,
                "outcome_unknown",
                "Outcome unknown",
                "The connection to the database was lost while accepting the message: it may be \
                 queued. Look it up under GET /api/v1/messages before it is sent again; with an \
                 Idempotency-Key repeating would be safe.",
            ),
            Self::UnsupportedMediaType { supported } => Entry {
                status: S::UNSUPPORTED_MEDIA_TYPE,
                code: "unsupported_media_type",
                title: "Unsupported media type",
                detail: format!("Send the body as {supported}, in UTF-8."),
            },
            Self::UnsupportedContentEncoding => fixed(
                S::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_content_encoding",
                "Unsupported content encoding",
                "Send the body plain or with `Content-Encoding: gzip`.",
            ),
            Self::BodyTooLarge { limit_bytes } => Entry {
                status: S::PAYLOAD_TOO_LARGE,
                code: "body_too_large",
                title: "Body too large",
                detail: format!("At most {limit_bytes} bytes (decoded) are taken here."),
            },
            Self::TargetTooLong => fixed(
                S::URI_TOO_LONG,
                "target_too_long",
                "Request target too long",
                "Path and query may have 8192 bytes together.",
            ),
            Self::HostInvalid => fixed(
                S::BAD_REQUEST,
                "host_invalid",
                "Host invalid",
                "Send exactly one `Host` header, with a host and perhaps a port.",
            ),
            Self::HeadersTooLarge => fixed(
                S::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "headers_too_large",
                "Header block too large",
                "All headers together may have 16384 bytes.",
            ),
            Self::RequestTimeout => fixed(
                S::REQUEST_TIMEOUT,
                "request_timeout",
                "Request timeout",
                "The body stopped arriving; nothing was done.",
            ),
            Self::BodyUnreadable(_) => fixed(
                S::BAD_REQUEST,
                "body_unreadable",
                "Body unreadable",
                "The body ended early or its encoding is broken.",
            ),
            Self::Json(error) => Entry {
                status: S::BAD_REQUEST,
                code: error.code(),
                title: "Malformed JSON",
                detail: error.to_string(),
            },
            Self::PathInvalid => fixed(
                S::BAD_REQUEST,
                "path_invalid",
                "Malformed path",
                "The path has a broken percent-escape or one that is not UTF-8.",
            ),
            Self::QueryInvalid(_) => fixed(
                S::BAD_REQUEST,
                "query_invalid",
                "Malformed query",
                "Some query parameters are not accepted; see `errors`.",
            ),
            Self::PreconditionOnBulk => fixed(
                S::BAD_REQUEST,
                "precondition_not_supported",
                "Preconditions not supported",
                "If-Match and If-None-Match have no meaning for a bulk request.",
            ),
            Self::CursorInvalid => fixed(
                S::BAD_REQUEST,
                "cursor_invalid",
                "Invalid cursor",
                "The cursor was altered or belongs to another list; start without one.",
            ),
            Self::CursorExpired { oldest_after } => Entry {
                status: S::GONE,
                code: "cursor_expired",
                title: "Cursor expired",
                detail: format!(
                    "Events after this position have been deleted; read the records again, then \
                     go on with after={oldest_after}."
                ),
            },
            Self::Invalid(_) => fixed(
                S::UNPROCESSABLE_ENTITY,
                "validation_failed",
                "Validation failed",
                "Some fields are not accepted; see `errors`.",
            ),
            Self::NotMutable(_) => fixed(
                S::UNPROCESSABLE_ENTITY,
                "field_not_mutable",
                "Field not mutable",
                "Some fields can't be changed by PATCH; see `errors`.",
            ),
            Self::PreconditionFailed => fixed(
                S::PRECONDITION_FAILED,
                "precondition_failed",
                "Precondition failed",
                "The record is not in the state that If-Match or If-None-Match asks for.",
            ),
            Self::IdempotencyKeyInvalid => fixed(
                S::BAD_REQUEST,
                "idempotency_key_invalid",
                "Invalid Idempotency-Key",
                "Send one Idempotency-Key of 1 to 255 visible ASCII characters, or none.",
            ),
            Self::IdempotencyKeyMismatch => fixed(
                S::CONFLICT,
                "idempotency_key_mismatch",
                "Idempotency-Key used before",
                "This key was sent before with another body; nothing was sent. Use a new key for a \
                 new message.",
            ),
            Self::IdempotencyKeyInUse => fixed(
                S::CONFLICT,
                "idempotency_key_in_use",
                "Idempotency-Key in use",
                "A request with this key is still under way; try again to get its answer.",
            ),
            Self::TemplateNotFound => fixed(
                S::NOT_FOUND,
                "template_not_found",
                "Template not found",
                "The store has no template with this id that can be sent.",
            ),
            Self::OutsideServiceWindow => fixed(
                S::UNPROCESSABLE_ENTITY,
                "outside_service_window",
                "Outside the service window",
                "The contact has not written in the last 24 hours; only a template can be sent.",
            ),
            Self::ContactOptedOut => fixed(
                S::UNPROCESSABLE_ENTITY,
                "contact_opted_out",
                "Contact opted out",
                "The contact does not want to get messages.",
            ),
            Self::ChannelNotSandbox => fixed(
                S::CONFLICT,
                "channel_not_sandbox",
                "Not a sandbox",
                "The store's channel is a real one; this is for the sandbox alone.",
            ),
            Self::AutomationPaused => fixed(
                S::CONFLICT,
                "automation_paused",
                "Automation paused",
                "The automation is paused: nothing is triggered.",
            ),
            Self::ExportPaused => fixed(
                S::CONFLICT,
                "export_paused",
                "Export paused",
                "The export is paused: nothing is sent.",
            ),
            Self::ExportRunning => fixed(
                S::CONFLICT,
                "export_running",
                "Export running",
                "Another run of this export is running; wait for its end.",
            ),
            Self::SecretKeyMissing => fixed(
                S::CONFLICT,
                "secret_key_missing",
                "No key for secrets",
                "Secrets are stored only under KEYFOLD_SECRET_KEY, which the operator has not set.",
            ),
            Self::TemplatesFromProvider => fixed(
                S::CONFLICT,
                "templates_from_provider",
                "Templates come from the provider",
                "Change the template at the provider, then run `keyfold template sync`.",
            ),
            Self::SignatureInvalid => fixed(
                S::UNAUTHORIZED,
                "signature_invalid",
                "Invalid signature",
                "X-Hub-Signature-256 is missing or does not fit the body.",
            ),
            Self::VerificationRefused => fixed(
                S::FORBIDDEN,
                "verification_refused",
                "Verification refused",
                "hub.mode must be `subscribe` and hub.verify_token the configured one.",
            ),
            Self::ValueRefused(_) => fixed(
                S::UNPROCESSABLE_ENTITY,
                "value_refused",
                "Value refused",
                "The database can't hold a value of this record.",
            ),
            Self::Shared(error) => error.entry(),
            Self::Internal(_) => fixed(
                S::INTERNAL_SERVER_ERROR,
                "internal",
                "Internal error",
                "Something went wrong on our side; the request id finds it in the log.",
            ),
        }
    }

    /// The HTTP status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.entry().status
    }

    /// The stable, snake_case code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.entry().code
    }

    /// The sentence for the client.
    #[must_use]
    pub fn detail(&self) -> String {
        self.entry().detail
    }

    /// The faulty fields, where the error is about fields.
    #[must_use]
    pub fn faults(&self) -> Option<&Faults> {
        match self {
            Self::Invalid(faults) | Self::NotMutable(faults) | Self::QueryInvalid(faults) => {
                Some(faults)
            }
            Self::Shared(error) => error.faults(),
            _ => None,
        }
    }

    /// The error itself, where several writes share it.
    #[must_use]
    pub fn itself(&self) -> &Self {
        match self {
            Self::Shared(error) => error.itself(),
            error => error,
        }
    }

    /// Whether the database was away, or did not answer.
    #[must_use]
    pub fn is_of_the_database(&self) -> bool {
        matches!(
            self.itself(),
            Self::DatabaseUnavailable(_) | Self::OutcomeUnknown(_)
        )
    }

    /// Whole seconds after which to try again, where that makes sense.
    fn retry_after_s(&self) -> Option<u64> {
        match self {
            Self::RateLimited { retry_after_s } => Some((*retry_after_s).max(1)),
            Self::Overloaded | Self::IdempotencyKeyInUse => Some(1),
            Self::DatabaseUnavailable(_) | Self::OutcomeUnknown(_) | Self::SendUnknown(_) => {
                Some(2)
            }
            Self::Shared(error) => error.retry_after_s(),
            _ => None,
        }
    }

    /// The problem document, under the id of its request.
    #[must_use]
    pub fn problem_body(&self, request_id: &str) -> Vec<u8> {
        let entry = self.entry();
        let body = Problem {
            r#type: format!("urn:keyfold:problem:{}", entry.code),
            title: entry.title,
            status: entry.status.as_u16(),
            detail: &entry.detail,
            code: entry.code,
            request_id,
            errors: self.faults().map(Faults::as_map),
        };
        // Plain strings and numbers always serialise.
        serde_json::to_vec(&body).unwrap_or_default()
    }

    /// The whole answer for a client, under the id of its request.
    #[must_use]
    pub fn problem(&self, request_id: &str) -> Response {
        let entry = self.entry();
        let json = self.problem_body(request_id);
        let mut response = (entry.status, json).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        if let Some(seconds) = self.retry_after_s() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if entry.status == StatusCode::UNAUTHORIZED {
            headers.insert(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static("Bearer realm=\"keyfold\""),
            );
        }
        response
    }
}

#[derive(Serialize)]
struct Problem<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    code: &'a str,
    request_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    errors: Option<&'a BTreeMap<String, Vec<String>>>,
}

/// The error of a response on its way out; the edge turns it into the problem body, since only the
/// edge knows the request id.
#[derive(Clone)]
pub struct Failed(pub Arc<Error>);

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let mut response = self.status().into_response();
        response.extensions_mut().insert(Failed(Arc::new(self)));
        response
    }
}
