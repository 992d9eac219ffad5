//! A way to hold up transactions where it hurts.

use sqlx::{Connection as _, Executor as _, PgConnection};

use super::app::App;
use super::scale::eventually;

/// Holds up transactions at their insert into a table.
pub struct Held {
    lock: PgConnection,
}

impl Held {
    /// From now on.
    pub async fn at_insert_into(app: &App, table: &str) -> Self {
        let trigger = format!(
            "create function hold_up() returns trigger language plpgsql as $$
            begin
                while not pg_try_advisory_xact_lock_shared(4711) loop
                    perform pg_sleep(0.01);
                end loop;
                return new;
            end $$;
            create trigger hold_up before insert on {table}
            for each row execute function hold_up();"
        );
        app.pool
            .execute(sqlx::AssertSqlSafe(trigger))
            .await
            .expect("a trigger");
        let options = app.pool.connect_options();
        let mut lock = PgConnection::connect_with(&options)
            .await
            .expect("a connection");
        lock.execute("select pg_advisory_lock(4711)")
            .await
            .expect("a lock");
        Self { lock }
    }

    /// Waits until somebody is held up.
    pub async fn holds_one(app: &App) {
        eventually("somebody is held up", || async {
            let held: bool = sqlx::query_scalar(
                "select exists (
                    select from pg_stat_activity
                    where datname = current_database() and wait_event = 'PgSleep'
                )",
            )
            .fetch_one(&app.pool)
            .await
            .expect("pg_stat_activity");
            held.then_some(())
        })
        .await;
    }

    /// Lets all go on.
    pub async fn end(self) {
        self.lock.close().await.expect("the connection closes");
    }
}
