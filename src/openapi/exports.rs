//! The part of the document that tells of exports.

use serde_json::{Value, json};

use super::messaging::{nothing, page, request};
use super::{Parts, READ_FAULTS, content, parameter, reference, responses};
use crate::exports::definitions::Export;
use crate::exports::deliveries::Delivery;
use crate::exports::http::STATES;
use crate::exports::input::ExportInput;
use crate::exports::log::Entry;
use crate::exports::results::{OUTCOMES, RunResult};
use crate::exports::runs::Run;
use crate::resources;

const TAG: &str = "Exports";
const WRITE_FAULTS: &[u16] = &[
    400, 401, 403, 404, 408, 409, 413, 414, 415, 422, 429, 431, 500, 503,
];
const BASE: &str = "/api/v1/stores/{store_id}/exports";

impl Parts {
    pub(super) fn add_exports(&mut self) {
        self.tags.push(json!({
            "name": TAG,
            "description": "Calls to other systems that are safe to repeat. A log keeps what was \
                sent and is asked before each call; a call carries an idempotency key that stays the \
                same until the receiver has taken it, and the signature of Standard Webhooks \
                (`webhook-id`, `webhook-timestamp`, `webhook-signature`). 2xx within 15 s is success; \
                else it is called again after 5 s, 5 min, 30 min, 2 h, 5 h, 10 h and 10 h, or later \
                if `Retry-After` says so, and given up then. 410 pauses the export."
        }));
        self.add_schema::<ExportInput>();
        self.add_schema::<Export>();
        self.add_schema::<Run>();
        self.add_schema::<RunResult>();
        self.add_schema::<Entry>();
        self.add_schema::<Delivery>();
        let input = &mut self.schemas["ExportInput"]["properties"];
        input["headers"] = headers_schema(&input["headers"]["description"]);
        input["resources"]["items"] = json!({ "type": "string", "enum": resources::paths() });
        input["resources"]["uniqueItems"] = json!(true);
        self.add_definitions();
        self.add_runs();
        self.add_log();
    }

    fn add_definitions(&mut self) {
        let written = |description: &str| {
            let mut response = content(description, reference::<Export>());
            response["headers"]["Keyfold-Outcome"] =
                json!({ "$ref": "#/components/headers/Keyfold-Outcome" });
            response
        };
        let created = "Created; with the signing secret, if one was made.";
        self.add(BASE, json!({
            "parameters": [parameter("store_id")],
            "get": {
                "tags": [TAG],
                "summary": "Exports, oldest first",
                "operationId": "list_exports",
                "parameters": [parameter("limit"), parameter("cursor")],
                "responses": responses(json!({
                    "200": content("A page.", page(reference::<Export>()))
                }), READ_FAULTS)
            },
            "post": {
                "tags": [TAG],
                "summary": "Create or replace an export",
                "operationId": "upsert_export",
                "description": "Known by `external_id`. A live export sends what changes after it \
                    was saved; what was there before is sent by a run. Without \
                    `KEYFOLD_SECRET_KEY`: 409 `secret_key_missing`.",
                "requestBody": request(reference::<ExportInput>(), json!({
                    "external_id": "erp", "resources": ["orders", "customers"],
                    "url": "https://erp.example.com/api/{resource}/{external_id}", "method": "PUT",
                    "headers": { "X-Api-Key": "secret" },
                    "idempotency": { "strategy": "primary_key_and_hash" }
                })),
                "responses": responses(json!({
                    "200": written("There already: `updated` or `unchanged`."),
                    "201": located(written(created)),
                }), WRITE_FAULTS)
            }
        }));
        self.add(
            &format!("{BASE}/{{external_id}}"),
            json!({
                "parameters": [parameter("store_id"), named()],
                "get": {
                    "tags": [TAG],
                    "summary": "One export, without its secrets",
                    "operationId": "get_export",
                    "responses": responses(json!({
                        "200": content("The export.", reference::<Export>())
                    }), READ_FAULTS)
                },
                "delete": {
                    "tags": [TAG],
                    "summary": "Delete an export",
                    "operationId": "delete_export",
                    "description": "With its log: an export of the same name begins anew.",
                    "responses": responses(json!({ "204": nothing("Deleted.") }), READ_FAULTS)
                }
            }),
        );
        self.add(
            &format!("{BASE}/{{external_id}}/deliveries"),
            json!({
                "parameters": [parameter("store_id"), named()],
                "get": {
                    "tags": [TAG],
                    "summary": "What is still to be sent, and why it is not yet",
                    "operationId": "list_export_deliveries",
                    "parameters": [
                        one_of("state", "In this state alone.", STATES),
                        parameter("limit"),
                        parameter("cursor")
                    ],
                    "responses": responses(json!({
                        "200": content("A page.", page(reference::<Delivery>()))
                    }), READ_FAULTS)
                }
            }),
        );
    }

