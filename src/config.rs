//! The settings: one struct, read from the environment in one place, checked at start with all
//! faults reported at once.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr as _;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sqlx::postgres::PgConnectOptions;

use crate::targets::Allowed;
use crate::telemetry::LogFormat;

/// What an operator can set. `.env.example` lists the same, with words.
#[derive(Clone)]
pub struct Config {
    /// `DATABASE_URL`.
    pub database_url: Option<String>,
    /// `KEYFOLD_LISTEN`; port 0 takes any free one.
    pub listen: SocketAddr,
    /// `KEYFOLD_DATABASE_MAX_CONNECTIONS`.
    pub database_max_connections: u32,
    /// `KEYFOLD_MAX_CONNECTIONS_PER_ADDRESS`: most connections of clients from one address.
    pub max_connections_per_address: u32,
    /// `KEYFOLD_RATE_LIMIT_PER_MINUTE`, per store and process; 0 is off.
    pub rate_limit_per_minute: u32,
    /// `KEYFOLD_WRITE_LANES`; see [`Config::lanes`].
    pub write_lanes: u32,
    /// How many of the lanes single writes may use at the same time; none: all of them.
    pub lanes_of_singles: Option<u32>,
    /// `KEYFOLD_WRITE_BATCH`: most writes of one transaction; 1 switches grouping off.
    pub write_batch: u32,
    /// `KEYFOLD_WRITE_QUEUE`: most single writes that wait for a lane.
    pub write_queue: u32,
    /// `KEYFOLD_EVENT_RETENTION_DAYS`.
    pub event_retention_days: u32,
    /// `KEYFOLD_SECRET_KEY`: what secrets are sealed under.
    pub secret_key: Option<SecretKey>,
    /// `KEYFOLD_IDEMPOTENCY_RETENTION_HOURS`.
    pub idempotency_retention_hours: u32,
    /// `KEYFOLD_IDEMPOTENCY_REPLAY_5XX`: whether a fault that undid everything is replayed.
    pub idempotency_replay_5xx: bool,
    /// `KEYFOLD_WHATSAPP_BASE_URL`: where Meta's Graph API is, with its version, without a slash at
    /// the end.
    pub whatsapp_base_url: String,
    /// `KEYFOLD_WHATSAPP_APP_SECRET`: what the provider signs its events with.
    pub whatsapp_app_secret: Option<Secret>,
    /// `KEYFOLD_WHATSAPP_VERIFY_TOKEN`: what the provider proves itself with once.
    pub whatsapp_verify_token: Option<Secret>,
    /// `KEYFOLD_ALLOW_PRIVATE_TARGETS`: what exports may call although it is not public.
    pub allow_private_targets: Allowed,
    /// Whether this process works on the outbox: not a setting, but what `--no-worker` says.
    pub works: bool,
    /// `KEYFOLD_LOG`: a tracing filter.
    pub log: String,
    /// `KEYFOLD_LOG_FORMAT`.
    pub log_format: LogFormat,
    /// `PG_BIN_DIR`: the folder of the Postgres programs that `dev` is to use.
    pub pg_bin_dir: Option<PathBuf>,
    /// `PATH`, where `dev` looks for them next.
    pub search_path: Option<OsString>,
    /// `XDG_DATA_HOME`, the folder of data.
    pub xdg_data_home: Option<OsString>,
    /// `HOME`, the folder of the user.
    pub home: Option<OsString>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            database_url: None,
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            database_max_connections: 16,
            max_connections_per_address: 3_072,
            rate_limit_per_minute: 0,
            write_lanes: 2,
            lanes_of_singles: None,
            write_batch: 256,
            write_queue: 256,
            event_retention_days: 30,
            secret_key: None,
            idempotency_retention_hours: 24,
            idempotency_replay_5xx: false,
            whatsapp_base_url: "https://graph.facebook.com/v24.0".to_owned(),
            whatsapp_app_secret: None,
            whatsapp_verify_token: None,
            allow_private_targets: Allowed::default(),
            works: true,
            log: "info,sqlx=warn".to_owned(),
            log_format: LogFormat::Text,
            pg_bin_dir: None,
            search_path: None,
            xdg_data_home: None,
            home: None,
        }
    }
}

/// A setting that no log may show.
#[derive(Clone)]
pub struct Secret(Arc<str>);

impl Secret {
    /// A secret of this text.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    fn parse(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| Self::new(text))
    }

    /// The text, for where it is needed.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// 256 bits that secrets in the database are sealed under.
#[derive(Clone)]
pub struct SecretKey(Arc<[u8; 32]>);

