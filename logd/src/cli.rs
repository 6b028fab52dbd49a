//! The command line of `logd`, and the one place where its errors become words and an exit status.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use cluster::control::{ControlError, Failure as Refusal};
use cluster::error::Chain;
use cluster::telemetry::{self, TelemetryOptions};

use crate::commands::{check_mount, logs, read, send, subscriber};
use crate::daemon::{Run, RunError};

/// Something failed.
const FAILED: u8 = 1;
/// The command line makes no sense.
const USAGE: u8 = 2;

/// Durable logs: journals on every node, files of all of them on managers.
#[derive(Debug, Parser)]
#[command(
    name = "logd",
    bin_name = "logd",
    version,
    disable_help_subcommand = true,
    after_help = "Exit status: 0 done, 1 failed, 2 wrong usage."
)]
struct Cli {
    #[command(flatten)]
    telemetry: TelemetryOptions,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(Box<Run>),
    Send(send::Send),
    Logs(logs::Logs),
    Cat(read::Cat),
    Tail(read::Tail),
    Grep(read::Grep),
    #[command(subcommand)]
    Subscriber(subscriber::Subscriber),
    CheckMount(check_mount::CheckMount),
    /// Print the daemon's figures in the format of Prometheus
    Metrics,
}

/// What ended a command, in words.
#[derive(Debug)]
pub struct Failure {
    /// The exit status.
    pub status: u8,
    /// What happened.
    pub message: String,
    /// What may help.
    pub hint: Option<String>,
}

impl Failure {
    /// A failure in words.
    pub fn new(message: impl Into<String>) -> Self {
        Self { status: FAILED, message: message.into(), hint: None }
    }

    /// The same with advice.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same as wrong usage.
    pub fn usage(mut self) -> Self {
        self.status = USAGE;
        self
    }
}

impl From<ControlError> for Failure {
    fn from(error: ControlError) -> Self {
        match error {
            ControlError::Refused(Refusal { message, hint, .. }) => Self { status: FAILED, message, hint },
            ControlError::NotRunning { .. } => {
                Self::new(Chain(&error).to_string()).hint("logd run starts it; ECCLUSTER_RUN says where its socket is")
            }
            error => Self::new(Chain(&error).to_string()),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(error.to_string())
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        Self::new(Chain(&error).to_string())
    }
}

/// Runs `logd` as a program; `args` begin with its name.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let outcome = match parse(args) {
        Ok(None) => Ok(()),
        Ok(Some(cli)) => dispatch(cli),
        Err(failure) => Err(failure),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let mut stderr = std::io::stderr().lock();
            if !failure.message.is_empty() {
                let _ = writeln!(stderr, "error: {}", failure.message);
            }
            if let Some(hint) = failure.hint {
                let _ = writeln!(stderr, "hint: {hint}");
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
        Err(error) if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            Err(Failure::new("no command was given").hint("logd --help shows them").usage())
        }
        Err(error) => {
            let text = error.render().to_string();
            let text = text.strip_prefix("error: ").unwrap_or(&text);
            let message = text.split("\n\n").next().unwrap_or(text).split_whitespace().collect::<Vec<_>>().join(" ");
            Err(Failure::new(message).hint("logd --help, or --help after a command, shows how").usage())
        }
    }
}

fn dispatch(cli: Cli) -> Result<(), Failure> {
    if let Command::CheckMount(command) = cli.command {
        // Without threads or logging: it runs itself again.
        return command.run(cli.json);
    }
    telemetry::init(&cli.telemetry).map_err(|error| Failure::new(Chain(&error).to_string()).usage())?;
    let mut builder = match &cli.command {
        Command::Run(_) => {
            raise_file_limit();
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            // Lines cost little; more threads than this only cost memory.
            builder.worker_threads(std::thread::available_parallelism().map_or(2, |cores| cores.get().clamp(2, 8)));
            builder
        }
        _ => tokio::runtime::Builder::new_current_thread(),
    };
    let runtime = builder.enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(format!("cannot start threads: {error}")))?;
    let json = cli.json;
    let outcome = match cli.command {
        Command::Run(run) => runtime.block_on(run.run()).map_err(Failure::from),
        Command::Send(command) => runtime.block_on(command.run()),
        Command::Logs(command) => runtime.block_on(command.run(json)),
        Command::Cat(command) => runtime.block_on(command.run(json)),
        Command::Tail(command) => runtime.block_on(command.run(json)),
        Command::Grep(command) => runtime.block_on(command.run(json)),
        Command::Subscriber(command) => runtime.block_on(command.run(json)),
        Command::Metrics => runtime.block_on(logs::metrics()),
        Command::CheckMount(_) => Ok(()),
    };
    // Threads that wait for standard input would be waited for.
    runtime.shutdown_background();
    outcome
}

/// A manager has a file per log and node open; the usual soft limit is far below the hard one.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(errno) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(%errno, soft, "the limit of open files stays");
    }
}
