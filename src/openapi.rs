//! The OpenAPI 3.1 document, made from the registry and the types that are read and answered.
//!
//! `openapi.yaml` in the repository is this document; a test fails when it is stale.

mod automations;
mod exports;
mod messaging;
pub mod served;

use serde_json::{Map, Value, json};
use utoipa::ToSchema;
use utoipa::openapi::{RefOr, Schema};

use crate::engine::Resource;
use crate::engine::bulk::{BulkAnswer, End, ItemResult};
use crate::engine::events::Feed;
use crate::messaging::messages;
use crate::resources::{self, Visitor};

/// Ends of schema names whose objects refuse unknown members.
const CLOSED: &[&str] = &["Input", "Patch", "Part", "EmbeddedCustomer"];

/// The document.
#[must_use]
pub fn document() -> Value {
    let mut parts = Parts {
        paths: Map::new(),
        schemas: Map::new(),
        tags: Vec::new(),
    };
    resources::for_each(&mut parts);
    parts.add_schema::<Feed>();
    parts.add_schema::<BulkAnswer>();
    parts.add_schema::<ItemResult>();
    parts.add_schema::<End>();
    parts.schemas.insert("Problem".to_owned(), problem_schema());
    parts.add_events();
    parts.add_messaging();
    parts.add_automations();
    parts.add_exports();
    parts.add_operational();
    parts.close_inputs();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Keyfold",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "A self-hosted commerce upsert API.",
            "description": INTRODUCTION,
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" }
        },
        "servers": [{ "url": "/", "description": "This server." }],
        "security": [{ "key": [] }],
        "tags": parts.tags,
        "paths": parts.paths,
        "components": {
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key: `kf_…`, made by `keyfold key create`."
                }
            },
            "headers": headers(),
            "parameters": merged(parameters(), messaging::parameters()),
            "responses": faults(),
            "schemas": parts.schemas
        }
    })
}

/// The paths of everything that has events.
#[must_use]
pub fn event_paths() -> Vec<&'static str> {
    let mut paths = resources::paths();
    paths.push(messages::PATH);
    paths
}

/// The document as YAML, as `openapi.yaml` holds it.
#[must_use]
pub fn yaml() -> String {
    // A tree of strings and numbers always serialises.
    serde_norway::to_string(&document()).unwrap_or_default()
}

const INTRODUCTION: &str = "\
Every push is safe to repeat. A record is known by your own `external_id`: `POST` creates it (201) \
or replaces it (200), and `Keyfold-Outcome` says `created`, `updated`, `unchanged` or `stale`. \
Pushing the same content again changes nothing and fires nothing.

Errors are `application/problem+json` (RFC 9457) with a stable `code`, a `request_id`, and for \
faulty fields `errors`: dotted paths and what is wrong there, all of them at once.

`source_updated_at` guards against late writes: a push that is older than what is stored is \
answered 200 `stale` and changes nothing.";

struct Parts {
    paths: Map<String, Value>,
    schemas: Map<String, Value>,
    tags: Vec<Value>,
}

impl Visitor for Parts {
    fn visit<R: Resource>(&mut self) {
        self.add_schema::<R::Input>();
        self.add_schema::<R::Answer>();
        let base = format!("/api/v1/stores/{{store_id}}/{}", R::PATH);
        let (one, all) = (title(R::SINGULAR), title(R::PATH));
        self.tags
            .push(json!({ "name": all, "description": format!("{all} of a store.") }));
        self.paths.insert(
            base.clone(),
            json!({
                "parameters": [parameter("store_id")],
                "post": post::<R>(&one),
                "get": list::<R>(&one),
            }),
        );
        let mut record = json!({
            "parameters": [parameter("store_id"), path_key::<R>()],
            "get": get_one::<R>(&one),
        });
        if R::patch_example().is_some() {
            self.add_schema::<R::Patch>();
            // The engine reads it, whatever the resource.
            self.schemas[R::Patch::name().as_ref()]["properties"]["source_updated_at"] =
                self.schemas[R::Input::name().as_ref()]["properties"]["source_updated_at"].clone();
            record["patch"] = patch::<R>(&one);
        }
        if R::IS_PERSON {
            record["delete"] = erase(&all);
        }
        let mut many = json!({ "parameters": [parameter("store_id")], "post": bulk::<R>(&all) });
        for method in ["get", "patch", "delete"] {
            if !record[method].is_null() {
                many[method] = called_bulk(record[method].clone());
            }
        }
        self.paths.insert(format!("{base}/{{external_id}}"), record);
        self.paths.insert(format!("{base}/bulk"), many);
    }
}

