//! Durable log aggregation: on each node journals of what services say, on managers files of all of it.
//!
//! ```text
//! services ─ input/ ─ node/ (a journal per log) ─ wire/ ─ TLS ─ wire/ ─ manager/ (files, exactly once)
//!                                             └─ sink/ ─ other engines (at least once)
//! ```
//! What always holds: a line is acknowledged when it is on disk; from the journal on it reaches each manager's files exactly once, whatever is killed,
//! cut off or full at any instant; what is lost (damage, `max_backlog`) is counted and said. The journal itself is `logd-journal`, which knows
//! nothing of the programs here.

pub mod cli;
pub mod commands;
pub mod daemon;
pub mod http;
pub mod input;
pub mod jlog;
pub mod jlogctl;
pub mod manager;
mod memory;
pub mod mount;
pub mod node;
pub mod path;
pub mod read;
pub mod sink;
pub mod wire;

/// `jlogctl` as a program: `args` begin with the program's name, as a process gets them.
pub fn jlogctl(args: Vec<std::ffi::OsString>) -> std::process::ExitCode {
    let mut out = std::io::stdout().lock();
    let mut err = std::io::stderr();
    std::process::ExitCode::from(jlogctl::run(args, &mut out, &mut err))
}

/// `logd` as a program.
pub fn main(args: Vec<std::ffi::OsString>) -> std::process::ExitCode {
    cli::main(args)
}
