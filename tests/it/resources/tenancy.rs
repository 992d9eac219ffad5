//! Two stores never meet.

use http::Method;
use serde_json::json;

use crate::support::app::{App, tenant};
use crate::support::kinds::kinds;

#[tokio::test]
async fn the_same_key_in_another_store_is_another_record() {
    let app = App::start().await;
    let (_, store_id, key) = tenant(&app.pool, &app.clock, "Other").await;
    let bearer = format!("Bearer {key}");
    let headers = [("authorization", bearer.as_str())];
    for kind in kinds() {
        let base = format!("/api/v1/stores/{store_id}/{}", kind.path);
        let one = format!("{base}/T");
        let ours = app.post(kind.path, &kind.first("T")).await.expect(201);
        app.send(Method::GET, &one, &headers, "").await.expect(404);
        let listed = app.send(Method::GET, &base, &headers, "").await.expect(200);
        let id = &ours.json()["id"];
        let listed = listed.json()["data"].as_array().expect("a list").clone();
        assert!(listed.iter().all(|record| record["id"] != *id));

        let body = kind.second("T").to_string();
        let theirs = app
            .send(Method::POST, &base, &headers, body)
            .await
            .expect(201);
        assert_eq!(theirs.json()["store_id"], store_id);
        assert_ne!(theirs.json()["id"], ours.json()["id"]);
        if kind.has_customer {
            let id = |answer: &serde_json::Value| answer["customer"]["id"].clone();
            assert_ne!(id(&theirs.json()), id(&ours.json()));
        }
        assert_eq!(
            app.get(&kind.one("T")).await.text,
            ours.text,
            "{}",
            kind.path
        );
        let found = app.send(Method::GET, &one, &headers, "").await.expect(200);
        assert_eq!(found.text, theirs.text);

        // An id of the other store filters nothing out of ours.
        let id = theirs.json()["id"].as_str().expect("an id").to_owned();
        let listed = app.get(&format!("{}?id={id}", kind.path)).await.expect(200);
        assert_eq!(listed.json()["data"], json!([]));
    }
    let ours = app.events().await;
    let path = format!("/api/v1/stores/{store_id}/events?limit=200");
    let theirs = app
        .send(Method::GET, &path, &headers, "")
        .await
        .expect(200)
        .json();
    let theirs = theirs["data"].as_array().expect("a list");
    assert!(!ours.is_empty() && ours.len() == theirs.len());
    for event in theirs {
        assert!(
            ours.iter()
                .all(|other| other["record_id"] != event["record_id"])
        );
    }
    app.stop().await;
}
