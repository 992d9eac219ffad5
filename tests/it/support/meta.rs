//! A fake of Meta's Cloud API: a real server in the test's process that can have a bad day.
//!
//! It never de-duplicates. Every request that it has read completely is a [`Call`]; a test's hook
//! says of each what comes of it ([`Behaviour`]): whether the message is taken, and what the caller
//! gets to see of that. A service in this process and one in a process of its own (with
//! `KEYFOLD_WHATSAPP_BASE_URL` set to [`Meta::base_url`]) use it alike. It ends with its runtime.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;

use super::meta_wire::{self, Wire};

/// A request that was read completely.
#[derive(Clone, Debug)]
pub struct Call {
    /// The how manieth it is, from 0.
    pub number: usize,
    /// `GET` or `POST`.
    pub method: String,
    /// `/{phone_number_id}/messages`
    pub path: String,
    /// What stands behind the question mark.
    pub query: String,
    /// The bearer token.
    pub token: String,
    /// The body as JSON; null where there is none.
    pub body: Value,
}

impl Call {
    /// `biz_opaque_callback_data`: what a status event will name the message by.
    pub fn reference(&self) -> String {
        self.text("biz_opaque_callback_data")
    }

    /// To whom the message is.
    pub fn to(&self) -> String {
        self.text("to")
    }

    /// The number that the message comes from.
    pub fn phone_number_id(&self) -> String {
        let id = self.path.split('/').nth(1);
        id.unwrap_or_default().to_owned()
    }

    /// The id that the fake gives the message if it takes it.
    pub fn message_id(&self) -> String {
        format!("wamid.{}.{}", self.phone_number_id(), self.number)
    }

    fn text(&self, name: &str) -> String {
        self.body[name].as_str().unwrap_or_default().to_owned()
    }
}

/// What comes of a call.
#[derive(Clone, Debug)]
pub struct Behaviour {
    /// Whether the message is taken: then a person gets it, whatever the caller is told.
    pub takes: bool,
    /// What the caller is told.
    pub then: Then,
}

/// What the caller is told.
#[derive(Clone, Debug)]
pub enum Then {
    /// 200 and the message's id.
    Confirm,
    /// The same, but not before the gate is opened.
    ConfirmAfter(Gate),
    /// 200 and the message's id; then the connection is closed, though it was to stay.
    ConfirmAndClose,
    /// Another answer.
    Answer(Reply),
    /// The connection is reset, but not before the gate is opened.
    ResetAfter(Gate),
    /// 200 and JSON that ends in the middle, as if it were all.
    CutJson,
    /// 200 and the connection ends in the middle of the announced body.
    CutConnection,
    /// The connection is reset.
    Reset,
    /// Nothing, for as long as the caller waits.
    Silence,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// Headers besides the length and the type.
    pub headers: Vec<(&'static str, String)>,
    /// The body's type and the body.
    pub body: (&'static str, String),
}

impl Reply {
    /// An answer of something in front of the API that knows nothing of its JSON.
    pub fn plain(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: ("text/html", format!("<h1>{status}</h1>")),
        }
    }

    /// The API's own error, as it writes them.
    pub fn error(code: i64, status: u16) -> Self {
        let error = json!({ "error": {
            "message": format!("(#{code}) Something is wrong"),
            "type": "OAuthException",
            "code": code,
            "error_data": {
                "messaging_product": "whatsapp",
                "details": words(code),
            },
            "fbtrace_id": "AbCdEf",
        }});
        Self::json(status, &error)
    }

    /// Any JSON.
    pub fn json(status: u16, body: &Value) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: ("application/json", body.to_string()),
        }
    }

    /// With one more header.
    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }
}

/// The words of an error of the fake, to be found again in a message's timeline.
pub fn words(code: i64) -> String {
    format!("details of {code}")
}

impl Behaviour {
    /// The message is taken and confirmed.
    pub fn accept() -> Self {
        Self::accept_then(Then::Confirm)
    }

