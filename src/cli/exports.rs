//! `keyfold export`.

use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use serde_json::json;
use uuid::Uuid;

use super::Done;
use super::messaging::{List, state_of};
use super::output::Output;
use crate::config::Config;
use crate::engine::transaction::Transaction;
use crate::exports::KIND;
use crate::exports::definitions::{self, Export, MOST_EXPORTS, Stored, Which};
use crate::exports::deliveries::{self, Delivery};
use crate::exports::log::{self, Entry};
use crate::exports::names;
use crate::exports::runs::{self, Run};
use crate::outbox;
use crate::resources::{self, catalog};
use crate::state::State;

type Failed = Box<dyn std::error::Error + Send + Sync>;

/// Which export.
#[derive(Args)]
pub struct Of {
    /// The store's id.
    #[arg(long)]
    store: i64,
    /// The export's external id.
    #[arg(long)]
    export: String,
}

#[derive(Subcommand)]
pub enum ExportCommand {
    /// List a store's exports.
    List {
        /// The store's id.
        #[arg(long)]
        store: i64,
    },
    /// List an export's runs.
    Runs {
        #[command(flatten)]
        of: Of,
        /// Runs after this one.
        #[arg(long)]
        after: Option<Uuid>,
        /// At most so many, oldest first.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(i64).range(1..=10_000))]
        limit: i64,
    },
    /// List what an export has sent, as far as its log keeps it.
    Log {
        #[command(flatten)]
        of: Of,
        /// Of this resource alone.
        #[arg(long, value_parser = resource)]
        resource: Option<&'static catalog::Entry>,
        /// Of this record of the resource alone.
        #[arg(long, requires = "resource")]
        external_id: Option<String>,
        /// At most so many, oldest first.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(i64).range(1..=10_000))]
        limit: i64,
    },
    /// Forget what an export has sent, so that the next run or change sends it again.
    Forget {
        #[command(flatten)]
        of: Of,
        /// The call with this key.
        #[arg(long, conflicts_with_all = ["resource", "all"], required_unless_present_any = ["resource", "all"])]
        key: Option<String>,
        /// All of this resource.
        #[arg(long, value_parser = resource, conflicts_with = "all")]
        resource: Option<&'static catalog::Entry>,
        /// Of this record of the resource alone.
        #[arg(long, requires = "resource")]
        external_id: Option<String>,
        /// Everything.
        #[arg(long)]
        all: bool,
    },
    /// List what an export has still to send, and why it is not sent yet.
    Deliveries {
        #[command(flatten)]
        of: Of,
        /// In this state alone.
        #[arg(long, value_parser = ["waiting", "dead"])]
        state: Option<String>,
        /// At most so many, oldest first.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(i64).range(1..=10_000))]
        limit: i64,
    },
    /// Send again what was given up.
    Replay {
        #[command(flatten)]
        of: Of,
        /// All dead deliveries of the export.
        #[arg(long, conflicts_with = "ids", required_unless_present = "ids")]
        all: bool,
        /// The ids that `deliveries` shows.
        ids: Vec<Uuid>,
    },
}

fn resource(path: &str) -> Result<&'static catalog::Entry, String> {
    catalog::entry(path).ok_or_else(|| {
        let paths: Vec<&str> = catalog::ALL.iter().map(|entry| entry.path).collect();
        format!("must be one of {}", paths.join(", "))
    })
}

/// State over the configured database, and the export.
async fn open(config: &Config, of: &Of) -> Result<(State, Stored), Failed> {
    let state = state_of(config, of.store).await?;
    let found = definitions::named(&state.pool, of.store, &of.export).await?;
    let missing = |_| format!("store {} has no export {}", of.store, of.export);
    let export = found.map_err(missing)?;
    Ok((state, export))
}

