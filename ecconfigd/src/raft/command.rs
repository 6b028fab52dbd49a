//! What a log entry carries, and its bytes.
//!
//! A [`Proposal`] is a list of operations with the leader's clocks and the raw bytes (packs, chunks) that they refer to by number. Applying it
//! reads nothing else. It is encoded once, by the proposer, and travels as [`Command`] through log, wire and apply without being copied.
//!
//! ```text
//! 0      u8   version (1)
//! 1..5   u32  length of the header, little-endian
//! 5..    header: postcard of (clock_ms, time_ms, ops, lengths of the attachments)
//! then   the attachments, one after the other
//! ```

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use repos::{Oid, RefName};
use serde::{Deserialize, Serialize};

use crate::state::{
    CertificateRecord, Head, MemberRecord, NodeName, NodeRecord, NodeTokenRecord, RepoName, ReportRecord, TokenRecord,
    UserRecord,
};

/// The version that this build writes, and the only one it reads.
pub const COMMAND_VERSION: u8 = 1;

/// An encoded [`Proposal`]. Cloning is cheap.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command(pub Bytes);

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Command({} bytes)", self.0.len())
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What one log entry does, all of it in one transaction.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Proposal {
    /// The cluster clock when it was proposed; the state's clock never goes back.
    pub clock_ms: u64,
    /// The leader's wall clock: the time of revisions and records.
    pub time_ms: u64,
    /// What to do, in order. Each operation succeeds or is a recorded no-op by itself.
    pub ops: Vec<Op>,
    /// Raw bytes that operations refer to by their place.
    pub attachments: Vec<Bytes>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    clock_ms: u64,
    time_ms: u64,
    ops: Vec<Op>,
    attachment_bytes: Vec<u64>,
}

/// One operation. The order of the variants is part of the format: new ones go to the end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Op {
    /// Names the cluster. Refused when it has a name.
    Found {
        /// The cluster's name.
        cluster: String,
    },
    /// Creates an empty repository and, but for `global`, the subcluster of its name.
    CreateRepo {
        /// Its name.
        repo: RepoName,
        /// Its default branch.
        head_ref: RefName,
    },
    /// Brings objects into a repository. Comes before the changes that need them.
    Pack {
        /// The repository.
        repo: RepoName,
        /// Where the pack is.
        source: PackSource,
    },
    /// Moves refs in one or several repositories, all or nothing.
    Change(ChangeSet),
    /// A piece of a pack that is too large for one entry.
    Chunk {
        /// The upload; the first chunk creates it.
        upload: UploadId,
        /// Where it belongs; must be where the upload ends so far.
        offset: u64,
        /// The attachment that holds it.
        attachment: u32,
    },
    /// Gives an upload up.
    DropUpload {
        /// The upload.
        upload: UploadId,
    },
    /// Creates or replaces an account.
    PutUser(UserRecord),
    /// Removes an account and its tokens.
    DeleteUser {
        /// Its name.
        name: String,
    },
    /// Creates or replaces a token.
    PutToken(TokenRecord),
    /// Removes a token.
    DeleteToken {
        /// Its public part.
        id: String,
    },
    /// Creates a one-time token for a node.
    PutNodeToken(NodeTokenRecord),
    /// Registers a node, using up a one-time token if one is named.
    RegisterNode {
        /// The node.
        record: NodeRecord,
        /// The token's public part.
        token: Option<String>,
    },
    /// Records a certificate of a node.
    Certificate {
        /// The node.
        node: NodeName,
        /// The certificate.
        certificate: CertificateRecord,
    },
    /// Stores a program's newest report.
    Report(ReportRecord),
    /// Only advances the cluster clock and drops what has expired.
    Tick,
    /// Freezes or thaws a repository.
    Freeze {
        /// The repository.
        repo: RepoName,
        /// False thaws it.
        frozen: bool,
    },
    /// Creates a repository with all that another one has: refs, revisions, objects.
    CopyRepo {
        /// The repository that is copied.
        from: RepoName,
        /// The new one.
        to: RepoName,
    },
    /// Pins the leadership to a node. Another pin stays, and is named in the answer.
    Pin {
        /// The node.
        node: NodeName,
    },
    /// Unpins the leadership from the node that it is pinned to.
    Unpin {
        /// The node.
        node: NodeName,
    },
    /// Creates or replaces the record of a member that is in the group already.
    PutMember(MemberRecord),
    /// A server joins: uses up its token, gets a number that nobody had before, and is a member from now on. The leader brings it into the
    /// group. Again with the same key it only brings a fresh certificate.
    Join {
        /// The node. Its number is given when this is applied.
        record: NodeRecord,
        /// Whether it shall vote once it has caught up.
        voter: bool,
        /// SHA-256 of the public key it joins with.
        key_sha256: [u8; 32],
        /// The token's public part.
        token: String,
    },
    /// A member shall vote, or shall not.
    SetVoter {
        /// The node.
        node: NodeName,
        /// Whether it shall.
        voter: bool,
    },
    /// A node leaves for good: its records go, and its certificate is worth nothing any more.
    RemoveNode {
        /// The node.
        node: NodeName,
    },
    /// Whoever has this token may take a member's name over, on a new machine.
    AllowReplace {
        /// The node.
        node: NodeName,
        /// The token.
        token: NodeTokenRecord,
    },
    /// A member is reached elsewhere from now on.
    Readdress {
        /// The node.
        node: NodeName,
        /// Its number: a machine that was replaced has nothing to say any more.
        raft_id: u64,
        /// Where the others reach it.
        address: String,
    },
}