impl SecretKey {
    /// Reads base64 of exactly 32 bytes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let bytes: [u8; 32] = STANDARD.decode(text).ok()?.try_into().ok()?;
        Some(Self(Arc::new(bytes)))
    }

    /// The bytes, for where they are needed.
    #[must_use]
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl std::fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretKey")
    }
}

/// An address that paths are added to.
fn address(text: &str) -> Option<String> {
    let url = url::Url::parse(text).ok()?;
    let fits = ["http", "https"].contains(&url.scheme())
        && url.host().is_some()
        && url.query().is_none()
        && url.fragment().is_none();
    fits.then(|| text.trim_end_matches('/').to_owned())
}

/// Every setting that could not be used, one sentence each.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct ConfigError(pub Vec<String>);

impl Config {
    /// Reads the environment, after `.env` of the working directory (which never overrides it).
    ///
    /// # Errors
    /// All settings that are malformed or out of range.
    pub fn from_environment() -> Result<Self, ConfigError> {
        match dotenvy::dotenv() {
            Ok(_) => {}
            Err(error) if error.not_found() => {}
            Err(error) => return Err(ConfigError(vec![format!(".env can't be read: {error}")])),
        }
        let config = Self::read(|name| {
            #[expect(clippy::disallowed_methods, reason = "the one place that reads it")]
            match std::env::var(name) {
                Ok(value) if value.is_empty() => Ok(None),
                Ok(value) => Ok(Some(value)),
                Err(std::env::VarError::NotPresent) => Ok(None),
                Err(std::env::VarError::NotUnicode(_)) => Err(format!("{name} is not UTF-8")),
            }
        })?;
        let path = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        Ok(Self {
            pg_bin_dir: path("PG_BIN_DIR").map(PathBuf::from),
            search_path: path("PATH"),
            xdg_data_home: path("XDG_DATA_HOME"),
            home: path("HOME"),
            ..config
        })
    }

    /// Reads settings from any source of named values.
    ///
    /// # Errors
    /// All settings that are malformed or out of range.
    pub fn read(
        source: impl Fn(&str) -> Result<Option<String>, String>,
    ) -> Result<Self, ConfigError> {
        let mut reader = Reader {
            source,
            faults: Vec::new(),
        };
        let default = Self::default();
        let write_lanes = reader.number("KEYFOLD_WRITE_LANES", 1, 64);
        let config = Self {
            database_url: reader.parsed("DATABASE_URL", "a postgres:// address", |text| {
                let known = text.starts_with("postgres://") || text.starts_with("postgresql://");
                known.then(|| text.to_owned())
            }),
            listen: reader
                .parsed("KEYFOLD_LISTEN", "an address like 127.0.0.1:8080", |t| {
                    t.parse().ok()
                })
                .unwrap_or(default.listen),
            database_max_connections: reader
                .number("KEYFOLD_DATABASE_MAX_CONNECTIONS", 2, 1_000)
                .unwrap_or(default.database_max_connections),
            max_connections_per_address: reader
                .number("KEYFOLD_MAX_CONNECTIONS_PER_ADDRESS", 1, 4_096)
                .unwrap_or(default.max_connections_per_address),
            rate_limit_per_minute: reader
                .number("KEYFOLD_RATE_LIMIT_PER_MINUTE", 0, 10_000_000)
                .unwrap_or(default.rate_limit_per_minute),
            write_lanes: write_lanes.unwrap_or(default.write_lanes),
            lanes_of_singles: write_lanes,
            write_batch: reader
                .number("KEYFOLD_WRITE_BATCH", 1, 1_000)
                .unwrap_or(default.write_batch),
            write_queue: reader
                .number("KEYFOLD_WRITE_QUEUE", 1, 100_000)
                .unwrap_or(default.write_queue),
            event_retention_days: reader
                .number("KEYFOLD_EVENT_RETENTION_DAYS", 1, 3_650)
                .unwrap_or(default.event_retention_days),
            secret_key: reader.parsed(
                "KEYFOLD_SECRET_KEY",
                "base64 of 32 bytes (make one with `openssl rand -base64 32`)",
                SecretKey::parse,
            ),
            idempotency_retention_hours: reader
                .number("KEYFOLD_IDEMPOTENCY_RETENTION_HOURS", 1, 720)
                .unwrap_or(default.idempotency_retention_hours),
            idempotency_replay_5xx: reader
                .parsed("KEYFOLD_IDEMPOTENCY_REPLAY_5XX", "true or false", |text| {
                    text.parse().ok()
                })
                .unwrap_or(default.idempotency_replay_5xx),
            whatsapp_base_url: reader
                .parsed(
                    "KEYFOLD_WHATSAPP_BASE_URL",
                    "an http or https address",
                    address,
                )
                .unwrap_or_else(|| default.whatsapp_base_url.clone()),
            whatsapp_app_secret: reader.parsed(
                "KEYFOLD_WHATSAPP_APP_SECRET",
                "text",
                Secret::parse,
            ),
            whatsapp_verify_token: reader.parsed(
                "KEYFOLD_WHATSAPP_VERIFY_TOKEN",
                "text",
                Secret::parse,
            ),
            allow_private_targets: reader
                .read("KEYFOLD_ALLOW_PRIVATE_TARGETS", Allowed::parse)
                .unwrap_or_default(),
            log: reader
                .parsed(
                    "KEYFOLD_LOG",
                    "a level or a filter like info,keyfold=debug",
                    |text| crate::telemetry::is_filter(text).then(|| text.to_owned()),
                )
                .unwrap_or_else(|| default.log.clone()),
            log_format: reader
                .parsed("KEYFOLD_LOG_FORMAT", "text or json", |text| match text {
                    "text" => Some(LogFormat::Text),
                    "json" => Some(LogFormat::Json),
                    _ => None,
                })
                .unwrap_or(default.log_format),
            ..default
        };
        let most_lanes = config.most_lanes();
        if config.write_lanes > most_lanes && config.write_lanes != default.write_lanes {
            reader.faults.push(format!(
                "KEYFOLD_WRITE_LANES must be at most {most_lanes}: half of \
                 KEYFOLD_DATABASE_MAX_CONNECTIONS"
            ));
        }
        if reader.faults.is_empty() {
            Ok(config)
        } else {
            Err(ConfigError(reader.faults))
        }
    }
}

