//! What is under way, for the run after a crash.
//!
//! One small file. That it is absent, empty or begins with a blank means that nothing is under way: the spare tree holds what its
//! manifest says. It is overwritten in place and never shortened, which costs the file system no inode, no block and no commit of
//! its own journal; one that cannot be read was being written, and nothing was exchanged yet. The live tree's id tells whether
//! the exchange happened.
//!
//! ```text
//! JSON without line breaks · "\n" · blanks up to a multiple of 4096, or what is left of a longer one
//! ```

use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use rustix::fs::OFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::error::{At, Result};
use super::fsx::{self, Sig};
use super::inner::Inner;
use super::manifest::Manifest;
use crate::Oid;

const BLANK: u8 = b' ';
const END: u8 = b'\n';
const BLOCK: usize = 4096;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "kebab-case")]
pub(crate) enum Journal {
    /// The spare is being patched and holds neither the one nor the other.
    Staging(Spare),
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
        /// If the exchange did not happen, this is what became the staged tree.
        #[serde(flatten)]
        spare: Spare,
    },
    /// Only metadata changes: files in `redo/` have to be renamed to these places below the root.
    Flip { files: Vec<String> },
}

/// The spare tree before it was patched.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Spare {
    /// The id that it had, if it had one.
    #[serde(rename = "spare")]
    pub id: Option<String>,
    /// Per mount, the paths (hexadecimal) that the patch writes: what is there is ours, not a late edit.
    #[serde(default)]
    pub touched: Vec<Vec<String>>,
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
    /// Answers the open file, to be synced.
    pub(crate) fn write_journal(&self, journal: &Journal) -> Result<OwnedFd> {
        let path = self.state_dir.join("journal");
        let mut bytes = serde_json::to_vec(journal).map_err(std::io::Error::other).at("encode", &path)?;
        bytes.push(END);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), BLANK);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.state_fd, "journal", flags, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)
            .at("open", &path)?;
        let file = std::fs::File::from(fd);
        file.write_all_at(&bytes, 0).at("write", &path)?;
        Ok(file.into())
    }

    /// `None` if nothing is under way. A journal that cannot be read counts as an interrupted patch: the safe side.
    pub(crate) fn read_journal(&self) -> Result<Option<Journal>> {
        let path = self.state_dir.join("journal");
        let Some(bytes) = fsx::try_read_at(&self.state_fd, b"journal").at("read", &path)? else { return Ok(None) };
        if bytes.first().is_none_or(|first| *first == BLANK) {
            return Ok(None);
        }
        let line = bytes.split(|byte| *byte == END).next().unwrap_or_default();
        Ok(Some(serde_json::from_slice(line).unwrap_or(Journal::Staging(Spare::default()))))
    }

    /// Nothing is under way any more. With `sync` that is so after power loss too: the displaced tree is patched next, and must
    /// not be taken for one that still has to be settled.
    pub(crate) fn clear_journal(&self, sync: bool) -> Result<()> {
        let path = self.state_dir.join("journal");
        match rustix::fs::openat(
            &self.state_fd,
            "journal",
            OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        ) {
            Ok(fd) => {
                let file = std::fs::File::from(fd);
                file.write_all_at(&[BLANK], 0).at("write", &path)?;
                if sync { file.sync_data().at("sync", &path) } else { Ok(()) }
            }
            Err(Errno::NOENT) => Ok(()),
            Err(err) => Err(err).at("open", &path),
        }
    }
}