/// The name of an upload: random bytes, chosen by the leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct UploadId(pub [u8; 16]);

impl fmt::Display for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// Where a pack is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PackSource {
    /// In this entry.
    Attachment(u32),
    /// In the chunks of earlier entries; used up by this.
    Upload(UploadId),
}

/// Ref updates that happen together or not at all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChangeSet {
    /// The repositories it touches, each once.
    pub updates: Vec<RepoUpdate>,
    /// Repositories that the request named and that needed no change: only for the answer.
    pub unchanged: BTreeMap<RepoName, Head>,
    /// Under which key the answer is remembered.
    pub idempotency: Option<IdempotencyKey>,
}

/// The refs of one repository.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RepoUpdate {
    /// The repository.
    pub repo: RepoName,
    /// The refs, each once.
    pub refs: Vec<RefUpdate>,
    /// What the new revision says; present exactly when `main` moves.
    pub revision: Option<NewRevision>,
}

/// One ref: from `old` to `new`, where [`Oid::NULL`] means that it does not exist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefUpdate {
    /// Its name.
    pub name: RefName,
    /// What it must be, or the change set is stale.
    pub old: Oid,
    /// What it becomes.
    pub new: Oid,
}

/// The record of a new revision, but for what apply knows better.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewRevision {
    /// Who moved it, as `Name <mail>`.
    pub author: String,
    /// The newest commit's message.
    pub message: String,
    /// The changed paths.
    pub paths: Vec<String>,
    /// True when there are more.
    pub paths_truncated: bool,
}

/// Scope, key and what the request was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdempotencyKey {
    /// The user.
    pub user: String,
    /// The key as the client sent it.
    pub key: String,
    /// A digest of the request.
    pub fingerprint: [u8; 16],
}

/// The answers to the operations of one entry, in order. Empty for entries without operations.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Applied(pub Vec<Outcome>);

/// The answer to one operation. All replicas have the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Done.
    Done,
    /// A change set was done: where each of its repositories stands now, and whether it moved.
    Changed(BTreeMap<RepoName, (Head, bool)>),
    /// A change set whose key is known: nothing was done, this is the first answer.
    Replayed(BTreeMap<RepoName, (Head, bool)>),
    /// A ref was not what the change set expects. Nothing was done.
    Stale {
        /// The repository.
        repo: RepoName,
        /// The ref.
        name: RefName,
    },
    /// The thing to create exists. Nothing was done.
    Exists,
    /// The thing that is named does not exist. Nothing was done.
    NotFound,
    /// Refused with words. Nothing was done.
    Refused(String),
}

