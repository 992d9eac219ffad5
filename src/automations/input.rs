//! The body of an automation.

use serde::Serialize;
use utoipa::ToSchema;

use super::condition::Condition;
use super::shape::Shape;
use super::sources::Sources;
use crate::messaging::input::id;
use crate::resources::catalog;
use crate::values::{Checked, Count, ExternalId, Faults, Fields, Node, Text, Value, choice, text};

/// Longest delay: 30 days.
pub const MOST_DELAY_S: i64 = 30 * 86_400;
/// Longest time between two runs for a contact: a year.
pub const MOST_COOLDOWN_S: i64 = 366 * 86_400;
const NAME_CHARS: usize = 255;
const STATUSES: &[&str] = &["active", "paused"];

/// What sets an automation off: an effective change of a record that meets the condition, or a call
/// of its webhook. Either `resource`, with `when` if need be, or `webhook`.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = AutomationTriggerPart)]
pub struct TriggerPart {
    /// The resource's path.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, pattern = "^(orders|checkouts|customers|shipments)$", example = "checkouts")]
    pub resource: Option<&'static str>,
    /// Names of members and the value, or the list of values, that each may have; `tags`: one that
    /// they must contain. Left out: any record.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>, example = json!({"status": "abandoned"}))]
    pub when: Option<Condition>,
    /// Only true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub webhook: Option<bool>,
}

/// What an automation does: it sends a template message.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = AutomationActionPart)]
pub struct ActionPart {
    /// To the person whom the record is about.
    pub send_template: SendTemplatePart,
}

/// Which template, and where the values of its variables come from.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = AutomationSendTemplatePart)]
pub struct SendTemplatePart {
    /// From `GET /get_templates`.
    #[schema(minimum = 1)]
    pub template_id: i64,
    /// A JSON pointer (RFC 6901) into the record as GET answers it, or a literal behind `=`, for
    /// each variable of the template. With a webhook: into what it is called with
    /// (`/phone_number`, `/external_id`, `/variables/<name>`); variables that are left out are
    /// taken from the call's own `variables`.
    #[schema(value_type = Option<Object>, example = json!({"first_name": "/customer/first_name"}))]
    pub variables: Option<Sources>,
}

/// An automation as it is posted.
#[derive(Debug, ToSchema)]
#[schema(as = AutomationInput)]
pub struct AutomationInput {
    /// The caller's own id of the automation: its key in the store.
    pub external_id: ExternalId,
    /// For people; the `external_id` if left out.
    #[schema(value_type = Option<Text<255>>, example = "Recover a checkout")]
    pub name: Option<String>,
    /// `active` (if left out) or `paused`.
    #[schema(value_type = Option<String>, pattern = "^(active|paused)$")]
    pub status: &'static str,
    /// What sets it off.
    pub trigger: TriggerPart,
    /// How many seconds after the change the condition is checked again and the message is sent; 0
    /// if left out, at most 2,592,000 (30 days).
    #[schema(value_type = Option<i64>, minimum = 0, maximum = 2_592_000)]
    pub delay_seconds: i64,
    /// `once_per_record` (if left out; with a webhook once per contact), `every_change`, or
    /// `{"cooldown_seconds": n}`: once per contact in so many seconds, at most 31,622,400.
    #[schema(value_type = Option<ReentryInput>)]
    pub reentry: Reentry,
    /// What it does.
    pub action: ActionPart,
}

/// When an automation runs again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reentry {
    /// Once for each record; with a webhook once for each contact.
    OncePerRecord,
    /// With every change.
    EveryChange,
    /// Once for each contact in so many seconds.
    Cooldown(i64),
}

/// The schema of [`Reentry`].
#[derive(ToSchema)]
#[schema(as = AutomationReentry)]
pub enum ReentryInput {
    /// Once for each record.
    #[schema(rename = "once_per_record")]
    OncePerRecord,
    /// With every change.
    #[schema(rename = "every_change")]
    EveryChange,
    /// Once for each contact in so many seconds.
    #[schema(rename = "cooldown_seconds")]
    Cooldown(i64),
}

impl Reentry {
    /// The word in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OncePerRecord => "once_per_record",
            Self::EveryChange => "every_change",
            Self::Cooldown(_) => "cooldown",
        }
    }

    /// The seconds of a cooldown.
    #[must_use]
    pub fn cooldown_seconds(self) -> Option<i64> {
        match self {
            Self::Cooldown(seconds) => Some(seconds),
            Self::OncePerRecord | Self::EveryChange => None,
        }
    }

    /// What was stored.
    #[must_use]
    pub fn from_stored(word: &str, cooldown_seconds: Option<i64>) -> Self {
        match (word, cooldown_seconds) {
            (_, Some(seconds)) => Self::Cooldown(seconds),
            ("every_change", None) => Self::EveryChange,
            _ => Self::OncePerRecord,
        }
    }

    fn read(node: &Node<'_>) -> Checked<Self> {
        if let Value::Object(_) = &node.value {
            let mut fields = Fields::of(node)?;
            let seconds = fields.required("cooldown_seconds", seconds(1, MOST_COOLDOWN_S));
            fields.finish()?;
            let seconds = seconds.ok_or_else(unread)?;
            return Ok(Self::Cooldown(seconds));
        }
        match node.short_text(32) {
            Some("once_per_record") => Ok(Self::OncePerRecord),
            Some("every_change") => Ok(Self::EveryChange),
            _ => Err(Faults::one(
                "must be once_per_record, every_change or {\"cooldown_seconds\": n}",
            )),
        }
    }
}

