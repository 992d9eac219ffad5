//! `keyfold channel`, `keyfold template` and `keyfold outbox`.

use std::io::Read as _;

use chrono::{DateTime, Utc};
use clap::Subcommand;
use serde::Serialize;
use serde_json::json;
use uuid::Uuid;

use super::output::Output;
use super::{Done, database_url, open};
use crate::config::Config;
use crate::engine::transaction::Transaction;
use crate::messaging::channels::{self, Access, Channel, NewChannel, ProviderName};
use crate::messaging::deliver;
use crate::messaging::messages::{self, News};
use crate::messaging::providers::whatsapp;
use crate::messaging::templates;
use crate::outbox::{self, Entry, Wanted};
use crate::secrets;
use crate::state::State;
use crate::tenancy;

type Failed = Box<dyn std::error::Error + Send + Sync>;

#[derive(Subcommand)]
pub enum ChannelCommand {
    /// Set how a store's messages reach people; what waits goes on at once.
    Set {
        /// The store's id.
        #[arg(long)]
        store: i64,
        /// Who hands messages over.
        #[arg(long)]
        provider: ProviderName,
        /// WhatsApp: the id of the number that messages come from.
        #[arg(long, value_parser = digits)]
        phone_number_id: Option<String>,
        /// WhatsApp: the id of the business account that templates belong to.
        #[arg(long, value_parser = digits)]
        waba_id: Option<String>,
        /// WhatsApp: read the access token from standard input.
        #[arg(long)]
        access_token_stdin: bool,
    },
    /// Show a store's channel, without its token.
    Show {
        /// The store's id.
        #[arg(long)]
        store: i64,
    },
}

#[derive(Subcommand)]
pub enum TemplateCommand {
    /// Take over the templates that the store's provider has.
    Sync {
        /// The store's id.
        #[arg(long)]
        store: i64,
    },
}

#[derive(Subcommand)]
pub enum OutboxCommand {
    /// List what is not done: waiting, dead (given up) and unknown (may have been sent).
    List {
        /// Of this store alone.
        #[arg(long)]
        store: Option<i64>,
        /// In this state alone.
        #[arg(long, value_parser = ["waiting", "dead", "unknown"])]
        state: Option<String>,
        /// At most so many, oldest first.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(i64).range(1..=10_000))]
        limit: i64,
    },
    /// Send dead messages of a store again. Unknown ones are never sent again.
    Retry {
        /// The store's id.
        #[arg(long)]
        store: i64,
        /// All dead ones of the store.
        #[arg(long, conflicts_with = "ids", required_unless_present = "ids")]
        all: bool,
        /// The ids that `list` shows.
        ids: Vec<Uuid>,
    },
}

fn digits(text: &str) -> Result<String, String> {
    let fits = (1..=32).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    if fits {
        Ok(text.to_owned())
    } else {
        Err("must be a number, as the provider shows it".to_owned())
    }
}

/// What lists print as JSON.
#[derive(Serialize)]
pub struct List<T> {
    pub data: Vec<T>,
}

/// State over the configured database, and proof that the store is there.
pub async fn state_of(config: &Config, store_id: i64) -> Result<State, Failed> {
    let state = open(config.clone(), database_url(config)?)?;
    if tenancy::find_stores(&state.pool, &[store_id])
        .await?
        .is_empty()
    {
        return Err(format!("there is no store {store_id}").into());
    }
    Ok(state)
}

pub async fn channel(command: ChannelCommand, config: &Config, output: &Output) -> Done {
    let (state, store_id) = match command {
        ChannelCommand::Show { store } => (state_of(config, store).await?, store),
        ChannelCommand::Set {
            store,
            provider,
            phone_number_id,
            waba_id,
            access_token_stdin,
        } => {
            let state = state_of(config, store).await?;
            let token = token(provider, access_token_stdin)?;
            let sealed = token
                .map(|token| {
                    let key = config.secret_key.as_ref();
                    secrets::seal(key, &channels::token_place(store), &token)
                })
                .transpose()?;
            let new = NewChannel {
                store_id: store,
                provider,
                phone_number_id: phone_number_id.as_deref(),
                waba_id: waba_id.as_deref(),
                access_token: sealed.as_deref(),
            };
            set(&state, &new).await?;
            (state, store)
        }
    };
    let mut connection = state.pool.acquire().await?;
    let channel = channels::show(&mut connection, store_id).await?;
    Ok(output.result(&channel, &[channel_line(&channel)])?)
}

