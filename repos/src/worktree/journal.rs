//! What is under way, for the run after a crash.
//!
//! One small file. That it is empty or absent means that nothing is under way: the spare tree holds what its manifest
//! says. It is overwritten in place, which costs no inode; one that cannot be read was being written, and nothing
//! was exchanged yet. The live tree's id tells whether the exchange happened.

use rustix::fs::OFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::error::{At, Result};
use super::fsx::{self, Sig};
use super::inner::Inner;
use super::manifest::Manifest;
use crate::Oid;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "kebab-case")]
pub(crate) enum Journal {
    /// The spare is being patched and holds neither the one nor the other.
    Staging {
        /// The id that it had, if it had one.
        spare: Option<String>,
        /// Per mount, the paths (hexadecimal) that the patch writes: what is there is ours, not a late edit.
        touched: Vec<Vec<String>>,
    },
    /// The spare is complete. If the live tree's id is `staged`, the exchange happened and has to be settled.
    Ready {
        staged: String,
        live: Option<String>,
        /// Per mount, what was seen in the live tree where it differs from upstream.
        seen: Vec<Vec<Seen>>,
        /// Per mount, local files that were given up and have to be saved.
        lost: Vec<Vec<String>>,
        /// When the live tree was looked at.
        seen_ns: i64,
    },
    /// Only metadata changes: files in `redo/` have to be renamed to these places below the root.
    Flip { files: Vec<String> },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seen {
    pub path: String,
    /// `None`: deleted locally.
    pub held: Option<(Sig, Oid)>,
}

pub(crate) fn seen(manifest: &Manifest) -> Vec<Seen> {
    let dirty = manifest.entries.iter().filter(|e| e.base.is_some() && e.is_dirty());
    dirty.map(|e| Seen { path: hex::encode(&e.path), held: e.held.and_then(|h| Some((h.sig, h.oid?))) }).collect()
}

impl Inner {
    pub(crate) fn write_journal(&self, journal: &Journal, sync: bool) -> Result<()> {
        let path = self.state_dir.join("journal");
        let bytes = serde_json::to_vec(journal).map_err(std::io::Error::other).at("encode", &path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.state_fd, "journal", flags, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)
            .at("open", &path)?;
        let mut file = std::fs::File::from(fd);
        std::io::Write::write_all(&mut file, &bytes).at("write", &path)?;
        file.set_len(bytes.len() as u64).at("write", &path)?;
        if sync {
            file.sync_data().at("sync", &path)?;
        }
        Ok(())
    }

    /// `None` if nothing is under way. A journal that cannot be read counts as an interrupted patch: the safe side.
    pub(crate) fn read_journal(&self) -> Result<Option<Journal>> {
        let path = self.state_dir.join("journal");
        let Some(bytes) = fsx::try_read_at(&self.state_fd, b"journal").at("read", &path)? else { return Ok(None) };
        if bytes.is_empty() {
            return Ok(None);
        }
        Ok(Some(serde_json::from_slice(&bytes).unwrap_or(Journal::Staging { spare: None, touched: Vec::new() })))
    }

    pub(crate) fn clear_journal(&self) -> Result<()> {
        let path = self.state_dir.join("journal");
        match rustix::fs::openat(
            &self.state_fd,
            "journal",
            OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        ) {
            Ok(fd) => std::fs::File::from(fd).set_len(0).at("write", &path),
            Err(Errno::NOENT) => Ok(()),
            Err(err) => Err(err).at("open", &path),
        }
    }
}
