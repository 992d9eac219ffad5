//! Automations as they are stored.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgExecutor;
use sqlx::types::Json;
use utoipa::ToSchema;
use uuid::Uuid;

use super::CONSUMER;
use super::condition::Condition;
use super::input::{
    ActionPart, AutomationInput, Reentry, ReentryInput, SendTemplatePart, TriggerPart,
};
use super::sources::Sources;
use crate::database::Connection;
use crate::engine::consumers::{self, Boundary};
use crate::engine::write::Outcome;
use crate::error::Error;
use crate::messaging::{channels, templates, variables};
use crate::resources::catalog;
use crate::state::State;
use crate::tenancy;
use crate::values::{Faults, Node};

/// The path of automations.
pub const PATH: &str = "automations";
/// Automations of a store.
pub const MOST_AUTOMATIONS: i64 = 200;

/// An automation, as evaluation and execution see it.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Names it.
    pub id: Uuid,
    /// Its key in the store.
    pub external_id: String,
    /// For people.
    pub name: String,
    /// Whether it is paused.
    pub paused: bool,
    /// What sets it off.
    pub trigger: Trigger,
    /// How long it waits.
    pub delay_seconds: i64,
    /// When it runs again.
    pub reentry: Reentry,
    /// What is sent.
    pub template_id: i64,
    /// Where the values of its variables come from.
    pub variables: Sources,
    /// Behind which events it looks: what came before was there when it was saved or activated.
    pub from: Boundary,
    /// When it was first saved.
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
}

/// What sets an automation off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// An effective change that leaves a record like this.
    Change {
        /// The resource's path.
        resource: &'static str,
        /// What the record must be like.
        condition: Condition,
    },
    /// A call of this webhook.
    Webhook(Uuid),
}

impl Trigger {
    /// The resource, if records set it off.
    #[must_use]
    pub fn resource(&self) -> Option<&'static str> {
        match self {
            Self::Change { resource, .. } => Some(resource),
            Self::Webhook(_) => None,
        }
    }

    /// Whether it is set off by a record of this resource that is like this.
    #[must_use]
    pub fn is_met(&self, by: &str, record: &Node<'_>) -> bool {
        match self {
            Self::Change {
                resource,
                condition,
            } => *resource == by && condition.matches(record),
            Self::Webhook(_) => false,
        }
    }

    fn condition(&self) -> Condition {
        match self {
            Self::Change { condition, .. } => condition.clone(),
            Self::Webhook(_) => Condition::default(),
        }
    }

    fn webhook_id(&self) -> Option<Uuid> {
        match self {
            Self::Change { .. } => None,
            Self::Webhook(id) => Some(*id),
        }
    }
}

/// An automation as it is answered.
#[derive(Debug, Serialize, ToSchema)]
pub struct Automation {
    /// Names it.
    pub id: Uuid,
    /// Whose it is.
    pub store_id: i64,
    /// Its key in the store.
    pub external_id: String,
    /// For people.
    pub name: String,
    /// `active` or `paused`.
    #[schema(example = "active")]
    pub status: &'static str,
    /// What sets it off.
    pub trigger: TriggerPart,
    /// What to call, `POST /api/v1/automations/{webhook_id}`; null without a webhook.
    pub webhook_id: Option<Uuid>,
    /// How many seconds after the change the condition is checked again and the message is sent.
    pub delay_seconds: i64,
    /// When it runs again.
    #[schema(value_type = ReentryInput)]
    pub reentry: Reentry,
    /// What it does.
    pub action: ActionPart,
    /// When it was first saved.
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
}

impl Rule {
    /// As it is answered.
    #[must_use]
    pub fn answer(self, store_id: i64) -> Automation {
        let webhook_id = self.trigger.webhook_id();
        let (resource, when) = match self.trigger {
            Trigger::Change {
                resource,
                condition,
            } => (
                Some(resource),
                Some(condition).filter(|condition| *condition != Condition::default()),
            ),
            Trigger::Webhook(_) => (None, None),
        };
        Automation {
            id: self.id,
            store_id,
            external_id: self.external_id,
            name: self.name,
            status: if self.paused { "paused" } else { "active" },
            trigger: TriggerPart {
                resource,
                when,
                webhook: webhook_id.map(|_| true),
            },
            webhook_id,
            delay_seconds: self.delay_seconds,
            reentry: self.reentry,
            action: ActionPart {
                send_template: SendTemplatePart {
                    template_id: self.template_id,
                    variables: Some(self.variables),
                },
            },
            created_at: self.created_at,
            updated_at: self.updated_at,
        }
    }

