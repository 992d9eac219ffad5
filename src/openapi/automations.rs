//! The part of the document that tells of automations.

use serde_json::{Value, json};

use super::messaging::{nothing, page, request, variables_schema};
use super::{Parts, READ_FAULTS, content, parameter, reference, responses};
use crate::automations::input::{AutomationInput, MOST_COOLDOWN_S};
use crate::automations::rules::Automation;
use crate::automations::runs::Run;
use crate::automations::webhook::{CallInput, Called};
use crate::resources::{self, catalog};

const TAG: &str = "Automations";
const WRITE_FAULTS: &[u16] = &[
    400, 401, 403, 404, 408, 413, 414, 415, 422, 429, 431, 500, 503,
];
const CALL_FAULTS: &[u16] = &[
    400, 401, 404, 408, 409, 413, 414, 415, 422, 429, 431, 500, 503,
];

impl Parts {
    pub(super) fn add_automations(&mut self) {
        self.tags.push(json!({
            "name": TAG,
            "description": "What an upsert sets off, once: a message to the person whom the record \
                is about. A replay and a stale write set nothing off, and no record that was there \
                when the automation was saved or activated does."
        }));
        self.add_schema::<AutomationInput>();
        self.add_schema::<Automation>();
        self.add_schema::<Run>();
        self.add_schema::<CallInput>();
        self.add_schema::<Called>();
        self.schemas["AutomationCallInput"]["properties"]["variables"] = variables_schema();
        self.schemas["AutomationTriggerPart"] =
            one_of_triggers(&self.schemas["AutomationTriggerPart"]);
        self.schemas["AutomationSendTemplatePart"]["properties"]["variables"] =
            sources_schema(&self.schemas["AutomationSendTemplatePart"]);
        self.schemas["AutomationReentry"] = reentry_schema();
        self.add_automation_routes();
        self.add_run_routes();
        self.add("/api/v1/automations/{webhook_id}", json!({
            "parameters": [{
                "name": "webhook_id", "in": "path", "required": true,
                "description": "As the automation shows it.",
                "schema": { "type": "string", "format": "uuid" }
            }],
            "post": {
                "tags": [TAG],
                "summary": "Set an automation off",
                "operationId": "call_automation",
                "description": "An `external_id` names the occasion: one run for each, so that the \
                    call is safe to repeat and gets the same answer. A paused automation: 409 \
                    `automation_paused`.",
                "requestBody": request(reference::<CallInput>(), json!({
                    "phone_number": "+33612345678", "external_id": "booking-17"
                })),
                "responses": responses(json!({
                    "200": content("Triggered, or why not.", reference::<Called>())
                }), CALL_FAULTS)
            }
        }));
    }

    fn add_automation_routes(&mut self) {
        let written = |description: &str| {
            let mut response = content(description, reference::<Automation>());
            response["headers"]["Keyfold-Outcome"] =
                json!({ "$ref": "#/components/headers/Keyfold-Outcome" });
            response
        };
        let mut created = written("Created.");
        created["headers"]["Location"] = json!({ "$ref": "#/components/headers/Location" });
        self.add("/api/v1/stores/{store_id}/automations", json!({
            "parameters": [parameter("store_id")],
            "get": {
                "tags": [TAG],
                "summary": "Automations, oldest first",
                "operationId": "list_automations",
                "parameters": [parameter("limit"), parameter("cursor")],
                "responses": responses(json!({
                    "200": content("A page.", page(reference::<Automation>()))
                }), READ_FAULTS)
            },
            "post": {
                "tags": [TAG],
                "summary": "Create or replace an automation",
                "operationId": "upsert_automation",
                "description": "Known by `external_id`. The template must be one that can be sent, \
                    each of its variables must have a source, and each pointer must be able to lead \
                    to a value: else 422.",
                "requestBody": request(reference::<AutomationInput>(), json!({
                    "external_id": "recover-checkout", "name": "Recover a checkout",
                    "trigger": { "resource": "checkouts", "when": { "status": "abandoned" } },
                    "delay_seconds": 1800, "reentry": "once_per_record",
                    "action": { "send_template": {
                        "template_id": 1,
                        "variables": { "first_name": "/customer/first_name" }
                    } }
                })),
                "responses": responses(json!({
                    "200": written("There already: `updated` or `unchanged`."),
                    "201": created,
                }), WRITE_FAULTS)
            }
        }));
        self.add("/api/v1/stores/{store_id}/automations/{external_id}", json!({
            "parameters": [parameter("store_id"), named("automation")],
            "get": {
                "tags": [TAG],
                "summary": "One automation",
                "operationId": "get_automation",
                "responses": responses(json!({
                    "200": content("The automation.", reference::<Automation>())
                }), READ_FAULTS)
            },
            "delete": {
                "tags": [TAG],
                "summary": "Delete an automation",
                "operationId": "delete_automation",
                "description": "Runs that are scheduled end as `skipped`: `automation_deleted`.",
                "responses": responses(json!({ "204": nothing("Deleted.") }), READ_FAULTS)
            }
        }));
    }

