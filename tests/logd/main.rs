//! logd as it runs: nodes and managers as processes, killed, cut off and full; a checker looks for every line exactly once.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

#[path = "../support/mod.rs"]
mod support;

mod http;
mod inputs;
mod journald;
mod kill;
mod lab;
mod many;
mod mounts;
mod nats;
mod reading;
mod restored;
mod served;
mod sinks;
mod story;
mod trust;
mod usual;