    /// Whether two say the same, whenever they were saved.
    fn says_the_same(&self, other: &Self) -> bool {
        self.name == other.name
            && self.paused == other.paused
            && self.trigger == other.trigger
            && self.delay_seconds == other.delay_seconds
            && self.reentry == other.reentry
            && self.template_id == other.template_id
            && self.variables == other.variables
    }
}

/// Creates or replaces an automation, in the caller's transaction.
///
/// # Errors
/// When the database fails; the refusal names the fields that don't fit the template.
pub async fn upsert(
    state: &State,
    connection: &mut Connection,
    store_id: i64,
    input: AutomationInput,
) -> sqlx::Result<Result<(Rule, Outcome), Error>> {
    // One after the other in a store, so that their number is bounded and nobody's insert is lost.
    tenancy::lock_store(&mut *connection, store_id).await?;
    if let Err(faults) = check_template(connection, store_id, &input).await? {
        return Ok(Err(Error::Invalid(faults)));
    }
    let stored = one(&mut *connection, store_id, input.external_id.as_str()).await?;
    let mut rule = rule(state, input, stored.as_ref());
    if let Some(stored) = &stored {
        if stored.says_the_same(&rule) {
            return Ok(Ok((stored.clone(), Outcome::Unchanged)));
        }
    } else if count(&mut *connection, store_id).await? >= MOST_AUTOMATIONS {
        let message = format!("a store can have at most {MOST_AUTOMATIONS} automations");
        let faults = Faults::at("external_id", message);
        return Ok(Err(Error::Invalid(faults)));
    }
    if rule.trigger.resource().is_some() {
        let now = state.clock.now();
        let boundary = consumers::follow(connection, store_id, CONSUMER, now).await?;
        let goes_on = stored.as_ref().is_some_and(|stored| {
            stored.trigger == rule.trigger && (rule.paused || !stored.paused)
        });
        if !goes_on {
            rule.from = boundary;
        }
    }
    match &stored {
        None => insert(connection, store_id, &rule).await?,
        Some(_) => update(connection, store_id, &rule).await?,
    }
    let former = stored
        .as_ref()
        .and_then(|stored| stored.trigger.webhook_id());
    name_webhook(connection, store_id, &rule, former).await?;
    stop_if_idle(connection, store_id).await?;
    let outcome = match stored {
        None => Outcome::Created,
        Some(_) => Outcome::Updated,
    };
    Ok(Ok((rule, outcome)))
}

/// The automation that an input makes of what is stored.
fn rule(state: &State, input: AutomationInput, stored: Option<&Rule>) -> Rule {
    let now = state.clock.now();
    let external_id = input.external_id.as_str().to_owned();
    let trigger = match (input.trigger.resource, stored.map(|stored| &stored.trigger)) {
        (Some(resource), _) => Trigger::Change {
            resource,
            condition: input.trigger.when.unwrap_or_default(),
        },
        (None, Some(Trigger::Webhook(id))) => Trigger::Webhook(*id),
        // Not one that grows with time: whoever knows it can set the automation off.
        (None, _) => Trigger::Webhook(Uuid::from_bytes(random_id())),
    };
    Rule {
        id: stored.map_or_else(|| state.clock.new_id(), |stored| stored.id),
        name: input.name.unwrap_or_else(|| external_id.clone()),
        external_id,
        paused: input.status == "paused",
        trigger,
        delay_seconds: input.delay_seconds,
        reentry: input.reentry,
        template_id: input.action.send_template.template_id,
        variables: input.action.send_template.variables.unwrap_or_default(),
        from: stored.map(|stored| stored.from).unwrap_or_default(),
        created_at: stored.map_or(now, |stored| stored.created_at),
        updated_at: now,
    }
}

/// The bytes of a UUIDv4 (RFC 9562).
fn random_id() -> [u8; 16] {
    uuid::Builder::from_random_bytes(rand::random())
        .into_uuid()
        .into_bytes()
}

/// Whether the template is there and has all its variables from somewhere.
async fn check_template(
    connection: &mut Connection,
    store_id: i64,
    input: &AutomationInput,
) -> sqlx::Result<Result<(), Faults>> {
    let action = &input.action.send_template;
    let provider = channels::provider(&mut *connection, store_id).await?;
    let id = action.template_id;
    let found = templates::to_send(&mut *connection, store_id, provider, id).await?;
    let Some(template) = found else {
        let path = "action.send_template.template_id";
        return Ok(Err(Faults::at(
            path,
            "is not a template of the store that can be sent",
        )));
    };
    let sources = action.variables.clone().unwrap_or_default();
    let wanted = match input.trigger.webhook {
        // What has no source is taken from the call.
        Some(_) => sources
            .names()
            .filter(|name| template.variables.iter().any(|wanted| wanted == name))
            .map(str::to_owned)
            .collect(),
        None => template.variables,
    };
    let filled = variables::fill(&wanted, sources.0.into_iter().collect());
    Ok(filled.map(|_| ()).map_err(|inner| {
        let mut faults = Faults::default();
        faults.nest("action.send_template", inner);
        faults
    }))
}

