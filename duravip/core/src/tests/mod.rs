//! Tests of the whole protocol: a world of members over a hostile network (`world`), faults by seed (`chaos`),
//! invariants (`invariants`), single faults with their bounds (`single`), deaths that move no more than they must
//! (`unmoved`), rules broken on purpose (`mutants`), stories as golden scripts (`golden`), and a small state space
//! searched exhaustively (`explore`).

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

mod assignment;
mod chaos;
mod explore;
mod golden;
mod invariants;
mod mutants;
mod sealed;
mod single;
mod unmoved;
mod without_majority;
mod world;
