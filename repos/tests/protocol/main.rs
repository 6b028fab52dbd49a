//! The wire protocol against real `git`, against golden transcripts, and against nonsense.
#![allow(clippy::unwrap_used)]

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
