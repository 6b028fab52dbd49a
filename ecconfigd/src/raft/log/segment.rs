//! One file of the log.
//!
//! ```text
//!  0  8 bytes  "ECLOGSEG"
//!  8  u32      version (1)
//! 12  u32      CRC32C of bytes 0..12 and 16..32
//! 16  u64      the segment's number, also its file name
//! 24  u64      sequence number of its first record
//! 32           records
//! ```
//!
//! A segment is preallocated, so that a sync writes data and no file sizes. A new one is synced, header and all, before anything relies on it,
//! and only after everything in the one before it: damage is a torn write only at the end of the last segment, anywhere else it is bit rot.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::unistd::{Whence, lseek};

use super::LogError;
use super::record::{self, Bad, Framed};

const MAGIC: &[u8; 8] = b"ECLOGSEG";
const VERSION: u32 = 1;
/// The bytes before the first record.
pub(super) const HEADER_BYTES: u64 = 32;

/// An open segment.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) file: File,
    pub(super) path: PathBuf,
}

/// What a scan found.
pub(super) struct Scan {
    /// The sound records, each with its place in the file.
    pub(super) records: Vec<(u64, Framed)>,
    /// Where the next record goes.
    pub(super) end: u64,
    /// Bytes after `end` that were not zero and are now.
    pub(super) torn_bytes: u64,
    /// The sequence number that the header promises for the first record.
    pub(super) first_sequence: u64,
    /// The sequence number after the last record.
    pub(super) next_sequence: u64,
}

fn header(number: u64, first_sequence: u64) -> [u8; HEADER_BYTES as usize] {
    let mut out = [0; HEADER_BYTES as usize];
    out[..8].copy_from_slice(MAGIC);
    out[8..12].copy_from_slice(&VERSION.to_le_bytes());
    out[16..24].copy_from_slice(&number.to_le_bytes());
    out[24..32].copy_from_slice(&first_sequence.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&out[..12]), &out[16..]);
    out[12..16].copy_from_slice(&crc.to_le_bytes());
    out
}

/// The segments of a directory in order.
pub(super) fn list(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let number = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".seg"));
        if let Some(number) = number.and_then(|number| number.parse().ok()) {
            found.push((number, path));
        }
    }
    found.sort();
    Ok(found)
}

impl Segment {
    /// Makes a segment of (at least) this size and syncs it, the name included.
    pub(super) fn create(dir: &Path, number: u64, first_sequence: u64, bytes: u64) -> io::Result<Segment> {
        let path = dir.join(format!("{number:016}.seg"));
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
        preallocate(&file, bytes)?;
        file.write_all_at(&header(number, first_sequence), 0)?;
        file.sync_all()?;
        File::open(dir)?.sync_all()?;
        Ok(Segment { number, file, path })
    }