    fn add_run_routes(&mut self) {
        let runs = |summary: &str, id: String, called: &str| {
            json!({
                "parameters": [parameter("store_id"), named(called)],
                "get": {
                    "tags": [TAG],
                    "summary": summary,
                    "operationId": id,
                    "description": "What happened, and why, or why not.",
                    "parameters": [
                        {
                            "name": "status", "in": "query",
                            "description": "Only runs in this state.",
                            "schema": {
                                "type": "string",
                                "enum": ["scheduled", "sent", "skipped", "failed"]
                            }
                        },
                        parameter("limit"), parameter("cursor")
                    ],
                    "responses": responses(json!({
                        "200": content("A page, oldest first.", page(reference::<Run>()))
                    }), READ_FAULTS)
                }
            })
        };
        self.add(
            "/api/v1/stores/{store_id}/automations/{external_id}/runs",
            runs(
                "Runs of an automation",
                "list_automation_runs".to_owned(),
                "automation",
            ),
        );
        for entry in catalog::ALL.iter() {
            let path = format!(
                "/api/v1/stores/{{store_id}}/{}/{{external_id}}/runs",
                entry.path
            );
            let id = format!("list_{}_runs", entry.singular);
            self.add(&path, runs("Runs about a record", id, "record"));
        }
    }
}

/// One schema for each kind of trigger, since nothing of one belongs to the other.
fn one_of_triggers(flat: &Value) -> Value {
    let of = |name: &str| flat["properties"][name].clone();
    json!({
        "description": flat["description"],
        "oneOf": [
            {
                "type": "object",
                "description": "A change.",
                "required": ["resource"],
                "additionalProperties": false,
                "properties": {
                    "resource": {
                        "type": "string",
                        "description": "The resource's path.",
                        "enum": resources::paths()
                    },
                    "when": of("when")
                }
            },
            {
                "type": "object",
                "description": "A call of the automation's webhook.",
                "required": ["webhook"],
                "additionalProperties": false,
                "properties": { "webhook": { "type": "boolean", "enum": [true] } }
            }
        ]
    })
}

fn reentry_schema() -> Value {
    json!({
        "description": "When an automation runs again.",
        "oneOf": [
            { "type": "string", "enum": ["once_per_record", "every_change"] },
            {
                "type": "object",
                "description": "Once for each contact in so many seconds.",
                "required": ["cooldown_seconds"],
                "additionalProperties": false,
                "properties": {
                    "cooldown_seconds": {
                        "type": "integer", "format": "int64",
                        "minimum": 1, "maximum": MOST_COOLDOWN_S
                    }
                }
            }
        ]
    })
}

fn sources_schema(flat: &Value) -> Value {
    let mut schema = variables_schema();
    schema["description"] = flat["properties"]["variables"]["description"].clone();
    schema["additionalProperties"]["pattern"] = json!(r"^[=/][^\u0000]*$");
    schema["additionalProperties"]["maxLength"] = json!(1_025);
    schema
}

/// The key in a path.
fn named(called: &str) -> Value {
    json!({
        "name": "external_id", "in": "path", "required": true,
        "description": format!("`external_id` of the {called}, percent-encoded."),
        "schema": { "type": "string", "minLength": 1, "maxLength": 255 }
    })
}