pub async fn export(command: ExportCommand, config: &Config, output: &Output) -> Done {
    match command {
        ExportCommand::List { store } => {
            let state = state_of(config, store).await?;
            let most = i64::try_from(MOST_EXPORTS).unwrap_or(i64::MAX);
            let which = Which::After(Uuid::nil(), most);
            let found = definitions::find(&state.pool, store, which).await?;
            let data: Vec<Export> = found.into_iter().map(Stored::into_answer).collect();
            let lines: Vec<String> = data.iter().map(export_line).collect();
            Ok(output.result(&List { data }, &lines)?)
        }
        ExportCommand::Runs { of, after, limit } => {
            let (state, export) = open(config, &of).await?;
            let which = runs::Which::After(after.unwrap_or_default(), limit);
            let data = runs::find(&state.pool, export.store_id, export.id, which).await?;
            let lines: Vec<String> = data.iter().map(run_line).collect();
            Ok(output.result(&List { data }, &lines)?)
        }
        ExportCommand::Log {
            of,
            resource,
            external_id,
            limit,
        } => {
            let (state, export) = open(config, &of).await?;
            let data = log_of(&state, &export, resource, external_id.as_deref(), limit).await?;
            let lines: Vec<String> = data.iter().map(entry_line).collect();
            Ok(output.result(&List { data }, &lines)?)
        }
        ExportCommand::Forget {
            of,
            key,
            resource,
            external_id,
            all: _,
        } => {
            let (state, export) = open(config, &of).await?;
            let forgotten = match key {
                Some(key) => {
                    let (pool, store_id) = (&state.pool, export.store_id);
                    u64::from(log::forget_key(pool, store_id, export.id, &key).await?)
                }
                None => log::forget(&state, &export, resource, external_id.as_deref()).await?,
            };
            let lines = [format!("{forgotten} calls are forgotten")];
            let data = vec![json!({ "forgotten": forgotten })];
            Ok(output.result(&List { data }, &lines)?)
        }
        ExportCommand::Deliveries {
            of,
            state: wanted,
            limit,
        } => {
            let (state, export) = open(config, &of).await?;
            let data = deliveries_of(&state, &export, wanted.as_deref(), limit).await?;
            let lines: Vec<String> = data.iter().map(delivery_line).collect();
            Ok(output.result(&List { data }, &lines)?)
        }
        ExportCommand::Replay { of, all, ids } => {
            let (state, export) = open(config, &of).await?;
            let ids = (!all).then_some(ids.as_slice());
            let revived = replay(&state, &export, ids).await?;
            if let Some(missing) = ids.and_then(|ids| ids.iter().find(|id| !revived.contains(id))) {
                return Err(format!("{missing} is not dead, so it was not sent again").into());
            }
            let lines = [format!("{} are sent again", revived.len())];
            let data: Vec<_> = revived.iter().map(|id| json!({ "id": id })).collect();
            Ok(output.result(&List { data }, &lines)?)
        }
    }
}

async fn log_of(
    state: &State,
    export: &Stored,
    resource: Option<&'static catalog::Entry>,
    external_id: Option<&str>,
    limit: i64,
) -> Result<Vec<Entry>, Failed> {
    let mut connection = state.pool.acquire().await?;
    let store_id = export.store_id;
    let mut record_id = None;
    if let Some((resource, external_id)) = resource.zip(external_id) {
        record_id = resource
            .find(&mut connection, store_id, external_id)
            .await?;
        if record_id.is_none() {
            return Ok(Vec::new());
        }
    }
    let now = state.clock.now();
    let mut data = match record_id {
        Some(record_id) => log::of_record(&mut *connection, export, record_id, limit, now).await?,
        None => {
            let path = resource.map(|resource| resource.path);
            let (mut data, mut next) = (Vec::new(), Some(Uuid::nil()));
            while let Some(after) = next.filter(|_| left(limit, &data) > 0) {
                let left = left(limit, &data);
                let page = log::page(&mut connection, export, path, after, left, now).await?;
                data.extend(page.rows);
                next = page.next_after;
            }
            data
        }
    };
    names::name(&mut connection, store_id, &resources::names(), &mut data).await?;
    Ok(data)
}

/// How many of so many are still to be listed.
fn left<T>(limit: i64, listed: &[T]) -> i64 {
    limit.saturating_sub(i64::try_from(listed.len()).unwrap_or(i64::MAX))
}

