//! DuraVIP: virtual addresses that always have exactly one living owner.
//!
//! `duravip-core` decides, `effects` act on the machine, `daemon` stands between them, `commands` are what people call.

pub mod commands;
pub mod daemon;
pub mod effects;
pub mod sys;

pub use commands::main;
