//! Templates: texts with `{{named}}` variables that may be sent at any time.
//!
//! In the sandbox they are upserted over the API. With a real provider they come from there
//! (`keyfold template sync`), and what that refuses can't be sent.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::PgExecutor;
use sqlx::types::Json;
use utoipa::ToSchema;

use super::channels::ProviderName;
use super::variables;
use crate::database::Connection;
use crate::tenancy;
use crate::values::{Checked, Faults, Fields, FreeJson, FreeObjects, Node, Text, Value, text};

/// Templates of a store; Meta allows an account as many.
pub const MOST_TEMPLATES: usize = 6_000;
/// As WhatsApp counts it.
const NAME_CHARS: usize = 512;
const LANGUAGE_CHARS: usize = 35;
const HEADER_CHARS: usize = 60;
const BODY_CHARS: usize = 1_024;
const FOOTER_CHARS: usize = 60;
const MOST_BUTTONS: usize = 10;
const BUTTONS_BYTES: usize = 16 * 1_024;

/// A template as it is posted.
#[derive(Clone, Debug, ToSchema)]
#[schema(as = TemplateInput)]
pub struct TemplateInput {
    /// With `language` the template's key; kept exactly.
    #[schema(value_type = String, min_length = 1, max_length = 512, pattern = r"^[^\u0000-\u001f\u007f-\u009f]*[^\s\u0000-\u001f\u007f-\u009f][^\u0000-\u001f\u007f-\u009f]*$", example = "order_shipped")]
    pub name: String,
    /// As WhatsApp writes languages: `en`, `en_US`.
    #[schema(value_type = String, max_length = 35, pattern = "^[A-Za-z]{2,8}([_-][A-Za-z0-9]{1,8})*$", example = "en")]
    pub language: String,
    /// Stands above the body. May have variables.
    #[schema(value_type = Option<Text<60>>)]
    pub header: Option<String>,
    /// What the person reads, with `{{named}}` variables.
    #[schema(value_type = String, min_length = 1, max_length = 1024, pattern = r"^[^\u0000]*[^\s\u0000][^\u0000]*$", example = "Hello")]
    pub body: String,
    /// Stands below the body.
    #[schema(value_type = Option<Text<60>>)]
    pub footer: Option<String>,
    /// At most 10 objects, kept as sent; their texts may have variables.
    #[schema(value_type = Option<FreeObjects>)]
    pub buttons: FreeJson,
    /// Found in the texts.
    #[schema(ignore)]
    pub variables: Vec<String>,
}

impl TemplateInput {
    /// Reads a body.
    ///
    /// # Errors
    /// Every faulty field.
    pub fn read(node: &Node<'_>) -> Checked<Self> {
        let mut fields = Fields::of(node)?;
        let mut names: Vec<String> = Vec::new();
        let name = fields.required("name", template_name);
        let language = fields.required("language", language);
        let header = fields.optional("header", |node| {
            with_variables(node, HEADER_CHARS, &mut names)
        });
        let body = fields.required("body", |node| {
            let body = with_variables(node, BODY_CHARS, &mut names)?;
            if body.trim().is_empty() {
                return Err(Faults::one("must not be empty"));
            }
            Ok(body)
        });
        let footer = fields.optional("footer", |node| {
            with_variables(node, FOOTER_CHARS, &mut names)
        });
        let buttons = fields.optional("buttons", |node| {
            let buttons = FreeJson::objects(node, MOST_BUTTONS, BUTTONS_BYTES)?;
            collect(node, &mut names)?;
            Ok(buttons)
        });
        if names.len() > variables::MOST_VARIABLES {
            let most = variables::MOST_VARIABLES;
            fields.add_fault("", format!("must have at most {most} variables in all"));
        }
        fields.finish()?;
        let (Some(name), Some(language), Some(body)) = (name, language, body) else {
            return Err(Faults::one("could not be read"));
        };
        Ok(Self {
            name,
            language,
            header,
            body,
            footer,
            buttons: buttons.unwrap_or_else(FreeJson::empty_array),
            variables: names,
        })
    }
}

