//! Meta's Cloud API (<https://developers.facebook.com/documentation/business-messaging/whatsapp>).
//!
//! It has no idempotency key of its own, so everything depends on knowing whether a request can have
//! arrived: what fails before a connection stands was not sent; what fails after it may have been.
//! HTTP/1 alone, without redirects, proxies or the client's own retries, keeps that line sharp.

use std::sync::Arc;
use std::time::Duration;

use http::{StatusCode, header};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::errors::Class;
use super::{Handed, Handing, Reason};
use crate::config::Secret;
use crate::messaging::messages::{Content, Outgoing};
use crate::messaging::status::Status;
use crate::messaging::templates::{MOST_TEMPLATES, NewTemplate, Slots};
use crate::messaging::variables;

/// Until a connection stands.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Until the answer is there. More than the other, so that it never cuts off a connection attempt.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Connections that rest longer may have been closed at the other end, which only shows when a
/// request is on its way.
const IDLE: Duration = Duration::from_secs(4);
/// Bytes of an answer.
const MOST_ANSWER_BYTES: usize = 256 * 1_024;
/// Bytes of a page of templates.
const MOST_PAGE_BYTES: usize = 16 * 1_024 * 1_024;
/// Characters of a reason in words.
const MOST_DETAIL_CHARS: usize = 500;

/// The client for all stores.
#[derive(Clone, Debug)]
pub struct Api {
    http: reqwest::Client,
    base_url: Arc<str>,
}

impl Api {
    /// A client for the API at this address.
    ///
    /// # Errors
    /// When TLS can't be set up.
    pub fn new(base_url: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(crate::tls::client_config()?)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TIMEOUT)
            .pool_idle_timeout(IDLE)
            .build()?;
        Ok(Self {
            http,
            base_url: base_url.into(),
        })
    }

    /// A store's number at the API.
    #[must_use]
    pub fn number(&self, phone_number_id: String, token: Secret) -> Number {
        Number {
            api: self.clone(),
            phone_number_id,
            token,
        }
    }
}

/// One number that messages are sent from.
#[derive(Clone, Debug)]
pub struct Number {
    api: Api,
    phone_number_id: String,
    token: Secret,
}

/// What a status event names the message by: store, message, attempt.
#[must_use]
pub fn reference(store_id: i64, message_id: Uuid, attempt: i32) -> String {
    format!("{store_id}:{message_id}:{attempt}")
}

/// The store and the message that a reference of ours names.
#[must_use]
pub fn read_reference(text: &str) -> Option<(i64, Uuid)> {
    let mut parts = text.split(':');
    let store_id = parts.next()?.parse().ok()?;
    let message_id = parts.next()?.parse().ok()?;
    let _attempt: i32 = parts.next()?.parse().ok()?;
    parts.next().is_none().then_some((store_id, message_id))
}

impl Number {
    pub(super) async fn send(&self, handing: Handing<'_>) -> Handed {
        let url = format!("{}/{}/messages", self.api.base_url, self.phone_number_id);
        let request = self
            .api
            .http
            .post(url)
            .bearer_auth(self.token.expose())
            .json(&body(handing));
        match request.send().await {
            Ok(response) => answered(response).await,
            Err(error) => failed(&error),
        }
    }
}

/// What a failed request means.
fn failed(error: &reqwest::Error) -> Handed {
    // Words of the client's own: an error's text could hold the address, and with it nothing that
    // helps.
    if error.is_builder() {
        return Handed::Refused(Reason::of("request_invalid"));
    }
    if error.is_connect() {
        return Handed::NotSent {
            reason: Reason {
                code: "unreachable".to_owned(),
                detail: Some("no connection to the provider could be made".to_owned()),
            },
            after: None,
        };
    }
    let code = if error.is_timeout() {
        "timeout"
    } else {
        "connection_lost"
    };
    Handed::Unknown(Reason {
        code: code.to_owned(),
        detail: Some("the provider's answer was lost: it may have the message".to_owned()),
    })
}

async fn answered(response: reqwest::Response) -> Handed {
    let status = response.status();
    let retry_after = retry_after(response.headers());
    let bytes = match read(response, MOST_ANSWER_BYTES).await {
        Ok(bytes) => bytes,
        Err(ReadError::Client(error)) => return failed(&error),
        Err(ReadError::TooLong) => Vec::new(),
    };
    let answer: Option<Value> = serde_json::from_slice(&bytes).ok();
    let answer = answer.unwrap_or_default();
    if let Some(code) = answer.pointer("/error/code").and_then(Value::as_i64) {
        return judged(code, &answer, status, retry_after);
    }
    if status.is_success() {
        let id = answer.pointer("/messages/0/id").and_then(Value::as_str);
        return match id.filter(|id| (1..=512).contains(&id.len()) && !id.contains('\0')) {
            Some(id) => Handed::Accepted {
                provider_message_id: id.to_owned(),
                statuses: &[Status::Sent],
            },
            None => Handed::Unknown(Reason {
                code: "answer_unreadable".to_owned(),
                detail: Some("the provider's answer has no message id".to_owned()),
            }),
        };
    }
    without_code(status, retry_after)
}

