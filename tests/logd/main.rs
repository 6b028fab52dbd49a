//! logd as it runs: nodes and managers as processes, killed, cut off and full; a checker looks for every line exactly once.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

mod inputs;
mod kill;
mod lab;
mod mounts;
mod sinks;
mod usual;
#[path = "../support/wait.rs"]
mod wait;
