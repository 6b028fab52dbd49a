//! Local edits that could not be carried over.
//!
//! ```text
//! saved/<n>/meta.json   where it was and why it is here
//! saved/<n>/file        the content, with the permissions it had
//! ```
//! The content is written and synced before the metadata; a directory without metadata is an interrupted save and
//! is ignored until its number is used again.

use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags};
use serde::{Deserialize, Serialize};

use super::error::{At, Result};
use super::fsx::{self, Kind};
use super::types::SavedEdit;
use crate::RepoPath;

#[derive(Serialize, Deserialize)]
struct Meta {
    /// Hexadecimal: any bytes.
    path: String,
    reason: String,
    has_file: bool,
}

/// The directory of saved edits.
pub(crate) struct Saved<'a> {
    pub dir: &'a Path,
}

impl Saved<'_> {
    pub(crate) fn list(&self) -> Result<Vec<SavedEdit>> {
        let mut edits = Vec::new();
        for id in self.ids()? {
            let Ok(data) = std::fs::read(self.dir.join(id.to_string()).join("meta.json")) else { continue };
            let Ok(meta) = serde_json::from_slice::<Meta>(&data) else { continue };
            edits.push(self.edit(id, &meta));
        }
        Ok(edits)
    }

    fn edit(&self, id: u64, meta: &Meta) -> SavedEdit {
        SavedEdit {
            id,
            path: RepoPath::from_tree(hex::decode(&meta.path).unwrap_or_default()),
            file: meta.has_file.then(|| self.file(id)),
            reason: meta.reason.clone(),
        }
    }

    fn file(&self, id: u64) -> PathBuf {
        self.dir.join(id.to_string()).join("file")
    }

    fn ids(&self) -> Result<Vec<u64>> {
        let entries = match std::fs::read_dir(self.dir) {
            Ok(entries) => entries,
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            // Nobody but the owner is told what was saved.
            Err(err) if err.kind() == std::io::ErrorKind::PermissionDenied => return Ok(Vec::new()),
            Err(err) => return Err(err).at("list", self.dir),
        };
        let mut ids: Vec<u64> = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
        ids.sort_unstable();
        Ok(ids)
    }

    /// Puts content aside. The same content of the same path for the same reason is put aside once.
    pub(crate) fn save(
        &self,
        path: &RepoPath,
        kind: Kind,
        perm: u32,
        data: Option<&[u8]>,
        reason: &str,
    ) -> Result<SavedEdit> {
        for edit in self.list()? {
            let same = edit.path == *path
                && edit.reason == reason
                && match (&edit.file, data) {
                    (Some(file), Some(data)) if kind.is_file() => std::fs::read(file).is_ok_and(|there| there == data),
                    (None, None) => true,
                    _ => false,
                };
            if same {
                return Ok(edit);
            }
        }
        let id = self.ids()?.last().map_or(1, |last| last + 1);
        let dir = self.dir.join(id.to_string());
        std::fs::create_dir_all(&dir).at("create", &dir)?;
        let fd = fsx::open_dir(&dir).at("open", &dir)?;
        if let Some(data) = data {
            if kind == Kind::Symlink {
                fs::symlinkat(data, &fd, "file").at("write", &self.file(id))?;
            } else {
                fsx::write_atomic_at(&fd, b"file", data, perm & 0o777, true).at("write", &self.file(id))?;
            }
        }
        let meta = Meta { path: hex::encode(path.as_bytes()), reason: reason.into(), has_file: data.is_some() };
        let text = serde_json::to_vec(&meta).unwrap_or_default();
        fsx::write_atomic_at(&fd, b"meta.json", &text, 0o600, true).at("write", &dir.join("meta.json"))?;
        fs::fsync(&fd).at("sync", &dir)?;
        fsx::open_dir(self.dir).and_then(|all| Ok(fs::fsync(all)?)).at("sync", self.dir)?;
        tracing::warn!(path = %path, %reason, "put a local edit aside as {}", dir.display());
        Ok(self.edit(id, &meta))
    }

    pub(crate) fn forget(&self, id: u64) -> Result<()> {
        let dir = match fsx::open_dir(self.dir) {
            Ok(dir) => dir,
            Err(err) if fsx::absent(&err) => return Ok(()),
            Err(err) => return Err(err).at("open", self.dir),
        };
        let name = id.to_string();
        // Without its metadata it is no saved edit any more, whatever happens to the rest.
        let _ = fs::unlinkat(&dir, format!("{name}/meta.json"), AtFlags::empty());
        fsx::remove_all_at(&dir, name.as_bytes()).at("remove", &self.dir.join(name))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn saves_lists_and_forgets() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("saved");
        let saved = Saved { dir: &dir };
        assert_eq!(saved.list().unwrap(), []);
        let path = RepoPath::from_tree(b"default/\xff".to_vec());
        let first = saved.save(&path, Kind::File, 0o640, Some(b"edit"), "why").unwrap();
        assert_eq!(saved.save(&path, Kind::File, 0o640, Some(b"edit"), "why").unwrap(), first);
        let second = saved.save(&path, Kind::File, 0o640, None, "gone").unwrap();
        assert_eq!(saved.list().unwrap(), [first.clone(), second.clone()]);
        assert_eq!(std::fs::read(first.file.unwrap()).unwrap(), b"edit");
        saved.forget(first.id).unwrap();
        saved.forget(first.id).unwrap();
        assert_eq!(saved.list().unwrap(), [second]);
    }
}
