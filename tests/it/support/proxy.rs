//! A road between the service and Postgres that breaks, or falls silent, at a commit or anywhere else.
//!
//! The service commits in two ways: by the simple query `commit`, and by executing a prepared
//! statement that writes events without a transaction around it, which is committed at the `Sync`
//! after it.

use std::collections::HashMap;
use std::pin::Pin;
use std::str::FromStr as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;

/// How statements begin that write events.
const WRITES_EVENTS: &str = "with event as (";

/// How long Postgres hears nothing of the end of a silent connection, unless it ends it sooner.
const FORGOTTEN: Duration = Duration::from_secs(15);

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
    /// Postgres commits and answers; the connection breaks before the answer is passed on, and with
    /// it all others. New ones are refused until the road is opened again.
    LastWord,
    /// Nothing is passed on any more, either way, and nothing is closed: Postgres does not hear of it.
    Deaf,
    /// The same, but Postgres hears of it, and its answer is lost.
    Mute,
    /// The same, in the middle of the message to Postgres.
    HalfAsked,
    /// The same, in the middle of the answer.
    HalfAnswered,
    /// It is passed on late.
    Delayed(Duration),
}

impl Fate {
    /// Those that leave the connection open without a word.
    pub const SILENCES: [Self; 4] = [Self::Deaf, Self::Mute, Self::HalfAsked, Self::HalfAnswered];
}

/// What the service asks for.
pub struct Asking<'a> {
    /// The statement.
    pub statement: &'a str,
    /// Whether it is committed by this.
    pub commits: bool,
    /// On which connection: what is asked for on one belongs together.
    pub connection: usize,
}

