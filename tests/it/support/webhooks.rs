//! Events as Meta sends them to the webhook: built, signed over their bytes, and posted.

use http::Method;
use ring::hmac;
use serde_json::{Value, json};

use super::app::{Answer, App, answer};

/// Where they are sent.
pub const PATH: &str = "/webhooks/whatsapp";
/// What they are signed with.
pub const APP_SECRET: &str = "app secret of the tests";
/// What the verification is asked with.
pub const VERIFY_TOKEN: &str = "verify token of the tests";
/// The header of the signature.
pub const SIGNATURE: &str = "x-hub-signature-256";

/// The signature of a body under a secret, as it stands in the header.
pub fn signature(secret: &str, body: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let tag = hmac::sign(&key, body);
    let digits: String = tag.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256={digits}")
}

/// An event with these values of changes, each of the field `messages`.
pub fn event(values: &[Value]) -> Value {
    let changes: Vec<Value> = values
        .iter()
        .map(|value| json!({ "field": "messages", "value": value }))
        .collect();
    json!({ "object": "whatsapp_business_account", "entry": [{ "id": "1", "changes": changes }] })
}

/// The value of a change of one number, with one list in it, for example `statuses`.
pub fn value(phone_number_id: &str, list: &str, items: &[Value]) -> Value {
    json!({
        "messaging_product": "whatsapp",
        "metadata": { "display_phone_number": "15550001111", "phone_number_id": phone_number_id },
        list: items,
    })
}

/// A status of a message.
#[derive(Clone, Debug)]
pub struct Told<'a> {
    /// The provider's id of the message.
    pub id: &'a str,
    /// Our reference; left out where it is empty.
    pub reference: &'a str,
    /// `sent`, `delivered`, `read` or `failed`.
    pub status: &'a str,
    /// Seconds since 1970.
    pub at: i64,
    /// Of a failure: the code.
    pub code: Option<i64>,
}

impl Told<'_> {
    /// As the provider writes it.
    pub fn item(&self) -> Value {
        let mut item = json!({
            "id": self.id,
            "status": self.status,
            "timestamp": self.at.to_string(),
            "recipient_id": "33612345678",
        });
        if !self.reference.is_empty() {
            item["biz_opaque_callback_data"] = json!(self.reference);
        }
        if let Some(code) = self.code {
            item["errors"] = json!([{
                "code": code,
                "title": "Something is wrong",
                "message": "Something is wrong",
                "error_data": { "details": super::meta::words(code) },
            }]);
        }
        item
    }
}

/// Who wrote: a number without `+`, the provider's own id, or both.
#[derive(Clone, Copy, Debug, Default)]
pub struct From<'a> {
    pub wa_id: Option<&'a str>,
    pub user_id: Option<&'a str>,
}

impl<'a> From<'a> {
    /// Somebody whose number is shown.
    pub fn phone(digits: &'a str) -> Self {
        Self {
            wa_id: Some(digits.trim_start_matches('+')),
            user_id: None,
        }
    }

    /// Somebody who keeps their number to themselves.
    pub fn user(id: &'a str) -> Self {
        Self {
            wa_id: None,
            user_id: Some(id),
        }
    }

    /// Somebody of whom both are known.
    pub fn both(digits: &'a str, id: &'a str) -> Self {
        Self {
            user_id: Some(id),
            ..Self::phone(digits)
        }
    }

    /// A text that they wrote, as the value of a change.
    pub fn writes(self, phone_number_id: &str, message_id: &str, text: &str, at: i64) -> Value {
        let mut message = json!({
            "id": message_id,
            "timestamp": at.to_string(),
            "type": "text",
            "text": { "body": text },
        });
        let mut contact = json!({ "profile": { "name": "Ada" } });
        if let Some(wa_id) = self.wa_id {
            message["from"] = json!(wa_id);
            contact["wa_id"] = json!(wa_id);
        }
        if let Some(user_id) = self.user_id {
            message["from_user_id"] = json!(user_id);
            contact["user_id"] = json!(user_id);
        }
        let mut value = value(phone_number_id, "messages", &[message]);
        value["contacts"] = json!([contact]);
        value
    }

    /// A setting that they changed (`stop` or `resume`), as the value of a change.
    pub fn prefers(self, phone_number_id: &str, wish: &str, at: i64) -> Value {
        let mut preference = json!({
            "detail": "User requested it",
            "category": "marketing_messages",
            "value": wish,
            "timestamp": at,
        });
        if let Some(wa_id) = self.wa_id {
            preference["wa_id"] = json!(wa_id);
        }
        if let Some(user_id) = self.user_id {
            preference["user_id"] = json!(user_id);
        }
        value(phone_number_id, "user_preferences", &[preference])
    }
}

/// Posts bytes with these headers, without any key of the API.
pub async fn post_raw(app: &App, headers: &[(&str, &str)], body: impl Into<Vec<u8>>) -> Answer {
    let mut request = app
        .client
        .request(Method::POST, format!("{}{PATH}", app.base))
        .header("content-type", "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = request.body(body.into()).send().await;
    answer(response.expect("the service answers")).await
}

/// Posts an event with the right signature.
pub async fn post(app: &App, event: &Value) -> Answer {
    let body = event.to_string();
    let signature = signature(APP_SECRET, body.as_bytes());
    post_raw(app, &[(SIGNATURE, &signature)], body).await
}

/// Posts values of changes, and waits until the worker has looked at all events that are stored.
pub async fn tell(app: &App, values: &[Value]) {
    let answer = post(app, &event(values)).await.expect(200);
    assert_eq!(answer.json(), json!({ "received": true }));
    all_looked_at(app).await;
}

/// Waits until the worker has looked at all events that are stored.
pub async fn all_looked_at(app: &App) {
    super::scale::eventually("all events are looked at", || async {
        let left: i64 = sqlx::query_scalar("select count(*) from outbox where kind = 'inbound'")
            .fetch_one(&app.pool)
            .await
            .expect("the outbox can be read");
        (left == 0).then_some(())
    })
    .await;
}
