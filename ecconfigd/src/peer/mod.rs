//! Node to node: what members of the Raft group say to each other, beside HTTP on the same port.
//!
//! Why not HTTP: a commit waits for one round trip to a majority, and heartbeats decide who leads. What always holds: both ends prove who
//! they are with certificates of the cluster's CA, a node answers only members (see [`server::Service::admit`]), and a transfer of any size
//! never stands in front of a heartbeat, because each [`Lane`] is a connection of its own and every bulk stream, too.
//! Nothing here knows what is said: methods are numbers, bodies are bytes. Whoever adds a method adds a constant to [`Method`] and an arm
//! to the service in `core/`.
//!
//! ```text
//! TLS with ALPN "eccluster-peer/1", then once in each direction
//!     "ECPEER"  u16 version (1)  u32 length, JSON of the hello or of the answer to it
//! then frames
//!     u32 length of what follows   u8 kind   u64 id   payload
//!     kind 1 request: u16 method, u32 time left in ms, body      2 answer: body      3 refusal: u8 code, words
//!     kind 4 ping     5 pong     6 piece of a bulk stream        7 its end
//! ```

mod addresses;
mod bulk;
mod client;
mod frame;
mod hello;
mod link;
mod server;
#[cfg(test)]
pub(crate) mod tests;

use std::fmt;

pub use bulk::Bulk;
pub use client::{Client, Target};
pub use hello::{Hello, VERSION};
pub use server::{Caller, Server, Service};

/// The protocol's name in the TLS handshake.
pub const ALPN: &[u8] = b"eccluster-peer/1";
/// The largest body of a request or answer: a replication request has 8 MiB of entries, or one entry that is larger.
pub const MAX_BODY_BYTES: usize = 32 << 20;
/// The largest piece of a bulk stream.
pub const MAX_PIECE_BYTES: usize = 1 << 20;

/// What is asked. The numbers are part of the protocol and are never used again for something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Method(pub u16);

impl Method {
    /// Raft's AppendEntries, with or without entries.
    pub const APPEND: Method = Method(1);
    /// Raft's RequestVote.
    pub const VOTE: Method = Method(2);
    /// The same question without consequences.
    pub const PRE_VOTE: Method = Method(3);
    /// The leader asks to be succeeded.
    pub const TRANSFER_LEADER: Method = Method(4);
    /// Bulk: a snapshot.
    pub const SNAPSHOT: Method = Method(5);
    /// The index that a linearizable read has to wait for.
    pub const READ_INDEX: Method = Method(6);
    /// A write that its first node handed to the leader.
    pub const FORWARD: Method = Method(7);
    /// Bulk: the same for a push with its pack.
    pub const FORWARD_PUSH: Method = Method(8);
    /// Bulk: objects of a repository that the caller lacks.
    pub const OBJECTS: Method = Method(9);
    /// The CA's key, for a voter.
    pub const CA_KEY: Method = Method(10);
    /// A certificate, from whoever holds that key.
    pub const CERTIFY: Method = Method(11);
    /// How the node is: whether it writes; and where members are, in both directions.
    pub const STATUS: Method = Method(12);
    /// The hashes of the state at some indexes, and how the asked node is.
    pub const HASHES: Method = Method(13);
    /// Bulk: a snapshot that has a given index, for a member that cannot use its own state.
    pub const FRESH_SNAPSHOT: Method = Method(14);
    /// Bulk: how a member is, and what it finds when it reads everything that it holds.
    pub const EXAMINE: Method = Method(15);
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match *self {
            Method::APPEND => "append",
            Method::VOTE => "vote",
            Method::PRE_VOTE => "pre-vote",
            Method::TRANSFER_LEADER => "transfer-leader",
            Method::SNAPSHOT => "snapshot",
            Method::READ_INDEX => "read-index",
            Method::FORWARD => "forward",
            Method::FORWARD_PUSH => "forward-push",
            Method::OBJECTS => "objects",
            Method::CA_KEY => "ca-key",
            Method::CERTIFY => "certify",
            Method::STATUS => "status",
            Method::HASHES => "hashes",
            Method::FRESH_SNAPSHOT => "fresh-snapshot",
            Method::EXAMINE => "examine",
            Method(number) => return write!(f, "method {number}"),
        };
        f.write_str(name)
    }
}

/// Which connection a call takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lane {
    /// Heartbeats, votes, read-indexes: small, and somebody's lease depends on them.
    Urgent,
    /// Entries, in order.
    Log,
    /// Everything else that is one question and one answer.
    Calls,
    /// One stream, and the connection ends with it.
    Bulk,
}

/// Why a node did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Which kind.
    pub code: RefusalCode,
    /// Why, for people.
    pub words: String,
}

impl Refusal {
    /// A refusal.
    pub fn new(code: RefusalCode, words: impl fmt::Display) -> Self {
        Self { code, words: words.to_string() }
    }

    /// A request that cannot be read.
    pub fn bad(words: impl fmt::Display) -> Self {
        Self::new(RefusalCode::BadRequest, words)
    }

    /// Something failed on the asked node.
    pub fn failed(words: impl fmt::Display) -> Self {
        Self::new(RefusalCode::Failed, words)
    }
}

/// Kinds of refusals. The numbers are part of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum RefusalCode {
    /// This build does not know the method.
    UnknownMethod = 1,
    /// The caller is no member.
    Stranger = 2,
    /// The body cannot be read.
    BadRequest = 3,
    /// Not now: stopping, no leader, too busy. Nothing was done.
    NotNow = 4,
    /// Something failed there.
    Failed = 5,
}

impl RefusalCode {
    fn from_number(number: u8) -> Self {
        match number {
            1 => Self::UnknownMethod,
            2 => Self::Stranger,
            3 => Self::BadRequest,
            4 => Self::NotNow,
            _ => Self::Failed,
        }
    }
}

/// Why there is no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PeerError {
    /// Nothing was sent.
    #[error("{peer} cannot be reached: {why}")]
    Unreachable {
        /// The node.
        peer: String,
        /// What went wrong.
        why: String,
    },
    /// The request left and no answer came.
    #[error("the connection to {peer} ended before it answered: {why}")]
    Lost {
        /// The node.
        peer: String,
        /// What went wrong.
        why: String,
    },
    /// No answer in time.
    #[error("{peer} did not answer {method} within {within_ms} ms")]
    TimedOut {
        /// The node.
        peer: String,
        /// What was asked.
        method: Method,
        /// How long the caller waited.
        within_ms: u64,
    },
    /// It answered no.
    #[error("{peer} refuses: {}", refusal.words)]
    Refused {
        /// The node.
        peer: String,
        /// Its words.
        refusal: Refusal,
    },
}

impl PeerError {
    /// Whether the other node may have done what it was asked.
    pub fn may_have_happened(&self) -> bool {
        match self {
            Self::Unreachable { .. } => false,
            Self::Lost { .. } | Self::TimedOut { .. } => true,
            Self::Refused { refusal, .. } => refusal.code == RefusalCode::Failed,
        }
    }
}
