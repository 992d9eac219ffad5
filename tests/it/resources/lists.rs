//! Lists: pages, cursors, filters.

use http::Method;
use serde_json::{Value, json};

use crate::support::app::{App, tenant};
use crate::support::kinds::{Kind, kinds, person, with};

fn ids(page: &Value) -> Vec<String> {
    let records = page["data"].as_array().expect("a list").iter();
    let id = |record: &Value| record["id"].as_str().expect("an id").to_owned();
    records.map(id).collect()
}

async fn page(app: &App, kind: &Kind, query: &str) -> Value {
    let answer = app.get(&format!("{}?{query}", kind.path)).await;
    answer.expect(200).json()
}

/// Records under these keys; gives their ids.
async fn make(app: &App, kind: &Kind, keys: std::ops::Range<u32>) -> Vec<String> {
    let mut ids = Vec::new();
    for key in keys {
        let body = kind.first(&format!("L{key}"));
        let record = app.post(kind.path, &body).await.expect(201).json();
        ids.push(record["id"].as_str().expect("an id").to_owned());
    }
    ids
}

#[tokio::test]
async fn paging_skips_nothing_while_records_arrive() {
    // A store of its own per resource: people come along with other records.
    for kind in kinds() {
        let app = App::start().await;
        let mut there = make(&app, &kind, 0..7).await;
        if kind.has_customer {
            assert_eq!(
                app.count(person().path).await,
                1,
                "all carried the same one"
            );
        }
        let (mut found, mut cursor, mut next) = (Vec::new(), String::new(), 7);
        loop {
            let page = page(&app, &kind, &format!("limit=2{cursor}")).await;
            let ids = ids(&page);
            assert!(ids.len() <= 2);
            found.extend(ids);
            let Some(text) = page["next_cursor"].as_str() else {
                break;
            };
            cursor = format!("&cursor={text}");
            if next < 10 {
                there.extend(make(&app, &kind, next..next + 1).await);
                next += 1;
            }
            // A change moves no record to another page.
            app.post(kind.path, &kind.second("L0")).await.expect(200);
        }
        assert_eq!(
            found, there,
            "{}: in order of creation, each once",
            kind.path
        );
        app.stop().await;
    }
}

#[tokio::test]
async fn a_page_holds_the_records_as_they_are_read_one_by_one() {
    for kind in kinds() {
        let app = App::start().await;
        make(&app, &kind, 0..3).await;
        let all = page(&app, &kind, "").await;
        assert_eq!(all["next_cursor"], Value::Null);
        let records = all["data"].as_array().expect("a list");
        assert_eq!(records.len(), 3);
        for record in records {
            let key = record["external_id"].as_str().expect("a key");
            assert_eq!(&app.get(&kind.one(key)).await.json(), record);
        }
        // A full last page is the last page.
        assert_eq!(page(&app, &kind, "limit=3").await, all, "{}", kind.path);
        app.stop().await;
    }
}

#[tokio::test]
async fn a_limit_is_1_to_200_and_50_if_left_out() {
    for kind in kinds() {
        let app = App::start().await;
        let items: Vec<Value> = (0..201).map(|at| kind.first(&format!("L{at}"))).collect();
        app.post(&kind.one("bulk"), &json!({ "items": items }))
            .await
            .expect(200);
        for (query, most) in [("", 50), ("limit=1", 1), ("limit=200", 200)] {
            let page = page(&app, &kind, query).await;
            assert_eq!(ids(&page).len(), most, "{} {query}", kind.path);
            assert!(page["next_cursor"].is_string());
        }
        for limit in ["0", "201", "-1", "x", "", "1.5"] {
            let answer = app
                .get(&format!("{}?limit={limit}", kind.path))
                .await
                .expect(400);
            assert_eq!(answer.code(), "query_invalid");
            assert_eq!(answer.faulty(), ["limit"]);
        }
        app.stop().await;
    }
}