impl Parts {
    /// Adds a type and the types that it refers to.
    fn add_schema<T: ToSchema>(&mut self) {
        let mut found: Vec<(String, RefOr<Schema>)> = Vec::new();
        T::schemas(&mut found);
        found.push((T::name().into_owned(), T::schema()));
        for (name, schema) in found {
            self.schemas.insert(name, json!(schema));
        }
    }

    /// Unknown members are refused everywhere in a body.
    fn close_inputs(&mut self) {
        for (name, schema) in &mut self.schemas {
            if CLOSED.iter().any(|end| name.ends_with(end)) && schema["type"] == "object" {
                schema["additionalProperties"] = json!(false);
            }
        }
    }

    fn add_events(&mut self) {
        self.tags
            .push(json!({ "name": "Events", "description": "What changed since?" }));
        self.paths.insert("/api/v1/stores/{store_id}/events".to_owned(), json!({
            "parameters": [parameter("store_id")],
            "get": {
                "tags": ["Events"],
                "summary": "What changed since a position",
                "operationId": "list_events",
                "description": "Poll with the `next_after` of the last page, for ever. No commit is \
                    ever skipped, however late it came; per record, `version` tells the order.",
                "parameters": [
                    {
                        "name": "after", "in": "query",
                        "description": "The position after which to read; left out: from the \
                            oldest event that is kept.",
                        "schema": { "type": "integer", "format": "int64", "minimum": 0 }
                    },
                    parameter("limit"),
                    {
                        "name": "resource", "in": "query",
                        "description": "Only events of this resource.",
                        "schema": { "type": "string", "enum": event_paths() }
                    }
                ],
                "responses": responses(json!({
                    "200": content("The page.", reference::<Feed>()),
                }), &[READ_FAULTS, &[410]].concat())
            }
        }));
    }

    fn add_operational(&mut self) {
        self.tags
            .push(json!({ "name": "Operation", "description": "For operators; no key." }));
        let status = json!({
            "type": "object",
            "required": ["status"],
            "properties": { "status": { "type": "string" } }
        });
        let mut add = |path: &str, summary: &str, own: Value| {
            let id = path.trim_start_matches('/').replace('.', "_");
            self.paths.insert(
                path.to_owned(),
                json!({ "get": {
                    "tags": ["Operation"], "summary": summary, "operationId": id,
                    "security": [], "responses": responses(own, ANY_FAULTS)
                }}),
            );
        };
        add(
            "/healthz",
            "Whether the process answers",
            json!({ "200": content("It does.", status.clone()) }),
        );
        add(
            "/readyz",
            "Whether requests can be served",
            json!({
                "200": content("The database can be reached and is migrated.", status.clone()),
                "503": content("Not now: `not_migrated`, `database_unavailable` or `stopping`.", status),
            }),
        );
        let text = |kind: &str, schema: Value| {
            let mut response = content("The text.", Value::Null);
            response["content"] = json!({ kind: { "schema": schema } });
            json!({ "200": response })
        };
        let object = json!({ "type": "object" });
        add(
            "/metrics",
            "Prometheus metrics",
            text("text/plain", json!({ "type": "string" })),
        );
        add(
            "/openapi.yaml",
            "This document as YAML",
            text("application/yaml", object.clone()),
        );
        add(
            "/openapi.json",
            "This document as JSON",
            text("application/json", object),
        );
    }
}

