//! The configuration server: replicated state, git and JSON over HTTP, watch, accounts. Parses no git objects itself.

pub mod commit;
pub mod core;
pub mod error;
pub mod state;
pub mod watch;