fn template_name(node: &Node<'_>) -> Checked<String> {
    let name = text(NAME_CHARS)(node)?;
    if name.trim().is_empty() || name.chars().any(char::is_control) {
        return Err(Faults::one(
            "must have 1 to 512 characters, not only spaces, and no control characters",
        ));
    }
    Ok(name)
}

fn language(node: &Node<'_>) -> Checked<String> {
    let language = text(LANGUAGE_CHARS)(node)?;
    let mut parts = language.split(['_', '-']);
    let first = parts.next().unwrap_or_default();
    let fits = (2..=8).contains(&first.len())
        && first.bytes().all(|byte| byte.is_ascii_alphabetic())
        && parts.all(|part| {
            (1..=8).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_alphanumeric())
        });
    if fits {
        Ok(language)
    } else {
        Err(Faults::one("must be a language like en or en_US"))
    }
}

/// Reads a text and adds its variables.
fn with_variables(node: &Node<'_>, chars: usize, names: &mut Vec<String>) -> Checked<String> {
    let text = text(chars)(node)?;
    add(variables::names(&text)?, names);
    Ok(text)
}

fn add(found: Vec<String>, names: &mut Vec<String>) {
    for name in found {
        if !names.contains(&name) {
            names.push(name);
        }
    }
}

/// Adds the variables of all texts within.
fn collect(node: &Node<'_>, names: &mut Vec<String>) -> Checked<()> {
    match &node.value {
        Value::String(text) => add(variables::names(text)?, names),
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                collect(item, names).map_err(|faults| nested(&index.to_string(), faults))?;
            }
        }
        Value::Object(members) => {
            for (name, member) in members {
                collect(member, names).map_err(|faults| nested(name, faults))?;
            }
        }
        _ => {}
    }
    Ok(())
}

fn nested(path: &str, inner: Faults) -> Faults {
    let mut faults = Faults::default();
    faults.nest(path, inner);
    faults
}

/// Where the provider wants a template's variables.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slots {
    /// Whether the provider knows variables by their names, not by their numbers.
    pub named: bool,
    /// The variables of the header's text.
    #[serde(default)]
    pub header: Vec<String>,
    /// `image`, `video` or `document`: the header is a file, whose link is the variable
    /// `header_link`.
    #[serde(default)]
    pub header_media: Option<String>,
    /// The variables of the body.
    #[serde(default)]
    pub body: Vec<String>,
    /// Buttons whose link ends with a variable: the button's place, and the variable's name here.
    #[serde(default)]
    pub buttons: Vec<(usize, String)>,
}

/// A template as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTemplate {
    /// See [`TemplateInput`].
    pub name: String,
    /// See [`TemplateInput`].
    pub language: String,
    /// `approved`, or why it can't be sent.
    pub status: String,
    /// See [`TemplateInput`].
    pub header: Option<String>,
    /// See [`TemplateInput`].
    pub body: String,
    /// See [`TemplateInput`].
    pub footer: Option<String>,
    /// JSON.
    pub buttons: String,
    /// The names that a send has to give.
    pub variables: Vec<String>,
    /// Where the provider wants them.
    pub slots: Option<Slots>,
}

impl NewTemplate {
    /// Whether two are equal in all but how their JSON is written.
    fn says_the_same(&self, other: &Self) -> bool {
        let read = |json: &str| serde_json::from_str::<serde_json::Value>(json).ok();
        let buttons = other.buttons.clone();
        read(&self.buttons) == read(&other.buttons)
            && Self {
                buttons,
                ..self.clone()
            } == *other
    }
}

/// A template as it is answered to whoever posted it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Template {
    /// What a send names as `template_id`.
    pub id: i64,
    /// Whose it is.
    pub store_id: i64,
    /// With `language` its key.
    pub name: String,
    /// As WhatsApp writes languages.
    pub language: String,
    /// `approved`: it can be sent.
    #[schema(example = "approved")]
    pub status: String,
    /// Stands above the body.
    pub header: Option<String>,
    /// What the person reads.
    pub body: String,
    /// Stands below the body.
    pub footer: Option<String>,
    /// As they were sent.
    #[schema(value_type = FreeObjects)]
    pub buttons: FreeJson,
    /// The names that a send has to give.
    pub variables: Vec<String>,
    /// When it was first posted.
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
}

