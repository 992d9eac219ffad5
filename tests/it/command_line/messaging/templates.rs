//! `keyfold template sync`.

use http::Method;
use serde_json::{Value, json};

use super::super::{failure, json_of};
use crate::support::app::App;
use crate::support::meta::{Meta, Reply};
use crate::support::rows;
use crate::support::whatsapp::{ADA, TOKEN, command, start, sync_templates};

/// A template as the provider describes it.
fn described(name: &str, status: &str) -> Value {
    json!({
        "name": name, "language": "en", "status": status, "parameter_format": "NAMED", "id": "1",
        "components": [{ "type": "BODY", "text": "Hello {{first_name}}, {{shop}} here" }]
    })
}

async fn listed(app: &App) -> Vec<Value> {
    let path = format!("/api/v1/get_templates?store_id={}", app.store_id);
    let list = app
        .send(Method::GET, &path, &[], "")
        .await
        .expect(200)
        .json();
    list.as_array().expect("a list").clone()
}

fn names(list: &[Value]) -> Vec<&str> {
    list.iter()
        .map(|template| template["name"].as_str().expect("a name"))
        .collect()
}

#[tokio::test]
async fn templates_are_taken_over_page_by_page_and_only_what_is_approved_is_listed() {
    let meta = Meta::start().await;
    let app = start(&meta).await;
    let all = [
        described("a", "APPROVED"),
        described("b", "REJECTED"),
        described("c", "APPROVED"),
        described("d", "PENDING"),
        described("e", "APPROVED"),
    ];
    meta.set_templates(all.to_vec(), 2);
    let synced = sync_templates(&app, &meta, app.store_id).await;
    assert_eq!(synced, json!({ "synced": 5 }));
    let pages = meta.pages_read();
    assert_eq!(pages.len(), 3);
    for page in &pages {
        assert_eq!(
            (page.path.as_str(), page.token.as_str()),
            ("/2000/message_templates", TOKEN)
        );
    }
    let list = listed(&app).await;
    assert_eq!(names(&list), ["a", "c", "e"]);
    let first = json!({
        "id": list[0]["id"], "name": "a", "language": "en",
        "variables": ["first_name", "shop"], "body": "Hello {{first_name}}, {{shop}} here"
    });
    assert_eq!(list[0], first);
    assert!(list[0]["id"].is_i64());

    // The same again changes no row.
    let before = rows::snapshot(&app.pool).await;
    sync_templates(&app, &meta, app.store_id).await;
    let templates = |rows: &[String]| -> Vec<String> {
        let of_templates = |row: &&String| row.starts_with("message_templates ");
        rows.iter().filter(of_templates).cloned().collect()
    };
    let after = rows::snapshot(&app.pool).await;
    assert_eq!(templates(&after), templates(&before));
    app.stop().await;
}

#[tokio::test]
async fn a_template_that_is_gone_or_refused_since_is_neither_listed_nor_sendable() {
    let meta = Meta::start().await;
    let app = start(&meta).await;
    let approved = ["a", "b", "c"].map(|name| described(name, "APPROVED"));
    meta.set_templates(approved.to_vec(), 100);
    sync_templates(&app, &meta, app.store_id).await;
    let before = listed(&app).await;
    assert_eq!(names(&before), ["a", "b", "c"]);

    meta.set_templates(
        vec![described("a", "APPROVED"), described("b", "PAUSED")],
        100,
    );
    let synced = sync_templates(&app, &meta, app.store_id).await;
    assert_eq!(synced, json!({ "synced": 2 }));
    assert_eq!(listed(&app).await, before[..1]);
    for (template, status) in before.iter().zip([201, 404, 404]) {
        let body = json!({
            "store_id": app.store_id, "template_id": template["id"], "phone_number": ADA,
            "variables": { "first_name": "Ada", "shop": "Tea" }
        });
        let answer = app
            .send(Method::POST, "/api/v1/templates", &[], body.to_string())
            .await
            .expect(status);
        if status == 404 {
            assert_eq!(answer.code(), "template_not_found");
        }
    }
    // What comes back is what it was.
    meta.set_templates(approved.to_vec(), 100);
    sync_templates(&app, &meta, app.store_id).await;
    assert_eq!(listed(&app).await, before);
    // With the provider, templates come from there alone.
    let posted = json!({ "name": "mine", "language": "en", "body": "Hello" });
    app.post("message-templates", &posted).await.expect(409);
    app.stop().await;
}

#[tokio::test]
async fn a_sync_that_fails_says_why_in_one_line_and_changes_nothing() {
    let meta = Meta::start().await;
    let app = start(&meta).await;
    meta.set_templates(vec![described("a", "APPROVED")], 100);
    sync_templates(&app, &meta, app.store_id).await;
    let before = listed(&app).await;
    let store = app.store_id.to_string();
    let arguments = ["template", "sync", "--store", &store];
    for (fault, words) in [
        (Reply::error(190, 401), "190"),
        (Reply::plain(502), "502"),
        (Reply::plain(200), "no JSON"),
        (Reply::json(200, &json!({})), "`data`"),
    ] {
        meta.set_templates_fault(Some(fault));
        let line = failure(&command(&app, &meta, &arguments, "").await);
        assert!(line.contains(words), "{line}");
        assert!(!line.contains(TOKEN), "{line}");
    }
    let away = Meta::unreachable();
    let line = failure(&command(&app, &away, &arguments, "").await);
    assert!(line.contains("can't be reached"), "{line}");
    assert_eq!(listed(&app).await, before);

    let sandbox = json_of(
        &app.database_url,
        &[
            "store",
            "create",
            "--team",
            &app.team_id.to_string(),
            "--name",
            "S",
        ],
    );
    let store = sandbox["id"].to_string();
    let line = failure(&command(&app, &meta, &["template", "sync", "--store", &store], "").await);
    assert!(line.contains("sandbox"), "{line}");
    app.stop().await;
}
