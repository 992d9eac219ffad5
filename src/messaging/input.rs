//! The bodies of the two sending endpoints.

use utoipa::ToSchema;

use super::messages::{Content, Media};
use crate::values::{
    Checked, Count, Country, Email, Faults, Fields, HttpUrl, Node, Patch, Phone, PhoneInput,
};
use crate::values::{Text, Value, text};

/// As the Cloud API counts them.
const BODY_CHARS: usize = 4_096;
const CAPTION_CHARS: usize = 1_024;
/// Characters of a variable's value.
pub const VALUE_CHARS: usize = 1_024;
const MOST_VARIABLES: usize = 100;
/// The kinds of free-form messages; each has a member of its name.
pub const KINDS: &[&str] = &["text", "image", "video", "audio", "document"];

/// Free text.
#[derive(ToSchema)]
#[schema(as = TextPart)]
pub struct TextPart {
    /// What the person reads; not only spaces.
    #[schema(value_type = String, min_length = 1, max_length = 4096, pattern = r"^[^\u0000]*[^\s\u0000][^\u0000]*$")]
    pub body: String,
}

/// A file behind a link.
#[derive(ToSchema)]
#[schema(as = MediaPart)]
pub struct MediaPart {
    /// Where the provider fetches the file.
    pub link: HttpUrl,
    /// What stands under it.
    #[schema(value_type = Option<Text<1024>>)]
    pub caption: Option<String>,
}

/// A recording behind a link.
#[derive(ToSchema)]
#[schema(as = AudioPart)]
pub struct AudioPart {
    /// Where the provider fetches the file.
    pub link: HttpUrl,
}

/// A free-form message: the member that `type` names must be there, and no other.
#[derive(ToSchema)]
#[schema(as = SendInput)]
pub struct SendInput {
    /// The person's number, in any spelling.
    #[schema(value_type = PhoneInput)]
    pub to: Phone,
    /// Which kind of message.
    #[schema(value_type = String, pattern = "^(text|image|video|audio|document)$", example = "text")]
    pub r#type: String,
    /// For type `text`.
    pub text: Option<TextPart>,
    /// For type `image`.
    pub image: Option<MediaPart>,
    /// For type `video`.
    pub video: Option<MediaPart>,
    /// For type `audio`.
    pub audio: Option<AudioPart>,
    /// For type `document`.
    pub document: Option<MediaPart>,
    /// May be left out when the key can use only one store.
    #[schema(minimum = 1)]
    pub store_id: Option<i64>,
}

/// A template message.
#[derive(ToSchema)]
#[schema(as = TemplateSendInput)]
pub struct TemplateSendInput {
    /// From `GET /get_templates`.
    #[schema(minimum = 1)]
    pub template_id: i64,
    /// The person's number, in any spelling.
    #[schema(value_type = PhoneInput)]
    pub phone_number: Phone,
    /// A value for each variable of the template, of at most 1,024 characters.
    #[schema(value_type = Option<Object>)]
    pub variables: Vec<(String, String)>,
    /// As the person is called; kept with the contact.
    #[schema(value_type = Option<Text<255>>)]
    pub name: Option<String>,
    /// The person's address; kept with the contact.
    pub email: Option<Email>,
    /// May be left out when the key can use only one store.
    #[schema(minimum = 1)]
    pub store_id: Option<i64>,
}

/// What is to be sent, read and checked.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// To which number.
    pub to: Phone,
    /// What.
    pub what: What,
}

/// A free-form message or a template.
#[derive(Clone, Debug)]
pub enum What {
    /// Needs an open service window.
    FreeForm(Content),
    /// May be sent at any time.
    Template {
        /// Ours.
        template_id: i64,
        /// Names and values as they were sent.
        variables: Vec<(String, String)>,
        /// As the person is called.
        name: Option<String>,
        /// The person's address.
        email: Option<String>,
    },
}

/// The store that a body names: `Ok(None)` when it names none. What is wrong with it is told with
/// everything else.
#[must_use]
pub fn store_id(node: &Node<'_>) -> Option<i64> {
    node.member("store_id").and_then(|node| id(node).ok())
}

/// A positive integer.
///
/// # Errors
/// Anything else.
pub fn id(node: &Node<'_>) -> Checked<i64> {
    let fault = || Faults::one("must be a whole number of 1 or more");
    let number = Count::read(node).map_err(|_| fault())?.get();
    if number > 0 { Ok(number) } else { Err(fault()) }
}

/// What every body has: `store_id`, and a fault when it is left out but needed.
fn read_store_id(fields: &mut Fields<'_, '_>, store_is_known: bool) {
    let is_missing = match fields.patch("store_id", id) {
        Patch::Value(_) => false,
        Patch::Null => true,
        Patch::Absent => !fields.present("store_id"),
    };
    if is_missing && !store_is_known {
        fields.add_fault(
            "store_id",
            "is required: the key can use several stores, or none",
        );
    }
}

