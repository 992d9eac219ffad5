//! What is kept, and for how long.

use chrono::TimeDelta;
use keyfold::edge::Limits;
use keyfold::maintenance;
use serde_json::json;

use crate::support::app::App;
use crate::support::automations::{checkout, on_change};
use crate::support::scale::eventually;

/// As `KEYFOLD_EVENT_RETENTION_DAYS` in these tests.
const DAYS: u32 = 7;
/// Room for a slow machine: the clock goes on by itself.
const ROOM: TimeDelta = TimeDelta::seconds(120);

#[tokio::test]
async fn runs_that_sent_nothing_go_with_the_events_and_sent_and_waiting_ones_stay() {
    let week = |config: &mut keyfold::config::Config| config.event_retention_days = DAYS;
    let app = App::start_with(week, Limits::default()).await;
    let id = app.greeting().await;
    let mut once = on_change("once", "checkouts", id);
    once["reentry"] = json!("once_per_record");
    app.automate(&once).await;
    let mut waits = on_change("waits", "checkouts", id);
    waits["delay_seconds"] = json!(2_592_000);
    waits["reentry"] = json!("once_per_record");
    app.automate(&waits).await;
    let mut fails = on_change("fails", "checkouts", app.template("t", "{{v}}").await);
    fails["action"]["send_template"]["variables"] = json!({ "v": "/currency" });
    app.automate(&fails).await;
    app.post("checkouts", &checkout("A", "abandoned"))
        .await
        .expect(201);
    app.at_rest().await;
    app.patch("checkouts/A", &json!({ "tags": ["vip"] }))
        .await
        .expect(200);
    let failed = "failed variable_missing v";
    let all = [
        ("once", vec!["sent", "skipped reentry"]),
        ("waits", vec!["scheduled", "skipped reentry"]),
        ("fails", vec![failed, failed]),
    ];
    let check = async |expected: &[(&str, Vec<&str>)]| {
        maintenance::clean(&app.state).await;
        for (name, outcomes) in expected {
            assert_eq!(app.outcomes(name).await, *outcomes, "{name}");
        }
    };
    check(&all).await;
    let kept = TimeDelta::days(i64::from(DAYS));
    app.clock.advance(kept - ROOM);
    check(&all).await;
    app.clock.advance(ROOM);
    check(&[
        ("once", vec!["sent"]),
        ("waits", vec!["scheduled"]),
        ("fails", vec![]),
    ])
    .await;
    assert_eq!(app.count("events").await, 0);
    // A sent run still keeps its record from a second one.
    app.patch("checkouts/A", &json!({ "tags": ["gold"] }))
        .await
        .expect(200);
    assert_eq!(app.outcomes("once").await, ["sent", "skipped reentry"]);
    app.clock.advance(TimeDelta::days(30));
    assert_eq!(app.outcomes("waits").await[0], "sent");
    app.stop().await;
}

#[tokio::test]
async fn an_event_that_nobody_has_evaluated_is_kept_however_old_it_is() {
    let idle = |config: &mut keyfold::config::Config| {
        config.works = false;
        config.event_retention_days = DAYS;
    };
    let app = App::start_with(idle, Limits::default()).await;
    app.automate(&on_change("a", "checkouts", app.greeting().await))
        .await;
    for key in ["A", "B", "C"] {
        app.post("checkouts", &checkout(key, "abandoned"))
            .await
            .expect(201);
    }
    let events = app.count("events").await;
    app.clock.advance(TimeDelta::days(3 * i64::from(DAYS)));
    maintenance::clean(&app.state).await;
    assert_eq!(app.count("events").await, events);
    assert_eq!(
        app.events().await.len(),
        usize::try_from(events).expect("few")
    );
    let working = app.another().await;
    assert_eq!(working.outcomes("a").await, ["sent"; 3]);
    eventually("all are seen, and old enough", || async {
        maintenance::clean(&app.state).await;
        (app.count("events").await == 0).then_some(())
    })
    .await;
    working.stop().await;
    app.stop().await;
}

#[tokio::test]
async fn without_automations_old_events_go_at_once() {
    let idle = |config: &mut keyfold::config::Config| {
        config.works = false;
        config.event_retention_days = DAYS;
    };
    let app = App::start_with(idle, Limits::default()).await;
    app.automate(&on_change("a", "checkouts", app.greeting().await))
        .await;
    app.post("checkouts", &checkout("A", "abandoned"))
        .await
        .expect(201);
    app.clock.advance(TimeDelta::days(i64::from(DAYS)));
    app.delete("automations/a").await.expect(204);
    maintenance::clean(&app.state).await;
    assert_eq!(app.count("events").await, 0);
    app.stop().await;
}
