//! Exports of a store whose receivers are slow leave room for those of other stores.

use http::Method;
use serde_json::{Value, json};

use crate::support::app::App;
use crate::support::exports::{calls, export, order, start};
use crate::support::receiver::{Receiver, Says};
use crate::support::scale::eventually;

const EXPORTS: usize = 40;
const ORDERS: usize = 16;
/// Half of the calls of a process.
const SHARE: usize = 256;

/// A POST to another store.
async fn post_as(app: &App, (store_id, key): &(i64, String), rest: &str, body: &Value) {
    let path = format!("/api/v1/stores/{store_id}/{rest}");
    let bearer = format!("Bearer {key}");
    let headers = [("authorization", bearer.as_str())];
    let answer = app
        .send(Method::POST, &path, &headers, body.to_string())
        .await;
    assert!(answer.status.is_success(), "{}", answer.text);
}

#[tokio::test]
async fn forty_exports_that_get_no_answer_hold_half_of_the_calls_at_most() {
    let (app, receiver, silent) = (
        start().await,
        Receiver::start().await,
        Receiver::start().await,
    );
    silent.says(|_| Says::Nothing);
    app.export(&receiver, &json!({})).await;
    let flood = app.another_store(None).await;
    for n in 0..EXPORTS {
        let name = json!({ "external_id": format!("silent-{n}") });
        post_as(&app, &flood, "exports", &export(&silent, &name)).await;
    }
    let orders: Vec<Value> = (0..ORDERS)
        .map(|n| order(&format!("A-{n}"), "1.00"))
        .collect();
    post_as(&app, &flood, "orders/bulk", &json!({ "items": orders })).await;
    eventually("the flood has its share", || async {
        (silent.count() >= SHARE).then_some(())
    })
    .await;
    app.push("B", "1.00").await;
    calls(&receiver, 1).await;
    let most = silent.calls().iter().map(|call| call.beside + 1).max();
    // A few more may be counted: callers who went, and of whom the receiver does not know it yet.
    let is_share = |most: usize| (SHARE..SHARE * 3 / 2).contains(&most);
    assert!(
        most.is_some_and(is_share),
        "{most:?} calls of the flood at once"
    );
    app.stop().await;
}
