//! `keyfold team`, `keyfold store` and `keyfold key`.

use clap::Subcommand;
use serde::Serialize;
use serde_json::json;
use uuid::Uuid;

use super::output::Output;
use super::{Done, database_url, open};
use crate::auth;
use crate::config::Config;
use crate::state::State;
use crate::tenancy::{self, KeyInfo, NewKey, NewStore, Store, Team};
use crate::values::Country;

#[derive(Subcommand)]
pub enum TeamCommand {
    /// Make a team.
    Create {
        /// For people.
        #[arg(long, value_parser = name)]
        name: String,
    },
    /// List all teams.
    List,
}

#[derive(Subcommand)]
pub enum StoreCommand {
    /// Make a store.
    Create {
        /// The id of its team.
        #[arg(long)]
        team: i64,
        /// For people.
        #[arg(long, value_parser = name)]
        name: String,
        /// The merchant's own name for it, once per team.
        #[arg(long, value_parser = name)]
        external_id: Option<String>,
        /// ISO 3166 letters: how national spellings of phone numbers are read.
        #[arg(long, value_parser = country)]
        default_country: Option<String>,
    },
    /// List all stores.
    List,
    /// Answer 404 for a store, as if it were not there.
    Pause {
        /// The store's id.
        id: i64,
    },
    /// Let a paused store go on.
    Resume {
        /// The store's id.
        id: i64,
    },
}

#[derive(Subcommand)]
pub enum KeyCommand {
    /// Make a key; it is shown once.
    Create {
        /// The id of its team.
        #[arg(long)]
        team: i64,
        /// The id of the one store that it may use; else all of the team.
        #[arg(long)]
        store: Option<i64>,
        /// For people.
        #[arg(long, value_parser = name)]
        name: String,
    },
    /// List a team's keys, without the keys themselves.
    List {
        /// The team's id.
        #[arg(long)]
        team: i64,
    },
    /// Revoke a key for good.
    Revoke {
        /// The key's id, as `list` shows it.
        key_id: Uuid,
    },
}

/// A name that people can read: 1 to 255 characters, no control characters.
fn name(text: &str) -> Result<String, String> {
    let length = text.chars().count();
    if (1..=255).contains(&length) && !text.chars().any(char::is_control) {
        Ok(text.to_owned())
    } else {
        Err("must have 1 to 255 characters and no control characters".to_owned())
    }
}

fn country(text: &str) -> Result<String, String> {
    let country = Country::parse(&text.to_ascii_uppercase());
    country.map(|country| country.to_string()).ok_or_else(|| {
        "must be two ISO 3166 letters of a country with phone numbers, like FR".to_owned()
    })
}

#[derive(Serialize)]
struct List<T> {
    data: Vec<T>,
}

fn state(config: &Config) -> Result<State, Box<dyn std::error::Error + Send + Sync>> {
    open(config.clone(), database_url(config)?)
}

pub async fn team(command: TeamCommand, config: &Config, output: &Output) -> Done {
    let state = state(config)?;
    match command {
        TeamCommand::Create { name } => {
            let team = tenancy::create_team(&state.pool, &name, state.clock.now()).await?;
            Ok(output.result(&team, &[team_line(&team)])?)
        }
        TeamCommand::List => {
            let data = tenancy::list_teams(&state.pool).await?;
            let lines: Vec<String> = data.iter().map(team_line).collect();
            Ok(output.result(&List { data }, &lines)?)
        }
    }
}

fn team_line(team: &Team) -> String {
    format!("team {}  {}", team.id, team.name)
}

