//! `eccfg completions`.

use crate::commands::Context;
use crate::error::CommandError;

/// Print a completion script for a shell
///
/// For bash: `eccfg completions bash > /etc/bash_completion.d/eccfg`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The shell that will read the script
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

/// Runs the command.
pub fn run(args: &Args, cx: &mut Context<'_>) -> Result<u8, CommandError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut crate::cli::command(), "eccfg", &mut script);
    cx.ui.bytes(&script)?;
    Ok(0)
}
