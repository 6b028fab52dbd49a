//! Audit series: every node counts events per address, the CIDR servers keep the windows for months and answer at once.
//!
//! [`main`] is the program `cidr`: the daemon (`cidr run`), commands, and the shell. Counting, files and queries are `cidr-engine`, which
//! does no I/O beyond its files; this crate brings clocks, sockets, the cluster and people to it.
//!
//! * `counting`: what is counted now; a core without a clock. `daemon/windows` cuts it.
//! * `hand_in`, `outbox`: windows as records of a journal, and merging each exactly once.
//! * `service`: what all parts share, and every operation. `http/`, `daemon/control` and `daemon/inputs` translate.
//! * `peers`: other nodes. `cli/`: commands and shell, which talk to the daemon through its control socket.

mod cli;
mod clock;
mod counting;
mod daemon;
mod export;
mod hand_in;
mod http;
mod metrics;
#[cfg(test)]
mod month;
mod outbox;
mod peers;
mod service;
mod settings;

pub use cli::main;
