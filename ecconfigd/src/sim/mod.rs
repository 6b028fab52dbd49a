//! The replicated core under a deterministic simulation.
//!
//! Why: what goes wrong in a cluster goes wrong between two instructions on two machines, and no test on real machines can do it again. Here a
//! run is a function of its seed: real openraft, the product's log, state, Committer, snapshots and watch on a simulated runtime, with
//! virtual time, a network that loses and repeats, disks that lose what was not synced, and crashes anywhere. A seed that fails is a test.
//!
//! What always holds: nothing in a run asks the machine for time, randomness or a thread; two runs of one seed have the same digest, which a
//! test sees to. `invariants/` has one small file for each thing that must hold; `mutants` are bugs that prove each of them can fail.
//!
//! Left out on purpose: TLS, HTTP and the bytes on the wire, which have tests of their own.
//! How to run more seeds, and one again: docs/simulation.md.

mod clients;
mod cluster;
mod damage;
mod disk;
mod faults;
mod forward;
mod health;
mod history;
mod invariants;
#[path = "../../../tests/support/linear.rs"]
mod linear;
pub(crate) mod mutants;
mod nemesis;
mod net;
mod node;
mod oracle;
mod plan;
mod pushes;
mod rng;
mod run;
mod runtime;
mod subscribers;
mod tests;