/// A template as the list of those that can be sent shows it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct SendableTemplate {
    /// What a send names as `template_id`.
    pub id: i64,
    /// With `language` its key.
    pub name: String,
    /// As WhatsApp writes languages.
    pub language: String,
    /// The names that a send has to give.
    pub variables: Vec<String>,
    /// What the person reads.
    pub body: String,
}

/// What an upsert came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upserted {
    /// It is new.
    Created,
    /// It changed.
    Updated,
    /// It was there already, word for word.
    Unchanged,
}

/// Creates or replaces a template. A row of the same content is left as it is.
///
/// # Errors
/// When the database fails.
pub async fn upsert(
    connection: &mut Connection,
    store_id: i64,
    provider: ProviderName,
    new: &NewTemplate,
    now: DateTime<Utc>,
) -> sqlx::Result<(Template, Upserted)> {
    tenancy::lock_store(&mut *connection, store_id).await?;
    let found = by_name(connection, store_id, provider, &new.name, &new.language).await?;
    let upserted = match &found {
        None => {
            insert(connection, store_id, provider, new, now).await?;
            Upserted::Created
        }
        Some((_, stored)) if stored.says_the_same(new) => Upserted::Unchanged,
        Some((template, _)) => {
            update(connection, template.id, store_id, new, now).await?;
            Upserted::Updated
        }
    };
    let stored = by_name(connection, store_id, provider, &new.name, &new.language).await?;
    let (template, _) = stored.ok_or(sqlx::Error::RowNotFound)?;
    Ok((template, upserted))
}

async fn by_name(
    connection: &mut Connection,
    store_id: i64,
    provider: ProviderName,
    name: &str,
    language: &str,
) -> sqlx::Result<Option<(Template, NewTemplate)>> {
    let row = sqlx::query!(
        r#"select
            template_id, name, language, status, header, body, footer, buttons::text as "buttons!",
            variables as "variables: Json<Vec<String>>", slots as "slots: Json<Slots>", created_at,
            updated_at
        from message_templates
        where store_id = $1 and provider = $2 and name = $3 and language = $4"#,
        store_id,
        provider.as_str(),
        name,
        language,
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|row| {
        let stored = NewTemplate {
            name: row.name.clone(),
            language: row.language.clone(),
            status: row.status.clone(),
            header: row.header.clone(),
            body: row.body.clone(),
            footer: row.footer.clone(),
            buttons: row.buttons.clone(),
            variables: row.variables.0.clone(),
            slots: row.slots.map(|slots| slots.0),
        };
        let template = Template {
            id: row.template_id,
            store_id,
            name: row.name,
            language: row.language,
            status: row.status,
            header: row.header,
            body: row.body,
            footer: row.footer,
            buttons: FreeJson::from_stored(row.buttons),
            variables: row.variables.0,
            created_at: row.created_at,
            updated_at: row.updated_at,
        };
        (template, stored)
    }))
}

async fn insert(
    connection: &mut Connection,
    store_id: i64,
    provider: ProviderName,
    new: &NewTemplate,
    now: DateTime<Utc>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into message_templates (
            store_id, provider, name, language, status, header, body, footer, buttons, variables,
            slots, created_at, updated_at
        )
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9::text::jsonb, $10, $11, $12, $12)",
        store_id,
        provider.as_str(),
        new.name,
        new.language,
        new.status,
        new.header,
        new.body,
        new.footer,
        new.buttons,
        Json(&new.variables) as Json<&Vec<String>>,
        new.slots.as_ref().map(Json) as Option<Json<&Slots>>,
        now,
    )
    .execute(connection)
    .await?;
    Ok(())
}

