//! The OpenAPI document: committed, complete, and true.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::Path;

use http::Method;
use keyfold::edge::Limits;
use keyfold::openapi;
use serde_json::{Value, json};

use crate::support::app::App;
use crate::support::automations::on_call;
use crate::support::exports::configure;
use crate::support::kinds::kinds;

#[test]
fn the_committed_document_is_the_one_that_the_code_makes() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.yaml");
    let committed = std::fs::read_to_string(path).expect("openapi.yaml is there");
    let stale = "stale: run `cargo run -- openapi > openapi.yaml`";
    assert!(committed == openapi::yaml(), "{stale}");
}

#[tokio::test]
async fn both_forms_of_the_document_are_served() {
    let app = App::start().await;
    let yaml = app
        .send(Method::GET, "/openapi.yaml", &[], "")
        .await
        .expect(200);
    assert_eq!(yaml.text, openapi::yaml());
    let json = app
        .send(Method::GET, "/openapi.json", &[], "")
        .await
        .expect(200);
    assert_eq!(json.json(), openapi::document());
    // It must show what was sent, not what it is when it is unpacked.
    let client = reqwest::Client::builder().no_gzip().build();
    let client = client.expect("a client");
    for path in ["/openapi.yaml", "/openapi.json"] {
        let get = |headers: &'static [(&'static str, &'static str)]| {
            let (client, url) = (client.clone(), format!("{}{path}", app.base));
            async move {
                let request = headers
                    .iter()
                    .fold(client.get(url), |request, (name, value)| {
                        request.header(*name, *value)
                    });
                request.send().await.expect("it answers")
            }
        };
        let plain = get(&[("accept-encoding", "identity")]).await;
        let etag = plain.headers()["etag"].clone();
        assert_eq!(plain.headers()["vary"], "accept-encoding");
        let plain = plain.bytes().await.expect("bytes");
        let packed = get(&[("accept-encoding", "br, gzip")]).await;
        assert_eq!(packed.headers()["content-encoding"], "gzip");
        assert_ne!(packed.headers()["etag"], etag, "another form, another tag");
        let packed = packed.bytes().await.expect("bytes");
        assert!(packed.len() * 4 < plain.len());
        let mut unpacked = Vec::new();
        flate2::read::GzDecoder::new(&*packed)
            .read_to_end(&mut unpacked)
            .expect("gzip");
        assert!(plain == unpacked, "{path}");
        for (known, status) in [(etag.to_str().expect("text"), 304), ("\"other\"", 200)] {
            let url = format!("{}{path}", app.base);
            let known = format!("\"another\", W/{known}");
            let asked = client.get(url).header("if-none-match", known);
            let answer = asked.send().await.expect("it answers");
            assert_eq!(answer.status(), status, "{path}");
        }
    }
    let docs = app.send(Method::GET, "/docs/", &[], "").await.expect(200);
    assert!(docs.text.contains("<html"), "{}", docs.text);
    app.stop().await;
}

#[test]
fn every_registered_resource_appears_with_all_that_it_offers() {
    let document = openapi::document();
    for kind in kinds() {
        let base = format!("/api/v1/stores/{{store_id}}/{}", kind.path);
        let methods = |rest: &str| -> BTreeSet<String> {
            let item = document["paths"][format!("{base}{rest}")].as_object();
            let item = item.unwrap_or_else(|| panic!("{base}{rest} is missing"));
            let names = item.keys().filter(|name| *name != "parameters");
            names.cloned().collect()
        };
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(methods(""), set(&["get", "post"]));
        let mut one: BTreeSet<String> = set(&["get"]);
        one.extend((!kind.mutable.is_empty()).then(|| "patch".to_owned()));
        one.extend(kind.is_person.then(|| "delete".to_owned()));
        assert_eq!(methods("/{external_id}"), one, "{}", kind.path);
        // A record may be called `bulk`; POST means the many.
        one.insert("post".to_owned());
        assert_eq!(methods("/bulk"), one, "{}", kind.path);
        let list = &document["paths"][&base]["get"]["parameters"];
        assert_eq!(
            list.to_string().contains("customer_external_id"),
            kind.has_customer
        );
    }
}

/// Calls `visit` with every value inside, itself included.
fn walk<'a>(value: &'a Value, visit: &mut impl FnMut(&'a Value)) {
    visit(value);
    match value {
        Value::Object(members) => members.values().for_each(|member| walk(member, visit)),
        Value::Array(items) => items.iter().for_each(|item| walk(item, visit)),
        _ => {}
    }
}

