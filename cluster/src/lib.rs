//! What every daemon needs: identity and TLS, configuration documents, gate, subscription, control socket, telemetry. Knows neither git nor Raft.

pub mod accounts;
pub mod api;
pub mod command_line;
pub mod control;
pub mod documents;
pub mod error;
pub mod files;
pub mod gate;
pub mod http_client;
pub mod identity;
pub mod listen;
pub mod node_connection;
pub mod shutdown;
pub mod subscription;
pub mod telemetry;
pub mod tls;
pub mod units;
pub mod watch_dir;

pub use dir_lock as lock;
