//! The wire protocol against real `git`, against golden transcripts, and against nonsense.
// What a test prints is read when it fails.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod client;
mod fetch;
mod git;
mod golden;
mod http;
mod nonsense;
mod objects;
mod push;
mod random;
mod server;