impl Config {
    /// Settings that follow from this machine, where nothing else was set, and how many threads
    /// serve requests.
    ///
    /// The lanes have a thread of their own; and where Postgres runs here as well, each lane that is
    /// in use keeps one of its processes busy. Requests get what is left, and half of the processors at
    /// the least. On two processors a second lane and a second thread would only take turns at them:
    /// batches half as large, at a quarter more for each write.
    #[must_use]
    pub fn on_this_machine(mut self, processors: u32) -> (Self, u32) {
        let is_here = self.database_is_here();
        if is_here && self.lanes_of_singles.is_none() {
            self.lanes_of_singles = Some((processors / 2).max(1));
        }
        let of_postgres = if is_here { self.singles_at_once() } else { 0 };
        let left = processors.saturating_sub(1 + of_postgres);
        let threads = left.max(processors / 2).max(1);
        (self, threads)
    }

    /// Whether Postgres runs on this machine; without an address it is the private one.
    fn database_is_here(&self) -> bool {
        let url = self.database_url.as_deref();
        let Some(Ok(options)) = url.map(PgConnectOptions::from_str) else {
            return true;
        };
        // Brackets stand around an IPv6 address.
        let host = options.get_host().trim_matches(['[', ']']);
        let is_loopback = |address: IpAddr| address.is_loopback();
        options.get_socket().is_some()
            || host.starts_with('/')
            || host == "localhost"
            || host.parse().is_ok_and(is_loopback)
    }

    /// How many lanes single writes use at the same time.
    #[must_use]
    pub fn singles_at_once(&self) -> u32 {
        let lanes = self.lanes();
        self.lanes_of_singles.map_or(lanes, |few| few.min(lanes))
    }

    /// How many lanes write: as many as are set, but no more than half of the connections.
    #[must_use]
    pub fn lanes(&self) -> u32 {
        self.write_lanes.min(self.most_lanes())
    }

    /// Connections of the lanes, out of all: one each, and one each for bulk that waits for a lost
    /// database beside its lane.
    #[must_use]
    pub fn lane_connections(&self) -> u32 {
        (2 * self.lanes()).min(self.most_lanes())
    }

    /// Connections of the outbox's worker, so that a backlog takes none from requests; none where
    /// there are too few: then it uses those of everything else.
    #[must_use]
    pub fn worker_connections(&self) -> u32 {
        if self.works {
            (self.without_lanes() / 3).min(4)
        } else {
            0
        }
    }

    /// Connections of everything else.
    #[must_use]
    pub fn other_connections(&self) -> u32 {
        self.without_lanes() - self.worker_connections()
    }

    fn without_lanes(&self) -> u32 {
        let others = self
            .database_max_connections
            .saturating_sub(self.lane_connections());
        others.max(1)
    }

    fn most_lanes(&self) -> u32 {
        (self.database_max_connections / 2).max(1)
    }
}

/// Reads one setting after the other and keeps what is wrong with them.
struct Reader<S> {
    source: S,
    faults: Vec<String>,
}