impl Serialize for Reentry {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Cooldown(seconds) => serializer.collect_map([("cooldown_seconds", seconds)]),
            word => serializer.serialize_str(word.as_str()),
        }
    }
}

impl AutomationInput {
    /// Reads a body.
    ///
    /// # Errors
    /// Every faulty field.
    pub fn read(node: &Node<'_>) -> Checked<Self> {
        let mut fields = Fields::of(node)?;
        let external_id = fields.required("external_id", ExternalId::read);
        let name = fields.optional("name", name);
        let status = fields.optional("status", choice(STATUSES));
        // Without a trigger nobody knows what pointers can lead to.
        let mut shape = None;
        let trigger = fields.required("trigger", |node| TriggerPart::read(node, &mut shape));
        let delay = fields.optional("delay_seconds", seconds(0, MOST_DELAY_S));
        let reentry = fields.optional("reentry", Reentry::read);
        let action = fields.required("action", |node| ActionPart::read(node, shape));
        fields.finish()?;
        let (Some(external_id), Some(trigger), Some(action)) = (external_id, trigger, action)
        else {
            return Err(unread());
        };
        Ok(Self {
            external_id,
            name,
            status: status.unwrap_or("active"),
            trigger,
            delay_seconds: delay.unwrap_or(0),
            reentry: reentry.unwrap_or(Reentry::OncePerRecord),
            action,
        })
    }
}

impl TriggerPart {
    fn read(node: &Node<'_>, shape: &mut Option<Shape<'_>>) -> Checked<Self> {
        let mut fields = Fields::of(node)?;
        let is_sent = |name| {
            !matches!(
                node.member(name).map(|node| &node.value),
                None | Some(Value::Null)
            )
        };
        let resource = fields.optional("resource", |node| {
            let known: Vec<&str> = catalog::ALL.iter().map(|entry| entry.path).collect();
            let found = node.short_text(64).and_then(catalog::entry);
            let none = || Faults::one(format!("must be one of {}", known.join(", ")));
            found.map(|entry| entry.path).ok_or_else(none)
        });
        let entry = resource.and_then(catalog::entry);
        let when = fields.optional("when", |node| match entry {
            Some(entry) => Condition::read(node, Shape::of(entry)),
            // What it can say is not known, or nothing.
            None => Ok(Condition::default()),
        });
        let webhook = fields.optional("webhook", |node| match node.value {
            Value::Bool(true) => Ok(true),
            _ => Err(Faults::one("must be true")),
        });
        match (is_sent("resource"), is_sent("webhook")) {
            (true, true) => {
                fields.add_fault(
                    "webhook",
                    "can't stand beside resource: there is one trigger",
                );
            }
            (false, false) => fields.add_fault("resource", "is required, or webhook"),
            (false, true) if is_sent("when") => {
                fields.add_fault("when", "does not belong to a webhook");
            }
            (true, false) => *shape = entry.map(Shape::of),
            (false, true) => *shape = Some(Shape::of_webhook()),
        }
        fields.finish()?;
        Ok(Self {
            resource,
            when: when.filter(|when| *when != Condition::default()),
            webhook,
        })
    }
}

impl ActionPart {
    fn read(node: &Node<'_>, shape: Option<Shape<'_>>) -> Checked<Self> {
        let mut fields = Fields::of(node)?;
        let send_template =
            fields.required("send_template", |node| SendTemplatePart::read(node, shape));
        fields.finish()?;
        let send_template = send_template.ok_or_else(unread)?;
        Ok(Self { send_template })
    }
}

impl SendTemplatePart {
    fn read(node: &Node<'_>, shape: Option<Shape<'_>>) -> Checked<Self> {
        let mut fields = Fields::of(node)?;
        let template_id = fields.required("template_id", id);
        let variables = fields.optional("variables", |node| match shape {
            Some(shape) => Sources::read(node, shape),
            None => Ok(Sources::default()),
        });
        fields.finish()?;
        Ok(Self {
            template_id: template_id.ok_or_else(unread)?,
            variables: Some(variables.unwrap_or_default()),
        })
    }
}

fn name(node: &Node<'_>) -> Checked<String> {
    let name = text(NAME_CHARS)(node)?;
    if name.trim().is_empty() {
        return Err(Faults::one("must not be empty"));
    }
    Ok(name)
}

/// A whole number of seconds within bounds.
fn seconds(least: i64, most: i64) -> impl Fn(&Node<'_>) -> Checked<i64> {
    move |node| {
        let fault = || Faults::one(format!("must be a whole number from {least} to {most}"));
        let seconds = Count::read(node).map_err(|_| fault())?.get();
        if (least..=most).contains(&seconds) {
            Ok(seconds)
        } else {
            Err(fault())
        }
    }
}

fn unread() -> Faults {
    Faults::one("could not be read")
}
