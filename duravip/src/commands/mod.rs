//! The command line: `duravip run` is the daemon, everything else asks it over its control socket.

mod print;

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use cluster::command_line::{self, Failure};
use cluster::control;
use cluster::shutdown::Shutdown;
use cluster::subscription::DaemonOptions;
use cluster::telemetry::{self, TelemetryOptions};
use serde_json::{Value, json};

use crate::daemon::{self, PROGRAM, guard};

/// Virtual addresses that always have exactly one living owner
#[derive(Debug, Parser)]
#[command(name = "duravip", version)]
struct Cli {
    /// Print results as JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the daemon
    Run(Run),
    /// Shows addresses, owners and states; `show tables` in full
    Show {
        /// `tables`: also candidates, reasons and versions
        what: Option<ShowWhat>,
    },
    /// Lists the members
    Members,
    /// The members, as the original called them
    Cluster {
        /// `membership`
        what: ClusterWhat,
    },
    /// Moves an address and keeps it there: move ADDRESS to NODE
    Move {
        /// The address, or its name
        address: String,
        /// The word `to`
        to: To,
        /// The node
        node: String,
    },
    /// Lets an address that was moved go where the balance wants it
    Unpin {
        /// The address, or its name
        address: String,
    },
    /// Takes an address although somebody outside answers for it
    Take {
        /// The address, or its name
        address: String,
    },
    /// Takes all addresses from a node
    Drain {
        /// The node
        node: String,
    },
    /// Lets a node have addresses again
    Undrain {
        /// The node
        node: String,
    },
    /// Gives addresses back now to nodes that returned
    Rebalance,
    /// Announces everything again: announce view
    Announce {
        /// `view`
        what: AnnounceWhat,
    },
    /// Lists the hardware addresses of the cluster: arp show
    Arp {
        /// `show`
        what: ArpWhat,
    },
    /// Says why an address is where it is
    Explain {
        /// The address, or its name
        address: String,
    },
    /// Says what would move if a node were gone
    Simulate {
        /// The node
        #[arg(long, value_name = "NODE")]
        without: String,
    },
    /// Lists what happened on this node
    History {
        /// How many entries
        #[arg(long, short = 'n', default_value_t = 50)]
        count: u64,
    },
    /// Logs every event of the daemon, or no more
    Debug {
        /// on or off
        to: Switch,
    },
    /// Prints the daemon's metrics
    Metrics,
    /// What outlives the daemon; started by it
    #[command(name = guard::COMMAND, hide = true)]
    Guard,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ShowWhat {
    Tables,
}
#[derive(Debug, Clone, Copy, ValueEnum)]
enum ClusterWhat {
    Membership,
}
#[derive(Debug, Clone, Copy, ValueEnum)]
enum To {
    To,
}
#[derive(Debug, Clone, Copy, ValueEnum)]
enum AnnounceWhat {
    View,
}
#[derive(Debug, Clone, Copy, ValueEnum)]
enum ArpWhat {
    Show,
}
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

#[derive(Debug, clap::Args)]
struct Run {
    #[command(flatten)]
    daemon: DaemonOptions,
    /// The subcluster in which this witness votes, if that is not its own
    #[arg(long, value_name = "SUBCLUSTER")]
    votes_in: Option<String>,
    #[command(flatten)]
    telemetry: TelemetryOptions,
}

/// Runs `duravip` as a program: `args` begin with the program's name.
pub fn main(args: Vec<OsString>) -> ExitCode {
    command_line::main(args, |cli: Cli| match cli.command {
        Command::Guard => guard::main().map_err(|error| Failure::new(format!("the guard: {error}"))),
        Command::Run(options) => run(&options),
        command => ask(&command, cli.json),
    })
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()
}

fn run(options: &Run) -> Result<(), Failure> {
    telemetry::init(&options.telemetry).map_err(|error| Failure::of(&error).usage())?;
    let runtime = runtime()?;
    let ran = runtime
        .block_on(async { daemon::run(&options.daemon, options.votes_in.clone(), &Shutdown::on_signals()?).await });
    // Threads of blocking calls have nothing to finish that matters now.
    runtime.shutdown_timeout(Duration::from_millis(200));
    ran.map_err(|error| Failure::new(format!("{error:#}")))
}

/// The request that a command makes of the daemon.
fn request(command: &Command) -> (&'static str, Value) {
    let order =
        |order: &str, address: &str, node: &str| ("order", json!({ "order": order, "address": address, "node": node }));
    match command {
        Command::Show { .. } => ("show", Value::Null),
        Command::Members | Command::Cluster { .. } => ("members", Value::Null),
        Command::Move { address, node, .. } => order("move", address, node),
        Command::Unpin { address } => order("unpin", address, ""),
        Command::Take { address } => order("take", address, ""),
        Command::Drain { node } => order("drain", "", node),
        Command::Undrain { node } => order("undrain", "", node),
        Command::Rebalance => order("rebalance", "", ""),
        Command::Announce { .. } => order("announce", "", ""),
        Command::Arp { .. } => ("arp", Value::Null),
        Command::Explain { address } => ("explain", json!({ "address": address })),
        Command::Simulate { without } => ("simulate", json!({ "without": without })),
        Command::History { count } => ("history", json!({ "count": count })),
        Command::Debug { to } => ("debug", json!({ "on": *to == Switch::On })),
        Command::Metrics | Command::Run(_) | Command::Guard => ("metrics", Value::Null),
    }
}

fn ask(command: &Command, as_json: bool) -> Result<(), Failure> {
    let (name, args) = request(command);
    let answer = runtime()?.block_on(control::call(PROGRAM, name, args))?;
    let text = match command {
        _ if as_json => format!("{answer:#}\n"),
        Command::Show { what: Some(ShowWhat::Tables) } => print::tables(&answer),
        Command::Show { .. } => print::show(&answer),
        Command::Members | Command::Cluster { .. } => print::members(&answer),
        Command::Arp { .. } => print::arp(&answer),
        Command::Explain { .. } => print::explain(&answer),
        Command::Simulate { .. } => print::moves(&answer),
        Command::History { .. } => print::history(&answer),
        Command::Metrics => answer.as_str().unwrap_or_default().to_owned(),
        Command::Debug { .. } => format!("debug {}\n", if answer["debug"] == true { "on" } else { "off" }),
        _ => format!("done, in version {}\n", answer["version"].as_str().unwrap_or("?")),
    };
    // A reader that went away wants no more.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
        for line in [
            "show",
            "show tables",
            "move 10.1.1.1 to n2",
            "drain n1",
            "announce view",
            "arp show",
            "cluster membership",
            "simulate --without n1 --json",
            "history -n 3",
            "debug on",
            "explain mx-1",
            "--json members",
        ] {
            let words = ["duravip"].into_iter().chain(line.split(' '));
            Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
        assert!(Cli::try_parse_from(["duravip", "move", "10.1.1.1", "from", "n2"]).is_err());
    }
}