/// Lets the webhook's id lead to the automation, and its former one to nothing.
async fn name_webhook(
    connection: &mut Connection,
    store_id: i64,
    rule: &Rule,
    former: Option<Uuid>,
) -> sqlx::Result<()> {
    let present = rule.trigger.webhook_id();
    if present == former {
        return Ok(());
    }
    if let Some(former) = former {
        forget_webhook(connection, former).await?;
    }
    if let Some(present) = present {
        sqlx::query!(
            "insert into automation_webhooks (webhook_id, store_id, automation_id)
            values ($1, $2, $3)",
            present,
            store_id,
            rule.id,
        )
        .execute(connection)
        .await?;
    }
    Ok(())
}

async fn forget_webhook(connection: &mut Connection, webhook_id: Uuid) -> sqlx::Result<()> {
    sqlx::query!(
        "delete from automation_webhooks where webhook_id = $1",
        webhook_id,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// A store whose automations follow no records needs not be looked at.
async fn stop_if_idle(connection: &mut Connection, store_id: i64) -> sqlx::Result<()> {
    let follows = sqlx::query_scalar!(
        r#"select exists (
            select from automations where store_id = $1 and resource is not null
        ) as "exists!""#,
        store_id,
    )
    .fetch_one(&mut *connection)
    .await?;
    if !follows {
        consumers::unfollow(connection, store_id, CONSUMER).await?;
    }
    Ok(())
}

/// Deletes an automation; says whether it was there. Runs that wait find that out when they are due.
///
/// # Errors
/// When the database fails.
pub async fn delete(
    connection: &mut Connection,
    store_id: i64,
    external_id: &str,
) -> sqlx::Result<bool> {
    tenancy::lock_store(&mut *connection, store_id).await?;
    let webhook_id = sqlx::query_scalar!(
        "delete from automations where store_id = $1 and external_id = $2 returning webhook_id",
        store_id,
        external_id,
    )
    .fetch_optional(&mut *connection)
    .await?;
    let Some(webhook_id) = webhook_id else {
        return Ok(false);
    };
    if let Some(webhook_id) = webhook_id {
        forget_webhook(connection, webhook_id).await?;
    }
    stop_if_idle(connection, store_id).await?;
    Ok(true)
}

async fn count(db: impl PgExecutor<'_>, store_id: i64) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"select count(*) as "count!" from automations where store_id = $1"#,
        store_id,
    )
    .fetch_one(db)
    .await
}

async fn insert(connection: &mut Connection, store_id: i64, rule: &Rule) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into automations (
            store_id, id, external_id, name, status, resource, condition, webhook_id, delay_seconds,
            reentry, cooldown_seconds, template_id, variables, from_position, from_time, created_at,
            updated_at
        )
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)",
        store_id,
        rule.id,
        rule.external_id,
        rule.name,
        status(rule),
        rule.trigger.resource(),
        Json(rule.trigger.condition()) as Json<Condition>,
        rule.trigger.webhook_id(),
        rule.delay_seconds,
        rule.reentry.as_str(),
        rule.reentry.cooldown_seconds(),
        rule.template_id,
        Json(&rule.variables) as Json<&Sources>,
        rule.from.position,
        rule.from.time,
        rule.created_at,
        rule.updated_at,
    )
    .execute(connection)
    .await?;
    Ok(())
}

async fn update(connection: &mut Connection, store_id: i64, rule: &Rule) -> sqlx::Result<()> {
    sqlx::query!(
        "update automations
        set name = $3,
            status = $4,
            resource = $5,
            condition = $6,
            webhook_id = $7,
            delay_seconds = $8,
            reentry = $9,
            cooldown_seconds = $10,
            template_id = $11,
            variables = $12,
            from_position = $13,
            from_time = $14,
            updated_at = $15
        where store_id = $1 and id = $2",
        store_id,
        rule.id,
        rule.name,
        status(rule),
        rule.trigger.resource(),
        Json(rule.trigger.condition()) as Json<Condition>,
        rule.trigger.webhook_id(),
        rule.delay_seconds,
        rule.reentry.as_str(),
        rule.reentry.cooldown_seconds(),
        rule.template_id,
        Json(&rule.variables) as Json<&Sources>,
        rule.from.position,
        rule.from.time,
        rule.updated_at,
    )
    .execute(connection)
    .await?;
    Ok(())
}

