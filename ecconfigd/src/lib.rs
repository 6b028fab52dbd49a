//! The configuration server: replicated state, git and JSON over HTTP, watch, accounts. Parses no git objects itself.

pub mod accounts;
pub mod commit;
pub mod core;
pub mod error;
pub mod http;
pub mod limits;
pub mod state;
pub mod templates;
pub mod tree_files;
pub mod watch;
