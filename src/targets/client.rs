//! The client for what the guard lets pass.

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use http::{HeaderMap, Method, StatusCode, header};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::Url;

use super::{Guard, NoTurn, Refused};

/// Connections that rest longer are closed.
const IDLE: Duration = Duration::from_secs(30);
/// Resting connections of one host.
const MOST_IDLE: usize = 16;
/// Bytes of an answer that are taken and dropped, so that the connection can be used again.
const MOST_DRAINED_BYTES: usize = 64 * 1_024;

tokio::task_local! {
    /// The store that a call is made for: the resolver is told of the name alone.
    static CALLER: i64;
}

/// A request.
#[derive(Clone, Debug)]
pub struct Call {
    /// The method.
    pub method: Method,
    /// Where to; judged again with each call.
    pub url: Url,
    /// What is sent besides `host`, `content-length`, `accept` and `user-agent`.
    pub headers: HeaderMap,
    /// May be empty.
    pub body: Bytes,
}

/// What is kept of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// As sent: a redirect is an answer like any other.
    pub status: StatusCode,
    /// When to come again, if the receiver said so.
    pub retry_after: Option<RetryAfter>,
}

/// `Retry-After` (RFC 9110, section 10.2.3), whatever it says: a bound is the caller's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryAfter {
    /// So long after the answer; whole seconds.
    After(Duration),
    /// Then, by the receiver's clock.
    At(DateTime<Utc>),
}

impl RetryAfter {
    /// Reads seconds, or a date in one of HTTP's three forms; none of anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            let seconds = text.parse().ok()?;
            return Some(Self::After(Duration::from_secs(seconds)));
        }
        let date = httpdate::parse_http_date(text).ok()?;
        Some(Self::At(date.into()))
    }
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The address must not be called.
    #[error("the address {0}")]
    Refused(#[from] Refused),
    /// Nothing was tried: too many names are being looked up.
    #[error("too many names are being looked up")]
    NoTurn,
    /// Nothing was sent: the name was not found, or no connection could be made.
    #[error("no connection to the receiver could be made")]
    NotSent,
    /// No answer in time; the receiver may have the request.
    #[error("the receiver did not answer in time")]
    TimedOut,
    /// The connection broke, or what came was no answer; the receiver may have the request.
    #[error("the connection broke before the answer was there")]
    Lost,
}

impl CallError {
    /// A stable name.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Refused(_) => "address_refused",
            Self::NoTurn => "no_turn",
            Self::NotSent => "not_connected",
            Self::TimedOut => "timed_out",
            Self::Lost => "connection_lost",
        }
    }
}

/// Calls what the guard lets pass. Cheap to clone; all clones share their connections.
#[derive(Clone)]
pub struct Client {
    guard: Guard,
    http: reqwest::Client,
}

impl Guard {
    /// A client that this guard stands before.
    ///
    /// # Errors
    /// When TLS can't be set up.
    pub fn client(&self) -> Result<Client, Box<dyn Error + Send + Sync>> {
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(crate::tls::client_config()?)
            .dns_resolver(Resolver(self.clone()))
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .http1_only()
            .connect_timeout(self.times.connect)
            .timeout(self.times.call)
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(MOST_IDLE)
            .user_agent(concat!("keyfold/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Client {
            guard: self.clone(),
            http,
        })
    }
}

impl Client {
    /// Makes a call for a store, once. It takes no longer than the time for a whole call, however
    /// slowly the answer comes.
    ///
    /// # Errors
    /// When there is no answer: whether the receiver can have the request is told by which.
    pub async fn call(&self, store_id: i64, call: Call) -> Result<Answer, CallError> {
        self.guard.check(&call.url)?;
        let mut request = reqwest::Request::new(call.method, call.url);
        *request.headers_mut() = call.headers;
        *request.body_mut() = Some(call.body.into());
        let sent = CALLER.scope(store_id, self.http.execute(request)).await;
        let response = sent.map_err(|error| failed(&error))?;
        let answer = Answer {
            status: response.status(),
            retry_after: retry_after(response.headers()),
        };
        // A connection that has to be made anew is cheaper than a place for calls that is held.
        let _ = tokio::time::timeout(self.guard.times.drain, drain(response)).await;
        Ok(answer)
    }
}

fn retry_after(headers: &HeaderMap) -> Option<RetryAfter> {
    RetryAfter::parse(headers.get(header::RETRY_AFTER)?.to_str().ok()?)
}

/// What a failed request means.
fn failed(error: &reqwest::Error) -> CallError {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(inner) = cause {
        if let Some(refused) = inner.downcast_ref::<Refused>() {
            return CallError::Refused(*refused);
        }
        if inner.is::<NoTurn>() {
            return CallError::NoTurn;
        }
        cause = inner.source();
    }
    if error.is_connect() || error.is_builder() {
        CallError::NotSent
    } else if error.is_timeout() {
        CallError::TimedOut
    } else {
        CallError::Lost
    }
}

/// Takes the rest of an answer, so that the connection can be used again. The status has been told:
/// nothing that happens here changes it.
async fn drain(mut response: reqwest::Response) {
    let mut left = MOST_DRAINED_BYTES;
    while let Ok(Some(chunk)) = response.chunk().await {
        match left.checked_sub(chunk.len()) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}

/// Hands the client only what it may connect to. An address that is written in a URL never comes
/// here.
struct Resolver(Guard);

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = self.0.clone();
        // Asked for where the call is made, even if another one should use the connection.
        let store_id = CALLER.try_with(|store_id| *store_id).unwrap_or_default();
        Box::pin(async move {
            let found = guard.resolve(store_id, name.as_str().to_owned()).await?;
            // Port 0 stands for that of the URL.
            let found = found.into_iter().map(|address| SocketAddr::new(address, 0));
            Ok(Box::new(found) as Addrs)
        })
    }
}