fn merged(mut one: Value, mut other: Value) -> Value {
    if let (Some(one), Some(other)) = (one.as_object_mut(), other.as_object_mut()) {
        one.append(other);
    }
    one
}

fn title(word: &str) -> String {
    let mut letters = word.chars();
    letters
        .next()
        .map(|first| first.to_uppercase().chain(letters).collect())
        .unwrap_or_default()
}

fn reference<T: ToSchema>() -> Value {
    json!({ "$ref": format!("#/components/schemas/{}", T::name()) })
}

fn parameter(name: &str) -> Value {
    json!({ "$ref": format!("#/components/parameters/{name}") })
}

fn content(description: &str, schema: Value) -> Value {
    json!({
        "description": description,
        "headers": { "X-Request-Id": { "$ref": "#/components/headers/X-Request-Id" } },
        "content": { "application/json": { "schema": schema } }
    })
}

/// One answer of a write, with what its headers say.
fn written<R: Resource>(description: &str) -> Value {
    let mut response = content(description, reference::<R::Answer>());
    for name in ["ETag", "Keyfold-Outcome", "Keyfold-Dry-Run"] {
        response["headers"][name] = json!({ "$ref": format!("#/components/headers/{name}") });
    }
    response
}

/// The answer of the write that made a record.
fn created<R: Resource>() -> Value {
    let mut response = written::<R>("Created.");
    response["headers"]["Location"] = json!({ "$ref": "#/components/headers/Location" });
    response
}

const ANY_FAULTS: &[u16] = &[414, 431, 500];
const READ_FAULTS: &[u16] = &[400, 401, 403, 404, 414, 429, 431, 500, 503];
const WRITE_FAULTS: &[u16] = &[
    400, 401, 403, 404, 408, 412, 413, 414, 415, 422, 429, 431, 500, 503,
];

/// Own responses and those of the faults that can happen there.
fn responses(mut own: Value, faults: &[u16]) -> Value {
    if faults.contains(&429) {
        for response in own.as_object_mut().into_iter().flat_map(Map::values_mut) {
            describe_rate(response);
        }
    }
    for (status, name, _) in FAULTS {
        if faults.contains(status) {
            own[status.to_string()] = json!({ "$ref": format!("#/components/responses/{name}") });
        }
    }
    own
}

/// What an answer says of the store's rate limit.
fn describe_rate(response: &mut Value) {
    for name in [
        "X-RateLimit-Limit",
        "X-RateLimit-Remaining",
        "X-RateLimit-Reset",
    ] {
        response["headers"][name] = json!({ "$ref": format!("#/components/headers/{name}") });
    }
}

/// Every fault that the document knows: status, name and what it means.
const FAULTS: &[(u16, &str, &str)] = &[
    (
        400,
        "Malformed",
        "The path, the query or the JSON is malformed, or the cursor is not valid.",
    ),
    (401, "Unauthorized", "No valid API key."),
    (
        403,
        "StoreForbidden",
        "The store belongs to another team, or the key may not use it.",
    ),
    (
        404,
        "NotFound",
        "There is no active store, or no record, with this id.",
    ),
    (408, "Timeout", "The body stopped arriving."),
    (
        409,
        "Conflict",
        "The `Idempotency-Key` was sent with another body or is in use, or what is set up does not \
         allow it: the store's channel, a pause, a missing key for secrets.",
    ),
    (410, "CursorExpired", "Events after this position are gone."),
    (
        412,
        "PreconditionFailed",
        "`If-Match` or `If-None-Match` does not hold.",
    ),
    (413, "BodyTooLarge", "The body is too large."),
    (
        414,
        "TargetTooLong",
        "Path and query are longer than 8 KiB.",
    ),
    (
        415,
        "UnsupportedMediaType",
        "Another media type or content encoding is needed.",
    ),
    (
        422,
        "Invalid",
        "Fields are not accepted: `errors` names all of them.",
    ),
    (429, "RateLimited", "The store's rate limit is used up."),
    (
        431,
        "HeadersTooLarge",
        "The headers are larger than 16 KiB.",
    ),
    (500, "Fault", "A fault of ours."),
    (
        503,
        "Unavailable",
        "`overloaded` or `database_unavailable`: nothing was done. `outcome_unknown`: it may have \
         been; repeating is safe.",
    ),
];