#[test]
fn every_reference_leads_somewhere_and_every_operation_has_a_name_of_its_own() {
    let document = openapi::document();
    let (mut references, mut operations) = (Vec::new(), Vec::new());
    walk(&document, &mut |value| {
        references.extend(value.get("$ref").and_then(Value::as_str));
        operations.extend(value.get("operationId").and_then(Value::as_str));
    });
    assert!(references.len() > 50);
    for reference in &references {
        let pointer = reference.strip_prefix('#').expect("inside the document");
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
    let unique: BTreeSet<_> = operations.iter().collect();
    assert_eq!(
        (unique.len(), operations.is_empty()),
        (operations.len(), false)
    );
    let used: BTreeSet<&str> = references.into_iter().collect();
    for name in document["components"]["schemas"]
        .as_object()
        .expect("schemas")
        .keys()
    {
        let reference = format!("#/components/schemas/{name}");
        let is_told_in_words = ["BulkEnd", "BulkResult"].contains(&name.as_str());
        assert!(
            is_told_in_words || used.contains(reference.as_str()),
            "{name} is not used"
        );
    }
}

#[tokio::test]
async fn every_example_is_accepted_and_answered_as_the_document_says() {
    let document = openapi::document();
    let mut seen = 0;
    for (path, item) in document["paths"].as_object().expect("paths") {
        for method in ["post", "patch"] {
            let Some(operation) = item.get(method) else {
                continue;
            };
            let name = operation["operationId"].as_str().expect("a name");
            if name.ends_with("_called_bulk") || name == "receive_webhook" {
                // The example is for another record: the one that the example of POST makes; an
                // event has to be signed.
                continue;
            }
            if operation.get("requestBody").is_none() {
                continue;
            }
            for (media, content) in operation["requestBody"]["content"]
                .as_object()
                .expect("media")
            {
                for example in examples_of(content) {
                    // Each example on its own, as a reader would try it.
                    let app = App::start_with(configure, Limits::default()).await;
                    let answer = tried(&app, path, method, media, example).await;
                    let status = answer.status.as_str();
                    let fine = ["200", "201", "204"];
                    assert!(fine.contains(&status), "{path}: {}", answer.text);
                    assert!(
                        operation["responses"].get(status).is_some(),
                        "{path} {status}"
                    );
                    assert!(
                        !answer.text.contains("\"failed\":1"),
                        "{path}: {}",
                        answer.text
                    );
                    seen += 1;
                    app.stop().await;
                }
            }
        }
    }
    assert!(seen >= 4 * kinds().len(), "{seen}");
}

fn examples_of(content: &Value) -> Vec<&Value> {
    let named = content["examples"]
        .as_object()
        .into_iter()
        .flat_map(|all| all.values());
    let examples = named.map(|one| &one["value"]).chain(content.get("example"));
    let examples: Vec<&Value> = examples.collect();
    assert!(!examples.is_empty(), "a body without an example");
    examples
}

/// Sends an example, after what has to be there first.
async fn tried(
    app: &App,
    path: &str,
    method: &str,
    media: &str,
    example: &Value,
) -> crate::support::app::Answer {
    let mut path = path.replace("{store_id}", &app.store_id.to_string());
    if method == "patch" {
        let kind = kinds()
            .into_iter()
            .find(|kind| path.contains(&format!("/{}/", kind.path)));
        let kind = kind.expect("a resource");
        app.post(kind.path, &kind.first("example"))
            .await
            .expect(201);
        path = path.replace("{external_id}", "example");
    }
    if path == "/api/v1/messages/send" {
        // A free-form message needs an open service window.
        let inbound = json!({ "from": example["to"], "text": "hello" });
        app.post("sandbox/inbound", &inbound).await.expect(204);
    }
    if path == "/api/v1/templates" {
        let template = json!({ "name": "example", "language": "en", "body": "Hi {{first_name}}" });
        let made = app.post("message-templates", &template).await.expect(201);
        assert_eq!(made.json()["id"], example["template_id"]);
    }
    if path.ends_with("/automations") {
        // The template that it names, as the twelfth.
        let variables = &example["action"]["send_template"]["variables"];
        let names = variables.as_object().into_iter().flat_map(|all| all.keys());
        let text: String = names.map(|name| format!("{{{{{name}}}}} ")).collect();
        let wanted = example["action"]["send_template"]["template_id"].as_i64();
        for n in 1..=wanted.expect("an integer") {
            app.template(&format!("t-{n}"), &format!("Hi {text}")).await;
        }
    }
    if path == "/api/v1/automations/{webhook_id}" {
        let variables = example["variables"].as_object();
        let names = variables.into_iter().flat_map(|all| all.keys());
        let text: String = names.map(|name| format!("{{{{{name}}}}} ")).collect();
        let template = app.template("called", &format!("Hi {text}")).await;
        let saved = app.automate(&on_call("called", template)).await;
        path = path.replace("{webhook_id}", saved["webhook_id"].as_str().expect("an id"));
    }
    let body = match example {
        Value::String(lines) => lines.clone(),
        other => other.to_string(),
    };
    let method = method.to_uppercase().parse().expect("a method");
    app.send(method, &path, &[("content-type", media)], body)
        .await
}
