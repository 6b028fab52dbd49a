//! Consensus: openraft behind our own words.
//!
//! Only this folder names openraft's traits. What always holds: a log entry is durable before it counts, the log is the durable copy of every
//! object until the stores were synced, and an entry carries results (packs, ref targets, times) that every replica applies alike.
//! What members say to each other is in [`network`] (openraft's calls), [`wire`] (their bytes) and [`crate::peer`] (connections).

pub mod command;
pub mod log;
pub mod machine;
pub mod network;
pub(crate) mod wire;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use command::{Applied, Command, CommandError, Proposal};

/// A member of the group, as the membership entries carry it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RaftNode {
    /// The node's name.
    pub name: String,
    /// Where others reach it, `host:port`.
    pub address: String,
}

openraft::declare_raft_types!(
    /// openraft's types, chosen for this project.
    pub TypeConfig:
        D = Command,
        R = Applied,
        NodeId = u64,
        Node = RaftNode,
        LeaderId = openraft::impls::leader_id_adv::LeaderId<u64, u64>,
        AsyncRuntime = openraft::TokioRuntime,
);

/// The id of a log entry.
pub type LogId = openraft::alias::LogIdOf<TypeConfig>;
/// A log entry.
pub type Entry = openraft::alias::EntryOf<TypeConfig>;
/// A vote.
pub type Vote = openraft::alias::VoteOf<TypeConfig>;
/// The membership with the entry it came from.
pub type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
/// What describes a snapshot.
pub type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
/// The running group member.
pub type Raft<C = TypeConfig> = openraft::Raft<C, machine::Machine>;

/// [`TypeConfig`] or one that differs from it in the runtime alone: what a simulation runs on.
pub trait Group:
    openraft::RaftTypeConfig<
        D = Command,
        R = Applied,
        NodeId = u64,
        Node = RaftNode,
        LeaderId = openraft::impls::leader_id_adv::LeaderId<u64, u64>,
        Vote = Vote,
        Entry = Entry,
        Responder<openraft::raft::ClientWriteResult<Self>> = openraft::impls::ProgressResponder<
            Self,
            openraft::raft::ClientWriteResult<Self>,
        >,
    >
{
}

impl Group for TypeConfig {}

/// A follower that misses more entries than this is far behind; what it lacks is sent with care for the others.
pub(crate) const FAR_BEHIND: u64 = 256;

/// A log id from its parts.
pub fn log_id(term: u64, node: u64, index: u64) -> LogId {
    LogId { leader_id: openraft::impls::leader_id_adv::LeaderId { term, node_id: node }, index }
}

/// openraft's settings. Snapshots are never taken by its own policy: the checkpoint decides, because only what is durable may leave the log.
pub fn config(cluster: &str, keep_entries: u64) -> Result<Arc<openraft::Config>, openraft::ConfigError> {
    let config = openraft::Config {
        cluster_name: cluster.to_owned(),
        heartbeat_interval: 50,
        election_timeout_min: 150,
        election_timeout_max: 300,
        // At least the lease plus the longest election, so that a leader without a quorum goes quiet and another can be elected.
        quorum_loss_probe_interval: Some(700),
        enable_pre_vote: Some(true),
        // What was committed is written without a sync of its own, so a restarted leader has to be elected to know it.
        enable_leader_restore: Some(false),
        snapshot_policy: openraft::SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: keep_entries,
        // The followers' disks work while this one's does.
        broadcast_submitted_on_append: Some(true),
        // The log reader bounds a request's bytes; this bounds its small entries.
        max_payload_entries: 64,
        ..Default::default()
    };
    config.validate().map(Arc::new)
}
