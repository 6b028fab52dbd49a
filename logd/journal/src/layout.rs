//! The files of a journal and their headers, byte by byte.
//!
//! ```text
//! journal            who the journal is           NAME.sub          a subscriber's position
//! SEQUENCE.seg       records, from this one on    tail              how far everything is synced (not durable itself)
//! lock               held by the writer           subscribers.lock  held for a moment by whoever changes subscribers
//!
//! every file but the locks begins with                      segment: then records
//!  0  8 bytes  magic                                         32  u64  its first sequence number, also its name (16 hex digits)
//!  8  u16      byte order 0x0102, little-endian as all       40  u64  the number after the last record of the segment before
//! 10  u16      version (1)                                   48  u64  bytes cut from the end of the segment before, when opening
//! 12  u32      CRC32C of the 64 bytes without this field     56  u64  created, microseconds since 1970
//! 16  16 bytes the journal's UUID
//!
//! journal                        subscriber                                     tail
//! 32  u64  created               32  u64  next: the first number it still needs  32  u64  every record below it is synced
//!                                40  u64  records dropped before it read them    40  u64  the segment it lies in
//!                                48  u64  everything below it has been counted   48  u64  the offset there
//!                                56  u64  changed, microseconds since 1970       56  u64  a hash of the boot id
//! ```
//!
//! Numbers 40 and 32 of a segment differ after an unclean end: numbers that may have been given to records that never reached the disk are not
//! given again.

use std::path::{Path, PathBuf};

use crate::error::{JournalError, Result};
use crate::fs::{Fs, FsFile, read_full_at, write_all_at};
use crate::record::u64_at;

/// The size of every header, in all versions, so that damage and a newer version can be told apart.
const HEADER_BYTES: usize = 64;
/// The bytes before the first record of a segment.
pub(crate) const SEGMENT_HEADER_BYTES: usize = HEADER_BYTES;
const BYTE_ORDER: u16 = 0x0102;
const VERSION: u16 = 1;

pub(crate) const META_FILE: &str = "journal";
pub(crate) const TAIL_FILE: &str = "tail";
pub(crate) const SUBSCRIBERS_LOCK: &str = "subscribers.lock";
pub(crate) const SEGMENT_SUFFIX: &str = ".seg";
pub(crate) const SUBSCRIBER_SUFFIX: &str = ".sub";
pub(crate) const TEMPORARY_SUFFIX: &str = ".tmp";

const META_MAGIC: &[u8; 8] = b"ECJRNDIR";
const SEGMENT_MAGIC: &[u8; 8] = b"ECJRNSEG";
const SUBSCRIBER_MAGIC: &[u8; 8] = b"ECJRNSUB";
const TAIL_MAGIC: &[u8; 8] = b"ECJRNEND";

/// The name of one journal among all that ever were.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// A version 4 UUID of 16 random bytes.
    pub(crate) fn of_random(mut bytes: [u8; 16]) -> Self {
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Self(bytes)
    }
}

impl std::fmt::Display for Uuid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Uuid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

/// Why bytes are no header of the kind that was looked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum BadHeader {
    /// Too short, another magic or a wrong checksum.
    Damaged,
    /// Sound, but not for this build.
    Unknown(String),
}

fn header(magic: &[u8; 8], uuid: Uuid, fields: [u64; 4]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES);
    out.extend_from_slice(magic);
    out.extend_from_slice(&BYTE_ORDER.to_le_bytes());
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&uuid.0);
    for field in fields {
        out.extend_from_slice(&field.to_le_bytes());
    }
    let crc = checksum(&out);
    out[12..16].copy_from_slice(&crc.to_le_bytes());
    out
}

fn checksum(header: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&header[..12]), &header[16..HEADER_BYTES])
}

