//! The replicated state: what every replica knows after the same log entries, and nothing else.
//!
//! [`State::apply`] turns entries into records in one redb table, a new [`View`] for readers, and events for watchers, in that order and each
//! as a whole. It never asks a clock, randomness or the order of a hash map, so replicas that applied the same entries have the same bytes and
//! the same running hash. What becomes durable when is the business of [`State::checkpoint`].
//!
//! Left out on purpose: deciding. The Committer judges and builds; what arrives here is a result.

mod apply;
mod aside;
mod brief;
mod db;
mod hashes;
mod home;
mod keys;
mod model;
mod names;
mod shadow;
mod snapshot;
#[cfg(test)]
mod tests;
mod view;

pub use apply::{Effects, IDEMPOTENCY_KEYS, MAX_UPLOAD_BYTES, MAX_UPLOADS, Remembered, Upload};
pub use db::{State, StateError};
pub(crate) use hashes::Hash;
#[cfg(test)]
pub(crate) use home::Home;
pub use home::has_state;
#[cfg(test)]
pub(crate) use home::{checked as open_checked, open as open_in};
pub use model::{
    Author, CertificateRecord, Head, MemberRecord, NodeKind, NodeRecord, NodeTokenRecord, RepoRecord, ReportRecord,
    RevisionRecord, Role, TargetRecord, TokenRecord, UserRecord, rfc3339,
};
pub use names::{BadName, NodeName, RepoName};
pub use snapshot::{Manifest, Need};
pub use view::{RepoView, View};
