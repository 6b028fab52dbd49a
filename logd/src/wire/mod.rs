//! Between nodes and managers: TLS in the names of nodes, and a small protocol on it.
//!
//! A manager connects to a node, opens one stream per log, and pulls. The node decides nothing: it serves records from a position, notes checkpoints,
//! and sees to it that a subscriber has one reader.

pub mod client;
pub mod protocol;
pub mod service;
pub mod trust;

pub use client::{Link, LinkError};
pub use trust::Trust;
