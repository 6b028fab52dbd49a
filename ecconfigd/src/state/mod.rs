//! The replicated state: what every replica knows after the same log entries, and nothing else.

mod model;
mod names;

pub use model::{
    Author, CertificateRecord, Head, NodeKind, NodeRecord, NodeTokenRecord, RepoRecord, ReportRecord, RevisionRecord,
    Role, TargetRecord, TokenRecord, UserRecord, rfc3339,
};
pub use names::{BadName, NodeName, RepoName};
