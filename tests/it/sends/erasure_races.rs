//! Erasures while messages to the person are accepted or on their way.

use futures_util::future::{join, join_all};
use serde_json::json;

use crate::support::app::App;
use crate::support::load::somebody_waits;
use crate::support::messaging::{HoldUp, PHONE, SEND, SLOW, TEMPLATES, template_to, text_to};
use crate::support::scale::{eventually, rounds};

/// Messages, and how each stands to its contact: it is there or not; and its texts: they are or not.
async fn mixed(app: &App) -> Vec<String> {
    sqlx::query_scalar(
        "select m::text
        from messages m
        left join contacts c on c.store_id = m.store_id and c.id = m.contact_id
        left join idempotency_keys k on k.store_id = m.store_id and k.message_id = m.id
        where not (
            c.id is not null
                and m.recipient = c.phone
                and m.content is not null
                and m.erased_at is null
                and position(c.phone in convert_from(k.body, 'UTF8')) > 0
            or c.id is null
                and m.recipient is null
                and m.content is null
                and m.provider_message_id is null
                and m.erased_at is not null
                and convert_from(k.body, 'UTF8') like '%\"to\":null%'
        )",
    )
    .fetch_all(&app.pool)
    .await
    .expect("messages")
}

async fn settled(app: &App) {
    eventually("all messages are settled", || async {
        let open: i64 = sqlx::query_scalar(
            "select (select count(*) from outbox)
                + (select count(*) from messages where status = 'queued')",
        )
        .fetch_one(&app.pool)
        .await
        .expect("the outbox");
        (open == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_send_beside_an_erasure_is_erased_or_made_for_a_new_contact() {
    let app = App::start().await;
    let template = app.template("hello", "Hello {{n}}").await;
    for round in 0..rounds(20) {
        let phone = format!("+3361000{round:04}");
        let external_id = format!("C-{round}");
        let customer = json!({ "external_id": external_id, "phone": phone });
        app.post("customers", &customer).await.expect(201);
        let body = |n: usize| template_to(&phone, template, &json!({"n": n.to_string()}));
        // In every other round the contact is there already.
        if round % 2 == 0 {
            let before = body(100).to_string();
            let key = format!("before-{round}");
            app.keyed(TEMPLATES, &key, before).await.expect(201);
        }
        let (app, body) = (&app, &body);
        let sending = join_all((0..8).map(|n| async move {
            let key = format!("k-{round}-{n}");
            // Whoever has to wait too long for the contact is told to come again.
            eventually("the message is accepted", || async {
                let answer = app.keyed(TEMPLATES, &key, body(n).to_string()).await;
                (answer.code() != "overloaded").then_some(answer)
            })
            .await
        }));
        let path = format!("customers/{external_id}");
        let erasing = app.delete(&path);
        let (sent, erased) = join(sending, erasing).await;
        erased.expect(204);
        for answer in sent {
            answer.expect(201);
        }
        assert_eq!(mixed(app).await, [""; 0], "round {round}");
    }
    settled(&app).await;
    assert_eq!(mixed(&app).await, [""; 0], "when all is delivered");
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_erasure_beside_deliveries_leaves_no_provider_id_and_no_message_underway() {
    let app = App::start().await;
    let other = app.another().await;
    let template = app.template("hello", "Hello {{n}}").await;
    for round in 0..rounds(10) {
        let phone = format!("+3361000{round:04}");
        let external_id = format!("C-{round}");
        let customer = json!({ "external_id": external_id, "phone": phone });
        app.post("customers", &customer).await.expect(201);
        for n in 0..20 {
            let variables = json!({"n": n.to_string()});
            let body = template_to(&phone, template, &variables).to_string();
            let key = format!("k-{round}-{n}");
            app.keyed(TEMPLATES, &key, body).await.expect(201);
        }
        app.delete(&format!("customers/{external_id}"))
            .await
            .expect(204);
    }
    settled(&app).await;
    assert_eq!(mixed(&app).await, [""; 0]);
    let deadlocks: i64 = sqlx::query_scalar(
        "select deadlocks from pg_stat_database where datname = current_database()",
    )
    .fetch_one(&app.pool)
    .await
    .expect("statistics");
    assert_eq!(deadlocks, 0, "both sides lock in one order");
    let statuses: Vec<String> =
        sqlx::query_scalar("select distinct status from messages order by 1")
            .fetch_all(&app.pool)
            .await
            .expect("messages");
    for status in statuses {
        assert!(
            ["delivered", "failed"].contains(&status.as_str()),
            "{status}"
        );
    }
    other.stop().await;
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_erasure_waits_for_the_send_that_is_under_way_and_erases_its_message() {
    let app = App::start().await;
    let customer = json!({ "external_id": "C", "phone": PHONE });
    app.post("customers", &customer).await.expect(201);
    app.hear_from(PHONE, "Hello").await;
    let hold_up = HoldUp::start(&app).await;
    let body = text_to(PHONE, SLOW).to_string();
    let sending = app.keyed(SEND, "k", body.as_str());
    let erasing = async {
        hold_up.holds_one().await;
        let erasing = app.delete("customers/C");
        let ending = async {
            eventually("the erasure waits for the contact", || async {
                somebody_waits(&app.pool).await.then_some(())
            })
            .await;
            hold_up.end().await;
        };
        join(erasing, ending).await.0.expect(204)
    };
    let (sent, _) = join(sending, erasing).await;
    let sent = sent.expect(201);
    let again = app.keyed(SEND, "k", body).await.expect(201);
    let mut expected = sent.json();
    expected["to"] = serde_json::Value::Null;
    expected["contact_id"] = serde_json::Value::Null;
    assert_eq!(again.json(), expected);
    assert_eq!(mixed(&app).await, [""; 0]);
    assert_eq!(app.count("contacts").await, 0);
    app.stop().await;
}