/// Decides over what is asked for.
type Plan = Arc<dyn Fn(&Asking<'_>) -> Fate + Send + Sync>;

/// A proxy in front of a database; ends with its runtime.
pub struct Proxy {
    /// The database's address through the proxy.
    pub url: String,
    commits: Arc<AtomicUsize>,
    /// How often the road was closed and opened: closed when odd.
    turns: watch::Sender<usize>,
    /// How often all that pass fell silent.
    silences: watch::Sender<usize>,
    /// New connections are taken and never answered.
    is_silent: Arc<AtomicBool>,
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
        let commits = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&commits);
        let plan = move |asking: &Asking<'_>| {
            if asking.commits {
                plan(counter.fetch_add(1, Ordering::Relaxed))
            } else {
                Fate::Passes
            }
        };
        Self {
            commits,
            ..Self::watch(database_url, latency, plan).await
        }
    }

    /// A road whose plan sees every statement.
    pub async fn watch(
        database_url: &str,
        latency: Duration,
        plan: impl Fn(&Asking<'_>) -> Fate + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let mut url = url::Url::parse(database_url).expect("an address");
        url.set_host(Some("127.0.0.1")).expect("a host");
        url.set_port(Some(port)).expect("a port");
        url.set_query(Some("sslmode=disable"));
        let behind = PgConnectOptions::from_str(database_url).expect("an address");
        let plan: Plan = Arc::new(plan);
        let turns = watch::Sender::new(0);
        let gate = turns.clone();
        let silences = watch::Sender::new(0);
        let falls_silent = silences.clone();
        let is_silent = Arc::new(AtomicBool::new(false));
        let mute = Arc::clone(&is_silent);
        tokio::spawn(async move {
            let mut connection = 0;
            while let Ok((client, _)) = listener.accept().await {
                connection += 1;
                if mute.load(Ordering::Relaxed) {
                    tokio::spawn(hold(client, None));
                    continue;
                }
                let mut closed = gate.subscribe();
                if *closed.borrow_and_update() % 2 == 1 {
                    continue;
                }
                let server = connect(&behind).await;
                let asked = Asked {
                    connection,
                    ..Asked::default()
                };
                let plan = Arc::clone(&plan);
                let silent = falls_silent.subscribe();
                let carried = carry(client, server, latency, asked, plan, gate.clone(), silent);
                tokio::spawn(async move {
                    tokio::select! {
                        _ = carried => {}
                        _ = closed.changed() => {}
                    }
                });
            }
        });
        Self {
            url: url.to_string(),
            commits: Arc::default(),
            turns,
            silences,
            is_silent,
        }
    }

    /// Lets every connection that is there fall silent, both ways; new ones work.
    pub fn fall_silent(&self) {
        self.silences.send_modify(|silences| *silences += 1);
    }

    /// Whether new connections are taken without ever being answered.
    pub fn set_silent(&self, is_silent: bool) {
        self.is_silent.store(is_silent, Ordering::Relaxed);
    }

    /// Opens the road that a last word closed.
    pub fn open_again(&self) {
        self.turns.send_modify(|turns| *turns += *turns % 2);
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

/// Passes nothing on. The client's end of the road closes with the client; Postgres hears nothing of
/// that, as behind a firewall, and ends it by itself.
async fn hold(mut client: TcpStream, server: Option<Pin<Box<dyn Wire>>>) {
    let mut ignored = vec![0; 16 * 1024];
    while !matches!(client.read(&mut ignored).await, Ok(0) | Err(_)) {}
    drop(client);
    if let Some(mut server) = server {
        let ended = async { while !matches!(server.read(&mut ignored).await, Ok(0) | Err(_)) {} };
        let _ = tokio::time::timeout(FORGOTTEN, ended).await;
    }
}

/// Carries bytes both ways until one side ends or a commit's fate ends both.
async fn carry(
    mut client: TcpStream,
    mut server: Pin<Box<dyn Wire>>,
    latency: Duration,
    mut asked: Asked,
    plan: Plan,
    turns: watch::Sender<usize>,
    mut silent: watch::Receiver<usize>,
) -> std::io::Result<()> {
    silent.borrow_and_update();
    let (mut up, mut down) = ([0; 16 * 1024], [0; 16 * 1024]);
    loop {
        tokio::select! {
            _ = silent.changed() => {
                hold(client, Some(server)).await;
                return Ok(());
            }
            read = client.read(&mut up) => {
                let bytes = &up[..read?];
                if bytes.is_empty() {
                    return Ok(());
                }
                asked.unread.extend_from_slice(bytes);
                while let Some(message) = asked.next() {
                    let asking = asked.asking();
                    let fate = asking.map_or(Fate::Passes, |asking| plan(&asking));
                    match fate {
                        Fate::Unheard => return Ok(()),
                        Fate::Delayed(time) => tokio::time::sleep(time).await,
                        _ => {}
                    }
                    let heard = match fate {
                        Fate::Deaf => 0,
                        Fate::HalfAsked => message.len() / 2,
                        _ => message.len(),
                    };
                    server.write_all(&message[..heard]).await?;
                    server.flush().await?;
                    if fate == Fate::HalfAnswered {
                        let answer = server.read(&mut down).await?;
                        client.write_all(&down[..answer / 2]).await?;
                    }
                    if Fate::SILENCES.contains(&fate) {
                        hold(client, Some(server)).await;
                        return Ok(());
                    }
                    if matches!(fate, Fate::Unanswered | Fate::LastWord) {
                        let _answer = server.read(&mut down).await?;
                    }
                    if fate == Fate::LastWord {
                        turns.send_modify(|turns| *turns += 1);
                    }
                    if !matches!(fate, Fate::Passes | Fate::Delayed(_)) {
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
    connection: usize,
    unread: Vec<u8>,
    has_started: bool,
    in_transaction: bool,
    /// Prepared statements by their names.
    prepared: HashMap<Vec<u8>, String>,
    /// The one that is to be executed.
    bound: Option<String>,
    /// What the last message asks for.
    asks: Option<(String, bool)>,
}

impl Asked {
    /// The next whole message.
    fn next(&mut self) -> Option<Vec<u8>> {
        // Only the first message has no type before its length.
        let kind = usize::from(self.has_started);
        let length = self.unread.get(kind..kind + 4)?;
        let length = u32::from_be_bytes(length.try_into().expect("four bytes"));
        let end = kind + usize::try_from(length).expect("32 bits");
        if self.unread.len() < end {
            return None;
        }
        let message: Vec<u8> = self.unread.drain(..end).collect();
        self.asks = None;
        if self.has_started {
            self.understand(message[0], &message[5..]);
        }
        self.has_started = true;
        Some(message)
    }

    /// What the last message asks for, if it does.
    fn asking(&self) -> Option<Asking<'_>> {
        self.asks.as_ref().map(|(statement, commits)| Asking {
            statement,
            commits: *commits,
            connection: self.connection,
        })
    }

    fn understand(&mut self, kind: u8, body: &[u8]) {
        let mut texts = body.split(|byte| *byte == 0);
        let mut text = || texts.next().unwrap_or_default();
        match kind {
            b'Q' => {
                let query = String::from_utf8_lossy(text()).into_owned();
                self.in_transaction = query.starts_with("begin");
                let commits = query == "commit";
                self.asks = Some((query, commits));
            }
            b'P' => {
                let (name, query) = (text(), text());
                let query = String::from_utf8_lossy(query).into_owned();
                self.prepared.insert(name.to_vec(), query);
            }
            b'B' => {
                let (_portal, name) = (text(), text());
                self.bound = self.prepared.get(name).cloned();
            }
            b'S' => {
                self.asks = self.bound.take().map(|query| {
                    let commits = query.starts_with(WRITES_EVENTS) && !self.in_transaction;
                    (query, commits)
                });
            }
            _ => {}
        }
    }
}
