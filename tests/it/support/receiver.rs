//! A system that exports call: a real server in the test's process that can have a bad day.
//!
//! It keeps every call that it has read completely; a test's hook says of each what the caller gets
//! to see ([`Says`]).

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};

use super::meta::{Gate, Reply};
use super::meta_wire::{self, Request, Wire};

/// A call that was read completely.
#[derive(Clone, Debug)]
pub struct Call {
    /// The how manieth it is, from 0.
    pub number: usize,
    /// `POST` and so on.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// The bytes.
    pub body: Vec<u8>,
    /// How many others were being answered then.
    pub beside: usize,
}

impl Call {
    /// A header; empty when it is missing.
    pub fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map_or("", |(_, value)| value)
    }

    /// The key in the usual header.
    pub fn key(&self) -> &str {
        self.header("idempotency-key")
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    /// `external_id` of the record.
    pub fn external_id(&self) -> String {
        let id = self.json()["external_id"].as_str().map(str::to_owned);
        id.unwrap_or_default()
    }
}

/// What the caller gets to see.
#[derive(Clone, Debug)]
pub enum Says {
    /// An empty answer of this status.
    Status(u16),
    /// The same with one more header.
    With(u16, &'static str, String),
    /// 200 after this time.
    Slowly(Duration),
    /// 200, but not before the gate is opened.
    After(Gate),
    /// The same with another status.
    Late(Gate, u16),
    /// Nothing, for as long as the caller waits.
    Nothing,
    /// The connection is reset.
    Reset,
}

type Hook = Arc<dyn Fn(&Call) -> Says + Send + Sync>;

/// The receiver. Cheap to clone: all clones are one.
#[derive(Clone)]
pub struct Receiver {
    address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    calls: Vec<Call>,
    hook: Hook,
    under_way: usize,
}

impl Receiver {
    /// One that takes every call.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("a free port");
        let receiver = Self {
            address: listener.local_addr().expect("bound"),
            shared: Arc::new(Mutex::new(Shared {
                calls: Vec::new(),
                hook: Arc::new(|_| Says::Status(200)),
                under_way: 0,
            })),
        };
        tokio::spawn(receiver.clone().serve(listener));
        receiver
    }

    /// A URL on it.
    pub fn url(&self, rest: &str) -> String {
        format!("http://{}/{rest}", self.address)
    }

    /// What comes of each call from now on.
    pub fn says(&self, hook: impl Fn(&Call) -> Says + Send + Sync + 'static) {
        self.shared().hook = Arc::new(hook);
    }

    /// All calls so far.
    pub fn calls(&self) -> Vec<Call> {
        self.shared().calls.clone()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.shared().calls.len()
    }

    /// Forgets them; gives what there was.
    pub fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.shared().calls)
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn serve(self, listener: TcpListener) {
        while let Ok((stream, _)) = listener.accept().await {
            let receiver = self.clone();
            tokio::spawn(async move { drop(receiver.talk(stream).await) });
        }
    }

    async fn talk(self, stream: TcpStream) -> io::Result<()> {
        let mut wire = Wire::new(stream);
        while let Some(request) = wire.read().await? {
            let says = self.note(request);
            let ended = answer(&mut wire, says).await;
            self.shared().under_way -= 1;
            if !ended? {
                break;
            }
        }
        Ok(())
    }

    fn note(&self, request: Request) -> Says {
        let mut shared = self.shared();
        let query = if request.query.is_empty() {
            String::new()
        } else {
            format!("?{}", request.query)
        };
        let call = Call {
            number: shared.calls.len(),
            method: request.method,
            target: format!("{}{query}", request.path),
            headers: request.headers,
            body: request.body,
            beside: shared.under_way,
        };
        shared.under_way += 1;
        let says = (shared.hook)(&call);
        shared.calls.push(call);
        says
    }
}

/// Answers; says whether the connection goes on.
async fn answer(wire: &mut Wire, says: Says) -> io::Result<bool> {
    let reply = match says {
        Says::Status(status) => Reply::plain(status),
        Says::With(status, name, value) => Reply::plain(status).with(name, &value),
        Says::Slowly(time) => {
            tokio::time::sleep(time).await;
            Reply::plain(200)
        }
        Says::After(gate) => {
            gate.pass().await;
            Reply::plain(200)
        }
        Says::Late(gate, status) => {
            gate.pass().await;
            Reply::plain(status)
        }
        Says::Nothing => {
            // It has not ended before the caller goes.
            let _ = wire.stream().peek(&mut [0]).await;
            return Ok(false);
        }
        Says::Reset => {
            meta_wire::reset(wire.stream());
            return Ok(false);
        }
    };
    wire.answer(&reply).await?;
    Ok(true)
}
