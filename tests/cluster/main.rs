//! Whole clusters of real processes, each in a network namespace of its own, and what is done to them.
//!
//! [`lab`] makes the machines and breaks them, [`load`] is the clients and what they saw, [`linear`] judges that. Making namespaces needs
//! root; without it these tests say so and end.

#![allow(clippy::print_stderr, clippy::unwrap_used, missing_docs)]

mod chaos;
mod clients;
mod damage;
mod lab;
#[path = "../support/linear.rs"]
mod linear;
mod load;
mod membership;
#[path = "../support/mod.rs"]
mod support;