    fn add_runs(&mut self) {
        let accepted = || located(content("It begins.", reference::<Run>()));
        self.add(
            &format!("{BASE}/{{external_id}}/runs"),
            json!({
                "parameters": [parameter("store_id"), named()],
                "get": {
                    "tags": [TAG],
                    "summary": "Runs of an export, oldest first",
                    "operationId": "list_export_runs",
                    "parameters": [parameter("limit"), parameter("cursor")],
                    "responses": responses(json!({
                        "200": content("A page.", page(reference::<Run>()))
                    }), READ_FAULTS)
                },
                "post": {
                    "tags": [TAG],
                    "summary": "Send all records",
                    "operationId": "begin_export_run",
                    "description": "Those that the log knows are skipped. A paused export: 409 \
                        `export_paused`.",
                    "responses": responses(json!({
                        "200": content("One is running already.", reference::<Run>()),
                        "202": accepted(),
                    }), WRITE_FAULTS)
                }
            }),
        );
        self.add(
            &format!("{BASE}/{{external_id}}/runs/{{run_id}}"),
            json!({
                "parameters": [parameter("store_id"), named(), run()],
                "get": {
                    "tags": [TAG],
                    "summary": "One run",
                    "operationId": "get_export_run",
                    "responses": responses(json!({
                        "200": content("How far it has come.", reference::<Run>())
                    }), READ_FAULTS)
                }
            }),
        );
        self.add(
            &format!("{BASE}/{{external_id}}/runs/{{run_id}}/results"),
            json!({
                "parameters": [parameter("store_id"), named(), run()],
                "get": {
                    "tags": [TAG],
                    "summary": "What a run did with each record",
                    "operationId": "list_export_run_results",
                    "parameters": [
                        one_of("outcome", "With this outcome alone.", OUTCOMES),
                        parameter("limit"),
                        parameter("cursor")
                    ],
                    "responses": responses(json!({
                        "200": content("A page.", page(reference::<RunResult>()))
                    }), READ_FAULTS)
                }
            }),
        );
        self.add(&format!("{BASE}/{{external_id}}/runs/{{run_id}}/retry"), json!({
            "parameters": [parameter("store_id"), named(), run()],
            "post": {
                "tags": [TAG],
                "summary": "Begin a run again",
                "operationId": "retry_export_run",
                "description": "From the first record; what was sent is skipped. While another run \
                    is running: 409 `export_running`; a paused export: 409 `export_paused`.",
                "responses": responses(json!({ "202": accepted() }), WRITE_FAULTS)
            }
        }));
    }

    fn add_log(&mut self) {
        self.add(&format!("{BASE}/{{external_id}}/log"), json!({
            "parameters": [parameter("store_id"), named()],
            "get": {
                "tags": [TAG],
                "summary": "What was sent, oldest first",
                "operationId": "list_export_log",
                "parameters": [parameter("limit"), parameter("cursor")],
                "responses": responses(json!({
                    "200": content("A page.", page(reference::<Entry>()))
                }), READ_FAULTS)
            },
            "delete": {
                "tags": [TAG],
                "summary": "Forget what was sent of a resource, or of one record",
                "operationId": "forget_export_log",
                "description": "The next run or change sends it again, under a new key.",
                "parameters": [
                    {
                        "name": "resource", "in": "query", "required": true,
                        "description": "The resource's path.",
                        "schema": { "type": "string", "enum": resources::paths() }
                    },
                    {
                        "name": "external_id", "in": "query",
                        "description": "Only this record; the phone stands for a customer without \
                            external id.",
                        "schema": { "type": "string" }
                    }
                ],
                "responses": responses(json!({ "204": nothing("Forgotten.") }), READ_FAULTS)
            }
        }));
        self.add(&format!("{BASE}/{{external_id}}/log/{{key}}"), json!({
            "parameters": [
                parameter("store_id"),
                named(),
                {
                    "name": "key", "in": "path", "required": true,
                    "description": "The idempotency key of the call.",
                    "schema": { "type": "string", "minLength": 1 }
                }
            ],
            "delete": {
                "tags": [TAG],
                "summary": "Forget one call",
                "operationId": "forget_export_call",
                "description": "The next run or change sends its record again, under a new key.",
                "responses": responses(json!({ "204": nothing("Forgotten.") }), READ_FAULTS)
            }
        }));
    }
}

/// With the path of what was made.
fn located(mut response: Value) -> Value {
    response["headers"]["Location"] = json!({ "$ref": "#/components/headers/Location" });
    response
}

fn named() -> Value {
    json!({
        "name": "external_id", "in": "path", "required": true,
        "description": "The export's key, percent-encoded.",
        "schema": { "type": "string", "minLength": 1 }
    })
}

fn run() -> Value {
    json!({
        "name": "run_id", "in": "path", "required": true,
        "description": "What the run was answered with.",
        "schema": { "type": "string", "format": "uuid" }
    })
}

fn one_of(name: &str, description: &str, words: &[&str]) -> Value {
    json!({
        "name": name, "in": "query", "description": description,
        "schema": { "type": "string", "enum": words }
    })
}

fn headers_schema(description: &Value) -> Value {
    json!({
        "type": ["object", "null"],
        "description": description,
        "maxProperties": 50,
        "propertyNames": {
            "maxLength": 128,
            "pattern": "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"
        },
        "additionalProperties": {
            "type": "string",
            "maxLength": 4096,
            "pattern": "^(?:[!-~](?:[ -~]*[!-~])?)?$"
        }
    })
}
