//! A road between the service and Postgres that breaks at a commit.
//!
//! The service commits in two ways: by the simple query `commit`, and by executing a prepared
//! statement that writes events without a transaction around it, which is committed at the `Sync`
//! after it.

use std::collections::HashSet;
use std::pin::Pin;
use std::str::FromStr as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};

/// How statements begin that write events.
const WRITES_EVENTS: &[u8] = b"with event as (";

/// What happens to one commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is asked for and answered.
    Passes,
    /// The connection breaks before Postgres hears of it.
    Unheard,
    /// Postgres commits and answers; the connection breaks before the answer is passed on.
    Unanswered,
    /// The connection breaks as soon as it is passed on: Postgres may still be busy with it.
    Unwatched,
}

/// Decides over the commits by their number, from 0.
type Plan = Arc<dyn Fn(usize) -> Fate + Send + Sync>;

/// A proxy in front of a database; ends with its runtime.
pub struct Proxy {
    /// The database's address through the proxy.
    pub url: String,
    commits: Arc<AtomicUsize>,
}

trait Wire: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Wire for T {}

impl Proxy {
    /// Opens a road to the database at this address.
    pub async fn start(
        database_url: &str,
        plan: impl Fn(usize) -> Fate + Send + Sync + 'static,
    ) -> Self {
        Self::start_with(database_url, Duration::ZERO, plan).await
    }

    /// The same with an answer time, as if the database were further away.
    pub async fn start_with(
        database_url: &str,
        latency: Duration,
        plan: impl Fn(usize) -> Fate + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let mut url = url::Url::parse(database_url).expect("an address");
        url.set_host(Some("127.0.0.1")).expect("a host");
        url.set_port(Some(port)).expect("a port");
        url.set_query(Some("sslmode=disable"));
        let behind = PgConnectOptions::from_str(database_url).expect("an address");
        let (plan, commits): (Plan, _) = (Arc::new(plan), Arc::new(AtomicUsize::new(0)));
        let counter = Arc::clone(&commits);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = connect(&behind).await;
                tokio::spawn(carry(
                    client,
                    server,
                    latency,
                    Arc::clone(&plan),
                    Arc::clone(&counter),
                ));
            }
        });
        Self {
            url: url.to_string(),
            commits,
        }
    }

    /// How many commits were asked for.
    pub fn commits(&self) -> usize {
        self.commits.load(Ordering::Relaxed)
    }
}

async fn connect(to: &PgConnectOptions) -> Pin<Box<dyn Wire>> {
    match to.get_socket() {
        Some(folder) => {
            let socket = folder.join(format!(".s.PGSQL.{}", to.get_port()));
            Box::pin(UnixStream::connect(socket).await.expect("Postgres listens"))
        }
        None => {
            let address = (to.get_host(), to.get_port());
            Box::pin(TcpStream::connect(address).await.expect("Postgres listens"))
        }
    }
}

/// Carries bytes both ways until one side ends or a commit's fate ends both.
async fn carry(
    mut client: TcpStream,
    mut server: Pin<Box<dyn Wire>>,
    latency: Duration,
    plan: Plan,
    commits: Arc<AtomicUsize>,
) -> std::io::Result<()> {
    let (mut up, mut down) = ([0; 16 * 1024], [0; 16 * 1024]);
    let mut asked = Asked::default();
    loop {
        tokio::select! {
            read = client.read(&mut up) => {
                let bytes = &up[..read?];
                if bytes.is_empty() {
                    return Ok(());
                }
                asked.unread.extend_from_slice(bytes);
                while let Some((message, commits_now)) = asked.next() {
                    let fate = if commits_now {
                        plan(commits.fetch_add(1, Ordering::Relaxed))
                    } else {
                        Fate::Passes
                    };
                    if fate == Fate::Unheard {
                        return Ok(());
                    }
                    server.write_all(&message).await?;
                    server.flush().await?;
                    if fate == Fate::Unanswered {
                        let _answer = server.read(&mut down).await?;
                    }
                    if fate != Fate::Passes {
                        return Ok(());
                    }
                }
            }
            read = server.read(&mut down) => {
                let bytes = &down[..read?];
                if bytes.is_empty() {
                    return Ok(());
                }
                if !latency.is_zero() {
                    tokio::time::sleep(latency).await;
                }
                client.write_all(bytes).await?;
            }
        }
    }
}

/// What the service asks of one connection, message by message.
#[derive(Default)]
struct Asked {
    unread: Vec<u8>,
    has_started: bool,
    in_transaction: bool,
    /// The names of prepared statements that write events.
    writers: HashSet<Vec<u8>>,
    /// One of them is to be executed.
    writes: bool,
}

impl Asked {
    /// The next whole message, and whether it asks for a commit.
    fn next(&mut self) -> Option<(Vec<u8>, bool)> {
        // Only the first message has no type before its length.
        let kind = usize::from(self.has_started);
        let length = self.unread.get(kind..kind + 4)?;
        let length = u32::from_be_bytes(length.try_into().expect("four bytes"));
        let end = kind + usize::try_from(length).expect("32 bits");
        if self.unread.len() < end {
            return None;
        }
        let message: Vec<u8> = self.unread.drain(..end).collect();
        if !self.has_started {
            self.has_started = true;
            return Some((message, false));
        }
        let commits = self.understand(message[0], &message[5..]);
        Some((message, commits))
    }

    fn understand(&mut self, kind: u8, body: &[u8]) -> bool {
        let mut texts = body.split(|byte| *byte == 0);
        let mut text = || texts.next().unwrap_or_default();
        match kind {
            b'Q' => {
                let query = text();
                self.in_transaction = query == b"begin";
                query == b"commit"
            }
            b'P' => {
                let (name, query) = (text(), text());
                if query.starts_with(WRITES_EVENTS) {
                    self.writers.insert(name.to_vec());
                }
                false
            }
            b'B' => {
                let (_portal, name) = (text(), text());
                self.writes = self.writers.contains(name) && !self.in_transaction;
                false
            }
            b'S' => std::mem::take(&mut self.writes),
            _ => false,
        }
    }
}