#[tokio::test]
async fn a_cursor_that_was_altered_or_belongs_elsewhere_is_refused() {
    let app = App::start().await;
    let (_, other_store, other_key) = tenant(&app.pool, &app.clock, "Other").await;
    let bearer = format!("Bearer {other_key}");
    let mut cursors = Vec::new();
    for kind in kinds() {
        make(&app, &kind, 0..2).await;
        let page = page(&app, &kind, "limit=1").await;
        cursors.push(
            page["next_cursor"]
                .as_str()
                .expect("there is more")
                .to_owned(),
        );
    }
    for (at, kind) in kinds().iter().enumerate() {
        let cursor = &cursors[at];
        let mut wrong: Vec<String> = (0..cursor.len())
            .map(|place| {
                let mut bytes = cursor.clone().into_bytes();
                bytes[place] = if bytes[place] == b'A' { b'B' } else { b'A' };
                String::from_utf8(bytes).expect("ASCII")
            })
            .collect();
        wrong.extend([
            String::new(),
            "x".to_owned(),
            format!("{cursor}A"),
            "😀".to_owned(),
        ]);
        wrong.push(cursor[..cursor.len() - 1].to_owned());
        wrong.extend(cursors.iter().filter(|other| *other != cursor).cloned());
        for wrong in wrong {
            let path = format!("{}?limit=1&cursor={wrong}", kind.path);
            let answer = app.get(&path).await.expect(400);
            assert_eq!(answer.code(), "cursor_invalid", "{} {wrong}", kind.path);
        }
        let id = uuid::Uuid::nil();
        let filtered = format!("{}?id={id}&cursor={cursor}", kind.path);
        assert_eq!(
            app.get(&filtered).await.expect(400).code(),
            "cursor_invalid"
        );
        let path = format!("/api/v1/stores/{other_store}/{}?cursor={cursor}", kind.path);
        let headers = [("authorization", bearer.as_str())];
        let answer = app.send(Method::GET, &path, &headers, "").await.expect(400);
        assert_eq!(answer.code(), "cursor_invalid");
        // Another limit is no other list.
        let more = page(&app, kind, &format!("limit=9&cursor={cursor}")).await;
        assert!(!ids(&more).is_empty());
    }
    app.stop().await;
}

#[tokio::test]
async fn a_list_is_narrowed_to_one_id() {
    let app = App::start().await;
    for kind in kinds() {
        let made = make(&app, &kind, 0..3).await;
        for id in &made {
            let page = page(&app, &kind, &format!("id={id}")).await;
            assert_eq!(
                (ids(&page), &page["next_cursor"]),
                (vec![id.clone()], &Value::Null)
            );
        }
        let unknown = uuid::Uuid::max();
        assert_eq!(
            page(&app, &kind, &format!("id={unknown}")).await["data"],
            json!([])
        );
        for id in ["", "1", "nonsense"] {
            let answer = app.get(&format!("{}?id={id}", kind.path)).await.expect(400);
            assert_eq!(
                (answer.code().as_str(), answer.faulty()),
                ("query_invalid", vec!["id".into()])
            );
        }
    }
    app.stop().await;
}

#[tokio::test]
async fn a_list_is_narrowed_to_one_customer_where_records_carry_one() {
    let app = App::start().await;
    for kind in kinds() {
        let narrowed = format!("{}?customer_external_id", kind.path);
        if !kind.has_customer {
            let answer = app.get(&format!("{narrowed}=x")).await.expect(400);
            assert_eq!(answer.faulty(), ["customer_external_id"]);
            continue;
        }
        let mut theirs = Vec::new();
        for at in 0..3 {
            let mine = with(
                &kind.first(&format!("m{at}")),
                "customer",
                json!({"phone": "+33611111111", "external_id": "c/1"}),
            );
            let other = with(
                &kind.first(&format!("o{at}")),
                "customer",
                json!({"phone": "+33611111111", "external_id": "c/2"}),
            );
            let record = app.post(kind.path, &mine).await.expect(201).json();
            app.post(kind.path, &other).await.expect(201);
            theirs.push(record["id"].as_str().expect("an id").to_owned());
        }
        let narrow = "customer_external_id=c%2F1";
        assert_eq!(
            ids(&page(&app, &kind, narrow).await),
            theirs,
            "{}",
            kind.path
        );
        let first = page(&app, &kind, &format!("{narrow}&limit=2")).await;
        let cursor = first["next_cursor"].as_str().expect("there is more");
        let second = page(&app, &kind, &format!("{narrow}&limit=2&cursor={cursor}")).await;
        assert_eq!([ids(&first), ids(&second)].concat(), theirs);
        assert_eq!(second["next_cursor"], Value::Null);
        for foreign in ["", "customer_external_id=c%2F2&"] {
            let path = format!("{}?{foreign}cursor={cursor}", kind.path);
            assert_eq!(app.get(&path).await.expect(400).code(), "cursor_invalid");
        }
        let both = format!("{narrow}&id={}", theirs[1]);
        assert_eq!(ids(&page(&app, &kind, &both).await), [theirs[1].clone()]);
        let neither = format!("customer_external_id=c%2F2&id={}", theirs[1]);
        assert_eq!(ids(&page(&app, &kind, &neither).await), [""; 0]);
        for unknown in ["nobody", "", "%00"] {
            let path = format!("customer_external_id={unknown}");
            assert_eq!(ids(&page(&app, &kind, &path).await), [""; 0], "{unknown:?}");
        }
    }
    app.stop().await;
}
