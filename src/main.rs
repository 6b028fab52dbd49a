//! `eccluster`: one binary that is every program of the cluster, chosen by the name of the link it is called under or by
//! its first argument, and `eccluster up`, a cluster on this machine.

mod links;
mod up;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use cluster::command_line;

/// A program that this binary is: its name and its entry point, which takes its arguments, its name first.
pub(crate) struct Program {
    /// The name of the link, and of the first argument.
    pub(crate) name: &'static str,
    main: fn(Vec<OsString>) -> ExitCode,
}

/// Every program of this release; `install-links` makes a link for each.
pub(crate) const PROGRAMS: &[Program] = &[
    Program { name: "ecconfigd", main: ecconfigd::main },
    Program { name: "eccfg", main: eccfg::main },
    Program { name: "duravip", main: duravip::main },
    Program { name: "logd", main: logd::main },
    Program { name: "cidr", main: cidr::main },
    Program { name: "jlogctl", main: logd::jlogctl },
];

/// A git-backed configuration cluster and the programs that follow it, in one binary.
#[derive(Parser)]
#[command(
    name = "eccluster",
    version,
    after_help = "Programs: ecconfigd (the server), eccfg (the command line and the agent), duravip (virtual addresses), logd (logs), cidr (counts per address), jlogctl (journals).\nCall one as `eccluster PROGRAM …`, or through a link of its name."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Up(up::Options),
    InstallLinks(links::Options),
    #[command(flatten)]
    Internal(up::Internal),
}

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    if let Some((program, rest)) = chosen_program(&arguments) {
        return (program.main)(rest);
    }
    let arguments = match command_line::parse::<Arguments>(arguments) {
        Ok(Some(arguments)) => arguments,
        Ok(None) => return ExitCode::SUCCESS,
        Err(refusal) => return refusal.tell(),
    };
    match arguments.command {
        Command::Up(options) => up::main(options),
        Command::InstallLinks(options) => links::main(&options),
        Command::Internal(internal) => up::internal(internal),
    }
}

/// The program that these arguments ask for, with the arguments that are its own (its name first).
fn chosen_program(arguments: &[OsString]) -> Option<(&'static Program, Vec<OsString>)> {
    let named =
        |name: &OsString| PROGRAMS.iter().find(|program| Path::new(name).file_name() == Some(program.name.as_ref()));
    if let Some(program) = arguments.first().and_then(named) {
        return Some((program, arguments.to_vec()));
    }
    let program = PROGRAMS.iter().find(|program| arguments.get(1).is_some_and(|name| name == program.name))?;
    Some((program, arguments[1..].to_vec()))
}
