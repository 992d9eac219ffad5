//! The part of the document that tells of messaging.

use serde_json::{Value, json};

use super::{ANY_FAULTS, Parts, content, parameter, reference, responses};
use crate::messaging::http::Me;
use crate::messaging::idempotency::Entry;
use crate::messaging::input::{KINDS, SandboxInbound, SendInput, TemplateSendInput};
use crate::messaging::messages::Message;
use crate::messaging::send::Accepted;
use crate::messaging::templates::{SendableTemplate, Template, TemplateInput};

const TAG: &str = "Messaging";
const SEND_FAULTS: &[u16] = &[
    400, 401, 403, 404, 408, 409, 413, 414, 415, 422, 429, 431, 500, 503,
];
const QUERY_FAULTS: &[u16] = &[400, 401, 403, 404, 414, 422, 429, 431, 500, 503];
const WEBHOOK_FAULTS: &[u16] = &[400, 401, 408, 413, 414, 415, 431, 500, 503];

impl Parts {
    pub(super) fn add_messaging(&mut self) {
        self.tags.push(json!({
            "name": TAG,
            "description": "Messages to shoppers. Only the two sending endpoints honour \
                `Idempotency-Key`: with it a send can be repeated, and its first answer is given \
                again, without sending, for 24 hours."
        }));
        self.add_schema::<SendInput>();
        self.add_schema::<TemplateSendInput>();
        self.add_schema::<Accepted>();
        self.add_schema::<Message>();
        self.add_schema::<TemplateInput>();
        self.add_schema::<Template>();
        self.add_schema::<SendableTemplate>();
        self.add_schema::<Me>();
        self.add_schema::<Entry>();
        self.add_schema::<SandboxInbound>();
        self.schemas["TemplateSendInput"]["properties"]["variables"] = variables_schema();
        self.schemas["TemplateInput"]["properties"]["buttons"] = json!({
            "type": ["array", "null"],
            "description": "Kept as sent; their texts may have variables.",
            "maxItems": 10,
            "items": { "type": "object" }
        });
        self.schemas["SendInput"] = one_of_kinds(&self.schemas["SendInput"]);
        self.add_sends();
        self.add_templates();
        self.add_reading();
        self.add_keys();
        self.add_webhook();
    }

    pub(super) fn add(&mut self, path: &str, item: Value) {
        self.paths.insert(path.to_owned(), item);
    }

    fn add_sends(&mut self) {
        let send = sending(
            "send_message",
            "Send a free-form message",
            "Needs a message of the contact in the last 24 hours: else 422 \
                `outside_service_window`. A contact who opted out: 422 `contact_opted_out`.",
            reference::<SendInput>(),
            json!({
                "to": "+33612345678", "type": "text", "text": { "body": "Your order is on its way" }
            }),
        );
        let mut called_send = one_message();
        called_send["operationId"] = json!("get_message_called_send");
        called_send["summary"] = json!("A message (`send` is no message's id: always 404)");
        self.add(
            "/api/v1/messages/send",
            json!({ "post": send, "get": called_send }),
        );
        let template = sending(
            "send_template",
            "Send a template",
            "An unknown or unapproved template: 404 `template_not_found`. Variables that are \
                missing or unknown: 422, naming each.",
            reference::<TemplateSendInput>(),
            json!({
                "template_id": 1, "phone_number": "+33612345678",
                "variables": { "first_name": "Camille" }
            }),
        );
        self.add("/api/v1/templates", json!({ "post": template }));
    }

    fn add_templates(&mut self) {
        self.add(
            "/api/v1/get_templates",
            json!({ "get": {
                "tags": [TAG],
                "summary": "The templates that can be sent",
                "operationId": "list_templates",
                "parameters": [parameter("messaging_store_id")],
                "responses": responses(json!({
                    "200": content("All of them.", json!({
                        "type": "array", "items": reference::<SendableTemplate>()
                    }))
                }), QUERY_FAULTS)
            }}),
        );
        let written = |description: &str| {
            let mut response = content(description, reference::<Template>());
            response["headers"]["Keyfold-Outcome"] =
                json!({ "$ref": "#/components/headers/Keyfold-Outcome" });
            response
        };
        self.add("/api/v1/stores/{store_id}/message-templates", json!({
            "parameters": [parameter("store_id")],
            "post": {
                "tags": [TAG],
                "summary": "Create or replace a template of the sandbox",
                "operationId": "upsert_template",
                "description": "Known by `name` and `language`. With WhatsApp templates come from \
                    there: 409 `templates_from_provider`.",
                "requestBody": request(reference::<TemplateInput>(), json!({
                    "name": "order_shipped", "language": "en",
                    "body": "Hello {{first_name}}, your order is on its way."
                })),
                "responses": responses(json!({
                    "200": written("There already: `updated` or `unchanged`."),
                    "201": written("Created."),
                }), SEND_FAULTS)
            }
        }));
        self.add("/api/v1/stores/{store_id}/sandbox/inbound", json!({
            "parameters": [parameter("store_id")],
            "post": {
                "tags": [TAG],
                "summary": "As if a person had written, in the sandbox",
                "operationId": "sandbox_inbound",
                "description": "Opens the service window. `STOP` alone opts out, `START` in again. \
                    With another channel: 409 `channel_not_sandbox`.",
                "requestBody": request(reference::<SandboxInbound>(), json!({
                    "from": "+33612345678", "text": "Where is my order?"
                })),
                "responses": responses(json!({ "204": nothing("Taken in.") }), SEND_FAULTS)
            }
        }));
    }

