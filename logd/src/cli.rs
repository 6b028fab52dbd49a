//! The command line of `logd`.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use cluster::command_line::{self, Failure};
use cluster::telemetry::{self, TelemetryOptions};

use crate::commands::{check_mount, logs, read, send, subscriber};
use crate::daemon::Run;

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

/// Runs `logd` as a program; `args` begin with its name.
pub fn main(args: Vec<OsString>) -> ExitCode {
    command_line::main(args, dispatch)
}

fn dispatch(cli: Cli) -> Result<(), Failure> {
    if let Command::CheckMount(command) = cli.command {
        // Without threads or logging: it runs itself again.
        return command.run(cli.json);
    }
    let logging = match &cli.command {
        Command::Run(_) => telemetry::init(&cli.telemetry),
        _ => telemetry::init_command(&cli.telemetry),
    };
    logging.map_err(|error| Failure::of(&error).usage())?;
    let mut builder = match &cli.command {
        Command::Run(_) => {
            raise_file_limit();
            crate::memory::keep_heaps_small();
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
        Command::Run(run) => runtime.block_on(run.run()).map_err(|error| Failure::of(&error)),
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
