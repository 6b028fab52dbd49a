//! What a voter must not forget: its run, term, vote and electorate, in one small file that is replaced whole.
//!
//! ```text
//! "ECVIPST1" · u32 CRC32C of the rest · postcard of duravip_core::Stored
//! ```

use std::path::{Path, PathBuf};

use cluster::files::{self, FileError};
use duravip_core::Stored;

const MAGIC: &[u8; 8] = b"ECVIPST1";
/// What all versions begin with; the digit behind it is the version.
const NAME: &[u8; 7] = b"ECVIPST";
/// A few hundred bytes, and 12 more for each pinned address.
const LIMIT_BYTES: u64 = 16 << 20;

/// Why the file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is not what was written.
    #[error("{} is damaged; move it away to start as a voter that lost its disk", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// It was written by another version of this program.
    #[error("{} has version {version}, this build knows 1: it was written by a newer duravip, run that", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// The version found.
        version: char,
    },
    /// It cannot be put into bytes.
    #[error("the state cannot be encoded")]
    Encode(#[from] postcard::Error),
}

/// The file.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
}

impl Store {
    /// In this directory.
    pub fn in_dir(dir: &Path) -> Self {
        Self { path: dir.join("state") }
    }

    /// What the last run left; nothing in a new directory.
    pub fn load(&self) -> Result<Option<Stored>, StoreError> {
        let Some(bytes) = files::read_limited(&self.path, LIMIT_BYTES)? else { return Ok(None) };
        let damaged = || StoreError::Damaged { path: self.path.clone() };
        let (head, body) = bytes.split_at_checked(12).ok_or_else(damaged)?;
        if head[..7] == *NAME && head[..8] != *MAGIC {
            return Err(StoreError::Version { path: self.path.clone(), version: head[7].into() });
        }
        let sound = &head[..8] == MAGIC && head[8..] == crc32c::crc32c(body).to_le_bytes();
        if !sound {
            return Err(damaged());
        }
        postcard::from_bytes(body).map(Some).map_err(|_| damaged())
    }

    /// Synced when it returns.
    pub fn save(&self, stored: &Stored) -> Result<(), StoreError> {
        let body = postcard::to_allocvec(stored)?;
        let mut bytes = MAGIC.to_vec();
        bytes.extend(crc32c::crc32c(&body).to_le_bytes());
        bytes.extend(body);
        Ok(files::write_atomic(&self.path, &bytes, 0o600)?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use duravip_core::{Electorate, Incarnation, MemberId, Version};

    #[test]
    fn what_was_saved_comes_back_and_damage_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::in_dir(dir.path());
        assert_eq!(store.load().unwrap(), None);
        let stored = Stored {
            incarnation: Incarnation(7),
            term: 3,
            voted: Some(MemberId(9)),
            electorate: Electorate::of([MemberId(9), MemberId(10)]),
            electorate_version: Version::ZERO,
            orders: Default::default(),
            longest: None,
        };
        store.save(&stored).unwrap();
        assert_eq!(store.load().unwrap(), Some(stored));
        let mut bytes = std::fs::read(&store.path).unwrap();
        for at in 0..bytes.len() {
            bytes[at] ^= 1;
            std::fs::write(&store.path, &bytes).unwrap();
            match store.load() {
                Err(StoreError::Damaged { .. }) => assert_ne!(at, 7, "the digit of the version"),
                Err(error @ StoreError::Version { .. }) => {
                    let words = error.to_string();
                    assert!(at == 7 && words.contains("state has version 0, this build knows 1"), "byte {at}: {words}");
                }
                other => panic!("byte {at}: {other:?}"),
            }
            bytes[at] ^= 1;
        }
    }
}
