//! The command line of `cidr`, and the one place where its errors become words and an exit status.

mod commands;
mod offline;
mod shell;
mod source;

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use cluster::control::{ControlError, Failure as Refused};
use cluster::error::Chain;
use cluster::telemetry::{self, TelemetryOptions};

use crate::daemon::{self, RunOptions};

/// Something failed.
const FAILED: u8 = 1;
/// The command line, or the query, makes no sense.
const USAGE: u8 = 2;
/// Somebody else has it.
const CONFLICT: u8 = 3;

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

/// What ended a command, in words.
#[derive(Debug)]
pub struct Failure {
    status: u8,
    message: String,
    hint: Option<String>,
}

impl Failure {
    fn new(status: u8, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), hint: None }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Any error, causes included.
    fn of(error: &dyn std::error::Error) -> Self {
        Self::new(FAILED, Chain(error).to_string())
    }

    /// On standard error: one `error:` and perhaps one `hint:`.
    fn print(&self) {
        let mut stderr = std::io::stderr().lock();
        let _ = writeln!(stderr, "error: {}", self.message);
        if let Some(hint) = &self.hint {
            let _ = writeln!(stderr, "hint: {hint}");
        }
    }
}

impl From<ControlError> for Failure {
    fn from(error: ControlError) -> Self {
        match error {
            ControlError::Refused(Refused { message, hint, code }) => {
                let status = if matches!(code.as_str(), "query" | "usage") { USAGE } else { FAILED };
                Self { status, message, hint }
            }
            ControlError::InUse { .. } | ControlError::Lock(_) => Self::new(CONFLICT, Chain(&error).to_string()),
            ControlError::NotRunning { .. } => {
                Self::of(&error).hint("cidr run starts it; --server URL asks another machine's")
            }
            error => Self::of(&error),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        // A reader that has seen enough is no failure of ours, but the work was not done either.
        Self::new(FAILED, format!("cannot write to standard output: {error}"))
    }
}

/// Runs `cidr` as a program. `args` begin with the program's name, as a process gets them.
pub fn main(args: Vec<OsString>) -> ExitCode {
    match parse(args).and_then(|cli| cli.map_or(Ok(()), dispatch)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.message.is_empty() {
                failure.print();
            }
            ExitCode::from(failure.status)
        }
    }
}

/// The command line; `None` when help or the version was printed.
fn parse(args: Vec<OsString>) -> Result<Option<Cli>, Failure> {
    use clap::error::ErrorKind;
    match Cli::try_parse_from(args) {
        Ok(cli) => Ok(Some(cli)),
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            let _ = error.print();
            Ok(None)
        }
        Err(error) => {
            let text = error.render().to_string();
            let text = text.strip_prefix("error: ").unwrap_or(&text);
            let message = text.split("\n\n").next().unwrap_or(text).split_whitespace().collect::<Vec<_>>().join(" ");
            Err(Failure::new(USAGE, message).hint("cidr --help, or --help after a command, shows how"))
        }
    }
}

fn dispatch(cli: Cli) -> Result<(), Failure> {
    let telemetry = match &cli.command {
        Some(Command::Run(run)) => run.telemetry.clone(),
        _ => TelemetryOptions { log: "warn".into(), ..TelemetryOptions::from_env() },
    };
    telemetry::init(&telemetry).map_err(|error| Failure::new(USAGE, Chain(&error).to_string()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(FAILED, format!("cannot start threads: {error}")))?;
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
        Failure::new(if held { CONFLICT } else { FAILED }, Chain(&*error).to_string())
    })
}
