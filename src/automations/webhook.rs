//! Calls of an automation's webhook: safe to repeat, since an occasion has one run.

use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;
use uuid::Uuid;

use super::evaluate::known;
use super::input::Reentry;
use super::rules::{self, Rule, Trigger};
use super::runs::{self, Call, NewRun};
use crate::database::Connection;
use crate::error::Error;
use crate::messaging::{channels, input, templates};
use crate::state::State;
use crate::values::{Checked, Country, ExternalId, Faults, Fields, Node, Phone, PhoneInput, parse};

/// What a webhook is called with.
#[derive(Clone, Debug, ToSchema)]
#[schema(as = AutomationCallInput)]
pub struct CallInput {
    /// The person's number, in any spelling.
    #[schema(value_type = PhoneInput)]
    pub phone_number: Phone,
    /// Values that the automation's template needs, of at most 1,024 characters.
    #[schema(value_type = Option<Object>)]
    pub variables: Vec<(String, String)>,
    /// The caller's own id of the occasion: one run for each, so that the call is safe to repeat.
    pub external_id: Option<ExternalId>,
}

impl CallInput {
    /// Reads a body.
    ///
    /// # Errors
    /// Every faulty field.
    pub fn read(node: &Node<'_>, country: Option<Country>) -> Checked<Self> {
        let mut fields = Fields::of(node)?;
        let phone = fields.required("phone_number", |node| Phone::read(node, country));
        let variables = fields.optional("variables", input::variables);
        let external_id = fields.optional("external_id", ExternalId::read);
        fields.finish()?;
        Ok(Self {
            phone_number: phone.ok_or_else(|| Faults::one("could not be read"))?,
            variables: variables.unwrap_or_default(),
            external_id,
        })
    }
}

/// What a call came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = AutomationCall)]
pub struct Called {
    /// Whether it set the automation off, now or when it came first.
    pub triggered: bool,
    /// The run that it set off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_id: Option<Uuid>,
    /// Why it did not: `reentry`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Called {
    fn of(run_id: Uuid, skipped: Option<String>) -> Self {
        Self {
            triggered: skipped.is_none(),
            run_id: skipped.is_none().then_some(run_id),
            reason: skipped,
        }
    }
}

/// Sets an automation off, in the caller's transaction; gives the run if it is a new one.
///
/// # Errors
/// When the database fails; the refusal is that there is no such automation, that it is paused, or
/// which variables are wrong.
pub async fn call(
    state: &State,
    connection: &mut Connection,
    store_id: i64,
    (webhook_id, automation_id): (Uuid, Uuid),
    input: CallInput,
) -> sqlx::Result<Result<(Called, Option<Uuid>), Error>> {
    // It may have got another trigger since it was looked up.
    let found = rules::lock(&mut *connection, store_id, automation_id).await?;
    let Some(rule) = found.filter(|rule| rule.trigger == Trigger::Webhook(webhook_id)) else {
        return Ok(Err(Error::NotFound));
    };
    if rule.paused {
        return Ok(Err(Error::AutomationPaused));
    }
    let phone = input.phone_number.as_str().to_owned();
    let external_id = input.external_id.as_ref().map(|id| id.as_str().to_owned());
    let occasion = match &external_id {
        Some(id) => runs::occasion(store_id, id),
        None => state.clock.new_id().as_bytes().to_vec(),
    };
    let known_run = runs::of_occasion(&mut *connection, store_id, rule.id, &occasion).await?;
    if let Some((run_id, status, reason)) = known_run {
        let reentry = reason.filter(|reason| status == "skipped" && reason == "reentry");
        return Ok(Ok((Called::of(run_id, reentry), None)));
    }
    let values = match values(connection, store_id, &rule, &input).await? {
        Ok(values) => values,
        Err(faults) => return Ok(Err(Error::Invalid(faults))),
    };
    let contact = runs::contact(store_id, &phone);
    let is_again = !known(state, connection, store_id, &rule, &[&contact])
        .await?
        .is_empty();
    let now = state.clock.now();
    let run = NewRun {
        once: (rule.reentry == Reentry::OncePerRecord && !is_again).then(|| contact.clone()),
        external_id,
        contact: Some(contact),
        call: (!is_again).then_some(Call {
            phone,
            variables: values,
        }),
        skipped: is_again.then_some("reentry"),
        ..NewRun::of(state, &rule, occasion, now)
    };
    let run_id = run.id;
    runs::insert(connection, store_id, &[run], now).await?;
    let reason = is_again.then(|| "reentry".to_owned());
    Ok(Ok((
        Called::of(run_id, reason),
        (!is_again).then_some(run_id),
    )))
}

/// The values of the message's variables: from where the automation says, else from the call by their
/// names. The refusal names what a call lacks, and what nobody asks for.
async fn values(
    connection: &mut Connection,
    store_id: i64,
    rule: &Rule,
    input: &CallInput,
) -> sqlx::Result<Result<Vec<(String, String)>, Faults>> {
    let provider = channels::provider(&mut *connection, store_id).await?;
    let template = templates::to_send(connection, store_id, provider, rule.template_id).await?;
    // Without its template the run fails when it is due, and says so.
    let all = template
        .map(|template| template.variables)
        .unwrap_or_default();
    let is_open = |name: &&String| !rule.variables.names().any(|known| known == name.as_str());
    let open: Vec<&String> = all.iter().filter(is_open).collect();
    let pointed_at = rule.variables.called();
    let mut faults = Faults::default();
    let mut wanted: Vec<&String> = open.iter().copied().chain(&pointed_at).collect();
    wanted.sort();
    wanted.dedup();
    let value = |name: &String| {
        let found = input.variables.iter().find(|(given, _)| given == name);
        found.map(|(_, value)| value.clone())
    };
    for name in &wanted {
        if value(name).is_none() {
            faults.add(format!("variables.{name}"), "is required by the automation");
        }
    }
    for (name, _) in &input.variables {
        if !wanted.contains(&name) {
            let shown: String = name.chars().take(100).collect();
            let message = "is not a variable of the automation";
            faults.add(format!("variables.{shown}"), message);
        }
    }
    if let Err(faults) = faults.into_result() {
        return Ok(Err(faults));
    }
    let text = record_of(input);
    let said = match parse(text.as_bytes()) {
        Ok(record) => rule.variables.values(&record),
        Err(_) => Ok(Vec::new()),
    };
    let mut values = match said {
        Ok(values) => values,
        // Only the occasion can be missing by now.
        Err(_) => {
            let message = "is required by the automation";
            return Ok(Err(Faults::at("external_id", message)));
        }
    };
    for name in open {
        values.extend(value(name).map(|value| (name.clone(), value)));
    }
    Ok(Ok(values))
}

/// What pointers of a webhook's automation lead into.
fn record_of(input: &CallInput) -> String {
    let variables: serde_json::Map<String, serde_json::Value> = input
        .variables
        .iter()
        .map(|(name, value)| (name.clone(), json!(value)))
        .collect();
    json!({
        "phone_number": input.phone_number.as_str(),
        "external_id": input.external_id.as_ref().map(ExternalId::as_str),
        "variables": variables
    })
    .to_string()
}
