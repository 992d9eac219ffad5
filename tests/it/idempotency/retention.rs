//! How long a key counts: rule 8.

use chrono::TimeDelta;
use keyfold::edge::Limits;
use keyfold::maintenance;
use serde_json::json;

use crate::support::app::App;
use crate::support::messaging::{PHONE, TEMPLATES, template_to};

/// Before the end of the time there is room for a slow machine: the clock goes on by itself.
const ROOM: TimeDelta = TimeDelta::seconds(60);

#[tokio::test]
async fn a_key_counts_for_its_time_from_the_first_request_on_and_then_is_new() {
    for hours in [1, 24, 720] {
        let app = App::start_with(
            |config| config.idempotency_retention_hours = hours,
            Limits::default(),
        )
        .await;
        let kept = TimeDelta::hours(i64::from(hours));
        // A template needs no window, which would have closed.
        let template = app.template("hello", "Hello").await;
        let body = template_to(PHONE, template, &json!({})).to_string();
        let log = format!(
            "/api/v1/idempotency-keys/templates/k?store_id={}",
            app.store_id
        );
        let first = app.keyed(TEMPLATES, "k", body.as_str()).await.expect(201);
        app.clock.advance(kept - ROOM);
        // A replay does not lengthen the time.
        let again = app.keyed(TEMPLATES, "k", body.as_str()).await.expect(201);
        assert_eq!(again.header("idempotent-replayed"), "true", "{hours} h");
        assert_eq!(again.text, first.text);
        app.read(&log).await.expect(200);

        app.clock.advance(ROOM);
        app.read(&log).await.expect(404);
        let fresh = app.keyed(TEMPLATES, "k", body.as_str()).await.expect(201);
        assert_eq!(fresh.headers.get("idempotent-replayed"), None);
        assert_ne!(fresh.json()["message_id"], first.json()["message_id"]);
        assert_eq!(app.count("messages").await, 2);
        // And now it counts anew.
        let again = app.keyed(TEMPLATES, "k", body.as_str()).await.expect(201);
        assert_eq!(again.text, fresh.text);
        let entry = app.read(&log).await.expect(200).json();
        assert_eq!(entry["replays"], 1, "those of the new one alone");
        assert_eq!(app.count("idempotency_keys").await, 1);
        app.stop().await;
    }
}

#[tokio::test]
async fn a_key_whose_time_is_over_may_come_with_another_body() {
    let app = App::start().await;
    let template = app.template("hello", "Hello").await;
    let [one, two] =
        [PHONE, "+33612345679"].map(|phone| template_to(phone, template, &json!({})).to_string());
    app.keyed(TEMPLATES, "k", one.as_str()).await.expect(201);
    app.keyed(TEMPLATES, "k", two.as_str()).await.expect(409);
    app.clock.advance(TimeDelta::hours(24));
    app.keyed(TEMPLATES, "k", two.as_str()).await.expect(201);
    app.keyed(TEMPLATES, "k", one.as_str()).await.expect(409);
    app.stop().await;
}

#[tokio::test]
async fn the_sweeper_deletes_what_is_over_and_nothing_else() {
    let app = App::start().await;
    let template = app.template("hello", "Hello").await;
    let body = template_to(PHONE, template, &json!({})).to_string();
    for key in ["old-1", "old-2"] {
        app.keyed(TEMPLATES, key, body.as_str()).await.expect(201);
    }
    app.clock.advance(TimeDelta::hours(24) - ROOM);
    app.keyed(TEMPLATES, "young", body.as_str())
        .await
        .expect(201);
    let stored = app.stored_keys().await;
    maintenance::clean(&app.state).await;
    assert_eq!(app.stored_keys().await, stored, "their time is not over");
    app.clock.advance(ROOM);
    maintenance::clean(&app.state).await;
    assert_eq!(app.stored_keys().await, stored[2..]);
    let again = app.keyed(TEMPLATES, "young", body.as_str()).await;
    assert_eq!(again.expect(201).header("idempotent-replayed"), "true");
    app.stop().await;
}

#[tokio::test]
async fn the_sweeper_goes_on_until_all_that_is_over_is_gone() {
    let app = App::start().await;
    let first_seen = app.clock.now();
    // More than two slices of a thousand.
    sqlx::query(
        "insert into idempotency_keys (store_id, id, endpoint, key, body_sha256, first_seen_at, status)
        select $1, ('00000000-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid, 'send', n::text,
            '', $2, 201
        from generate_series(1, 2500) as n",
    )
    .bind(app.store_id)
    .bind(first_seen)
    .execute(&app.pool)
    .await
    .expect("rows");
    app.clock.advance(TimeDelta::hours(24));
    maintenance::clean(&app.state).await;
    assert_eq!(app.count("idempotency_keys").await, 0);
    app.stop().await;
}
