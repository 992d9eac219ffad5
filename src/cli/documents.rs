//! Commands that only print: the OpenAPI document and shell completions.

use clap::{Args, CommandFactory as _, ValueEnum};
use clap_complete::Shell;

use super::output::Output;
use super::{Arguments, Done};
use crate::openapi;

#[derive(Args)]
pub struct OpenapiArguments {
    /// How to write it.
    #[arg(long, value_enum, default_value_t = Format::Yaml)]
    format: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Yaml,
    Json,
}

#[derive(Args)]
pub struct CompletionsArguments {
    /// For which shell.
    shell: Shell,
}

pub fn openapi(arguments: &OpenapiArguments, output: &Output) -> Done {
    let text = match arguments.format {
        Format::Yaml => openapi::yaml(),
        Format::Json => format!("{:#}\n", openapi::document()),
    };
    Ok(output.text(&text)?)
}

pub fn completions(arguments: &CompletionsArguments, output: &Output) -> Done {
    let mut script = Vec::new();
    clap_complete::generate(
        arguments.shell,
        &mut Arguments::command(),
        "keyfold",
        &mut script,
    );
    Ok(output.text(&String::from_utf8(script)?)?)
}
