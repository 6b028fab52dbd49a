//! `eccfg` against a real server: golden transcripts of whole sessions, stdout, stderr and exit status together.
//!
//! Every test starts its own ecconfigd on a port of the loopback address and runs `eccluster eccfg …` as a person would, so
//! what is compared is what a person would see. Ids, times and places of this run are replaced before comparing.

#![allow(clippy::print_stderr, missing_docs)]

mod commits;
mod crash;
mod doctor;
mod history;
mod lost_answer;
mod nodes;
mod odd;
mod session;
mod subclusters;
#[path = "../support/mod.rs"]
mod support;
mod terminal;
mod watching;
