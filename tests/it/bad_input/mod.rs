//! Everything that must not be taken, with its exact answer; and the most that is.
//!
//! A body that is refused is refused in the same words alone, in a document, in a document that is
//! all or nothing, and in a stream. None of it changes a row, costs a second or is answered with 5xx.

mod case;
mod documents;
mod encodings;
mod fields;
mod kinds;
mod limits;
mod queries;
mod run;
mod syntax;
mod targets;
mod transport;
mod wire;

use std::time::Duration;

use futures_util::{StreamExt as _, stream};

use self::run::Run;
use crate::support::app::App;

/// A second on an idle machine; the tests of others run beside this one, unoptimised.
const SLOWEST: Duration = Duration::from_secs(5);

/// Cases on their way at a time: a store may have two documents of the largest size in memory.
const AT_ONCE: usize = 2;

#[tokio::test]
async fn bad_input_has_an_exact_answer_in_every_way_of_sending_and_changes_no_row() {
    let app = App::start().await;
    let run = Run::start(&app).await;
    let before = run.rows().await;
    let tables = [
        fields::cases(),
        syntax::cases(),
        transport::cases(),
        encodings::cases(),
        targets::cases(),
        queries::cases(),
        documents::cases(),
    ];
    let cases: Vec<_> = tables.into_iter().flatten().collect();
    let run_one = |case| run.case(case);
    stream::iter(&cases)
        .map(run_one)
        .buffer_unordered(AT_ONCE)
        .collect::<()>()
        .await;
    println!("{} cases, {run}", cases.len());
    assert!(cases.len() >= 150, "the table lost its cases");
    run.expect_sound(SLOWEST);
    assert_eq!(run.rows().await, before);
    app.stop().await;
}

#[tokio::test]
async fn the_most_that_a_field_takes_is_taken_and_answered_exactly() {
    let app = App::start().await;
    let run = Run::start(&app).await;
    let rows = limits::accepted();
    let run_one = |(at, row)| run.accepted(row, at);
    stream::iter(rows.iter().enumerate())
        .map(run_one)
        .buffer_unordered(AT_ONCE)
        .collect::<()>()
        .await;
    println!("{} cases at a limit, {run}", rows.len());
    run.expect_sound(SLOWEST);
    app.stop().await;
}

#[tokio::test]
async fn an_external_id_is_found_again_under_its_escaped_segment_exactly() {
    let app = App::start().await;
    for (id, segment) in limits::IDS {
        for resource in ["orders", "checkouts", "customers", "shipments"] {
            let text = case::with(resource, "external_id", Some(&case::quoted(id)));
            let posted = wire::exchange(
                &run::address(&app),
                &run::post(&app, resource, "application/json", text.as_bytes()),
            )
            .await;
            assert_eq!(posted.status, 201, "{id:?}: {}", posted.body);
            for target in [
                format!("{}/{segment}", app.path(resource)),
                posted.header("location").to_owned(),
            ] {
                let found = wire::exchange(&run::address(&app), &run::get(&app, &target)).await;
                assert_eq!(
                    (found.status, found.body.as_str()),
                    (200, posted.body.as_str()),
                    "{id:?} at {target}"
                );
            }
        }
    }
    app.stop().await;
}

#[tokio::test]
async fn a_page_of_huge_records_ends_early_and_its_cursor_goes_on() {
    let app = App::start().await;
    let huge = format!("[{{\"a\":{}}}]", case::quoted(&"x".repeat(900_000)));
    let mut posted = Vec::new();
    for at in 0..45 {
        // The first slice of the page is small, the second one is not.
        let items = if at < 20 { "[]" } else { &huge };
        let order = case::with("orders", "line_items", Some(items));
        let order = order.replace("A-1001", &format!("huge-{at}"));
        let request = run::post(&app, "orders", "application/json", order.as_bytes());
        let answer = wire::exchange(&run::address(&app), &request).await;
        assert_eq!(answer.status, 201);
        posted.push(format!("huge-{at}"));
    }
    let (mut found, mut pages, mut cursor) = (Vec::new(), Vec::new(), String::new());
    loop {
        let page = app
            .get(&format!("orders?limit=200{cursor}"))
            .await
            .expect(200)
            .json();
        let data = page["data"].as_array().expect("a list");
        pages.push(data.len());
        found.extend(
            data.iter()
                .map(|order| order["external_id"].as_str().expect("text").to_owned()),
        );
        let Some(next) = page["next_cursor"].as_str() else {
            break;
        };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(found, posted);
    // 2 MiB hold all the small ones and two of the others; each page has at least one.
    let mut expected = vec![22];
    expected.extend([2; 11]);
    expected.push(1);
    assert_eq!(pages, expected);
    app.stop().await;
}