/// The token from standard input, where there has to be one.
fn token(provider: ProviderName, from_stdin: bool) -> Result<Option<String>, Failed> {
    match (provider, from_stdin) {
        (ProviderName::Sandbox, false) => Ok(None),
        (ProviderName::Sandbox, true) => Err("the sandbox has no access token".into()),
        (ProviderName::Whatsapp, false) => {
            Err("give the access token on standard input, with --access-token-stdin".into())
        }
        (ProviderName::Whatsapp, true) => {
            let mut text = String::new();
            std::io::stdin()
                .lock()
                .take(16 * 1_024)
                .read_to_string(&mut text)?;
            let token = text.trim();
            if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err("standard input has no access token of visible ASCII".into());
            }
            Ok(Some(token.to_owned()))
        }
    }
}

async fn set(state: &State, new: &NewChannel<'_>) -> Result<(), Failed> {
    let is_whatsapp = new.provider == ProviderName::Whatsapp;
    if is_whatsapp && (new.phone_number_id.is_none() || new.waba_id.is_none()) {
        return Err("whatsapp needs --phone-number-id and --waba-id".into());
    }
    if !is_whatsapp && (new.phone_number_id.is_some() || new.waba_id.is_some()) {
        return Err("the sandbox has neither --phone-number-id nor --waba-id".into());
    }
    let now = state.clock.now();
    let mut transaction = Transaction::begin(&state.pool).await?;
    let connection = transaction.connection();
    channels::set(connection, new, now).await.map_err(explain)?;
    channels::resume(&mut *connection, new.store_id).await?;
    outbox::hurry(&mut *connection, new.store_id, deliver::KIND, now).await?;
    transaction.commit().await?;
    Ok(())
}

fn explain(error: sqlx::Error) -> Failed {
    let code = error.as_database_error().and_then(|error| error.code());
    if code.as_deref() == Some("23505") {
        "another store has this phone number id: its events could not be told apart".into()
    } else {
        error.into()
    }
}

fn channel_line(channel: &Channel) -> String {
    let number = channel
        .phone_number_id
        .as_deref()
        .map(|id| format!("  number {id}"))
        .unwrap_or_default();
    let account = channel
        .waba_id
        .as_deref()
        .map(|id| format!("  account {id}"))
        .unwrap_or_default();
    let paused = channel
        .paused_until
        .map(|until| {
            let code = channel.paused_code.as_deref().unwrap_or("?");
            format!("  paused until {until:?} by {code}")
        })
        .unwrap_or_default();
    format!(
        "store {}  {}{number}{account}{paused}",
        channel.store_id,
        channel.provider.as_str()
    )
}

pub async fn template(command: TemplateCommand, config: &Config, output: &Output) -> Done {
    let TemplateCommand::Sync { store } = command;
    let state = state_of(config, store).await?;
    let access = channels::access(&state.pool, config.secret_key.as_ref(), store).await?;
    let Access::Whatsapp { waba_id, token, .. } = access else {
        return Err(
            "the store's channel is the sandbox: its templates are posted to the API".into(),
        );
    };
    let api = whatsapp::Api::new(&config.whatsapp_base_url)?;
    let found = whatsapp::templates(&api, &waba_id, &token?).await?;
    let synced = found.len();
    sync(&state, store, &found).await?;
    let shown = json!({ "synced": synced });
    Ok(output.result(&shown, &[format!("{synced} templates")])?)
}

