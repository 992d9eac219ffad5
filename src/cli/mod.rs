//! The command line: one file a command group.
//!
//! With `--json` a command prints exactly one JSON object on standard output; messages and progress
//! go to standard error. Exit status: 0 done, 1 failed, 2 wrong usage.

mod automations;
mod dev;
mod documents;
mod exports;
mod messaging;
mod migrate;
mod output;
mod serve;
mod tenants;

use std::future::Future;
use std::io;
use std::num::NonZero;
use std::process::ExitCode;
use std::str::FromStr as _;
use std::thread;

use clap::{Parser, Subcommand};
use sqlx::postgres::PgConnectOptions;
use tokio::runtime::Runtime;

use self::output::Output;
use crate::clock::Clock;
use crate::config::Config;
use crate::state::{self, State};
use crate::telemetry;

/// What a command ends with: nothing, or one readable line why not.
type Done = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// A self-hosted commerce upsert API: every push is safe to repeat.
#[derive(Parser)]
#[command(name = "keyfold", version, disable_help_subcommand = true)]
struct Arguments {
    /// Print one JSON object on standard output.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve with a Postgres of its own, a demo store and a key: needs nothing.
    Dev(dev::DevArguments),
    /// Serve on the database of DATABASE_URL.
    Serve(serve::ServeArguments),
    /// Run the workers alone: messages to their providers and what those tell, automations, exports.
    Work,
    /// Bring the database's schema up to date.
    Migrate,
    /// Teams: whom stores and keys belong to.
    #[command(subcommand)]
    Team(tenants::TeamCommand),
    /// Stores: what is pushed belongs to one.
    #[command(subcommand)]
    Store(tenants::StoreCommand),
    /// API keys.
    #[command(subcommand)]
    Key(tenants::KeyCommand),
    /// How a store's messages reach people.
    #[command(subcommand)]
    Channel(messaging::ChannelCommand),
    /// Templates of messages.
    #[command(subcommand)]
    Template(messaging::TemplateCommand),
    /// What changes set off.
    #[command(subcommand)]
    Automation(automations::AutomationCommand),
    /// What is left to be done: messages that wait, failed, or may have been sent.
    #[command(subcommand)]
    Outbox(messaging::OutboxCommand),
    /// Calls to other systems: what was sent, and what is still to be.
    #[command(subcommand)]
    Export(exports::ExportCommand),
    /// Print the OpenAPI document.
    Openapi(documents::OpenapiArguments),
    /// Print shell completions.
    Completions(documents::CompletionsArguments),
}

/// Runs the command of the process's arguments.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let output = Output::new(arguments.json);
    match run(arguments.command, &output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output.failed(&*error);
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command, output: &Output) -> Done {
    let command = match command {
        Command::Openapi(arguments) => return documents::openapi(&arguments, output),
        Command::Completions(arguments) => return documents::completions(&arguments, output),
        command => command,
    };
    // Before the runtime's threads: `.env` changes the environment of the process.
    let config = Config::from_environment()?;
    telemetry::start_logs(&config.log, config.log_format);
    match command {
        Command::Dev(arguments) => dev::run(arguments, config, output),
        Command::Serve(arguments) => {
            let (runtime, config) = serving(config)?;
            runtime.block_on(serve::run(&arguments, config, output))
        }
        Command::Work => block_on(serve::work(config, output)),
        Command::Migrate => block_on(migrate::run(&config, output)),
        Command::Team(command) => block_on(tenants::team(command, &config, output)),
        Command::Store(command) => block_on(tenants::store(command, &config, output)),
        Command::Key(command) => block_on(tenants::key(command, &config, output)),
        Command::Channel(command) => block_on(messaging::channel(command, &config, output)),
        Command::Template(command) => block_on(messaging::template(command, &config, output)),
        Command::Outbox(command) => block_on(messaging::outbox(command, &config, output)),
        Command::Automation(command) => block_on(automations::automation(command, &config, output)),
        Command::Export(command) => block_on(exports::export(command, &config, output)),
        Command::Openapi(_) | Command::Completions(_) => Ok(()),
    }
}

fn block_on(work: impl Future<Output = Done>) -> Done {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(work)
}

/// The runtime of a process that serves, and its settings on this machine.
fn serving(config: Config) -> io::Result<(Runtime, Config)> {
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    let (config, threads) = config.on_this_machine(u32::try_from(processors).unwrap_or(u32::MAX));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads as usize)
        .enable_all()
        .build()?;
    Ok((runtime, config))
}

/// The address of the database, which most commands need.
fn database_url(config: &Config) -> Result<&str, String> {
    config.database_url.as_deref().ok_or_else(|| {
        "DATABASE_URL is not set: point it at a Postgres, or run `keyfold dev`, which brings its \
         own"
        .to_owned()
    })
}

/// State over the configured database.
fn open(
    config: Config,
    database_url: &str,
) -> Result<State, Box<dyn std::error::Error + Send + Sync>> {
    let options = PgConnectOptions::from_str(database_url)
        .map_err(|_| "DATABASE_URL is not a Postgres address")?;
    let pool = state::connect_lazily(options, config.other_connections());
    Ok(State::new(pool, config, Clock::system()))
}
