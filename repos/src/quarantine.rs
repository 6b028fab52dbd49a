//! Packs from elsewhere, before they are trusted.
//!
//! A received pack is written beside the store, not into it. Its objects can be read and checked through the
//! quarantine's reader; the store sees them only when the pack is installed. Dropping the quarantine removes
//! everything.

use std::io::Read;
use std::path::{Path, PathBuf};

use crate::reader::Reader;
use crate::{Error, Oid, PackError, RepoPath, Result};

/// What a pack may demand of us. The defaults suit a configuration repository with room to spare.
#[derive(Debug, Clone)]
pub struct PackLimits {
    /// The pack as it comes over the wire.
    pub max_bytes: u64,
    /// Objects in it.
    pub max_objects: u32,
    /// The size of a single object, unpacked.
    pub max_object_bytes: u64,
    /// All objects together, unpacked: what resolving the deltas will cost.
    pub max_unpacked_bytes: u64,
    /// How many deltas may stand upon each other.
    pub max_delta_depth: u32,
}

impl Default for PackLimits {
    fn default() -> Self {
        PackLimits {
            max_bytes: 512 << 20,
            max_objects: 1_000_000,
            max_object_bytes: 64 << 20,
            max_unpacked_bytes: 8 << 30,
            // git packs at 50 and accepts 4095.
            max_delta_depth: 4095,
        }
    }
}

/// What came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// Objects in the pack, completed bases included.
    pub objects: u32,
    /// The self-contained pack; `None` if it was empty.
    pub pack_path: Option<PathBuf>,
    /// The size of that file.
    pub bytes: u64,
}

/// What trees must keep to beyond the rules that always hold.
#[derive(Debug, Clone, Default)]
pub struct TreeRules {
    /// Names that no entry of a root tree may have, such as `global`.
    pub reserved_root_names: Vec<String>,
}

/// A path that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The path, made printable: it may be one that `RepoPath` would not take.
    pub path: String,
    /// Which rule, in words.
    pub reason: String,
}

/// Why new commits are not acceptable.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// Something in them breaks a rule. Never empty; at most a hundred are listed.
    #[error("{}", .0.iter().map(|r| format!("{}: {}", r.path, r.reason)).collect::<Vec<_>>().join("; "))]
    Refused(Vec<Refusal>),
    /// An object that they need is missing or damaged, or the store failed.
    #[error(transparent)]
    Failed(#[from] Error),
}

/// A place for a pack that is not trusted yet.
pub struct Quarantine {
    _todo: (),
}

impl Quarantine {
    /// Receives a pack: streams it to disk, checks every object, completes a thin pack. Bytes after the pack are an error.
    pub fn receive(&mut self, _pack: &mut dyn Read, _limits: &PackLimits) -> Result<Received, PackError> {
        todo!()
    }

    /// Sees the store and what was received.
    pub fn reader(&self) -> Result<Reader> {
        todo!()
    }

    /// Checks what `new_tips` bring that `old_tips` did not have: everything is there, of the right kind, and no tree
    /// holds what could harm a checkout. Tips may be tags, too.
    pub fn check_new(&self, _old_tips: &[Oid], _new_tips: &[Oid], _rules: &TreeRules) -> Result<(), CheckError> {
        todo!()
    }

    /// The received pack, for a log entry or [`Store::install_pack_file`](crate::Store::install_pack_file).
    pub fn pack_file(&self) -> Option<&Path> {
        todo!()
    }
}

impl Reader {
    /// See [`Quarantine::check_new`].
    pub fn check_new(&self, _old_tips: &[Oid], _new_tips: &[Oid], _rules: &TreeRules) -> Result<(), CheckError> {
        todo!()
    }
}

/// A path as it is shown in a refusal.
pub(crate) fn shown(path: &[u8]) -> String {
    RepoPath::from_tree(path.to_vec()).to_string()
}