/// Why an entry's bytes are no proposal.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// Written by another version of this program.
    #[error(
        "a log entry has command version {version}, this build knows {COMMAND_VERSION}: it was written by a newer ecconfigd, run that"
    )]
    Version {
        /// The version found.
        version: u8,
    },
    /// Not a proposal at all.
    #[error("a log entry is no command: {0}")]
    Damaged(String),
}

impl Proposal {
    /// The bytes.
    pub fn encode(&self) -> Command {
        let header = Header {
            clock_ms: self.clock_ms,
            time_ms: self.time_ms,
            ops: self.ops.clone(),
            attachment_bytes: self.attachments.iter().map(|bytes| bytes.len() as u64).collect(),
        };
        let header = postcard::to_allocvec(&header).expect("plain records always encode");
        let attached: usize = self.attachments.iter().map(Bytes::len).sum();
        let mut out = Vec::with_capacity(5 + header.len() + attached);
        out.push(COMMAND_VERSION);
        out.extend_from_slice(&u32::try_from(header.len()).expect("a header is far below 4 GiB").to_le_bytes());
        out.extend_from_slice(&header);
        for bytes in &self.attachments {
            out.extend_from_slice(bytes);
        }
        Command(out.into())
    }
}

impl Command {
    /// The proposal; its attachments share the command's memory.
    pub fn decode(&self) -> Result<Proposal, CommandError> {
        let damaged = |what: &str| CommandError::Damaged(what.to_owned());
        let bytes = &self.0;
        match bytes.first() {
            Some(&COMMAND_VERSION) => {}
            Some(&version) => return Err(CommandError::Version { version }),
            None => return Err(damaged("it is empty")),
        }
        let length = bytes.get(1..5).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
        let length = length.ok_or_else(|| damaged("it ends in its length"))? as usize;
        let header = bytes.get(5..5 + length).ok_or_else(|| damaged("it ends in its header"))?;
        let header: Header = postcard::from_bytes(header).map_err(|e| CommandError::Damaged(e.to_string()))?;
        let mut at = 5 + length;
        let mut attachments = Vec::with_capacity(header.attachment_bytes.len().min(1024));
        for length in header.attachment_bytes {
            let end = usize::try_from(length).ok().and_then(|length| at.checked_add(length));
            let end = end.filter(|end| *end <= bytes.len()).ok_or_else(|| damaged("it ends in an attachment"))?;
            attachments.push(bytes.slice(at..end));
            at = end;
        }
        if at != bytes.len() {
            return Err(damaged("bytes follow its end"));
        }
        Ok(Proposal { clock_ms: header.clock_ms, time_ms: header.time_ms, ops: header.ops, attachments })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn sample() -> Proposal {
        Proposal {
            clock_ms: 5,
            time_ms: 7,
            ops: vec![
                Op::CreateRepo { repo: "default".parse().unwrap(), head_ref: RefName::main() },
                Op::Pack { repo: "default".parse().unwrap(), source: PackSource::Attachment(0) },
                Op::Tick,
            ],
            attachments: vec![Bytes::from_static(b"PACK"), Bytes::new()],
        }
    }

    #[test]
    fn there_and_back() {
        let proposal = sample();
        assert_eq!(proposal.encode().decode().unwrap(), proposal);
    }

    #[test]
    fn an_unknown_version_is_refused_with_words() {
        let mut bytes = sample().encode().0.to_vec();
        bytes[0] = 9;
        let error = Command(bytes.into()).decode().unwrap_err().to_string();
        assert!(error.contains("version 9") && error.contains("newer"), "{error}");
    }

    #[test]
    fn cut_bytes_are_refused() {
        let bytes = sample().encode().0;
        for end in 0..bytes.len() {
            assert!(Command(bytes.slice(..end)).decode().is_err(), "cut at {end}");
        }
    }

    /// The format is a promise: these bytes were written by version 1 and must stay readable.
    #[test]
    fn version_1_stays_readable() {
        let golden =
            "012b000000050703010764656661756c740f726566732f68656164732f6d61696e020764656661756c7400000e0204005041434b";
        assert_eq!(hex::encode(&sample().encode().0), golden);
        assert_eq!(Command(hex::decode(golden).unwrap().into()).decode().unwrap(), sample());
    }
}
