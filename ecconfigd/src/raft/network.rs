//! The seam for replication: what openraft calls to reach another member.
//!
//! This build has one voter, so nobody is ever called. Every method answers "unreachable", also `pre_vote`: openraft's own default for it
//! grants unconditionally, which would undo the protection it is there for.

use std::future::Future;

use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable as UnreachableError};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::{AnyError, OptionalSend, RaftNetworkFactory, RaftNetworkV2};

use super::{RaftNode, TypeConfig, Vote};
use crate::state::Manifest;

/// Makes connections to members that cannot be reached.
#[derive(Debug, Clone, Default)]
pub struct Unreachable;

impl RaftNetworkFactory<TypeConfig> for Unreachable {
    type Network = UnreachableMember;

    async fn new_client(&mut self, target: u64, node: &RaftNode) -> UnreachableMember {
        UnreachableMember { target, name: node.name.clone() }
    }
}

/// A member that cannot be reached.
#[derive(Debug)]
pub struct UnreachableMember {
    target: u64,
    name: String,
}

impl UnreachableMember {
    fn error(&self) -> UnreachableError<TypeConfig> {
        let text = format!("member {} ({}) cannot be reached: this node runs without peers", self.target, self.name);
        UnreachableError::new(&AnyError::error(text))
    }
}

impl RaftNetworkV2<TypeConfig> for UnreachableMember {
    type SnapshotData = Manifest;

    async fn append_entries(
        &mut self,
        _rpc: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        Err(self.error().into())
    }

    async fn vote(
        &mut self,
        _rpc: VoteRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        Err(self.error().into())
    }

    async fn pre_vote(
        &mut self,
        _rpc: VoteRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        Err(self.error().into())
    }

    async fn full_snapshot(
        &mut self,
        _vote: Vote,
        _snapshot: openraft::alias::SnapshotOf<TypeConfig, Manifest>,
        _cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        Err(self.error().into())
    }

    async fn transfer_leader(
        &mut self,
        _req: TransferLeaderRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        Err(self.error().into())
    }
}