async fn deliveries_of(
    state: &State,
    export: &Stored,
    wanted: Option<&str>,
    limit: i64,
) -> Result<Vec<Delivery>, Failed> {
    let (store_id, id) = (export.store_id, export.id);
    let mut connection = state.pool.acquire().await?;
    let (mut data, mut next) = (Vec::new(), Some(Uuid::nil()));
    while let Some(after) = next.filter(|_| left(limit, &data) > 0) {
        let left = left(limit, &data);
        let page = deliveries::page(&mut connection, store_id, id, wanted, after, left).await?;
        data.extend(page.rows);
        next = page.next_after;
    }
    names::name(&mut connection, store_id, &resources::names(), &mut data).await?;
    Ok(data)
}

/// Dead deliveries revived in one transaction.
const SLICE: i64 = 500;

/// Lets dead deliveries wait again, slice by slice; of those that are named all or none.
async fn replay(state: &State, export: &Stored, ids: Option<&[Uuid]>) -> Result<Vec<Uuid>, Failed> {
    // What dies again meanwhile is not sent a second time.
    let began = ids.is_none().then(|| state.clock.now());
    let mut revived = Vec::new();
    loop {
        let limit = ids.map_or(SLICE, |ids| i64::try_from(ids.len()).unwrap_or(SLICE));
        let slice = replay_slice(state, export, ids, limit, began).await?;
        let is_last = ids.is_some() || slice.is_empty();
        revived.extend(slice);
        if is_last {
            return Ok(revived);
        }
    }
}

async fn replay_slice(
    state: &State,
    export: &Stored,
    ids: Option<&[Uuid]>,
    limit: i64,
    began: Option<DateTime<Utc>>,
) -> Result<Vec<Uuid>, Failed> {
    let now = state.clock.now();
    let (store_id, id) = (export.store_id, export.id);
    let mut transaction = Transaction::begin(&state.pool).await?;
    let connection = transaction.connection();
    let revived = deliveries::revive(connection, store_id, id, ids, limit, began, now).await?;
    if ids.is_some_and(|ids| ids.iter().any(|id| !revived.contains(id))) {
        transaction.rollback().await;
        return Ok(revived);
    }
    outbox::wake(connection, store_id, KIND, id, now).await?;
    transaction.commit().await?;
    Ok(revived)
}

fn export_line(export: &Export) -> String {
    let paused = export
        .paused_code
        .as_deref()
        .map(|code| format!(" ({code})"))
        .unwrap_or_default();
    format!(
        "{}  {}{paused}  {}  {}  {} {}",
        export.external_id,
        export.status,
        export.mode,
        export.resources.join(","),
        export.method,
        export.url
    )
}

fn run_line(run: &Run) -> String {
    let finished = run
        .finished_at
        .map(|at| format!("  finished {at:?}"))
        .unwrap_or_default();
    format!(
        "{}  {}  attempt {}  total {}  sent {}  skipped {}  failed {}  pending {}  begun {:?}{finished}",
        run.run_id,
        run.status,
        run.attempt,
        run.total,
        run.sent,
        run.skipped,
        run.failed,
        run.pending,
        run.created_at
    )
}

/// A record, by its external id if it has one.
fn record(resource: &str, external_id: Option<&str>, id: Uuid) -> String {
    external_id.map_or_else(
        || format!("{resource} {id}"),
        |external_id| format!("{resource} {external_id}"),
    )
}

fn entry_line(entry: &Entry) -> String {
    let record = record(
        &entry.resource,
        entry.external_id.as_deref(),
        entry.record_id,
    );
    format!(
        "{}  {record}  {}  sent {:?}  until {:?}",
        entry.key, entry.response_status, entry.sent_at, entry.expires_at
    )
}

fn delivery_line(delivery: &Delivery) -> String {
    let record = record(
        &delivery.resource,
        delivery.external_id.as_deref(),
        delivery.record_id,
    );
    let code = delivery
        .error_code
        .as_deref()
        .map(|code| format!("  {code}"))
        .unwrap_or_default();
    format!(
        "{}  {record}  {}  tried {}  due {:?}{code}",
        delivery.id, delivery.state, delivery.attempt, delivery.due_at
    )
}
