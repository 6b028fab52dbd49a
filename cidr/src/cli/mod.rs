//! The command line of `cidr`.

mod commands;
mod offline;
mod shell;
mod source;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use cluster::command_line::{self, Failure};
use cluster::control::ControlError;
use cluster::error::Chain;
use cluster::telemetry::{self, TelemetryOptions};

use crate::daemon::{self, RunOptions};

/// Counts of events per address: the daemon, questions, and the shell when no command is given.
#[derive(Debug, Parser)]
#[command(
    name = "cidr",
    bin_name = "cidr",
    version,
    disable_help_subcommand = true,
    after_help = "Without a command: the shell. Exit status: 0 done, 1 failed, 2 wrong usage or query, 3 conflict."
)]
struct Cli {
    #[command(flatten)]
    source: source::SourceOptions,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(Box<Run>),
    Query(commands::Query),
    Add(commands::Add),
    Count(commands::Count),
    Remove(commands::Remove),
    Series(commands::Series),
    Status(commands::Status),
    Maintain(offline::Maintain),
    Verify(offline::Verify),
    Repair(offline::Repair),
    Export(offline::Export),
}

/// Count, keep and answer until told to stop.
#[derive(Debug, clap::Args)]
struct Run {
    #[command(flatten)]
    options: RunOptions,
    #[command(flatten)]
    telemetry: TelemetryOptions,
}

/// Runs `cidr` as a program. `args` begin with the program's name, as a process gets them.
pub fn main(args: Vec<OsString>) -> ExitCode {
    command_line::main(args, dispatch)
}

fn dispatch(cli: Cli) -> Result<(), Failure> {
    let logging = match &cli.command {
        Some(Command::Run(run)) => telemetry::init(&run.telemetry),
        _ => telemetry::init_command(&TelemetryOptions { log: "warn".into(), ..TelemetryOptions::from_env() }),
    };
    logging.map_err(|error| Failure::new(Chain(&error).to_string()).usage())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(format!("cannot start threads: {error}")))?;
    let source = cli.source;
    match cli.command {
        Some(Command::Run(run)) => runtime.block_on(run_daemon(run.options)),
        Some(Command::Query(command)) => runtime.block_on(command.run(&source)),
        Some(Command::Add(command)) => runtime.block_on(command.run(&source)),
        Some(Command::Count(command)) => runtime.block_on(command.run(&source)),
        Some(Command::Remove(command)) => runtime.block_on(command.run(&source)),
        Some(Command::Series(command)) => runtime.block_on(command.run(&source)),
        Some(Command::Status(command)) => runtime.block_on(command.run()),
        Some(Command::Maintain(command)) => runtime.block_on(command.run()),
        Some(Command::Verify(command)) => runtime.block_on(command.run()),
        Some(Command::Repair(command)) => command.run(),
        Some(Command::Export(command)) => runtime.block_on(command.run()),
        None => shell::run(&runtime, &source),
    }
}

async fn run_daemon(options: RunOptions) -> Result<(), Failure> {
    daemon::run(options).await.map_err(|error| {
        let conflict = error.downcast_ref::<cluster::subscription::DaemonError>();
        let held = conflict.is_some_and(|error| matches!(error, cluster::subscription::DaemonError::Lock(_)))
            || error.downcast_ref::<ControlError>().is_some_and(|error| matches!(error, ControlError::InUse { .. }));
        let failure = Failure::new(Chain(&*error).to_string());
        if held { failure.conflict() } else { failure }
    })
}