    /// The message is taken, and then this.
    pub fn accept_then(then: Then) -> Self {
        Self { takes: true, then }
    }

    /// The message is not taken, and this is all that the caller sees.
    pub fn refuse(then: Then) -> Self {
        Self { takes: false, then }
    }

    /// The message is not taken, and the API says why.
    pub fn error(code: i64, status: u16) -> Self {
        Self::refuse(Then::Answer(Reply::error(code, status)))
    }
}

/// Something to wait at until a test opens it; then it stays open.
#[derive(Clone, Debug)]
pub struct Gate(Arc<Semaphore>);

impl Gate {
    /// A closed one.
    pub fn closed() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }

    /// Lets everybody through from now on.
    pub fn open(&self) {
        self.0.close();
    }

    /// Waits until it is open.
    pub async fn pass(&self) {
        let _closed = self.0.acquire().await;
    }
}

/// What happens to a connection before a byte of it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// Requests are read.
    Open,
    /// The connection stands, but nobody ever reads from it.
    Deaf,
    /// The connection is reset at once.
    Slammed,
}

type Hook = Arc<dyn Fn(&Call) -> Behaviour + Send + Sync>;

/// The fake. Cheap to clone: all clones are one.
#[derive(Clone)]
pub struct Meta {
    address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    calls: Vec<Call>,
    taken: Vec<Call>,
    pages_read: Vec<Call>,
    templates: Vec<Value>,
    templates_a_page: usize,
    templates_fault: Option<Reply>,
    hook: Hook,
    door: Door,
    connections: usize,
    /// Reserves the address while nothing listens on it.
    socket: Option<TcpSocket>,
}

impl Meta {
    /// A fake that takes every message.
    pub async fn start() -> Self {
        let meta = Self::unreachable();
        meta.open();
        meta
    }