fn status(rule: &Rule) -> &'static str {
    if rule.paused { "paused" } else { "active" }
}

/// A row of `automations`.
struct Row {
    id: Uuid,
    external_id: String,
    name: String,
    status: String,
    resource: Option<String>,
    condition: Json<Condition>,
    webhook_id: Option<Uuid>,
    delay_seconds: i64,
    reentry: String,
    cooldown_seconds: Option<i64>,
    template_id: i64,
    variables: Json<Sources>,
    from_position: i64,
    from_time: Option<DateTime<Utc>>,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

impl From<Row> for Rule {
    fn from(row: Row) -> Self {
        let entry = row.resource.as_deref().and_then(catalog::entry);
        let trigger = match (entry, row.webhook_id) {
            (Some(entry), _) => Trigger::Change {
                resource: entry.path,
                condition: row.condition.0,
            },
            (None, webhook_id) => Trigger::Webhook(webhook_id.unwrap_or_default()),
        };
        Self {
            id: row.id,
            external_id: row.external_id,
            name: row.name,
            paused: row.status == "paused",
            trigger,
            delay_seconds: row.delay_seconds,
            reentry: Reentry::from_stored(&row.reentry, row.cooldown_seconds),
            template_id: row.template_id,
            variables: row.variables.0,
            from: Boundary {
                position: row.from_position,
                time: row.from_time,
            },
            created_at: row.created_at,
            updated_at: row.updated_at,
        }
    }
}

/// The columns of a [`Row`], and the rest of the statement.
macro_rules! select_rules {
    ($rest:literal $(, $value:expr)* $(,)?) => {
        sqlx::query_as!(
            Row,
            r#"select
                id, external_id, name, status, resource, condition as "condition: Json<Condition>",
                webhook_id, delay_seconds, reentry, cooldown_seconds, template_id,
                variables as "variables: Json<Sources>", from_position, from_time, created_at,
                updated_at
            from automations "#
                + $rest
            $(, $value)*
        )
    };
}

/// One automation by its key.
///
/// # Errors
/// When the database fails.
pub async fn one(
    db: impl PgExecutor<'_>,
    store_id: i64,
    external_id: &str,
) -> sqlx::Result<Option<Rule>> {
    let found = select_rules!(
        "where store_id = $1 and external_id = $2",
        store_id,
        external_id,
    );
    Ok(found.fetch_optional(db).await?.map(Rule::from))
}

/// One automation by its id.
///
/// # Errors
/// When the database fails.
pub async fn by_id(db: impl PgExecutor<'_>, store_id: i64, id: Uuid) -> sqlx::Result<Option<Rule>> {
    let found = select_rules!("where store_id = $1 and id = $2", store_id, id);
    Ok(found.fetch_optional(db).await?.map(Rule::from))
}

/// The same, locked: one call of its webhook is looked at after the other.
///
/// # Errors
/// When the database fails.
pub async fn lock(db: impl PgExecutor<'_>, store_id: i64, id: Uuid) -> sqlx::Result<Option<Rule>> {
    let found = select_rules!(
        "where store_id = $1 and id = $2 for no key update",
        store_id,
        id,
    );
    Ok(found.fetch_optional(db).await?.map(Rule::from))
}

/// Automations of a store after one of them, in order of their ids.
///
/// # Errors
/// When the database fails.
pub async fn page(
    db: impl PgExecutor<'_>,
    store_id: i64,
    after: Uuid,
    limit: i64,
) -> sqlx::Result<Vec<Rule>> {
    let found = select_rules!(
        "where store_id = $1 and id > $2 order by id limit $3",
        store_id,
        after,
        limit,
    );
    let found = found.fetch_all(db).await?;
    Ok(found.into_iter().map(Rule::from).collect())
}

/// The automations of a store that records set off, oldest first.
///
/// # Errors
/// When the database fails.
pub async fn of_changes(db: impl PgExecutor<'_>, store_id: i64) -> sqlx::Result<Vec<Rule>> {
    let found = select_rules!(
        "where store_id = $1 and resource is not null order by id",
        store_id,
    );
    let found = found.fetch_all(db).await?;
    Ok(found.into_iter().map(Rule::from).collect())
}

/// The store and automation that a webhook belongs to.
///
/// # Errors
/// When the database fails.
pub async fn of_webhook(
    db: impl PgExecutor<'_>,
    webhook_id: Uuid,
) -> sqlx::Result<Option<(i64, Uuid)>> {
    let found = sqlx::query!(
        "select store_id, automation_id from automation_webhooks where webhook_id = $1",
        webhook_id,
    );
    let found = found.fetch_optional(db).await?;
    Ok(found.map(|row| (row.store_id, row.automation_id)))
}
