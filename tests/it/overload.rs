//! More clients than can be served: whoever is refused hears it late, and is served in the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use keyfold::edge::Limits;
use sqlx::Connection as _;

use crate::support::app::App;
use crate::support::load::{Target, order};
use crate::support::scale::eventually;

/// One works, 512 wait, the others are refused.
const CLIENTS: usize = 700;
/// No refusal comes sooner.
const HELD_BACK: Duration = Duration::from_millis(200);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_refused_hears_it_late_and_is_served_in_the_end() {
    keyfold::edge::raise_file_limit().expect("as many as the system allows");
    let app = App::start_with(
        |config| config.database_max_connections = 2,
        Limits::default(),
    )
    .await;
    let mut connection = sqlx::PgConnection::connect(&app.database_url)
        .await
        .expect("a connection");
    let mut lock = connection.begin().await.expect("a transaction");
    sqlx::query("lock table orders in share mode")
        .execute(&mut *lock)
        .await
        .expect("a lock");

    let refused = Arc::new(AtomicUsize::new(0));
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..CLIENTS {
        let (target, refused) = (Target::of(&app), Arc::clone(&refused));
        clients.spawn(async move {
            let body = order(&format!("o-{client}"), client, 1);
            loop {
                let asked = Instant::now();
                let answer = target.push("orders", &body).await;
                if answer.status == 201 {
                    return;
                }
                assert_eq!(
                    (answer.status.as_u16(), answer.code().as_str()),
                    (503, "overloaded")
                );
                assert_eq!(answer.header("retry-after"), "1");
                assert!(
                    asked.elapsed() >= HELD_BACK,
                    "refused after {:?}",
                    asked.elapsed()
                );
                refused.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    eventually("some are refused", || async {
        (refused.load(Ordering::Relaxed) > 50).then_some(())
    })
    .await;
    lock.rollback().await.expect("the lock goes");
    while let Some(ended) = clients.join_next().await {
        ended.expect("served in the end");
    }
    println!("{CLIENTS} clients, {refused:?} refusals");
    assert_eq!(
        app.count("orders").await,
        i64::try_from(CLIENTS).expect("few")
    );
    app.stop().await;
}