/// An answer from something that is not the API itself, or not quite: only a 4xx proves that nothing
/// was done.
fn without_code(status: StatusCode, after: Option<Duration>) -> Handed {
    let reason = Reason {
        code: format!("http_{}", status.as_u16()),
        detail: Some("the provider answered without an error code".to_owned()),
    };
    if status == StatusCode::TOO_MANY_REQUESTS {
        Handed::NotSent { reason, after }
    } else if status.is_client_error() {
        Handed::Refused(reason)
    } else {
        Handed::Unknown(reason)
    }
}

fn judged(code: i64, answer: &Value, status: StatusCode, after: Option<Duration>) -> Handed {
    let reason = Reason {
        code: code.to_string(),
        detail: detail(&answer["error"]),
    };
    match Class::of(code, status.is_server_error()) {
        Class::Terminal => Handed::Refused(reason),
        Class::Retry => Handed::NotSent { reason, after },
        Class::Pause(pause) => Handed::Paused { reason, pause },
        Class::Unknown => Handed::Unknown(reason),
    }
}

/// The words of an error, as an answer or a status event has them.
#[must_use]
pub fn detail(error: &Value) -> Option<String> {
    ["/error_data/details", "/message", "/title"]
        .iter()
        .find_map(|at| error.pointer(at)?.as_str())
        .map(|text| {
            let text = text.chars().filter(|letter| *letter != '\0');
            text.take(MOST_DETAIL_CHARS).collect()
        })
}

fn retry_after(headers: &http::HeaderMap) -> Option<Duration> {
    let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    let seconds: u64 = seconds.trim().parse().ok()?;
    Some(Duration::from_secs(seconds.min(3_600)))
}

enum ReadError {
    Client(reqwest::Error),
    TooLong,
}

