//! The commands, one file each; the doc comment of a file's `Args` is the command's help.

mod completions;
mod man;

use crate::cli::{Cli, CommonOptions};
use crate::environment::Environment;
use crate::error::CommandError;
use crate::output::Ui;

/// What `eccfg` can do. The variants carry no words of their own: those stand in the command's file.
#[allow(missing_docs, reason = "a doc comment here would replace the command's help")]
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    Completions(completions::Args),
    Man(man::Args),
}

/// What every command is given.
pub struct Context<'a> {
    /// The surroundings.
    pub environment: Environment,
    /// The options that every command takes.
    pub options: CommonOptions,
    /// Where words go.
    pub ui: &'a mut Ui,
}

/// Runs the command that was asked for; the exit status if it did not fail.
pub fn dispatch(cli: Cli, environment: Environment, ui: &mut Ui) -> Result<u8, CommandError> {
    let mut cx = Context { environment, options: cli.common, ui };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| CommandError::because("the runtime cannot start", source))?;
    runtime.block_on(run(cli.command, &mut cx))
}

async fn run(command: Command, cx: &mut Context<'_>) -> Result<u8, CommandError> {
    match command {
        Command::Completions(args) => completions::run(&args, cx),
        Command::Man(args) => man::run(&args, cx),
    }
}