    fn add_reading(&mut self) {
        self.add(
            "/api/v1/messages",
            json!({ "get": {
                "tags": [TAG],
                "summary": "Messages in order of acceptance",
                "operationId": "list_messages",
                "parameters": [
                    parameter("messaging_store_id"), parameter("limit"), parameter("cursor")
                ],
                "responses": responses(json!({
                    "200": content("A page.", page(reference::<Message>()))
                }), QUERY_FAULTS)
            }}),
        );
        self.add(
            "/api/v1/messages/{message_id}",
            json!({
                "parameters": [{
                    "name": "message_id", "in": "path", "required": true,
                    "description": "What the send was answered with.",
                    "schema": { "type": "string", "format": "uuid" }
                }],
                "get": one_message()
            }),
        );
        self.add(
            "/api/v1/me",
            json!({ "get": {
                "tags": [TAG],
                "summary": "Whose key this is, and what it may do",
                "operationId": "get_me",
                "responses": responses(json!({
                    "200": content("The key, without itself.", reference::<Me>())
                }), &[400, 401, 414, 431, 500, 503])
            }}),
        );
    }

    fn add_keys(&mut self) {
        self.add(
            "/api/v1/idempotency-keys",
            json!({ "get": {
                "tags": [TAG],
                "summary": "Keys that were used and still count",
                "operationId": "list_idempotency_keys",
                "parameters": [
                    parameter("messaging_store_id"), parameter("limit"), parameter("cursor")
                ],
                "responses": responses(json!({
                    "200": content("A page, oldest first.", page(reference::<Entry>()))
                }), QUERY_FAULTS)
            }}),
        );
        let forgetting: Vec<u16> = [QUERY_FAULTS, &[409]].concat();
        self.add(
            "/api/v1/idempotency-keys/{endpoint}/{key}",
            json!({
                "parameters": [
                    {
                        "name": "endpoint", "in": "path", "required": true,
                        "description": "Where the key was sent.",
                        "schema": { "type": "string", "enum": ["send", "templates"] }
                    },
                    {
                        "name": "key", "in": "path", "required": true,
                        "description": "The key, percent-encoded, without quotes around it.",
                        "schema": { "type": "string", "minLength": 1, "maxLength": 255 }
                    }
                ],
                "get": {
                    "tags": [TAG],
                    "summary": "One key",
                    "operationId": "get_idempotency_key",
                    "parameters": [parameter("messaging_store_id")],
                    "responses": responses(json!({
                        "200": content("The key.", reference::<Entry>())
                    }), QUERY_FAULTS)
                },
                "delete": {
                    "tags": [TAG],
                    "summary": "Forget a key",
                    "operationId": "forget_idempotency_key",
                    "description": "The next request with it sends again.",
                    "parameters": [parameter("messaging_store_id")],
                    "responses": responses(json!({ "204": nothing("Forgotten.") }), &forgetting)
                }
            }),
        );
    }

    fn add_webhook(&mut self) {
        let text = |name: &str| {
            json!({
                "name": name, "in": "query", "description": "Sent by Meta.",
                "schema": { "type": "string" }
            })
        };
        let mut challenge = content("The challenge.", Value::Null);
        challenge["content"] = json!({ "text/plain": { "schema": { "type": "string" } } });
        self.add("/webhooks/whatsapp", json!({
            "get": {
                "tags": ["Operation"],
                "summary": "The provider's verification",
                "operationId": "verify_webhook",
                "security": [],
                "parameters": [text("hub.mode"), text("hub.verify_token"), text("hub.challenge")],
                "responses": responses(json!({ "200": challenge }), &[ANY_FAULTS, &[403]].concat())
            },
            "post": {
                "tags": ["Operation"],
                "summary": "The provider's events",
                "operationId": "receive_webhook",
                "security": [],
                "description": "Stored and answered at once, looked at later. Duplicates, unknown \
                    kinds and any order are normal.",
                "parameters": [{
                    "name": "X-Hub-Signature-256", "in": "header",
                    "description": "`sha256=` and the HMAC-SHA256 of the body's bytes under the \
                        app secret, in hexadecimal.",
                    "schema": { "type": "string" }
                }],
                "requestBody": request(json!({ "type": "object" }), json!({ "entry": [] })),
                "responses": responses(json!({
                    "200": content("Taken in.", json!({
                        "type": "object",
                        "required": ["received"],
                        "properties": { "received": { "type": "boolean" } }
                    }))
                }), WEBHOOK_FAULTS)
            }
        }));
    }
}

