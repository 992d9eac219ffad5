//! `keyfold dev`: the whole service from one command, on a Postgres of its own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde_json::json;
use sqlx::{Connection as _, Executor as _, PgConnection};

use super::output::Output;
use super::{Done, open, serve, tenants};
use crate::config::{Config, SecretKey};
use crate::edge::{self, Limits};
use crate::engine::Resource as _;
use crate::postgres::{Options, PrivateServer, default_data_dir};
use crate::resources::orders::Order;
use crate::state::State;
use crate::tenancy::{self, NewStore};
use crate::{app, auth, schema};

/// The database on the private server.
const DATABASE: &str = "keyfold";
const DEMO: &str = "Demo";

#[derive(Args)]
pub struct DevArguments {
    /// Where to serve; port 0 takes any free one.
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Where the private Postgres keeps its data.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Let the private Postgres listen on 127.0.0.1 too, on this port, with a password.
    #[arg(long, value_name = "N")]
    db_port: Option<u16>,
}

pub fn run(arguments: DevArguments, mut config: Config, output: &Output) -> Done {
    config.listen = arguments.listen.unwrap_or(config.listen);
    let data_dir = match arguments.data_dir {
        Some(given) => std::path::absolute(given)?,
        None => default_data_dir(config.xdg_data_home.as_deref(), config.home.as_deref())
            .ok_or("no folder for the data: give one with --data-dir")?,
    };
    let server = if config.database_url.is_none() {
        let mut options = Options::new(&data_dir);
        options.loopback_port = arguments.db_port;
        options.bin_dir = config.pg_bin_dir.clone();
        options.search_path = config.search_path.clone();
        Some(PrivateServer::start(&options)?)
    } else {
        None
    };
    let (runtime, config) = super::serving(config)?;
    let done = runtime.block_on(serve_on(server.as_ref(), config, &data_dir, output));
    if let Some(server) = server {
        server.stop();
    }
    done
}

async fn serve_on(
    server: Option<&PrivateServer>,
    config: Config,
    data_dir: &Path,
    output: &Output,
) -> Done {
    let database_url = match (server, config.database_url.as_deref()) {
        (Some(server), _) => {
            output.message(&format!("keyfold uses {}", server.description()));
            create_database(server).await?;
            server
                .loopback_url(DATABASE)
                .unwrap_or_else(|| server.url(DATABASE))
        }
        (None, Some(url)) => {
            output.message("keyfold uses the Postgres of DATABASE_URL");
            url.to_owned()
        }
        (None, None) => return Err("there is no database".into()),
    };
    schema::migrate(&database_url).await?;
    let mut config = config;
    if config.secret_key.is_none() {
        config.secret_key = Some(secret_key(data_dir)?);
    }
    let state = open(config, &database_url)?;
    let demo = demo(&state, data_dir).await?;
    let listener = serve::listen(&state.config).await?;
    let address = listener.local_addr()?;
    edge::raise_file_limit()?;
    let stop = serve::stop_signal()?;
    let limits = Limits::of(&state.config);
    let service = tokio::spawn(app::serve(listener, state, limits, stop));
    let shown = json!({
        "listen": format!("http://{address}"),
        "store_id": demo.store_id,
        "key": demo.key,
        "database_url": database_url,
    });
    output.result(&shown, &welcome(address, &database_url, &demo))?;
    Ok(service.await??)
}

async fn create_database(server: &PrivateServer) -> sqlx::Result<()> {
    let mut connection = PgConnection::connect(&server.url("postgres")).await?;
    let exists: bool =
        sqlx::query_scalar("select exists (select from pg_database where datname = $1)")
            .bind(DATABASE)
            .fetch_one(&mut connection)
            .await?;
    if !exists {
        connection.execute("create database keyfold").await?;
    }
    connection.close().await
}

/// The store and the key that the welcome shows.
struct Demo {
    store_id: i64,
    key: String,
}

/// The demo team, store and key: made on the first run, found later. The key is kept in the data
/// folder, readable by its owner alone, so that every start can show it.
async fn demo(
    state: &State,
    data_dir: &Path,
) -> Result<Demo, Box<dyn std::error::Error + Send + Sync>> {
    let kept = data_dir.join("dev-key");
    if let Ok(text) = std::fs::read_to_string(&kept) {
        let key = text.trim().to_owned();
        let known = tenancy::find_keys(&state.pool, &[auth::digest(&key)]).await?;
        if let Some(store_id) = known.first().and_then(|(_, scope)| scope.store_id) {
            return Ok(Demo { store_id, key });
        }
    }
    let now = state.clock.now();
    let team = tenancy::list_teams(&state.pool)
        .await?
        .into_iter()
        .find(|team| team.name == DEMO);
    let team_id = match team {
        Some(team) => team.id,
        None => tenancy::create_team(&state.pool, DEMO, now).await?.id,
    };
    let stores = tenancy::list_stores(&state.pool).await?;
    let store = stores
        .into_iter()
        .find(|store| store.team_id == team_id && store.name == DEMO);
    let store_id = match store {
        Some(store) => store.id,
        None => {
            let new = NewStore {
                team_id,
                name: DEMO,
                external_id: None,
                default_country: None,
            };
            tenancy::create_store(&state.pool, new, now).await?.id
        }
    };
    let (_, key) = tenants::create_key(state, team_id, Some(store_id), "dev").await?;
    keep(&kept, &key)?;
    Ok(Demo { store_id, key })
}

/// What secrets are sealed under when the environment has no key: made on the first run, kept in the
/// data folder.
fn secret_key(data_dir: &Path) -> Result<SecretKey, Box<dyn std::error::Error + Send + Sync>> {
    let kept = data_dir.join("dev-secret-key");
    if let Ok(text) = std::fs::read_to_string(&kept) {
        return SecretKey::parse(text.trim())
            .ok_or_else(|| format!("{} holds no key", kept.display()).into());
    }
    let bytes: [u8; 32] = rand::random();
    let text = STANDARD.encode(bytes);
    keep(&kept, &text)?;
    SecretKey::parse(&text).ok_or_else(|| "a key could not be made".into())
}

/// Writes a secret that only its owner can read.
fn keep(path: &Path, secret: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let _ = std::fs::remove_file(path);
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    writeln!(file, "{secret}")
}

/// What a newcomer reads.
fn welcome(address: SocketAddr, database_url: &str, demo: &Demo) -> Vec<String> {
    let [mut example, _] = Order::examples();
    if let Some(members) = example.as_object_mut() {
        members.remove("source_updated_at");
    }
    vec![
        format!("keyfold serves on http://{address}"),
        format!("  store     {}", demo.store_id),
        format!("  key       {}", demo.key),
        format!("  docs      http://{address}/docs"),
        format!("  database  {database_url}"),
        String::new(),
        "Push an order; run it twice and see that the second time changes nothing:".to_owned(),
        String::new(),
        format!(
            "curl -i http://{address}/api/v1/stores/{}/orders \\",
            demo.store_id
        ),
        format!("  -H 'Authorization: Bearer {}' \\", demo.key),
        "  -H 'Content-Type: application/json' \\".to_owned(),
        format!("  -d '{example}'"),
        String::new(),
    ]
}
