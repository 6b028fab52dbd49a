//! Whether what lies on the disk still is what was installed, and what to do where it is not.
//!
//! Why apart from [`Store::verify`]: that follows references through the objects, this reads files from end to end and needs to understand
//! none of them. It comes first, because the object database trusts indexes and maps files: what it has mapped it goes on using, also
//! after the file was replaced. So a bad pack is taken away before it is mapped, or the database is opened anew after it was.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::oid::PackId;
use crate::pack::{TRAILER_BYTES, index_is_sound};
use crate::{Error, Oid, Result, Store};

/// Read at a time; after each piece the caller is asked whether to go on.
const PIECE_BYTES: usize = 256 << 10;

/// A pack whose files are not what they were when they were installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadPack {
    /// Its file, of which only the index may be there.
    pub path: PathBuf,
    /// What is wrong.
    pub reason: String,
}

impl Store {
    /// Reads every pack to its end and compares checksums. After each piece `go_on` is told its size; false ends the check, with what was
    /// found so far.
    pub fn check_packs(&self, go_on: &mut dyn FnMut(u64) -> bool) -> Result<Vec<BadPack>> {
        let mut bad = Vec::new();
        for index in self.indexes()? {
            let path = index.with_extension("pack");
            match check_pack(&path, &index, go_on) {
                Ok(true) => {}
                Ok(false) => break,
                // Merged into another one in the meantime.
                Err(_) if !index.exists() => {}
                Err(reason) => bad.push(BadPack { path, reason }),
            }
        }
        Ok(bad)
    }

    /// Moves packs into a directory, which is made, and forgets what was read of them. Readers that exist go on with what they have.
    pub fn set_aside(&self, packs: &[BadPack], aside: &Path) -> Result<()> {
        if packs.is_empty() {
            return Ok(());
        }
        fs::create_dir_all(aside).map_err(Error::io("create", aside))?;
        for pack in packs {
            // The index first: without it nobody looks for the pack.
            for extension in ["idx", "rev", "bitmap", "pack"] {
                let from = pack.path.with_extension(extension);
                let to = aside.join(from.file_name().unwrap_or_default());
                match fs::rename(&from, &to) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(Error::io("set aside", &from)(error));
                    }
                    _ => {}
                }
            }
        }
        let directory = self.objects_dir().join("pack");
        File::open(&directory).and_then(|dir| dir.sync_all()).map_err(Error::io("sync", &directory))?;
        self.reopen()
    }

    /// Moves every pack aside, for when the checksums are right and the objects are not.
    pub fn set_all_aside(&self, aside: &Path) -> Result<()> {
        let all = |index: PathBuf| BadPack { path: index.with_extension("pack"), reason: String::new() };
        let packs: Vec<BadPack> = self.indexes()?.into_iter().map(all).collect();
        self.set_aside(&packs, aside)
    }

    fn indexes(&self) -> Result<Vec<PathBuf>> {
        let directory = self.objects_dir().join("pack");
        let entries = fs::read_dir(&directory).map_err(Error::io("list", &directory))?;
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let mut indexes: Vec<_> = paths.filter(|path| path.extension().is_some_and(|ext| ext == "idx")).collect();
        indexes.sort_unstable();
        Ok(indexes)
    }
}

/// False if the caller ended it.
fn check_pack(path: &Path, index: &Path, go_on: &mut dyn FnMut(u64) -> bool) -> Result<bool, String> {
    let mut file = File::open(path).map_err(|error| format!("it cannot be opened: {error}"))?;
    let bytes = file.metadata().map_err(|error| error.to_string())?.len();
    let body = bytes.checked_sub(TRAILER_BYTES as u64).ok_or("it is cut")?;
    let mut hasher = gix::hash::hasher(gix::hash::Kind::Sha1);
    let mut buffer = vec![0; PIECE_BYTES.min(bytes as usize)];
    let mut left = body;
    while left > 0 {
        let piece = (buffer.len() as u64).min(left) as usize;
        file.read_exact(&mut buffer[..piece]).map_err(|error| format!("it cannot be read: {error}"))?;
        hasher.update(&buffer[..piece]);
        left -= piece as u64;
        if !go_on(piece as u64) {
            return Ok(false);
        }
    }
    let mut trailer = [0; TRAILER_BYTES];
    file.read_exact(&mut trailer).map_err(|error| format!("it cannot be read: {error}"))?;
    let sum = hasher.try_finalize().map_err(|error| error.to_string())?;
    if sum.as_slice() != trailer {
        return Err("its checksum is wrong".into());
    }
    if index_is_sound(index, PackId(Oid::from_bytes(trailer))) { Ok(true) } else { Err("its index is damaged".into()) }
}