fn parse(magic: &[u8; 8], bytes: &[u8]) -> Result<(Uuid, [u64; 4]), BadHeader> {
    let Some(bytes) = bytes.get(..HEADER_BYTES).filter(|bytes| bytes[..8] == magic[..]) else {
        return Err(BadHeader::Damaged);
    };
    let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let crc = checksum(bytes);
    if crc.to_be_bytes() == bytes[12..16] && u16_at(8) == BYTE_ORDER.swap_bytes() {
        return Err(BadHeader::Unknown("the byte order of another kind of machine".into()));
    }
    if crc.to_le_bytes() != bytes[12..16] || u16_at(8) != BYTE_ORDER {
        return Err(BadHeader::Damaged);
    }
    if u16_at(10) != VERSION {
        let version = u16_at(10);
        return Err(BadHeader::Unknown(format!(
            "version {version}, this build knows {VERSION}: a newer logd wrote it"
        )));
    }
    let uuid = Uuid(bytes[16..32].try_into().expect("sixteen bytes"));
    Ok((uuid, std::array::from_fn(|i| u64_at(bytes, 32 + 8 * i))))
}

/// The header of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) uuid: Uuid,
    pub(crate) first: u64,
    pub(crate) previous_end: u64,
    pub(crate) cut_bytes: u64,
    pub(crate) created_us: u64,
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> Vec<u8> {
        header(SEGMENT_MAGIC, self.uuid, [self.first, self.previous_end, self.cut_bytes, self.created_us])
    }

    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, BadHeader> {
        let (uuid, [first, previous_end, cut_bytes, created_us]) = parse(SEGMENT_MAGIC, bytes)?;
        Ok(Self { uuid, first, previous_end, cut_bytes, created_us })
    }
}

/// What the records of a segment have XORed into their checksums.
pub(crate) fn salt(uuid: Uuid, first: u64) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&uuid.0), &first.to_le_bytes())
}

pub(crate) fn encode_meta(uuid: Uuid, created_us: u64) -> Vec<u8> {
    header(META_MAGIC, uuid, [created_us, 0, 0, 0])
}

pub(crate) fn parse_meta(bytes: &[u8]) -> Result<(Uuid, u64), BadHeader> {
    parse(META_MAGIC, bytes).map(|(uuid, [created_us, ..])| (uuid, created_us))
}

/// A subscriber's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SubscriberFile {
    pub(crate) next: u64,
    pub(crate) dropped_records: u64,
    pub(crate) counted_to: u64,
    pub(crate) changed_us: u64,
}

impl SubscriberFile {
    pub(crate) fn encode(&self, uuid: Uuid) -> Vec<u8> {
        header(SUBSCRIBER_MAGIC, uuid, [self.next, self.dropped_records, self.counted_to, self.changed_us])
    }

    pub(crate) fn parse(bytes: &[u8]) -> Result<(Uuid, Self), BadHeader> {
        let (uuid, [next, dropped_records, counted_to, changed_us]) = parse(SUBSCRIBER_MAGIC, bytes)?;
        Ok((uuid, Self { next, dropped_records, counted_to, changed_us }))
    }
}

/// A place behind the last synced record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Point {
    /// The number after the last record.
    pub(crate) next: u64,
    /// The segment, by its first number.
    pub(crate) segment: u64,
    pub(crate) offset: u64,
}

pub(crate) fn encode_tail(uuid: Uuid, point: Point, boot: u64) -> Vec<u8> {
    header(TAIL_MAGIC, uuid, [point.next, point.segment, point.offset, boot])
}

pub(crate) fn parse_tail(bytes: &[u8]) -> Result<(Uuid, Point, u64), BadHeader> {
    let (uuid, [next, segment, offset, boot]) = parse(TAIL_MAGIC, bytes)?;
    Ok((uuid, Point { next, segment, offset }, boot))
}

/// What of the boot id goes into the tail file.
pub(crate) fn boot_hash(boot_id: &str) -> u64 {
    let text = boot_id.as_bytes();
    u64::from(crc32c::crc32c(text)) << 32 | u64::from(crc32c::crc32c_append(0x5EED, text))
}

pub(crate) fn segment_path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{first:016x}{SEGMENT_SUFFIX}"))
}

