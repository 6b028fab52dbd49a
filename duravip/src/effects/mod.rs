//! What DuraVIP does to the machine, one file per thing: nothing here decides.

pub mod address;
pub mod announce;
pub mod events;
pub mod fence;
pub mod interfaces;
pub mod neighbours;
pub mod netlink;
pub mod plumbing;
pub mod probe;
pub mod route;
pub mod spread;

#[cfg(test)]
mod tests;