/// Reads the body of a free-form message. `store_is_known`: it needs not name its store.
///
/// # Errors
/// Every faulty field.
pub fn read_send(
    node: &Node<'_>,
    country: Option<Country>,
    store_is_known: bool,
) -> Checked<Wanted> {
    let mut fields = Fields::of(node)?;
    read_store_id(&mut fields, store_is_known);
    let to = fields.required("to", |node| Phone::read(node, country));
    let kind = fields.required("type", crate::values::choice(KINDS));
    let content = kind.and_then(|kind| match kind {
        "text" => fields.required("text", text_part),
        "image" => fields.required("image", |node| media_part(node, Media::Image)),
        "video" => fields.required("video", |node| media_part(node, Media::Video)),
        "audio" => fields.required("audio", |node| media_part(node, Media::Audio)),
        _ => fields.required("document", |node| media_part(node, Media::Document)),
    });
    if let Some(kind) = kind {
        for other in KINDS.iter().filter(|other| **other != kind) {
            fields.optional(other, |_| -> Checked<()> {
                let message = format!("does not belong to a message of type {kind}");
                Err(Faults::one(message))
            });
        }
    } else {
        // Nobody knows which one is meant: none of them is an unknown field.
        for other in KINDS {
            fields.optional(other, |_| Ok(()));
        }
    }
    fields.finish()?;
    let (Some(to), Some(content)) = (to, content) else {
        return Err(Faults::one("could not be read"));
    };
    let what = What::FreeForm(content);
    Ok(Wanted { to, what })
}

fn text_part(node: &Node<'_>) -> Checked<Content> {
    let mut fields = Fields::of(node)?;
    let body = fields.required("body", |node| {
        let body = text(BODY_CHARS)(node)?;
        if body.trim().is_empty() {
            return Err(Faults::one("must not be empty"));
        }
        Ok(body)
    });
    fields.finish()?;
    let body = body.ok_or_else(|| Faults::one("could not be read"))?;
    Ok(Content::Text { body })
}

fn media_part(node: &Node<'_>, media: Media) -> Checked<Content> {
    let mut fields = Fields::of(node)?;
    let link = fields.required("link", HttpUrl::read);
    let caption = if media == Media::Audio {
        fields.optional("caption", |_| Err(Faults::one("is not for audio")))
    } else {
        fields.optional("caption", text(CAPTION_CHARS))
    };
    fields.finish()?;
    let link = link.ok_or_else(|| Faults::one("could not be read"))?;
    Ok(Content::Media {
        media,
        link: link.as_str().to_owned(),
        caption,
    })
}

/// Reads the body of a template message. `store_is_known`: it needs not name its store.
///
/// # Errors
/// Every faulty field.
pub fn read_template(
    node: &Node<'_>,
    country: Option<Country>,
    store_is_known: bool,
) -> Checked<Wanted> {
    let mut fields = Fields::of(node)?;
    read_store_id(&mut fields, store_is_known);
    let template_id = fields.required("template_id", id);
    let to = fields.required("phone_number", |node| Phone::read(node, country));
    let variables = fields.optional("variables", variables);
    let name = fields.optional("name", text(255));
    let email = fields.optional("email", Email::read);
    fields.finish()?;
    let (Some(template_id), Some(to)) = (template_id, to) else {
        return Err(Faults::one("could not be read"));
    };
    let what = What::Template {
        template_id,
        variables: variables.unwrap_or_default(),
        name,
        email: email.map(|email| email.as_str().to_owned()),
    };
    Ok(Wanted { to, what })
}

/// A flat object of strings of at most 1,024 characters: values of a template's variables.
///
/// # Errors
/// Every faulty member.
pub fn variables(node: &Node<'_>) -> Checked<Vec<(String, String)>> {
    texts(node, VALUE_CHARS)
}

/// A flat object of strings of at most so many characters, by the names of a template's variables.
///
/// # Errors
/// Every faulty member.
pub fn texts(node: &Node<'_>, chars: usize) -> Checked<Vec<(String, String)>> {
    let Value::Object(members) = &node.value else {
        return Err(Faults::one("must be an object"));
    };
    if members.len() > MOST_VARIABLES {
        return Err(Faults::one(format!(
            "must have at most {MOST_VARIABLES} members"
        )));
    }
    let (mut faults, mut read) = (Faults::default(), Vec::new());
    for (name, value) in members {
        let shown: String = name.chars().take(100).collect();
        if name.contains('\0') {
            faults.add(shown, "must not contain U+0000");
            continue;
        }
        match text(chars)(value) {
            Ok(value) => read.push((name.clone().into_owned(), value)),
            Err(inner) => faults.nest(&shown, inner),
        }
    }
    faults.into_result()?;
    Ok(read)
}

/// An inbound message of the sandbox.
#[derive(ToSchema)]
#[schema(as = SandboxInboundInput)]
pub struct SandboxInbound {
    /// Who wrote, in any spelling.
    #[schema(value_type = PhoneInput)]
    pub from: Phone,
    /// What they wrote; `STOP` alone opts out, `START` in again.
    #[schema(value_type = String, min_length = 1, max_length = 4096, pattern = r"^[^\u0000]+$")]
    pub text: String,
}

impl SandboxInbound {
    /// Reads a body.
    ///
    /// # Errors
    /// Every faulty field.
    pub fn read(node: &Node<'_>, country: Option<Country>) -> Checked<Self> {
        let mut fields = Fields::of(node)?;
        let from = fields.required("from", |node| Phone::read(node, country));
        let text = fields.required("text", |node| {
            let text = text(BODY_CHARS)(node)?;
            if text.is_empty() {
                return Err(Faults::one("must not be empty"));
            }
            Ok(text)
        });
        fields.finish()?;
        let (Some(from), Some(text)) = (from, text) else {
            return Err(Faults::one("could not be read"));
        };
        Ok(Self { from, text })
    }
}