/// The answers to faults, which every route shares.
fn faults() -> Value {
    let mut responses = Map::new();
    for (status, name, description) in FAULTS {
        let mut response = content(description, Value::Null);
        response["content"] = json!({
            "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } }
        });
        if *status == 429 {
            describe_rate(&mut response);
        }
        let header = match status {
            401 => Some("WWW-Authenticate"),
            409 | 429 | 503 => Some("Retry-After"),
            _ => None,
        };
        if let Some(header) = header {
            response["headers"][header] =
                json!({ "$ref": format!("#/components/headers/{header}") });
        }
        responses.insert((*name).to_owned(), response);
    }
    responses.into()
}

fn conditions() -> Vec<Value> {
    vec![parameter("If-Match"), parameter("If-None-Match")]
}

fn post<R: Resource>(one: &str) -> Value {
    let [first, second] = R::examples();
    let mut parameters = vec![parameter("dry_run")];
    parameters.extend(conditions());
    json!({
        "tags": [title(R::PATH)],
        "summary": format!("Create or replace: {one}"),
        "operationId": format!("upsert_{}", R::SINGULAR),
        "description": "A member that is left out becomes null or its default. Pushing the content \
            that is there already changes nothing.",
        "parameters": parameters,
        "requestBody": {
            "required": true,
            "content": { "application/json": {
                "schema": reference::<R::Input>(),
                "examples": { "first": { "value": first }, "second": { "value": second } }
            }}
        },
        "responses": responses(json!({
            "200": written::<R>("There already: `updated`, `unchanged` or `stale`."),
            "201": created::<R>(),
        }), WRITE_FAULTS)
    })
}

fn patch<R: Resource>(one: &str) -> Value {
    let body = json!({ "schema": reference::<R::Patch>(), "example": R::patch_example() });
    let mut parameters = vec![parameter("dry_run")];
    parameters.extend(conditions());
    json!({
        "tags": [title(R::PATH)],
        "summary": format!("Change the mutable members: {one}"),
        "operationId": format!("patch_{}", R::SINGULAR),
        "description": "JSON Merge Patch (RFC 7396): absent keeps, null clears, `tags` and \
            `metadata` are replaced whole.",
        "parameters": parameters,
        "requestBody": {
            "required": true,
            "content": { "application/merge-patch+json": body, "application/json": body }
        },
        "responses": responses(json!({
            "200": written::<R>("`updated`, `unchanged` or `stale`."),
        }), WRITE_FAULTS)
    })
}

fn get_one<R: Resource>(one: &str) -> Value {
    let mut found = content("The record.", reference::<R::Answer>());
    found["headers"]["ETag"] = json!({ "$ref": "#/components/headers/ETag" });
    json!({
        "tags": [title(R::PATH)],
        "summary": format!("Read: {one}"),
        "operationId": format!("get_{}", R::SINGULAR),
        "responses": responses(json!({ "200": found }), READ_FAULTS)
    })
}

