//! Bulk pushes fire like single ones.

use http::Method;
use serde_json::{Value, json};

use crate::support::app::App;
use crate::support::automations::{checkout_of, on_change};

fn carts(from: usize, count: usize) -> Vec<Value> {
    (from..from + count)
        .map(|n| checkout_of(&format!("+336{n:08}"), &format!("B-{n}"), "abandoned"))
        .collect()
}

#[tokio::test]
async fn each_record_of_a_bulk_push_fires_once_and_its_repetition_fires_nothing() {
    let app = App::start().await;
    let body = on_change("a", "checkouts", app.greeting().await);
    app.automate(&body).await;
    let document = json!({ "items": carts(0, 100) });
    let lines: String = carts(100, 1_200)
        .iter()
        .map(|cart| format!("{cart}\n"))
        .collect();
    let stream = async || {
        let headers = [("content-type", "application/x-ndjson")];
        let path = app.path("checkouts/bulk");
        let answer = app.send(Method::POST, &path, &headers, lines.clone()).await;
        answer.expect(200).text
    };
    for round in 0..3 {
        app.post("checkouts/bulk", &document).await.expect(200);
        assert!(stream().await.contains("\"complete\":true"), "{round}");
        app.at_rest().await;
        let runs = app.runs("a").await;
        assert_eq!(runs.len(), 1_300, "round {round}");
        assert!(runs.iter().all(|run| run["status"] == "sent"));
    }
    let numbers = app.messages_by_number().await;
    assert_eq!(numbers.len(), 1_300);
    assert!(numbers.iter().all(|(_, count)| *count == 1));
    app.stop().await;
}

#[tokio::test]
async fn what_a_bulk_push_refuses_fires_nothing_and_the_rest_does() {
    let app = App::start().await;
    let body = on_change("a", "checkouts", app.greeting().await);
    app.automate(&body).await;
    let mut items = carts(0, 3);
    items[1]["total_price"] = json!("much");
    // The same record twice: one change, or two of which the last counts.
    items.push(items[2].clone());
    app.post("checkouts/bulk", &json!({ "items": items }))
        .await
        .expect(200);
    app.at_rest().await;
    let names: Vec<Value> = app
        .runs("a")
        .await
        .iter()
        .map(|run| run["external_id"].clone())
        .collect();
    assert_eq!(names, ["B-0", "B-2"]);
    app.stop().await;
}
