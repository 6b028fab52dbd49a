//! The configuration server: replicated state, git and JSON over HTTP, watch, accounts. Parses no git objects itself.
//!
//! [`server::Server::start`] is the whole server as a library; [`main`] is the program around it. `http/` translates requests into calls
//! of [`core::Core`] and knows nothing of Raft; the core knows nothing of HTTP.

pub mod accounts;
pub mod cli;
pub mod commit;
pub mod core;
pub mod error;
pub mod http;
pub mod init;
pub mod join;
pub mod limits;
mod outside;
pub mod peer;
pub mod raft;
pub mod server;
#[cfg(test)]
mod sim;
pub mod state;
pub mod templates;
pub mod tree_files;
pub mod watch;

pub use cli::main;
