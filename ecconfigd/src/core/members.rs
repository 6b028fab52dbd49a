//! Members of the group as people want them: joining, voting, leaving. All of it is records; the steward makes it so.

use std::path::Path;
use std::sync::Arc;

use super::Core;
use super::life::{self, Identity};
use crate::error::{Error, Result};
use crate::raft::command::Op;
use crate::state::{MemberRecord, NodeName, NodeRecord, NodeTokenRecord};

/// A server that asks to join.
#[derive(Debug, Clone)]
pub struct JoinMember {
    /// The node, with its address. Its number is given by the log.
    pub record: NodeRecord,
    /// Whether it shall vote once it has caught up.
    pub voter: bool,
    /// SHA-256 of its public key.
    pub key_sha256: [u8; 32],
    /// The one-time token's public part.
    pub token: String,
}

impl Core {
    /// A member of the group.
    pub fn member(&self, node: &NodeName) -> Option<Arc<MemberRecord>> {
        self.view().members.get(node).cloned()
    }

    /// Makes a server a member and uses its token up, both or neither. Again with the same key it is the same member.
    pub async fn join_member(&self, join: JoinMember) -> Result<Arc<MemberRecord>> {
        let node = join.record.name.clone();
        let JoinMember { record, voter, key_sha256, token } = join;
        self.simple(Op::Join { record, voter, key_sha256, token }, "node", node.as_str()).await?;
        self.member(&node).ok_or_else(|| Error::no_node(&node))
    }

    /// Wants a member to vote, or not to. The group follows when it can.
    pub async fn set_voter(&self, node: &NodeName, voter: bool) -> Result<()> {
        self.simple(Op::SetVoter { node: node.clone(), voter }, "member", node.as_str()).await
    }

    /// Removes a node for good, member or not.
    pub async fn remove_node(&self, node: &NodeName) -> Result<()> {
        self.simple(Op::RemoveNode { node: node.clone() }, "node", node.as_str()).await
    }

    /// Lets whoever has this token take the member's name over, on a new machine.
    pub async fn allow_replace(&self, node: &NodeName, token: NodeTokenRecord) -> Result<()> {
        self.simple(Op::AllowReplace { node: node.clone(), token }, "member", node.as_str()).await
    }

    /// Writes into an empty data directory who this node is in the group. Again with the same number is harmless; another one is refused:
    /// what lies there belongs to another member.
    pub fn prepare_joined(data: &Path, node: &NodeName, raft_id: u64) -> Result<()> {
        life::write_identity(data, &Identity { version: 1, raft_id, node: node.to_string() })
    }

    /// Where this node keeps everything.
    pub fn data_dir(&self) -> &Path {
        &self.inner.options.data
    }
}