/// The first numbers of the segments in a directory, in order.
pub(crate) fn segments(fs: &dyn Fs, dir: &Path) -> Result<Vec<u64>> {
    let names = fs.list(dir).map_err(JournalError::io("list", dir))?;
    let number = |name: &String| {
        let digits = name.strip_suffix(SEGMENT_SUFFIX).filter(|digits| digits.len() == 16)?;
        u64::from_str_radix(digits, 16).ok()
    };
    let mut found: Vec<u64> = names.iter().filter_map(number).collect();
    found.sort_unstable();
    Ok(found)
}

/// Reads the header of a segment; the inner result is what the bytes say.
pub(crate) fn read_segment_header(
    file: &dyn FsFile,
    path: &Path,
) -> Result<std::result::Result<SegmentHeader, BadHeader>> {
    let mut bytes = [0; SEGMENT_HEADER_BYTES];
    let filled = read_full_at(file, &mut bytes, 0).map_err(JournalError::io("read", path))?;
    Ok(SegmentHeader::parse(&bytes[..filled]))
}

/// A small file in whole; `None` when there is none.
pub(crate) fn read_small(fs: &dyn Fs, path: &Path) -> Result<Option<Vec<u8>>> {
    let file = match fs.open(path, false) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(JournalError::io("open", path)(error)),
    };
    let mut bytes = vec![0; HEADER_BYTES];
    let filled = read_full_at(&*file, &mut bytes, 0).map_err(JournalError::io("read", path))?;
    bytes.truncate(filled);
    Ok(Some(bytes))
}

/// Replaces a small file: the old content or the new one, whatever happens.
pub(crate) fn write_small(fs: &dyn Fs, dir: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let path = dir.join(name);
    let temporary = dir.join(format!(".{name}{TEMPORARY_SUFFIX}"));
    let io = |action| JournalError::io(action, &path);
    // A killed writer's left-over. Nobody else writes it: whoever is here holds the lock.
    match fs.remove(&temporary) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io("replace")(error)),
        _ => {}
    }
    let write = || {
        let file = fs.create_new(&temporary)?;
        write_all_at(&*file, bytes, 0)?;
        file.sync_data()?;
        fs.rename(&temporary, &path)
    };
    if let Err(error) = write() {
        // Best effort: the write's own error is the one worth telling.
        drop(fs.remove(&temporary));
        return Err(io("write")(error));
    }
    fs.sync_dir(dir).map_err(JournalError::io("fsync", dir))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const UUID: Uuid = Uuid(*b"0123456789abcdef");

    #[test]
    fn a_flipped_bit_is_damage_and_a_newer_version_is_said() {
        let header = SegmentHeader { uuid: UUID, first: 5, previous_end: 4, cut_bytes: 3, created_us: 2 };
        let bytes = header.encode();
        assert_eq!(bytes.len(), SEGMENT_HEADER_BYTES);
        assert_eq!(SegmentHeader::parse(&bytes), Ok(header));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(SegmentHeader::parse(&damaged).is_err(), "bit {bit}");
        }
        let sealed = |mut bytes: Vec<u8>, big_endian: bool| {
            let crc = checksum(&bytes);
            bytes[12..16].copy_from_slice(&if big_endian { crc.to_be_bytes() } else { crc.to_le_bytes() });
            bytes
        };
        let mut newer = bytes.clone();
        newer[10] = 2;
        let newer = SegmentHeader::parse(&sealed(newer, false));
        assert!(matches!(newer, Err(BadHeader::Unknown(what)) if what.contains("version 2")));
        let mut swapped = bytes;
        swapped[8..10].reverse();
        let swapped = SegmentHeader::parse(&sealed(swapped, true));
        assert!(matches!(swapped, Err(BadHeader::Unknown(what)) if what.contains("byte order")));
    }

    #[test]
    fn uuids_print_in_the_usual_groups() {
        assert_eq!(UUID.to_string(), "30313233-3435-3637-3839-616263646566");
        assert_eq!(Uuid::of_random([0xFF; 16]).to_string(), "ffffffff-ffff-4fff-bfff-ffffffffffff");
    }
}
