//! Everything that is stored, as text.

use sqlx::{AssertSqlSafe, PgPool};

/// Tables that change without anybody writing a record: when a key was last used, what is migrated.
const ASIDE: &[&str] = &["api_keys", "_sqlx_migrations"];

/// Every row of every table with its row version (`xmin`) and its place (`ctid`): two equal
/// snapshots prove that nothing at all was written in between.
pub async fn snapshot(pool: &PgPool) -> Vec<String> {
    dump(pool, "concat_ws(' ', t.xmin, t.ctid, t::text)").await
}

/// Every row of every table, as text.
pub async fn texts(pool: &PgPool) -> Vec<String> {
    dump(pool, "t::text").await
}

async fn dump(pool: &PgPool, what: &str) -> Vec<String> {
    let tables: Vec<String> = sqlx::query_scalar(
        "select table_name::text from information_schema.tables
        where table_schema = 'public' and table_type = 'BASE TABLE'
        order by 1",
    )
    .fetch_all(pool)
    .await
    .expect("the catalogue can be read");
    assert!(tables.len() > 5, "the tables are there");
    let mut rows = Vec::new();
    for table in tables
        .iter()
        .filter(|table| !ASIDE.contains(&table.as_str()))
    {
        let statement = format!("select '{table} ' || {what} from {table} t order by 1");
        let found: Vec<String> = sqlx::query_scalar(AssertSqlSafe(statement))
            .fetch_all(pool)
            .await
            .expect("the table can be read");
        rows.extend(found);
    }
    rows
}

/// Types and versions of a record's events, oldest version first.
pub async fn events_of(pool: &PgPool, record: &serde_json::Value) -> Vec<(String, i64)> {
    let id = record["id"].as_str().expect("an id");
    sqlx::query_as("select type, version from events where record_id = $1::uuid order by version")
        .bind(id)
        .fetch_all(pool)
        .await
        .expect("the events can be read")
}
