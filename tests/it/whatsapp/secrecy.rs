//! The access token is in the header of requests to the provider, and nowhere else.

use http::Method;
use keyfold::edge::Limits;

use crate::support::app::App;
use crate::support::meta::{Behaviour, Meta, Then};
use crate::support::process::Process;
use crate::support::rows;
use crate::support::scale::eventually;
use crate::support::whatsapp::{
    ADA, Days, SECRET_KEY, TOKEN, another_store, calls_of, command, connect, hear_from, send_text,
    settings, until,
};

/// `keyfold channel show`, with everything that it says.
async fn shown(app: &App, meta: &Meta, more: &[&str]) -> String {
    let store = app.store_id.to_string();
    let arguments = [&["channel", "show", "--store", &store], more].concat();
    let output = command(app, meta, &arguments, "").await;
    assert!(output.status.success());
    let (said, errors) = (output.stdout, output.stderr);
    format!(
        "{}{}",
        String::from_utf8_lossy(&said),
        String::from_utf8_lossy(&errors)
    )
}

#[tokio::test]
async fn the_token_reaches_the_provider_and_no_log_answer_or_table() {
    let meta = Meta::start().await;
    // A process of its own does everything, and says all that it can say. This one only looks on.
    let mut app = App::start_with(|config| config.works = false, Limits::default()).await;
    let settings = settings(&meta);
    let mut spoken: Vec<(&str, &str)> = settings.iter().map(|(n, v)| (*n, v.as_str())).collect();
    spoken.push(("KEYFOLD_LOG", "trace"));
    let process = Process::serve_with(&app.database_url, &spoken);
    app.base.clone_from(&process.base);
    connect(&app.pool, &app.clock, app.store_id).await;
    let (broken, refused) = (another_store(&app).await, another_store(&app).await);
    let days = Days::of(&meta);
    days.set(broken, Behaviour::accept_then(Then::Reset));
    days.set(refused, Behaviour::error(190, 401));

    let mut texts = Vec::new();
    for (store_id, status) in [
        (app.store_id, "sent"),
        (broken, "unknown"),
        (refused, "queued"),
    ] {
        hear_from(&app, store_id, &[ADA]).await;
        let id = send_text(&app, store_id, ADA).await;
        texts.push(until(&app, store_id, id, status).await.to_string());
        eventually("the provider is called", || async {
            (!calls_of(&meta, store_id).is_empty()).then_some(())
        })
        .await;
        let path = format!("/api/v1/messages?store_id={store_id}");
        texts.push(app.send(Method::GET, &path, &[], "").await.expect(200).text);
    }
    texts.push(app.send(Method::GET, "/metrics", &[], "").await.text);
    texts.push(shown(&app, &meta, &[]).await);
    texts.push(shown(&app, &meta, &["--json"]).await);
    assert!(meta.calls().iter().all(|call| call.token == TOKEN));
    let log = process.log();
    assert!(
        log.iter().any(|line| line.contains("TRACE")),
        "it says everything"
    );
    let rows = rows::texts(&app.pool).await;
    assert!(rows.iter().any(|row| row.starts_with("channels ")));
    let hex: String = TOKEN.bytes().map(|byte| format!("{byte:02x}")).collect();
    for text in texts.iter().chain(&log).chain(&rows) {
        for secret in [TOKEN, SECRET_KEY, &hex] {
            assert!(!text.contains(secret), "{text}");
        }
    }
}
