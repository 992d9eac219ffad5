//! Many requests with one key: rule 6.

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::app::{Answer, App};
use crate::support::messaging::{PHONE, SEND, TEMPLATES, template_to, text_to};
use crate::support::scale::rounds;

const CLIENTS: usize = 64;

/// All at once, by turns through the services; each as often as it is told that the key is in use.
async fn race(services: &[&App], path: &str, key: &str, body: &str) -> Vec<Answer> {
    let callers = (0..CLIENTS).map(|client| {
        let service = services[client % services.len()];
        service.keyed_until_answered(path, key, body)
    });
    join_all(callers).await
}

/// All have the same bytes, and one of them was the first.
fn assert_one_answer(answers: &[Answer], status: u16) {
    for answer in answers {
        assert_eq!(answer.status, status, "{}", answer.text);
        assert_eq!(answer.text, answers[0].text);
        assert_eq!(answer.header("location"), answers[0].header("location"));
    }
    let firsts = answers
        .iter()
        .filter(|answer| !answer.headers.contains_key("idempotent-replayed"));
    assert_eq!(firsts.count(), 1, "one of them was the first");
}

async fn replays(app: &App) -> i64 {
    sqlx::query_scalar("select sum(replays)::bigint from idempotency_keys")
        .fetch_one(&app.pool)
        .await
        .expect("the keys can be read")
}

/// The races of some rounds; each sends once.
async fn one_message_a_round(services: &[&App]) {
    let app = services[0];
    let template = app.template("hello", "Hello {{n}}").await;
    let rounds = rounds(20);
    for round in 0..rounds {
        // New people and known ones.
        let phone = format!("+3361000{:04}", round / 2);
        let body = template_to(&phone, template, &json!({"n": round.to_string()})).to_string();
        let answers = race(services, TEMPLATES, &format!("k-{round}"), &body).await;
        assert_one_answer(&answers, 201);
        let sent = i64::try_from(round).expect("few") + 1;
        assert_eq!(app.count("messages").await, sent, "round {round}");
    }
    let rounds = i64::try_from(rounds).expect("few");
    let others = i64::try_from(CLIENTS).expect("few") - 1;
    assert_eq!(replays(app).await, rounds * others);
    assert_eq!(app.count("idempotency_keys").await, rounds);
    let list = format!("/api/v1/messages?store_id={}&limit=1", app.store_id);
    let first = app.read(&list).await.expect(200).json()["data"][0].clone();
    let delivered = app.message_becomes(&first["message_id"], "delivered").await;
    let statuses: Vec<&Value> = delivered["timeline"]
        .as_array()
        .expect("a timeline")
        .iter()
        .map(|step| &step["status"])
        .collect();
    assert_eq!(statuses, ["queued", "sent", "delivered"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_64_sends_at_once_with_one_key_one_is_sent_and_all_hear_the_same() {
    let app = App::start().await;
    one_message_a_round(&[&app]).await;
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_64_sends_at_once_through_two_services_one_is_sent_and_all_hear_the_same() {
    let app = App::start().await;
    let other = app.another().await;
    one_message_a_round(&[&app, &other]).await;
    other.stop().await;
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_shared_by_all_who_race_for_it() {
    let app = App::start().await;
    let other = app.another().await;
    let body = text_to(PHONE, "Hello").to_string();
    for round in 0..rounds(5) {
        let key = format!("k-{round}");
        let answers = race(&[&app, &other], SEND, &key, &body).await;
        assert_one_answer(&answers, 422);
        assert_eq!(answers[0].code(), "outside_service_window");
    }
    assert_eq!(app.count("messages").await, 0);
    other.stop().await;
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_bodies_that_race_for_one_key_one_is_sent_and_the_other_refused() {
    let app = App::start().await;
    let other = app.another().await;
    app.hear_from(PHONE, "Hello").await;
    for round in 0..rounds(5) {
        let key = format!("k-{round}");
        let bodies = ["one", "two"].map(|text| text_to(PHONE, text).to_string());
        let callers = (0..CLIENTS).map(|client| {
            let service = if (client / 2) % 2 == 0 { &app } else { &other };
            service.keyed_until_answered(SEND, &key, &bodies[client % 2])
        });
        let answers = join_all(callers).await;
        let (sent, refused): (Vec<_>, Vec<_>) = (0..)
            .zip(answers)
            .partition(|(_, answer)| answer.status == 201);
        assert_eq!((sent.len(), refused.len()), (CLIENTS / 2, CLIENTS / 2));
        let winner = sent[0].0 % 2;
        for (client, answer) in sent {
            assert_eq!(
                client % 2,
                winner,
                "only one body was sent: {}",
                answer.text
            );
        }
        for (_, answer) in refused {
            let answer = answer.expect(409);
            assert_eq!(answer.code(), "idempotency_key_mismatch");
        }
        let sent = i64::try_from(round).expect("few") + 1;
        assert_eq!(app.count("messages").await, sent);
    }
    other.stop().await;
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_whose_time_is_over_is_taken_over_by_one_of_those_who_race_for_it() {
    let app = App::start().await;
    let template = app.template("hello", "Hello").await;
    let body = template_to(PHONE, template, &json!({})).to_string();
    for round in 0..rounds(5) {
        let answers = race(&[&app], TEMPLATES, "k", &body).await;
        assert_one_answer(&answers, 201);
        let sent = i64::try_from(round).expect("few") + 1;
        assert_eq!(app.count("messages").await, sent);
        app.clock.advance(chrono::TimeDelta::hours(24));
    }
    assert_eq!(app.count("idempotency_keys").await, 1);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sends_to_one_person_with_keys_of_their_own_are_all_sent() {
    let app = App::start().await;
    let other = app.another().await;
    let template = app.template("hello", "Hello").await;
    let body = template_to(PHONE, template, &json!({})).to_string();
    let callers = (0..CLIENTS).map(|client| {
        let service = [&app, &other][client % 2];
        let (key, body) = (format!("k-{client}"), body.as_str());
        async move { service.keyed(TEMPLATES, &key, body).await }
    });
    let answers = join_all(callers).await;
    for answer in answers {
        answer.expect(201);
    }
    assert_eq!(app.count("messages").await, 64);
    assert_eq!(app.count("contacts").await, 1);
    other.stop().await;
    app.stop().await;
}