/// One schema for each kind of message, since each has a member of its own.
fn one_of_kinds(flat: &Value) -> Value {
    let kinds: Vec<Value> = KINDS
        .iter()
        .map(|kind| {
            let of = |name: &str| flat["properties"][name].clone();
            let part = of(kind)["oneOf"][0].clone();
            json!({
                "type": "object",
                "description": format!("A message of type `{kind}`."),
                "required": ["to", "type", kind],
                "additionalProperties": false,
                "properties": {
                    "to": of("to"),
                    "type": { "type": "string", "enum": [kind] },
                    *kind: part,
                    "store_id": of("store_id"),
                }
            })
        })
        .collect();
    json!({ "description": flat["description"], "oneOf": kinds })
}

pub(super) fn variables_schema() -> Value {
    json!({
        "type": ["object", "null"],
        "description": "A value of at most 1,024 characters for each variable of the template.",
        "additionalProperties": {
            "type": "string", "maxLength": 1024, "pattern": r"^[^\u0000]*$"
        },
        "propertyNames": { "pattern": r"^[^\u0000]*$" },
        "maxProperties": 100
    })
}

pub(super) fn request(schema: Value, example: Value) -> Value {
    json!({
        "required": true,
        "content": { "application/json": { "schema": schema, "example": example } }
    })
}

pub(super) fn nothing(description: &str) -> Value {
    json!({
        "description": description,
        "headers": { "X-Request-Id": { "$ref": "#/components/headers/X-Request-Id" } }
    })
}

pub(super) fn page(entry: Value) -> Value {
    json!({
        "type": "object",
        "required": ["data", "next_cursor"],
        "properties": {
            "data": { "type": "array", "items": entry },
            "next_cursor": {
                "type": ["string", "null"],
                "description": "Send it as `cursor` for the next page; null at the end."
            }
        }
    })
}

fn one_message() -> Value {
    json!({
        "tags": [TAG],
        "summary": "What became of a message",
        "operationId": "get_message",
        "description": "`queued → sent → delivered → read`, or `failed` with the provider's code, \
            or `unknown`: the provider may or may not have it; never sent again by itself.",
        "parameters": [parameter("messaging_store_id")],
        "responses": responses(json!({
            "200": content("The message.", reference::<Message>())
        }), QUERY_FAULTS)
    })
}

fn sending(id: &str, summary: &str, description: &str, schema: Value, example: Value) -> Value {
    let mut accepted = content(
        "Accepted: a worker hands it to the provider.",
        reference::<Accepted>(),
    );
    accepted["headers"]["Location"] = json!({ "$ref": "#/components/headers/Location" });
    accepted["headers"]["Idempotent-Replayed"] =
        json!({ "$ref": "#/components/headers/Idempotent-Replayed" });
    json!({
        "tags": [TAG],
        "summary": summary,
        "operationId": id,
        "description": format!("{description} With an `Idempotency-Key` the first answer, success \
            or refusal, is repeated for the same body; another body is 409 \
            `idempotency_key_mismatch`, a key that is still at work 409 `idempotency_key_in_use`."),
        "parameters": [parameter("Idempotency-Key")],
        "requestBody": request(schema, example),
        "responses": responses(json!({ "201": accepted }), SEND_FAULTS)
    })
}

/// The parameters that only messaging has.
pub(super) fn parameters() -> Value {
    json!({
        "messaging_store_id": {
            "name": "store_id", "in": "query",
            "description": "The store; may be left out when the key can use only one.",
            "schema": { "type": "integer", "format": "int64", "minimum": 1 }
        },
        "Idempotency-Key": {
            "name": "Idempotency-Key", "in": "header",
            "description": "1 to 255 visible ASCII characters; one pair of quotes around them is \
                not part of the key.",
            "schema": {
                "type": "string",
                "pattern": "^(?:[!#-~][!-~]{0,254}|\"(?:[!-~]{0,253}[!#-~])?|\"[!-~]{1,255}\")$"
            }
        }
    })
}