async fn update(
    connection: &mut Connection,
    template_id: i64,
    store_id: i64,
    new: &NewTemplate,
    now: DateTime<Utc>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update message_templates
        set status = $3,
            header = $4,
            body = $5,
            footer = $6,
            buttons = $7::text::jsonb,
            variables = $8,
            slots = $9,
            updated_at = $10
        where template_id = $1 and store_id = $2",
        template_id,
        store_id,
        new.status,
        new.header,
        new.body,
        new.footer,
        new.buttons,
        Json(&new.variables) as Json<&Vec<String>>,
        new.slots.as_ref().map(Json) as Option<Json<&Slots>>,
        now,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// How many templates a store has for a provider.
///
/// # Errors
/// When the database fails.
pub async fn count(
    db: impl PgExecutor<'_>,
    store_id: i64,
    provider: ProviderName,
) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"select count(*) as "count!"
        from message_templates
        where store_id = $1 and provider = $2"#,
        store_id,
        provider.as_str(),
    )
    .fetch_one(db)
    .await
}

/// The templates of a store that can be sent, oldest first.
///
/// # Errors
/// When the database fails.
pub async fn sendable(
    db: impl PgExecutor<'_>,
    store_id: i64,
    provider: ProviderName,
) -> sqlx::Result<Vec<SendableTemplate>> {
    let limit = i64::try_from(MOST_TEMPLATES).unwrap_or(i64::MAX);
    let rows = sqlx::query!(
        r#"select
            template_id, name, language, variables as "variables: Json<Vec<String>>", body
        from message_templates
        where store_id = $1 and provider = $2 and status = 'approved'
        order by template_id
        limit $3"#,
        store_id,
        provider.as_str(),
        limit,
    )
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| SendableTemplate {
            id: row.template_id,
            name: row.name,
            language: row.language,
            variables: row.variables.0,
            body: row.body,
        })
        .collect())
}

/// What a send needs of a template.
#[derive(Clone, Debug)]
pub struct ToSend {
    /// Ours.
    pub id: i64,
    /// The provider's name for it.
    pub name: String,
    /// The provider's word for its language.
    pub language: String,
    /// The names that have to be given.
    pub variables: Vec<String>,
}

/// A template that can be sent through a provider.
///
/// # Errors
/// When the database fails.
pub async fn to_send(
    db: impl PgExecutor<'_>,
    store_id: i64,
    provider: ProviderName,
    template_id: i64,
) -> sqlx::Result<Option<ToSend>> {
    let row = sqlx::query!(
        r#"select name, language, variables as "variables: Json<Vec<String>>"
        from message_templates
        where template_id = $2 and store_id = $1 and provider = $3 and status = 'approved'"#,
        store_id,
        template_id,
        provider.as_str(),
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(|row| ToSend {
        id: template_id,
        name: row.name,
        language: row.language,
        variables: row.variables.0,
    }))
}

/// Where the provider wants the variables of templates, by their ids.
///
/// # Errors
/// When the database fails.
pub async fn slots(
    db: impl PgExecutor<'_>,
    store_id: i64,
    template_ids: &[i64],
) -> sqlx::Result<Vec<(i64, Slots)>> {
    let rows = sqlx::query!(
        r#"select template_id, slots as "slots!: Json<Slots>"
        from message_templates
        where store_id = $1 and template_id = any($2) and slots is not null"#,
        store_id,
        template_ids,
    )
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| (row.template_id, row.slots.0))
        .collect())
}

/// Marks those of a provider's templates that it no longer has; they can't be sent any more.
///
/// # Errors
/// When the database fails.
pub async fn mark_gone(
    db: impl PgExecutor<'_>,
    store_id: i64,
    provider: ProviderName,
    kept: &[i64],
    now: DateTime<Utc>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update message_templates
        set status = 'gone', updated_at = $4
        where store_id = $1 and provider = $2 and status <> 'gone' and template_id <> all($3)",
        store_id,
        provider.as_str(),
        kept,
        now,
    )
    .execute(db)
    .await?;
    Ok(())
}