fn list<R: Resource>(one: &str) -> Value {
    let mut parameters = vec![
        parameter("limit"),
        parameter("cursor"),
        json!({
            "name": "id", "in": "query", "description": "Only the record with this id.",
            "schema": { "type": "string", "format": "uuid" }
        }),
    ];
    if R::HAS_CUSTOMER {
        parameters.push(json!({
            "name": "customer_external_id", "in": "query",
            "description": "Only records of the customer with this external id.",
            "schema": { "type": "string" }
        }));
    }
    let page = json!({
        "type": "object",
        "required": ["data", "next_cursor"],
        "properties": {
            "data": { "type": "array", "items": reference::<R::Answer>() },
            "next_cursor": {
                "type": ["string", "null"],
                "description": "Send it as `cursor` for the next page; null at the end."
            }
        }
    });
    json!({
        "tags": [title(R::PATH)],
        "summary": format!("List in order of creation: {one}"),
        "operationId": format!("list_{}", R::PATH),
        "parameters": parameters,
        "responses": responses(json!({ "200": content("A page.", page) }), READ_FAULTS)
    })
}

fn bulk<R: Resource>(all: &str) -> Value {
    let items = json!({
        "type": "object",
        "required": ["items"],
        "additionalProperties": false,
        "properties": {
            "items": {
                "type": "array",
                "maxItems": 1000,
                // Anything may be sent: an item that is something else fails alone.
                "items": {
                    "anyOf": [
                        reference::<R::Input>(),
                        { "description": "Anything else fails alone." }
                    ]
                }
            }
        }
    });
    let [first, second] = R::examples();
    let lines = format!("{first}\n{second}\n");
    let mut answer = content("An outcome for each item.", reference::<BulkAnswer>());
    answer["content"]["application/x-ndjson"] = json!({
        "schema": {
            "type": "string",
            "description": "A `BulkResult` a line, then a `BulkEnd`. Without that last line the \
                stream was cut, and lines that were not answered may have been written.",
            "contentMediaType": "application/x-ndjson",
            "contentSchema": { "anyOf": [reference::<ItemResult>(), reference::<End>()] }
        }
    });
    json!({
        "tags": [title(R::PATH)],
        "summary": format!("Create or replace many: {all}"),
        "operationId": format!("bulk_upsert_{}", R::PATH),
        "description": format!("As JSON at most 1,000 items, each a `{}`; as `application/x-ndjson` \
            one item a line, any number of them, answered as they are written. A faulty item fails \
            alone, unless `atomic` is true.", R::Input::name()),
        "parameters": [
            {
                "name": "atomic", "in": "query",
                "description": "JSON only: all or nothing.",
                "schema": { "type": "boolean", "default": false }
            },
            {
                "name": "dry_run", "in": "query",
                "description": "JSON only: everything but the commit.",
                "schema": { "type": "boolean", "default": false }
            },
            {
                "name": "results", "in": "query",
                "description": "`application/x-ndjson` only: which results to answer.",
                "schema": { "type": "string", "enum": ["all", "failed"], "default": "all" }
            }
        ],
        "requestBody": {
            "required": true,
            "content": {
                "application/json": {
                    "schema": items,
                    "example": { "items": [first, second] }
                },
                "application/x-ndjson": {
                    "schema": {
                        "type": "string",
                        "description": "One item a line.",
                        "contentMediaType": "application/x-ndjson",
                        "contentSchema": reference::<R::Input>()
                    },
                    "example": lines
                }
            }
        },
        "responses": responses(json!({ "200": answer }), WRITE_FAULTS)
    })
}

/// The same operation on the path of bulk writes, where `bulk` is a key like any other.
fn called_bulk(mut operation: Value) -> Value {
    for (member, addition) in [
        ("operationId", "_called_bulk"),
        ("summary", " (the record whose external_id is `bulk`)"),
    ] {
        let text = operation[member].as_str().unwrap_or_default();
        operation[member] = json!(format!("{text}{addition}"));
    }
    operation
}

fn erase(all: &str) -> Value {
    json!({
        "tags": [all],
        "summary": "Erase a person",
        "operationId": "erase_customer",
        "description": "Everything that names the person goes, in one transaction. Orders stay; \
            their customer answers `{\"id\", \"erased\": true}`.",
        "responses": responses(json!({
            "204": {
                "description": "Gone, or never there.",
                "headers": { "X-Request-Id": { "$ref": "#/components/headers/X-Request-Id" } }
            }
        }), READ_FAULTS)
    })
}