    pub(super) fn open(number: u64, path: &Path) -> io::Result<Segment> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Segment { number, file, path: path.to_owned() })
    }

    /// Reads all records. `last`: whether this is the last segment, whose end may be torn; a torn end is cut. `None`: a last segment that was
    /// never completely made, so that nothing can have been acknowledged in it.
    pub(super) fn scan(&self, last: bool) -> Result<Option<Scan>, LogError> {
        let (bytes, used) = self.contents().map_err(|e| self.io("read", e))?;
        let Some(first_sequence) = self.check_header(&bytes, used, last)? else { return Ok(None) };
        let mut next_sequence = first_sequence;
        let mut at = HEADER_BYTES as usize;
        let mut records = Vec::new();
        let bad = loop {
            match record::decode(bytes.get(at..).unwrap_or_default()) {
                Ok(framed) if framed.sequence == next_sequence => {
                    next_sequence += 1;
                    let place = at as u64;
                    at += framed.bytes;
                    records.push((place, framed));
                }
                Ok(_) => break Bad::Damaged,
                Err(bad) => break bad,
            }
        };
        self.check_end(&bytes, at..used, bad, next_sequence, last)?;
        let torn_bytes = if last { self.cut(&bytes, used, at)? } else { 0 };
        Ok(Some(Scan { records, end: at as u64, torn_bytes, first_sequence, next_sequence }))
    }

    /// The whole file, and where its last piece ends that is not all zeros. Most of a segment is room that is not used yet: what the file system
    /// knows to be a hole is not read, other zeros are compared and not copied, so that they cost no memory.
    fn contents(&self) -> io::Result<(Vec<u8>, usize)> {
        const PIECE: usize = 64 << 10;
        static ZEROS: [u8; PIECE] = [0; PIECE];
        let length = usize::try_from(self.file.metadata()?.len()).map_err(io::Error::other)?;
        // Read ahead, the room behind the last record would fill the page cache, megabytes at a time, while others wait for the processor.
        posix_fadvise(&self.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM)?;
        let (mut bytes, mut piece) = (vec![0; length], vec![0; PIECE]);
        let (mut at, mut used) = (0, 0);
        while let Some(begin) = self.next_data(at, length)? {
            let read = self.file.read_at(&mut piece[..PIECE.min(length - begin)], begin as u64)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            at = begin + read;
            if piece[..read] != ZEROS[..read] {
                bytes[begin..at].copy_from_slice(&piece[..read]);
                used = at;
            }
        }
        posix_fadvise(&self.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_NORMAL)?;
        Ok((bytes, used))
    }

    /// The first place from here on that may hold something else than zeros, as far as the file system knows (lseek(2), `SEEK_DATA`).
    fn next_data(&self, at: usize, length: usize) -> io::Result<Option<usize>> {
        let offset = i64::try_from(at).map_err(io::Error::other)?;
        match lseek(&self.file, offset, Whence::SeekData) {
            Ok(found) => Ok(usize::try_from(found).ok().filter(|found| *found < length)),
            Err(Errno::ENXIO) => Ok(None),
            // A file system that does not know.
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) => Ok((at < length).then_some(at)),
            Err(errno) => Err(errno.into()),
        }
    }

    fn check_header(&self, bytes: &[u8], used: usize, last: bool) -> Result<Option<u64>, LogError> {
        let found = bytes.get(..HEADER_BYTES as usize).unwrap_or_default();
        let number = |at: usize| found.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
        if let Some(first_sequence) = number(24) {
            if found == header(self.number, first_sequence) {
                return Ok(Some(first_sequence));
            }
            let version = u32::from_le_bytes([found[8], found[9], found[10], found[11]]);
            let crc = crc32c::crc32c_append(crc32c::crc32c(&found[..12]), &found[16..]);
            if found[..8] == *MAGIC && found[12..16] == crc.to_le_bytes() && version != VERSION {
                return Err(LogError::Version { path: self.path.clone(), version });
            }
        }
        if last && record::highest_synced_in(bytes, HEADER_BYTES as usize..used).is_none() {
            return Ok(None);
        }
        Err(LogError::Rot { path: self.path.clone(), offset: 0, what: "its header is damaged".into() })
    }

    /// Refuses what cannot be a torn write.
    fn check_end(
        &self,
        bytes: &[u8],
        rest: Range<usize>,
        bad: Bad,
        next_sequence: u64,
        last: bool,
    ) -> Result<(), LogError> {
        let offset = rest.start as u64;
        let rot = |what: String| Err(LogError::Rot { path: self.path.clone(), offset, what });
        match bad {
            Bad::Unknown { kind, version } => {
                return Err(LogError::Record { path: self.path.clone(), offset, kind, version });
            }
            Bad::Senseless(what) => return rot(what),
            Bad::End if !last => return Ok(()),
            Bad::Damaged if !last => return rot("a record is damaged and later segments follow".into()),
            Bad::End | Bad::Damaged => {}
        }
        match record::highest_synced_in(bytes, rest) {
            Some(synced) if synced >= next_sequence => {
                rot(format!("record {next_sequence} is damaged although it was synced: later records say so"))
            }
            _ => Ok(()),
        }
    }

    /// Zeroes what is left behind the end, so that it is never taken for records.
    fn cut(&self, bytes: &[u8], used: usize, at: usize) -> Result<u64, LogError> {
        if bytes.len() < at {
            // Only the padding of the last record is missing.
            self.file.set_len(at as u64).map_err(|e| self.io("extend", e))?;
        }
        let tail = bytes.get(at..used).unwrap_or_default();
        let Some(last) = last_nonzero(tail) else { return Ok(0) };
        let torn = last + 1;
        self.file.write_all_at(&vec![0; torn], at as u64).map_err(|e| self.io("cut", e))?;
        self.file.sync_all().map_err(|e| self.io("sync", e))?;
        Ok(torn as u64)
    }

    pub(super) fn io(&self, action: &'static str, source: io::Error) -> LogError {
        LogError::Io { action, path: self.path.clone(), source }
    }
}

fn last_nonzero(bytes: &[u8]) -> Option<usize> {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut end = bytes.len();
    while end >= ZEROS.len() && bytes[end - ZEROS.len()..end] == ZEROS {
        end -= ZEROS.len();
    }
    bytes[..end].iter().rposition(|b| *b != 0)
}

/// Reserves the space, or fails while nothing depends on it.
fn preallocate(file: &File, bytes: u64) -> io::Result<()> {
    let length = i64::try_from(bytes).map_err(io::Error::other)?;
    match nix::fcntl::fallocate(file, nix::fcntl::FallocateFlags::empty(), 0, length) {
        Ok(()) => Ok(()),
        // Some file systems cannot reserve; a sparse file is right there too, only slower.
        Err(Errno::EOPNOTSUPP) => file.set_len(bytes),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Holes are not read, and nothing is taken for one.
        #[test]
        fn what_is_read_is_what_is_there(
            pieces in proptest::collection::vec((0_u64..1_000_000, 1_usize..200_000, any::<u8>()), 0..8),
        ) {
            const ROOM: u64 = 1 << 20;
            let dir = tempfile::tempdir().unwrap();
            let segment = Segment::create(dir.path(), 1, 1, ROOM).unwrap();
            for (at, length, byte) in pieces {
                let length = length.min(usize::try_from(ROOM - at).unwrap());
                segment.file.write_all_at(&vec![byte; length], at).unwrap();
            }
            for synced in [false, true] {
                if synced {
                    segment.file.sync_all().unwrap();
                }
                let whole = std::fs::read(&segment.path).unwrap();
                let (bytes, used) = segment.contents().unwrap();
                prop_assert!(bytes == whole, "synced: {synced}");
                let end = whole.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
                prop_assert!((end..end + (64 << 10)).contains(&used), "{used} of {end}");
            }
        }
    }
}