    /// A fake that takes every message, once it is [opened](Self::open): until then nothing listens
    /// on its address, and nobody else can get it.
    pub fn unreachable() -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        let any = "127.0.0.1:0".parse().expect("an address");
        socket.bind(any).expect("a free port");
        let address = socket.local_addr().expect("bound");
        Self {
            address,
            shared: Arc::new(Mutex::new(Shared {
                calls: Vec::new(),
                taken: Vec::new(),
                pages_read: Vec::new(),
                templates: Vec::new(),
                templates_a_page: 100,
                templates_fault: None,
                hook: Arc::new(|_| Behaviour::accept()),
                door: Door::Open,
                connections: 0,
                socket: Some(socket),
            })),
        }
    }

    /// Listens from now on.
    pub fn open(&self) {
        let socket = self.shared().socket.take().expect("opened once");
        let listener = socket.listen(1_024).expect("the address is ours");
        tokio::spawn(self.clone().serve(listener));
    }

    /// For `KEYFOLD_WHATSAPP_BASE_URL`.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What comes of each call from now on. Without it every message is taken.
    pub fn behave(&self, hook: impl Fn(&Call) -> Behaviour + Send + Sync + 'static) {
        self.shared().hook = Arc::new(hook);
    }

    /// What happens to connections from now on.
    pub fn set_door(&self, door: Door) {
        self.shared().door = door;
    }

    /// The templates that an account has, as the API describes them, and how many stand on a page.
    pub fn set_templates(&self, templates: Vec<Value>, a_page: usize) {
        let mut shared = self.shared();
        shared.templates = templates;
        shared.templates_a_page = a_page;
    }

    /// What reads of templates are answered with instead.
    pub fn set_templates_fault(&self, fault: Option<Reply>) {
        self.shared().templates_fault = fault;
    }

    /// All messages that somebody wanted to send, taken or not.
    pub fn calls(&self) -> Vec<Call> {
        self.shared().calls.clone()
    }

    /// The messages that were taken: each of these is on a person's phone.
    pub fn taken(&self) -> Vec<Call> {
        self.shared().taken.clone()
    }

    /// Reads of pages of templates.
    pub fn pages_read(&self) -> Vec<Call> {
        self.shared().pages_read.clone()
    }

    /// How many connections were made, read from or not.
    pub fn connections(&self) -> usize {
        self.shared().connections
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn serve(self, listener: TcpListener) {
        while let Ok((stream, _)) = listener.accept().await {
            let door = {
                let mut shared = self.shared();
                shared.connections += 1;
                shared.door
            };
            let meta = self.clone();
            tokio::spawn(async move {
                match door {
                    Door::Open => drop(meta.talk(stream).await),
                    Door::Slammed => meta_wire::reset(&stream),
                    Door::Deaf => meta_wire::hold(stream).await,
                }
            });
        }
    }

    /// Answers the requests of one connection until it ends.
    async fn talk(self, stream: TcpStream) -> io::Result<()> {
        let mut wire = Wire::new(stream);
        while let Some(request) = wire.read().await? {
            let (call, behaviour) = self.take(request);
            let confirmed = Reply::json(
                200,
                &json!({
                    "messaging_product": "whatsapp",
                    "contacts": [{ "input": call.to(), "wa_id": call.to().replace('+', "") }],
                    "messages": [{ "id": call.message_id() }],
                }),
            );
            match behaviour.then {
                Then::Confirm => wire.answer(&confirmed).await?,
                Then::ConfirmAfter(gate) => {
                    gate.pass().await;
                    wire.answer(&confirmed).await?;
                }
                Then::ConfirmAndClose => return wire.answer(&confirmed).await,
                Then::Answer(reply) => wire.answer(&reply).await?,
                Then::CutJson => {
                    let (kind, mut body) = confirmed.body;
                    body.truncate(body.len() / 2);
                    let body = (kind, body);
                    wire.answer(&Reply { body, ..confirmed }).await?;
                }
                Then::CutConnection => return wire.answer_half(&confirmed).await,
                Then::ResetAfter(gate) => {
                    gate.pass().await;
                    meta_wire::reset(wire.stream());
                    return Ok(());
                }
                Then::Reset => {
                    meta_wire::reset(wire.stream());
                    return Ok(());
                }
                Then::Silence => {
                    meta_wire::hold(wire.into_stream()).await;
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Notes a request; says what comes of it.
    fn take(&self, request: meta_wire::Request) -> (Call, Behaviour) {
        let mut shared = self.shared();
        let body = serde_json::from_slice(&request.body).unwrap_or_default();
        let mut call = Call {
            number: shared.calls.len(),
            method: request.method,
            path: request.path,
            query: request.query,
            token: request.token,
            body,
        };
        if call.method == "GET" {
            call.number = shared.pages_read.len();
            let page = shared.page(&call);
            shared.pages_read.push(call.clone());
            return (call, Behaviour::refuse(Then::Answer(page)));
        }
        shared.calls.push(call.clone());
        let hook = Arc::clone(&shared.hook);
        drop(shared);
        // A hook may look at the fake.
        let behaviour = hook(&call);
        if behaviour.takes {
            self.shared().taken.push(call.clone());
        }
        (call, behaviour)
    }
}

impl Shared {
    /// A page of templates. Its cursor is the number of templates before it.
    fn page(&self, call: &Call) -> Reply {
        if !call.path.ends_with("/message_templates") {
            return Reply::error(100, 400);
        }
        if let Some(fault) = &self.templates_fault {
            return fault.clone();
        }
        let asked = url::form_urlencoded::parse(call.query.as_bytes()).into_owned();
        let after = asked.into_iter().find(|(name, _)| name == "after");
        let first: usize = after.map_or(0, |(_, cursor)| cursor.parse().expect("ours"));
        let end = self.templates.len().min(first + self.templates_a_page);
        let mut paging =
            json!({ "cursors": { "before": first.to_string(), "after": end.to_string() } });
        if end < self.templates.len() {
            paging["next"] = json!(format!("https://elsewhere.example{}", call.path));
        }
        let data = &self.templates[first..end];
        Reply::json(200, &json!({ "data": data, "paging": paging }))
    }
}
