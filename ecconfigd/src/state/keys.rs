//! The keys of the one table. A prefix names the kind; names contain no `/`, numbers are big-endian so that they sort.

use std::ops::Range;

use repos::{Oid, RefName};

use super::names::{NodeName, RepoName};
use crate::raft::command::UploadId;

/// Version of the state's format.
pub(super) const FORMAT: &[u8] = b"m/format";
/// The last applied log id.
pub(super) const APPLIED: &[u8] = b"m/applied";
/// The last membership with its log id, as JSON.
pub(super) const MEMBERS: &[u8] = b"m/members";
/// The running hash.
pub(super) const HASH: &[u8] = b"m/hash";
/// The cluster clock.
pub(super) const CLOCK: &[u8] = b"m/clock";
/// The cluster's name.
pub(super) const CLUSTER: &[u8] = b"m/cluster";
/// Goes up with every change of an account or token.
pub(super) const ACCOUNTS: &[u8] = b"m/accounts";
/// The node that the leadership is pinned to; absent without one.
pub(super) const PIN: &[u8] = b"m/pin";
/// First and next number in the queue of idempotency keys.
pub(super) const IDEMPOTENCY: &[u8] = b"m/idempotency";

/// The highest number in the Raft group that was ever given.
pub(super) const RAFT_IDS: &[u8] = b"m/raft-ids";

pub(super) const REPOS: &[u8] = b"repo/";
pub(super) const REFS: &[u8] = b"ref/";
pub(super) const TARGETS: &[u8] = b"target/";
pub(super) const USERS: &[u8] = b"user/";
pub(super) const TOKENS: &[u8] = b"token/";
pub(super) const NODE_TOKENS: &[u8] = b"ntoken/";
pub(super) const NODES: &[u8] = b"node/";
pub(super) const UPLOADS: &[u8] = b"upload/";
pub(super) const MEMBERS_WANTED: &[u8] = b"member/";

fn join(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

pub(super) fn repo(name: &RepoName) -> Vec<u8> {
    join(&[REPOS, name.as_str().as_bytes()])
}

pub(super) fn reference(repo: &RepoName, name: &RefName) -> Vec<u8> {
    join(&[REFS, repo.as_str().as_bytes(), b"/", name.as_str().as_bytes()])
}

pub(super) fn revision(repo: &RepoName, number: u64) -> Vec<u8> {
    join(&[b"rev/", repo.as_str().as_bytes(), b"/", &number.to_be_bytes()])
}

/// The start of the keys of [`revision`].
pub(super) fn revisions(repo: &RepoName) -> Vec<u8> {
    join(&[b"rev/", repo.as_str().as_bytes(), b"/"])
}

/// The revision of a commit.
pub(super) fn commit(repo: &RepoName, commit: Oid) -> Vec<u8> {
    join(&[b"oid/", repo.as_str().as_bytes(), b"/", commit.as_bytes()])
}

pub(super) fn target(subcluster: &RepoName) -> Vec<u8> {
    join(&[TARGETS, subcluster.as_str().as_bytes()])
}

pub(super) fn user(name: &str) -> Vec<u8> {
    join(&[USERS, name.as_bytes()])
}

pub(super) fn token(id: &str) -> Vec<u8> {
    join(&[TOKENS, id.as_bytes()])
}

pub(super) fn node_token(id: &str) -> Vec<u8> {
    join(&[NODE_TOKENS, id.as_bytes()])
}

pub(super) fn node(name: &NodeName) -> Vec<u8> {
    join(&[NODES, name.as_str().as_bytes()])
}

pub(super) fn member(name: &NodeName) -> Vec<u8> {
    join(&[MEMBERS_WANTED, name.as_str().as_bytes()])
}

pub(super) fn report(node: &NodeName, program: &str) -> Vec<u8> {
    join(&[b"report/", node.as_str().as_bytes(), b"/", program.as_bytes()])
}

/// The start of the keys of [`report`].
pub(super) fn reports(node: &NodeName) -> Vec<u8> {
    join(&[b"report/", node.as_str().as_bytes(), b"/"])
}

pub(super) fn idempotency(user: &str, key: &str) -> Vec<u8> {
    join(&[b"idem/", user.as_bytes(), b"\0", key.as_bytes()])
}

/// The order in which idempotency keys came.
pub(super) fn idempotency_queue(number: u64) -> Vec<u8> {
    join(&[b"idemq/", &number.to_be_bytes()])
}

pub(super) fn upload(id: UploadId) -> Vec<u8> {
    join(&[UPLOADS, &id.0])
}

/// All keys that begin with the prefix.
pub(super) fn prefix(prefix: &[u8]) -> Range<Vec<u8>> {
    let mut end = prefix.to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1; // a prefix ends with `/` or a number's byte below 0xff
    }
    prefix.to_vec()..end
}
