//! The core of `repos` against real git and against simple models.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, missing_docs)]

mod check;
mod consolidate;
mod crash;
mod draft;
mod figures;
mod held;
mod history;
mod merge;
mod receive;
mod sound;
mod store;
mod support;
