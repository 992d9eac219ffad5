//! `keyfold automation`.

use clap::Subcommand;
use uuid::Uuid;

use super::Done;
use super::messaging::{List, state_of};
use super::output::Output;
use crate::automations::rules::{self, Rule};
use crate::automations::runs::{self, Of, Run};
use crate::config::Config;

#[derive(Subcommand)]
pub enum AutomationCommand {
    /// List a store's automations.
    List {
        /// The store's id.
        #[arg(long)]
        store: i64,
    },
    /// List what an automation did, what it didn't do, and why.
    Runs {
        /// The store's id.
        #[arg(long)]
        store: i64,
        /// The automation's external id.
        #[arg(long)]
        automation: String,
        /// In this state alone.
        #[arg(long, value_parser = ["scheduled", "sent", "skipped", "failed"])]
        status: Option<String>,
        /// Runs after this one.
        #[arg(long)]
        after: Option<Uuid>,
        /// At most so many, oldest first.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(i64).range(1..=10_000))]
        limit: i64,
    },
}

pub async fn automation(command: AutomationCommand, config: &Config, output: &Output) -> Done {
    match command {
        AutomationCommand::List { store } => {
            let state = state_of(config, store).await?;
            let most = rules::MOST_AUTOMATIONS;
            let found = rules::page(&state.pool, store, Uuid::nil(), most).await?;
            let lines: Vec<String> = found.iter().map(rule_line).collect();
            let data = found.into_iter().map(|rule| rule.answer(store)).collect();
            Ok(output.result(&List { data }, &lines)?)
        }
        AutomationCommand::Runs {
            store,
            automation,
            status,
            after,
            limit,
        } => {
            let state = state_of(config, store).await?;
            let rule = rules::one(&state.pool, store, &automation).await?;
            let rule =
                rule.ok_or_else(|| format!("store {store} has no automation {automation}"))?;
            let mut connection = state.pool.acquire().await?;
            let (of, after) = (Of::Automation(rule.id), after.unwrap_or_default());
            let status = status.as_deref();
            let page = runs::page(&mut connection, store, of, status, after, limit).await?;
            let data = page.runs;
            let lines: Vec<String> = data.iter().map(run_line).collect();
            Ok(output.result(&List { data }, &lines)?)
        }
    }
}

fn rule_line(rule: &Rule) -> String {
    let trigger = rule.trigger.resource().unwrap_or("webhook");
    let status = if rule.paused { "paused" } else { "active" };
    format!(
        "{}  {status}  {trigger}  after {} s  template {}  {}",
        rule.external_id, rule.delay_seconds, rule.template_id, rule.name
    )
}

fn run_line(run: &Run) -> String {
    let about = match (&run.resource, &run.external_id) {
        (Some(resource), Some(name)) => format!("{resource} {name}"),
        (Some(resource), None) => {
            format!("{resource} {}", run.record_id.unwrap_or_default())
        }
        (None, Some(name)) => format!("webhook {name}"),
        (None, None) => "webhook".to_owned(),
    };
    let reason = run
        .reason
        .as_deref()
        .map(|reason| format!("  {reason}"))
        .unwrap_or_default();
    let detail = run
        .detail
        .as_deref()
        .map(|detail| format!(" ({detail})"))
        .unwrap_or_default();
    let message = run
        .message_id
        .map(|id| format!("  message {id}"))
        .unwrap_or_default();
    format!(
        "{}  {about}  {}{reason}{detail}  due {:?}{message}",
        run.run_id, run.status, run.due_at
    )
}