/// Writes templates down, and marks those that are gone, all or nothing.
async fn sync(
    state: &State,
    store_id: i64,
    found: &[templates::NewTemplate],
) -> Result<(), Failed> {
    let (provider, now) = (ProviderName::Whatsapp, state.clock.now());
    let mut transaction = Transaction::begin(&state.pool).await?;
    let connection = transaction.connection();
    let mut kept = Vec::new();
    for new in found {
        let (template, _) =
            templates::upsert(&mut *connection, store_id, provider, new, now).await?;
        kept.push(template.id);
    }
    templates::mark_gone(&mut *connection, store_id, provider, &kept, now).await?;
    transaction.commit().await?;
    Ok(())
}

pub async fn outbox(command: OutboxCommand, config: &Config, output: &Output) -> Done {
    match command {
        OutboxCommand::List {
            store,
            state: wanted,
            limit,
        } => {
            let state = open(config.clone(), database_url(config)?)?;
            let wanted = Wanted {
                store_id: store,
                state: wanted.as_deref(),
                limit,
            };
            let data = outbox::list(&state.pool, wanted).await?;
            let lines: Vec<String> = data.iter().map(entry_line).collect();
            Ok(output.result(&List { data }, &lines)?)
        }
        OutboxCommand::Retry { store, all, ids } => {
            let state = state_of(config, store).await?;
            let ids = (!all).then_some(ids.as_slice());
            let revived = retry(&state, store, ids).await?;
            if let Some(missing) = ids.and_then(|ids| ids.iter().find(|id| !revived.contains(id))) {
                return Err(format!("{missing} is not dead, so it was not sent again").into());
            }
            let lines = [format!("{} are sent again", revived.len())];
            let data: Vec<_> = revived.iter().map(|id| json!({ "id": id })).collect();
            Ok(output.result(&List { data }, &lines)?)
        }
    }
}

/// Dead rows revived in one transaction.
const SLICE: i64 = 500;

/// Lets dead rows be tried again, slice by slice; of those that are named all or none.
async fn retry(state: &State, store_id: i64, ids: Option<&[Uuid]>) -> Result<Vec<Uuid>, Failed> {
    // What dies again meanwhile is not sent a second time.
    let (mut revived, began) = (Vec::new(), state.clock.now());
    loop {
        let limit = ids.map_or(SLICE, |ids| i64::try_from(ids.len()).unwrap_or(SLICE));
        let slice = retry_slice(state, store_id, ids, limit, began).await?;
        let is_last = ids.is_some() || slice.is_empty();
        revived.extend(slice);
        if is_last {
            return Ok(revived);
        }
    }
}

async fn retry_slice(
    state: &State,
    store_id: i64,
    ids: Option<&[Uuid]>,
    limit: i64,
    began: DateTime<Utc>,
) -> Result<Vec<Uuid>, Failed> {
    let now = state.clock.now();
    let mut transaction = Transaction::begin(&state.pool).await?;
    let connection = transaction.connection();
    let revived = outbox::revive(connection, store_id, ids, limit, began, now).await?;
    if ids.is_some_and(|ids| ids.iter().any(|id| !revived.contains(id))) {
        transaction.rollback().await;
        return Ok(revived);
    }
    let news: Vec<News> = revived
        .iter()
        .map(|id| News {
            id: *id,
            event_id: state.clock.new_id(),
            steps: Vec::new(),
            provider_message_id: None,
            requeue: true,
        })
        .collect();
    messages::apply(transaction.connection(), store_id, &news, now).await?;
    transaction.commit().await?;
    Ok(revived)
}

fn entry_line(entry: &Entry) -> String {
    let code = entry
        .error_code
        .as_deref()
        .map(|code| format!("  {code}"))
        .unwrap_or_default();
    format!(
        "{}  store {}  {}  {}  tried {}  since {:?}{code}",
        entry.id, entry.store_id, entry.kind, entry.state, entry.attempt, entry.created_at
    )
}