pub async fn store(command: StoreCommand, config: &Config, output: &Output) -> Done {
    let state = state(config)?;
    let store = match command {
        StoreCommand::Create {
            team,
            name,
            external_id,
            default_country,
        } => {
            let new = NewStore {
                team_id: team,
                name: &name,
                external_id: external_id.as_deref(),
                default_country: default_country.as_deref(),
            };
            let made = tenancy::create_store(&state.pool, new, state.clock.now()).await;
            made.map_err(|error| explain(error, "that external id is taken in the team"))?
        }
        StoreCommand::List => {
            let data = tenancy::list_stores(&state.pool).await?;
            let lines: Vec<String> = data.iter().map(store_line).collect();
            return Ok(output.result(&List { data }, &lines)?);
        }
        StoreCommand::Pause { id } => set_status(&state, id, "paused").await?,
        StoreCommand::Resume { id } => set_status(&state, id, "active").await?,
    };
    Ok(output.result(&store, &[store_line(&store)])?)
}

async fn set_status(
    state: &State,
    id: i64,
    status: &str,
) -> Result<Store, Box<dyn std::error::Error + Send + Sync>> {
    let store = tenancy::set_store_status(&state.pool, id, status).await?;
    store.ok_or_else(|| format!("there is no store {id}").into())
}

fn store_line(store: &Store) -> String {
    let named = store
        .external_id
        .as_deref()
        .map(|id| format!("  ({id})"))
        .unwrap_or_default();
    let country = store
        .default_country
        .as_deref()
        .map(|code| format!("  {code}"))
        .unwrap_or_default();
    format!(
        "store {}  team {}  {}  {}{named}{country}",
        store.id, store.team_id, store.status, store.name
    )
}

/// A readable reason for the two ways in which a new row can be refused.
fn explain(error: sqlx::Error, taken: &str) -> Box<dyn std::error::Error + Send + Sync> {
    match error
        .as_database_error()
        .and_then(|error| error.code())
        .as_deref()
    {
        Some("23503") => "there is no such team".into(),
        Some("23505") => taken.into(),
        _ => error.into(),
    }
}

pub async fn key(command: KeyCommand, config: &Config, output: &Output) -> Done {
    let state = state(config)?;
    match command {
        KeyCommand::Create { team, store, name } => {
            let (id, key) = create_key(&state, team, store, &name).await?;
            let shown =
                json!({ "id": id, "key": key, "name": name, "team_id": team, "store_id": store });
            Ok(output.result(&shown, &[format!("key {id}  {name}"), key])?)
        }
        KeyCommand::List { team } => {
            let data = tenancy::list_keys(&state.pool, team).await?;
            let lines: Vec<String> = data.iter().map(key_line).collect();
            Ok(output.result(&List { data }, &lines)?)
        }
        KeyCommand::Revoke { key_id } => {
            let revoked = tenancy::revoke_key(&state.pool, key_id, state.clock.now()).await?;
            let key = revoked.ok_or_else(|| format!("there is no key {key_id}"))?;
            Ok(output.result(&key, &[key_line(&key)])?)
        }
    }
}

/// Makes a key and gives its id and itself.
pub async fn create_key(
    state: &State,
    team_id: i64,
    store_id: Option<i64>,
    name: &str,
) -> Result<(Uuid, String), Box<dyn std::error::Error + Send + Sync>> {
    let key = auth::new_key();
    let id = state.clock.new_id();
    let new = NewKey {
        id,
        team_id,
        store_id,
        name,
        sha256: &auth::digest(&key),
        hint: key.get(key.len() - 4..).unwrap_or_default(),
    };
    let made = tenancy::create_key(&state.pool, new, state.clock.now()).await;
    if !made.map_err(|error| explain(error, "try again"))? {
        return Err("that store is not one of the team".into());
    }
    Ok((id, key))
}

fn key_line(key: &KeyInfo) -> String {
    let store = key
        .store_id
        .map_or("all stores".to_owned(), |id| format!("store {id}"));
    let state = match (key.revoked_at, key.last_used_at) {
        (Some(at), _) => format!("revoked {at:?}"),
        (None, Some(at)) => format!("last used {at:?}"),
        (None, None) => "never used".to_owned(),
    };
    format!(
        "key {}  {}  …{}  {store}  {state}",
        key.id, key.name, key.hint
    )
}