fn path_key<R: Resource>() -> Value {
    let description = if R::IS_PERSON {
        "The caller's own id, percent-encoded; when none matches, the phone (`%2B33612345678`) of a \
         record without one."
    } else {
        "The caller's own id, percent-encoded."
    };
    json!({
        "name": "external_id", "in": "path", "required": true, "description": description,
        "schema": { "type": "string", "minLength": 1 }
    })
}

fn headers() -> Value {
    let count = |description: &str| json!({ "description": description, "schema": { "type": "integer", "minimum": 0 } });
    json!({
        "X-RateLimit-Limit": count("Requests a minute that the store may make; only while a limit is set."),
        "X-RateLimit-Remaining": count("How many it may make right now."),
        "X-RateLimit-Reset": count("Seconds until the next request is let through after a 429, else until all are."),
        "Location": {
            "description": "The record's path.",
            "schema": { "type": "string" }
        },
        "Idempotent-Replayed": {
            "description": "`true` when the answer was given before and nothing was sent.",
            "schema": { "type": "string", "enum": ["true"] }
        },
        "Keyfold-Dry-Run": {
            "description": "`true` when nothing was stored because `dry_run` was asked for.",
            "schema": { "type": "string", "enum": ["true"] }
        },
        "WWW-Authenticate": {
            "description": "How to send a key.",
            "schema": { "type": "string" }
        },
        "Retry-After": {
            "description": "In how many seconds to try again.",
            "schema": { "type": "integer", "minimum": 1 }
        },
        "X-Request-Id": {
            "description": "The id that was sent, or a new one.",
            "schema": { "type": "string" }
        },
        "ETag": {
            "description": "The record's version, for `If-Match`.",
            "schema": { "type": "string" }
        },
        "Keyfold-Outcome": {
            "description": "What the write came to.",
            "schema": { "type": "string", "enum": ["created", "updated", "unchanged", "stale"] }
        }
    })
}

fn parameters() -> Value {
    json!({
        "store_id": {
            "name": "store_id", "in": "path", "required": true,
            "description": "The store, as `keyfold store list` shows it.",
            "schema": { "type": "integer", "format": "int64", "minimum": 1 }
        },
        "limit": {
            "name": "limit", "in": "query", "description": "At most so many.",
            "schema": { "type": "integer", "minimum": 1, "maximum": 200, "default": 50 }
        },
        "cursor": {
            "name": "cursor", "in": "query",
            "description": "`next_cursor` of the page before, with the same filters.",
            "schema": { "type": "string" }
        },
        "dry_run": {
            "name": "dry_run", "in": "query",
            "description": "Everything but the commit: the same answer, nothing stored.",
            "schema": { "type": "boolean", "default": false }
        },
        "If-Match": {
            "name": "If-Match", "in": "header",
            "description": "Write only if the record has this version (RFC 9110, 13.1.1).",
            "schema": { "type": "string" }
        },
        "If-None-Match": {
            "name": "If-None-Match", "in": "header",
            "description": "`*`: write only if there is no such record (RFC 9110, 13.1.2).",
            "schema": { "type": "string" }
        }
    })
}

fn problem_schema() -> Value {
    json!({
        "type": "object",
        "description": "RFC 9457.",
        "required": ["type", "title", "status", "detail", "code", "request_id"],
        "properties": {
            "type": { "type": "string", "examples": ["urn:keyfold:problem:validation_failed"] },
            "title": { "type": "string" },
            "status": { "type": "integer" },
            "detail": { "type": "string" },
            "code": { "type": "string", "description": "Stable, never renamed." },
            "request_id": { "type": "string" },
            "errors": {
                "type": "object",
                "description": "Dotted paths of faulty fields and what is wrong with each.",
                "additionalProperties": { "type": "array", "items": { "type": "string" } },
                "examples": [{ "customer.phone": ["is required"] }]
            }
        }
    })
}
