//! A database's file as it lies on the disk, to be read by a second redb while the first one goes on with it.
//!
//! redb compares pages with their checksums only when it opens a file, and wants to write then (it notes that it was not closed well, and
//! mends what it can). Here it reads the file and writes into memory. The durable pages do not change before the next durable commit; all
//! others may, and belong to nothing that is read.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

/// The file, and what was written over it.
#[derive(Debug)]
pub(super) struct Shadow {
    file: File,
    /// What the file had when it was opened: it may grow.
    file_bytes: u64,
    length: AtomicU64,
    /// Whole blocks by their number. A check writes a header and a few pages.
    written: Mutex<BTreeMap<u64, Box<[u8; BLOCK]>>>,
}

const BLOCK: usize = 4096;

impl Shadow {
    /// Of this file.
    pub(super) fn of(path: &Path) -> io::Result<Shadow> {
        let file = File::open(path)?;
        let file_bytes = file.metadata()?.len();
        Ok(Shadow { file, file_bytes, length: AtomicU64::new(file_bytes), written: Mutex::default() })
    }

    fn written(&self) -> MutexGuard<'_, BTreeMap<u64, Box<[u8; BLOCK]>>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From the file; zeros behind its end.
    fn read_file(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let there = usize::try_from(self.file_bytes.saturating_sub(offset)).unwrap_or(usize::MAX).min(out.len());
        let (there, beyond) = out.split_at_mut(there);
        beyond.fill(0);
        self.file.read_exact_at(there, offset)
    }
}

/// The blocks that a range touches: number, the range in the block, the range in the buffer.
fn blocks(offset: u64, bytes: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let begin = usize::try_from(at % BLOCK as u64).ok()?;
        let count = (BLOCK - begin).min(bytes - done);
        let part = (at / BLOCK as u64, begin..begin + count, done..done + count);
        done += count;
        (count > 0).then_some(part)
    })
}

impl StorageBackend for Shadow {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(self.length.load(Ordering::SeqCst))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        if offset + out.len() as u64 > self.length.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.read_file(offset, out)?;
        let written = self.written();
        for (block, there, here) in blocks(offset, out.len()) {
            if let Some(bytes) = written.get(&block) {
                out[here].copy_from_slice(&bytes[there]);
            }
        }
        Ok(())
    }

    fn set_len(&self, length: u64) -> Result<(), io::Error> {
        self.length.store(length, Ordering::SeqCst);
        Ok(())
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        let mut written = self.written();
        for (block, there, here) in blocks(offset, data.len()) {
            let bytes = match written.entry(block) {
                Entry::Occupied(bytes) => bytes.into_mut(),
                Entry::Vacant(place) => {
                    let mut bytes = Box::new([0; BLOCK]);
                    self.read_file(block * BLOCK as u64, bytes.as_mut_slice())?;
                    place.insert(bytes)
                }
            };
            bytes[there].copy_from_slice(&data[here]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_written_is_read_and_the_file_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let content: Vec<u8> = (0..10_000_u32).map(|number| number as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let shadow = Shadow::of(&path).unwrap();
        shadow.set_len(20_000).unwrap();
        let mut expected = content.clone();
        expected.resize(20_000, 0);
        for (offset, bytes) in [(0, 3), (4090, 12), (9_990, 5_000), (19_999, 1)] {
            shadow.write(offset as u64, &vec![0xee; bytes]).unwrap();
            expected[offset..offset + bytes].fill(0xee);
        }
        let mut all = vec![1; 20_000];
        shadow.read(0, &mut all).unwrap();
        assert_eq!(all, expected);
        let mut part = vec![1; 6_000];
        shadow.read(4_095, &mut part).unwrap();
        assert_eq!(part, expected[4_095..10_095]);
        assert!(shadow.read(19_999, &mut [0; 2]).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), content);
    }
}
