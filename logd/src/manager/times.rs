//! When the lines of an aggregated file were written: a small file beside it, for reading several files in time order.
//!
//! ```text
//! DIR/.NAME.times    entries of 16 bytes: u64 offset of a line, u64 time in microseconds since 1970, little-endian
//! ```
//! An entry holds for its line and those behind it, up to the next. It is not synced: entries that a crash took make the order coarser, nothing
//! else. Offsets are those of the uncompressed file, so it stays when the file is compressed.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Lines closer together than this share an entry.
const STEP_US: u64 = 50_000;
const ENTRY_BYTES: u64 = 16;

/// Where the times of a file are.
pub fn path_of(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.times"))
}

/// The times of a file that is being written.
#[derive(Debug)]
pub struct Times {
    file: File,
    length: u64,
    /// Of the newest entry.
    last_us: Option<u64>,
    pending: Vec<u8>,
}

impl Times {
    /// Opens or makes them for a file of this length; entries behind it are of lines that were cut.
    pub fn open(path: &Path, file_length: u64, mode: u32) -> io::Result<Self> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(mode).open(path_of(path))?;
        let mut length = file.metadata()?.len() / ENTRY_BYTES * ENTRY_BYTES;
        let mut last_us = None;
        while length > 0 {
            let mut entry = [0; ENTRY_BYTES as usize];
            file.read_exact_at(&mut entry, length - ENTRY_BYTES)?;
            let (offset, time_us) = parse(&entry);
            if offset < file_length {
                last_us = Some(time_us);
                break;
            }
            length -= ENTRY_BYTES;
        }
        file.set_len(length)?;
        Ok(Self { file, length, last_us, pending: Vec::new() })
    }

    /// The line at `offset` is of this time.
    pub fn note(&mut self, offset: u64, time_us: u64) {
        if self.last_us.is_none_or(|last_us| time_us.abs_diff(last_us) >= STEP_US) {
            self.pending.extend_from_slice(&offset.to_le_bytes());
            self.pending.extend_from_slice(&time_us.to_le_bytes());
            self.last_us = Some(time_us);
        }
    }

    /// Writes what was noted.
    pub fn flush(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.pending, self.length)?;
        self.length += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }
}

fn parse(entry: &[u8]) -> (u64, u64) {
    let number =
        |at: usize| entry.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes);
    (number(0), number(8))
}

/// All entries of a file's times, by offset; none where there are no times.
pub fn read(path: &Path) -> Vec<(u64, u64)> {
    let bytes = std::fs::read(path_of(path)).unwrap_or_default();
    bytes.chunks_exact(ENTRY_BYTES as usize).map(parse).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn entries_of_cut_lines_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let mut times = Times::open(&path, 0, 0o640).unwrap();
        for (offset, time_us) in [(0, 1_000_000), (10, 1_000_001), (20, 2_000_000), (30, 3_000_000)] {
            times.note(offset, time_us);
        }
        times.flush().unwrap();
        assert_eq!(read(&path), [(0, 1_000_000), (20, 2_000_000), (30, 3_000_000)]);
        let mut times = Times::open(&path, 30, 0o640).unwrap();
        times.note(30, 4_000_000);
        times.flush().unwrap();
        assert_eq!(read(&path), [(0, 1_000_000), (20, 2_000_000), (30, 4_000_000)]);
    }
}
