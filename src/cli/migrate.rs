//! `keyfold migrate`.

use super::output::Output;
use super::{Done, database_url};
use crate::config::Config;
use crate::schema;

pub async fn run(config: &Config, output: &Output) -> Done {
    let migrated = schema::migrate(database_url(config)?).await?;
    let line = match migrated.applied.as_slice() {
        [] => format!("up to date at {}", migrated.current),
        applied => format!(
            "applied {}; now at {}",
            applied.join(", "),
            migrated.current
        ),
    };
    Ok(output.result(&migrated, &[line])?)
}
