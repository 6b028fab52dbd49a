//! The command line `eccfg` and the node agent.
//!
//! Everything a person or a script does to the configuration goes through here: a working copy is an ordinary git
//! working tree that `eccfg` moves from one revision to the next as a whole, and every change to the repositories is a
//! request to a server, never a local write. What always holds:
//!
//! * Exit status 0 done, 1 failed, 2 wrong usage, 3 conflict. Errors become words in one place, [`error`].
//! * Nothing asks, colours or draws unless it talks to a terminal; without one a command decides or fails, it never waits.
//! * No secret reaches a log, the process list of a child, or the working copy's metadata.
//!
//! The server is never imported: the only shared code is `cluster` (types, HTTP client, gate) and `repos` (git).

pub mod agent;
pub mod cli;
pub mod commands;
pub mod connect;
pub mod environment;
pub mod error;
pub mod local_agent;
pub mod output;
pub mod ownership;
pub mod place;
pub mod prompt;
pub mod server;
pub mod settings;
pub mod update;

use std::ffi::OsString;
use std::process::ExitCode;

pub use environment::Environment;
pub use output::Ui;

/// Runs `eccfg` as a program: `args` begin with the program's name, as a process gets them. Used by the link `eccfg` and by
/// `eccluster eccfg …`.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let environment = Environment::of_process();
    let mut ui = Ui::of_process(&environment);
    ExitCode::from(run(args.into_iter().skip(1), environment, &mut ui))
}

/// Runs one command, `args` without the program's name, with everything it may see of its surroundings handed in, and returns the exit status. What
/// [`main`] calls, and what tests call in process.
pub fn run(args: impl IntoIterator<Item = OsString>, environment: Environment, ui: &mut Ui) -> u8 {
    let args: Vec<OsString> = args.into_iter().collect();
    // The agent calls this program so; people never do, and neither help nor completions mention it.
    if args.first().is_some_and(|first| first == agent::isolate::NAME) {
        return agent::isolate::called(&args);
    }
    let cli = match cli::parse(args, ui) {
        Ok(cli) => cli,
        Err(status) => return status,
    };
    ui.set_quiet(cli.common.quiet);
    ui.set_json(cli.common.json);
    match commands::dispatch(cli, environment, ui) {
        Ok(status) => status,
        Err(error) => error::report(&error, ui),
    }
}