impl<S: Fn(&str) -> Result<Option<String>, String>> Reader<S> {
    fn parsed<T>(
        &mut self,
        name: &str,
        wanted: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        // The value itself is left out: it may be a secret.
        self.read(name, |text| {
            parse(text).ok_or_else(|| format!("must be {wanted}"))
        })
    }

    fn read<T>(&mut self, name: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let text = match (self.source)(name) {
            Ok(text) => text?,
            Err(fault) => {
                self.faults.push(fault);
                return None;
            }
        };
        if text.trim().is_empty() {
            return None;
        }
        let fault = match parse(text.trim()) {
            Ok(value) => return Some(value),
            Err(fault) => fault,
        };
        self.faults.push(format!("{name} {fault}"));
        None
    }

    fn number(&mut self, name: &str, least: u32, most: u32) -> Option<u32> {
        let wanted = format!("a number from {least} to {most}");
        self.parsed(name, &wanted, |text| {
            text.parse().ok().filter(|n| (least..=most).contains(n))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_on_this_machine_is_told_by_its_address() {
        let is_here = |url: Option<&str>| {
            let database_url = url.map(str::to_owned);
            let config = Config {
                database_url,
                ..Config::default()
            };
            config.database_is_here()
        };
        for url in [
            None,
            Some("postgres://keyfold@localhost/keyfold"),
            Some("postgres://keyfold@127.0.0.1:5433/keyfold"),
            Some("postgres://keyfold@[::1]/keyfold"),
            Some("postgres:///keyfold?host=/run/postgresql"),
            Some("postgres://keyfold@%2Frun%2Fpostgresql/keyfold"),
        ] {
            assert!(is_here(url), "{url:?}");
        }
        for url in [
            "postgres://keyfold@db.example.com/keyfold",
            "postgres://keyfold@192.0.2.7/keyfold",
        ] {
            assert!(!is_here(Some(url)), "{url}");
        }
    }

    #[test]
    fn lanes_and_threads_follow_from_the_processors_that_are_left() {
        let plan = |config: &Config| {
            [1, 2, 4, 8].map(|processors| {
                let (config, threads) = config.clone().on_this_machine(processors);
                (config.singles_at_once(), threads)
            })
        };
        let here = Config::default();
        assert_eq!(plan(&here), [(1, 1), (1, 1), (2, 2), (2, 5)]);
        let set = Config {
            write_lanes: 3,
            lanes_of_singles: Some(3),
            ..here.clone()
        };
        assert_eq!(plan(&set), [(3, 1), (3, 1), (3, 2), (3, 4)]);
        let elsewhere = Config {
            database_url: Some("postgres://db.example.com/keyfold".to_owned()),
            ..here
        };
        assert_eq!(plan(&elsewhere), [(2, 1), (2, 1), (2, 3), (2, 7)]);
    }

    #[test]
    fn all_faults_are_reported_at_once_and_no_value_is_repeated() {
        let error = Config::read(|name| {
            Ok(match name {
                "DATABASE_URL" => Some("mysql://root:hunter2@x/y".to_owned()),
                "KEYFOLD_LISTEN" => Some("nowhere".to_owned()),
                "KEYFOLD_LOG_FORMAT" => Some("xml".to_owned()),
                "KEYFOLD_DATABASE_MAX_CONNECTIONS" => Some("1".to_owned()),
                "KEYFOLD_WRITE_BATCH" => Some("0".to_owned()),
                "KEYFOLD_WRITE_LANES" => Some("9".to_owned()),
                "KEYFOLD_SECRET_KEY" => Some("hunter2".to_owned()),
                "KEYFOLD_IDEMPOTENCY_RETENTION_HOURS" => Some("721".to_owned()),
                "KEYFOLD_IDEMPOTENCY_REPLAY_5XX" => Some("yes".to_owned()),
                "KEYFOLD_WHATSAPP_BASE_URL" => Some("ftp://meta".to_owned()),
                "KEYFOLD_ALLOW_PRIVATE_TARGETS" => Some("erp,10.0.0.0/33".to_owned()),
                _ => None,
            })
        })
        .err()
        .expect("eleven faults");
        assert_eq!(error.0.len(), 11, "{error}");
        assert!(!error.to_string().contains("hunter2"));
    }

    #[test]
    fn nothing_set_gives_the_defaults() {
        let config = Config::read(|_| Ok(None)).expect("defaults are valid");
        assert_eq!(config.listen.to_string(), "127.0.0.1:8080");
        assert_eq!(config.database_max_connections, 16);
        assert_eq!(config.lanes(), 2);
    }
}
