//! `keyfold serve` and `keyfold work`: the service, or its workers alone, on the operator's database.

use clap::Args;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::output::Output;
use super::{Done, database_url, open};
use crate::config::Config;
use crate::edge::{self, Limits};
use crate::state::State;
use crate::{app, schema};

#[derive(Args)]
pub struct ServeArguments {
    /// Leave the outbox to `keyfold work`.
    #[arg(long)]
    no_worker: bool,
}

/// State over a database that is migrated.
async fn ready(config: Config) -> Result<State, Box<dyn std::error::Error + Send + Sync>> {
    let url = database_url(&config)?.to_owned();
    let state = open(config, &url)?;
    match schema::is_current(&state.pool).await {
        Ok(true) => Ok(state),
        Ok(false) => Err("the database is not migrated: run `keyfold migrate` first".into()),
        Err(error) => Err(format!("the database can't be reached: {error}").into()),
    }
}

/// The workers alone.
pub async fn work(config: Config, output: &Output) -> Done {
    let state = ready(config).await?;
    tracing::info!("working");
    output.message("keyfold works on the outbox");
    Ok(app::work(state, stop_signal()?).await?)
}

pub async fn run(arguments: &ServeArguments, mut config: Config, output: &Output) -> Done {
    config.works = !arguments.no_worker;
    let state = ready(config).await?;
    let listener = listen(&state.config).await?;
    tracing::info!(address = %listener.local_addr()?, "listening");
    output.message(&format!(
        "keyfold serves on http://{}",
        listener.local_addr()?
    ));
    edge::raise_file_limit()?;
    let limits = Limits::of(&state.config);
    Ok(app::serve(listener, state, limits, stop_signal()?).await?)
}

/// The bound listener.
pub async fn listen(config: &Config) -> Result<TcpListener, String> {
    let address = config.listen;
    TcpListener::bind(address)
        .await
        .map_err(|error| format!("can't listen on {address}: {error}"))
}

/// Comes true at Ctrl-C or SIGTERM.
pub fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}
