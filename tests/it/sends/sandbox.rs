//! The sandbox: what the shopper writes opens the window, or ends it all.

use chrono::TimeDelta;
use serde_json::json;

use crate::support::app::App;
use crate::support::messaging::{PHONE, SEND, TEMPLATES, template_to, text_to};

/// Room for a slow machine: the clock goes on by itself.
const ROOM: TimeDelta = TimeDelta::seconds(60);

/// What a free-form message and a template are answered with.
async fn answers(app: &App, template: i64) -> [String; 2] {
    let sends = [
        (SEND, text_to(PHONE, "Hello")),
        (TEMPLATES, template_to(PHONE, template, &json!({}))),
    ];
    let mut answers = Vec::new();
    for (path, body) in sends {
        let answer = app.deliver(path, body.to_string()).await;
        answers.push(if answer.status == 201 {
            "sent".to_owned()
        } else {
            answer.expect(422).code()
        });
    }
    answers.try_into().expect("two")
}

#[tokio::test]
async fn the_window_is_open_for_a_day_after_the_shopper_wrote() {
    let app = App::start().await;
    let template = app.template("hello", "Hello").await;
    let closed = ["outside_service_window", "sent"];
    let open = ["sent", "sent"];
    assert_eq!(answers(&app, template).await, closed, "never heard of");
    app.hear_from("+33612345679", "Hello").await;
    assert_eq!(answers(&app, template).await, closed, "somebody else wrote");
    app.hear_from(PHONE, "Hello").await;
    assert_eq!(answers(&app, template).await, open);
    app.clock.advance(TimeDelta::hours(24) - ROOM);
    assert_eq!(answers(&app, template).await, open);
    app.clock.advance(ROOM);
    assert_eq!(answers(&app, template).await, closed);
    app.hear_from(PHONE, "Again").await;
    assert_eq!(answers(&app, template).await, open);
    app.stop().await;
}

#[tokio::test]
async fn stop_ends_all_messages_and_start_takes_it_back() {
    let app = App::start().await;
    let template = app.template("hello", "Hello").await;
    let (out, open) = (["contact_opted_out", "contact_opted_out"], ["sent", "sent"]);
    for (stop, start) in [
        ("STOP", "START"),
        (" stop. ", "unstop"),
        ("Opt out", "Subscribe!"),
    ] {
        app.hear_from(PHONE, stop).await;
        assert_eq!(answers(&app, template).await, out, "{stop}");
        // Other words change nothing, though they open the window.
        app.hear_from(PHONE, "please stop this").await;
        app.hear_from(PHONE, "Hello").await;
        assert_eq!(answers(&app, template).await, out, "{stop}");
        app.hear_from(PHONE, start).await;
        assert_eq!(answers(&app, template).await, open, "{start}");
    }
    // Only for this person, and in this store.
    app.hear_from(PHONE, "STOP").await;
    let other = template_to("+33612345679", template, &json!({})).to_string();
    app.deliver(TEMPLATES, other).await.expect(201);
    app.stop().await;
}

#[tokio::test]
async fn an_opted_out_contact_stays_so_however_much_time_goes_by() {
    let app = App::start().await;
    let template = app.template("hello", "Hello").await;
    app.hear_from(PHONE, "STOP").await;
    app.clock.advance(TimeDelta::days(400));
    let out = ["contact_opted_out", "contact_opted_out"];
    assert_eq!(answers(&app, template).await, out);
    app.stop().await;
}

#[tokio::test]
async fn every_faulty_field_of_what_the_shopper_wrote_is_named() {
    let app = App::start().await;
    for (body, paths) in [
        (json!({}), &["from", "text"][..]),
        (json!([]), &[""]),
        (
            json!({"from": "nobody", "text": "", "to": PHONE}),
            &["from", "text", "to"],
        ),
        (json!({"from": PHONE, "text": "x".repeat(4_097)}), &["text"]),
        (json!({"from": 1, "text": 1}), &["from", "text"]),
    ] {
        let refused = app.post("sandbox/inbound", &body).await.expect(422);
        assert_eq!(refused.faulty(), paths, "{body}");
    }
    assert_eq!(app.count("contacts").await, 0);
    app.hear_from(PHONE, &"é".repeat(4_096)).await;
    app.stop().await;
}