async fn read(mut response: reqwest::Response, most: usize) -> Result<Vec<u8>, ReadError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(ReadError::Client)? {
        if bytes.len() + chunk.len() > most {
            return Err(ReadError::TooLong);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// The request that sends a message.
fn body(handing: Handing<'_>) -> Value {
    let Outgoing {
        store_id,
        id,
        recipient,
        content,
        ..
    } = handing.message;
    let mut body = json!({
        "messaging_product": "whatsapp",
        "recipient_type": "individual",
        "to": recipient,
        "biz_opaque_callback_data": reference(*store_id, *id, handing.attempt),
    });
    let (kind, part) = match content {
        Content::Text { body } => ("text", json!({ "body": body })),
        Content::Media {
            media,
            link,
            caption,
        } => {
            let mut part = json!({ "link": link });
            if let Some(caption) = caption {
                part["caption"] = json!(caption);
            }
            (media.as_str(), part)
        }
        Content::Template {
            name,
            language,
            variables,
            ..
        } => {
            let components = components(handing.slots, variables);
            let mut part = json!({ "name": name, "language": { "code": language } });
            if !components.is_empty() {
                part["components"] = json!(components);
            }
            ("template", part)
        }
    };
    body["type"] = json!(kind);
    body[kind] = part;
    body
}

/// A template's variables where the provider wants them.
fn components(slots: Option<&Slots>, variables: &[(String, String)]) -> Vec<Value> {
    let Some(slots) = slots else {
        return Vec::new();
    };
    let value = |name: &str| {
        let found = variables.iter().find(|(known, _)| known == name);
        found.map_or("", |(_, value)| value.as_str())
    };
    let texts = |names: &[String]| -> Vec<Value> {
        names
            .iter()
            .map(|name| {
                let mut parameter = json!({ "type": "text", "text": value(name) });
                if slots.named {
                    parameter["parameter_name"] = json!(name);
                }
                parameter
            })
            .collect()
    };
    let mut components = Vec::new();
    if let Some(media) = &slots.header_media {
        let parameter = json!({ "type": media, media: { "link": value(HEADER_LINK) } });
        components.push(json!({ "type": "header", "parameters": [parameter] }));
    } else if !slots.header.is_empty() {
        let parameters = texts(&slots.header);
        components.push(json!({ "type": "header", "parameters": parameters }));
    }
    if !slots.body.is_empty() {
        components.push(json!({ "type": "body", "parameters": texts(&slots.body) }));
    }
    for (index, name) in &slots.buttons {
        components.push(json!({
            "type": "button",
            "sub_type": "url",
            "index": index.to_string(),
            "parameters": [{ "type": "text", "text": value(name) }],
        }));
    }
    components
}

/// The variable that a header's file comes from.
const HEADER_LINK: &str = "header_link";

/// Reads all templates of an account.
///
/// # Errors
/// One readable line why not.
pub async fn templates(
    api: &Api,
    waba_id: &str,
    token: &Secret,
) -> Result<Vec<NewTemplate>, String> {
    let mut found = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let mut request = api
            .http
            .get(format!("{}/{waba_id}/message_templates", api.base_url))
            .bearer_auth(token.expose())
            .query(&[
                ("fields", "name,language,status,parameter_format,components"),
                ("limit", "100"),
            ]);
        if let Some(after) = &after {
            request = request.query(&[("after", after)]);
        }
        let page = template_page(request).await?;
        let data = page["data"].as_array().ok_or("the answer has no `data`")?;
        found.extend(data.iter().filter_map(read_template));
        match next_cursor(&page) {
            Some(next) if !data.is_empty() && found.len() < MOST_TEMPLATES => after = Some(next),
            _ => {
                found.truncate(MOST_TEMPLATES);
                return Ok(found);
            }
        }
    }
}

/// The cursor of the next page, if there is one: named, or else part of the next page's address. The
/// address itself is not followed: the token goes to the configured one alone.
fn next_cursor(page: &Value) -> Option<String> {
    let next = page.pointer("/paging/next")?.as_str()?;
    let named = page.pointer("/paging/cursors/after");
    if let Some(cursor) = named.and_then(Value::as_str) {
        return Some(cursor.to_owned());
    }
    let next = url::Url::parse(next).ok()?;
    let after = next.query_pairs().find(|(name, _)| name == "after")?;
    Some(after.1.into_owned())
}

async fn template_page(request: reqwest::RequestBuilder) -> Result<Value, String> {
    let response = request
        .send()
        .await
        .map_err(|error| format!("the provider can't be reached: {}", error.without_url()))?;
    let status = response.status();
    let bytes = match read(response, MOST_PAGE_BYTES).await {
        Ok(bytes) => bytes,
        Err(ReadError::TooLong) => return Err("the provider's answer is too long".to_owned()),
        Err(ReadError::Client(error)) => {
            return Err(format!("the answer was cut: {}", error.without_url()));
        }
    };
    let answer: Value =
        serde_json::from_slice(&bytes).map_err(|_| format!("HTTP {status}, and no JSON"))?;
    if let Some(code) = answer.pointer("/error/code") {
        let words = detail(&answer["error"]).unwrap_or_default();
        return Err(format!("the provider refused: {code} {words}"));
    }
    if status.is_success() {
        Ok(answer)
    } else {
        Err(format!("HTTP {status}"))
    }
}

/// A template as the provider describes it; none for one that has no name.
fn read_template(described: &Value) -> Option<NewTemplate> {
    let text = |value: &Value| value.as_str().map(|text| text.replace('\0', ""));
    let mut slots = Slots {
        named: described["parameter_format"] == "NAMED",
        ..Slots::default()
    };
    let (mut header, mut body, mut footer) = (None, String::new(), None);
    let mut buttons = Value::Array(Vec::new());
    for component in described["components"].as_array().into_iter().flatten() {
        match component["type"].as_str().unwrap_or_default() {
            "HEADER" => match component["format"].as_str().unwrap_or("TEXT") {
                "TEXT" => {
                    header = text(&component["text"]);
                    // Numbers begin anew in each component, so those of the header are told apart.
                    let prefix = if slots.named { "" } else { "header_" };
                    let names = names(header.as_deref(), slots.named).into_iter();
                    slots.header = names.map(|name| format!("{prefix}{name}")).collect();
                }
                media @ ("IMAGE" | "VIDEO" | "DOCUMENT") => {
                    slots.header_media = Some(media.to_lowercase());
                }
                _ => {}
            },
            "BODY" => {
                body = text(&component["text"]).unwrap_or_default();
                slots.body = names(Some(&body), slots.named);
            }
            "FOOTER" => footer = text(&component["text"]),
            "BUTTONS" => {
                let described = component["buttons"].as_array();
                let described = described.cloned().unwrap_or_default();
                slots.buttons = linked(&described);
                buttons = Value::Array(described);
            }
            _ => {}
        }
    }
    let mut variables: Vec<String> = Vec::new();
    let media = slots.header_media.as_ref().map(|_| HEADER_LINK.to_owned());
    let of_buttons = slots.buttons.iter().map(|(_, name)| name.clone());
    let all = media.into_iter().chain(slots.header.iter().cloned());
    for name in all.chain(slots.body.iter().cloned()).chain(of_buttons) {
        if !variables.contains(&name) {
            variables.push(name);
        }
    }
    let status = text(&described["status"])
        .unwrap_or_default()
        .to_lowercase();
    Some(NewTemplate {
        name: text(&described["name"])?,
        language: text(&described["language"])?,
        status,
        header,
        body,
        footer,
        buttons: without_nul(buttons).to_string(),
        variables,
        slots: Some(slots),
    })
}

/// The variables of a text in the order in which a send lists them: numbered ones by their numbers,
/// wherever in the text they stand.
fn names(text: Option<&str>, named: bool) -> Vec<String> {
    let found = text.and_then(|text| variables::names(text).ok());
    let mut found = found.unwrap_or_default();
    if !named {
        found.sort_by_key(|name| name.parse().unwrap_or(u32::MAX));
    }
    found
}

/// Buttons whose link ends with a variable: the provider numbers it, so it is named by its place.
fn linked(buttons: &[Value]) -> Vec<(usize, String)> {
    buttons
        .iter()
        .enumerate()
        .filter(|(_, button)| !names(button["url"].as_str(), true).is_empty())
        .map(|(index, _)| (index, format!("button_{index}")))
        .collect()
}

/// What the provider says, without U+0000, which Postgres can't hold.
#[must_use]
pub fn without_nul(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(text.replace('\0', "")),
        Value::Array(items) => items.into_iter().map(without_nul).collect(),
        Value::Object(members) => members
            .into_iter()
            .map(|(name, member)| (name.replace('\0', ""), without_nul(member)))
            .collect::<Map<_, _>>()
            .into(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_read_back_and_others_are_not() {
        let id = Uuid::from_u128(7);
        assert_eq!(read_reference(&reference(3, id, 1)), Some((3, id)));
        for other in [
            "",
            "3",
            "3:x:1",
            "3:00000000-0000-0000-0000-000000000007",
            "a:b:c:d",
        ] {
            assert_eq!(read_reference(other), None, "{other}");
        }
    }

    #[test]
    fn a_described_template_says_where_its_variables_go() {
        let described = json!({
            "name": "shipped", "language": "en_US", "status": "APPROVED",
            "parameter_format": "NAMED",
            "components": [
                { "type": "HEADER", "format": "IMAGE" },
                { "type": "BODY", "text": "Hello {{first_name}}" },
                { "type": "FOOTER", "text": "Bye" },
                { "type": "BUTTONS", "buttons": [
                    { "type": "QUICK_REPLY", "text": "Thanks" },
                    { "type": "URL", "text": "Track", "url": "https://a.example/{{1}}" }
                ]}
            ]
        });
        let read = read_template(&described).expect("it has a name");
        assert_eq!(read.variables, ["header_link", "first_name", "button_1"]);
        assert_eq!(read.status, "approved");
        let values = [
            (
                "header_link".to_owned(),
                "https://a.example/i.png".to_owned(),
            ),
            ("first_name".to_owned(), "Ada".to_owned()),
            ("button_1".to_owned(), "T-1".to_owned()),
        ];
        let expected = json!([
            { "type": "header", "parameters": [
                { "type": "image", "image": { "link": "https://a.example/i.png" } }
            ]},
            { "type": "body", "parameters": [
                { "type": "text", "text": "Ada", "parameter_name": "first_name" }
            ]},
            { "type": "button", "sub_type": "url", "index": "1", "parameters": [
                { "type": "text", "text": "T-1" }
            ]}
        ]);
        assert_eq!(json!(components(read.slots.as_ref(), &values)), expected);
    }

    #[test]
    fn the_next_page_is_found_by_its_cursor_wherever_that_stands() {
        let next = "https://graph.example/v1/2/message_templates?limit=1&after=Q%3D";
        let named = json!({ "paging": { "cursors": { "after": "QA" }, "next": next } });
        assert_eq!(next_cursor(&named).as_deref(), Some("QA"));
        let in_address = json!({ "paging": { "next": next } });
        assert_eq!(next_cursor(&in_address).as_deref(), Some("Q="));
        let last = json!({ "paging": { "cursors": { "after": "QA" } } });
        assert_eq!(next_cursor(&last), None);
    }

    #[test]
    fn an_answer_without_code_is_believed_only_as_far_as_it_goes() {
        let code = |status: u16| StatusCode::from_u16(status).expect("a status");
        assert!(matches!(
            without_code(code(429), None),
            Handed::NotSent { .. }
        ));
        assert!(matches!(without_code(code(404), None), Handed::Refused(_)));
        for status in [302, 500, 502, 503, 504] {
            let handed = without_code(code(status), None);
            assert!(matches!(handed, Handed::Unknown(_)), "{status}");
        }
    }
}
