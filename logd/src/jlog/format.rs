//! The bytes of a jlog directory.
//!
//! ```text
//! metastore     u32 number of the segment being written, u32 roll size, u32 safety, u32 magic of the records (may be missing)
//! XXXXXXXX      records:  u32 magic, u32 seconds, u32 microseconds, u32 length, payload
//!               with magic 0x15106Axx (xx: 1 LZ4 block, 0 none) a fifth u32: the length on disk; the fourth is then the length unpacked
//! XXXXXXXX.idx  u64 offsets of the records, a last 0 in a finished segment
//! cp.HEX        u32 segment, u32 marker: the number, from 1, of the last record consumed; 0: none of that segment
//! pre_commit    u32 length, then records that are not in the segment yet
//! ```
//!
//! All in the byte order of the machine that wrote them; the magic tells which. Without checksums, a place is taken for a record when its magic is
//! right, its microseconds are below a million, it ends inside the file, and another record or the end follows, or an overwritten place does.

use std::path::{Path, PathBuf};

use super::OldError;

/// The magic of plain records.
const PLAIN_MAGIC: u32 = 0x663A_7318;
/// The magic of packed records, without its last byte, which says how.
const PACKED_MAGIC: u32 = 0x1510_6A00;
const PROVIDER_NONE: u32 = 0;
const PROVIDER_LZ4: u32 = 1;
/// What a damaged header may make us allocate.
const MAX_UNPACKED_BYTES: usize = 256 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Little,
    Big,
}

impl Order {
    fn u32_at(self, bytes: &[u8], at: usize) -> Option<u32> {
        let four: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
        Some(if self == Order::Little { u32::from_le_bytes(four) } else { u32::from_be_bytes(four) })
    }

    fn u64_at(self, bytes: &[u8], at: usize) -> Option<u64> {
        let eight: [u8; 8] = bytes.get(at..at + 8)?.try_into().ok()?;
        Some(if self == Order::Little { u64::from_le_bytes(eight) } else { u64::from_be_bytes(eight) })
    }
}

/// How records begin in this directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    order: Order,
    magic: u32,
}

impl Header {
    fn is_packed(self) -> bool {
        self.magic & !0xFF == PACKED_MAGIC
    }

    fn bytes(self) -> usize {
        if self.is_packed() { 20 } else { 16 }
    }

    /// The header that these four bytes are the magic of.
    fn known(bytes: &[u8]) -> Option<Self> {
        [Order::Little, Order::Big].into_iter().find_map(|order| {
            let magic = order.u32_at(bytes, 0)?;
            (magic == PLAIN_MAGIC || magic & !0xFF == PACKED_MAGIC).then_some(Self { order, magic })
        })
    }
}

/// A record of an old journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OldRecord {
    /// Where it begins in its segment.
    pub offset: u64,
    /// Microseconds since 1970.
    pub time_us: u64,
    /// Its content, unpacked.
    pub payload: Vec<u8>,
}

/// Bytes that are no records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// The file.
    pub path: PathBuf,
    /// Where they begin.
    pub offset: u64,
    /// How many.
    pub bytes: u64,
}

/// How far a subscriber has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OldCheckpoint {
    /// Its name; what is not UTF-8 as `hex-…`.
    pub name: String,
    /// The segment.
    pub segment: u32,
    /// The last record consumed in it, from 1.
    pub marker: u32,
}

/// A jlog directory.
#[derive(Debug)]
pub struct OldJournal {
    dir: PathBuf,
    header: Header,
    segments: Vec<u32>,
}

/// The records of one segment.
#[derive(Debug, Default)]
pub(crate) struct Segment {
    pub(crate) records: Vec<OldRecord>,
    pub(crate) skipped: Vec<Skipped>,
    pub(crate) length: u64,
}

impl OldJournal {
    /// Looks at a directory.
    pub fn open(dir: &Path) -> Result<Self, OldError> {
        let mut segments = Vec::new();
        let entries = std::fs::read_dir(dir).map_err(OldError::io("list", dir))?;
        let mut others = false;
        for entry in entries {
            let name = entry.map_err(OldError::io("list", dir))?.file_name();
            let name = name.to_string_lossy();
            others |= name == "metastore" || name.starts_with("cp.");
            let plain = name.len() == 8 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            if let Some(number) = plain.then(|| u32::from_str_radix(&name, 16).ok()).flatten() {
                segments.push(number);
            }
        }
        if segments.is_empty() && !others {
            return Err(OldError::NotOld { path: dir.into(), what: "it has no segment, metastore or checkpoint" });
        }
        segments.sort_unstable();
        let mut journal =
            Self { dir: dir.into(), header: Header { order: Order::Little, magic: PLAIN_MAGIC }, segments };
        if let Some(header) = journal.find_header()? {
            journal.header = header;
        }
        Ok(journal)
    }

    /// The segments that are there, oldest first.
    pub fn segments(&self) -> &[u32] {
        &self.segments
    }

    /// The magic as the metastore has it, or as the first records do.
    fn find_header(&self) -> Result<Option<Header>, OldError> {
        let meta = self.read("metastore")?.unwrap_or_default();
        if let Some(header) = meta.get(12..16).and_then(Header::known) {
            return Ok(Some(header));
        }
        for number in &self.segments {
            let bytes = self.read(&segment_name(*number))?.unwrap_or_default();
            // The start of a segment may be what is damaged: look on for the first place that fits.
            let found = (0..bytes.len().saturating_sub(3)).find_map(|at| {
                let header = Header::known(&bytes[at..])?;
                record_at(&bytes, at, header).map(|_| header)
            });
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, OldError> {
        let path = self.dir.join(name);
        match std::fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(OldError::io("read", &path)(error)),
        }
    }

    /// The subscribers by name, and the checkpoint files that cannot be read.
    pub fn checkpoints(&self) -> Result<(Vec<OldCheckpoint>, Vec<PathBuf>), OldError> {
        let (mut found, mut bad) = (Vec::new(), Vec::new());
        for entry in std::fs::read_dir(&self.dir).map_err(OldError::io("list", &self.dir))? {
            let path = entry.map_err(OldError::io("list", &self.dir))?.path();
            let Some(hex) = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix("cp."))
            else {
                continue;
            };
            let Some(name) = name_of_hex(hex) else {
                bad.push(path);
                continue;
            };
            let bytes = std::fs::read(&path).map_err(OldError::io("read", &path))?;
            let order = self.header.order;
            match (order.u32_at(&bytes, 0), order.u32_at(&bytes, 4)) {
                (Some(segment), Some(marker)) => found.push(OldCheckpoint { name, segment, marker }),
                _ => {
                    // Too short to say anything: it needs everything.
                    found.push(OldCheckpoint { name, segment: 0, marker: 0 });
                    bad.push(path);
                }
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok((found, bad))
    }

    pub(crate) fn segment_path(&self, number: u32) -> PathBuf {
        self.dir.join(segment_name(number))
    }

    /// All whole records of a segment. It is read in one piece: jlog's segments are a few MiB.
    pub(crate) fn segment(&self, number: u32) -> Result<Segment, OldError> {
        let name = segment_name(number);
        let mut bytes = self.read(&name)?.unwrap_or_default();
        let length = bytes.len() as u64;
        if Some(&number) == self.segments.last() {
            self.add_pre_commit(&mut bytes)?;
        }
        let mut segment = Segment { length, ..Segment::default() };
        let mut at = 0;
        while at < bytes.len() {
            match record_at(&bytes, at, self.header).filter(|(_, end)| !is_torn(&bytes, at, *end, self.header)) {
                Some((record, end)) => {
                    segment.records.push(record);
                    at = end;
                }
                None => {
                    let end = next_record(&bytes, at + 1, self.header);
                    let bytes = (end - at) as u64;
                    segment.skipped.push(Skipped { path: self.dir.join(&name), offset: at as u64, bytes });
                    at = end;
                }
            }
        }
        Ok(segment)
    }

    /// Records that a writer had finished but not appended. When it died between appending them and saying so, they are at the end already.
    fn add_pre_commit(&self, bytes: &mut Vec<u8>) -> Result<(), OldError> {
        let Some(left) = self.read("pre_commit")? else { return Ok(()) };
        let used = self.header.order.u32_at(&left, 0).unwrap_or(0) as usize;
        let records = &left[4.min(left.len())..(4 + used).min(left.len())];
        if !records.is_empty() && !bytes.ends_with(records) {
            bytes.extend_from_slice(records);
        }
        Ok(())
    }

    /// The offsets in a segment's index; `None` without a usable one.
    pub(crate) fn index(&self, number: u32) -> Result<Option<Vec<u64>>, OldError> {
        let Some(bytes) = self.read(&format!("{}.idx", segment_name(number)))? else { return Ok(None) };
        let mut offsets: Vec<u64> =
            (0..bytes.len() / 8).filter_map(|i| self.header.order.u64_at(&bytes, i * 8)).collect();
        if offsets.len() > 1 && offsets.last() == Some(&0) {
            offsets.pop();
        }
        let rising =
            offsets.first().is_none_or(|first| *first == 0) && offsets.windows(2).all(|pair| pair[0] < pair[1]);
        Ok(rising.then_some(offsets))
    }
}

fn segment_name(number: u32) -> String {
    format!("{number:08x}")
}

fn name_of_hex(hex: &str) -> Option<String> {
    if hex.is_empty() || !hex.len().is_multiple_of(2) || !hex.is_ascii() {
        return None;
    }
    let bytes: Option<Vec<u8>> =
        (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).ok()).collect();
    let printable = |text: &String| !text.chars().any(char::is_control);
    Some(String::from_utf8(bytes?).ok().filter(printable).unwrap_or_else(|| format!("hex-{hex}")))
}

/// The record at a place, and where it ends.
fn record_at(bytes: &[u8], at: usize, header: Header) -> Option<(OldRecord, usize)> {
    let Header { order, magic } = header;
    let found = order.u32_at(bytes, at)?;
    // A journal may change its provider; the rest of the magic stays.
    let (same, packed) =
        if header.is_packed() { (found & !0xFF == PACKED_MAGIC, true) } else { (found == magic, false) };
    let seconds = order.u32_at(bytes, at + 4)?;
    let micros = order.u32_at(bytes, at + 8)?;
    if !same || micros >= 1_000_000 {
        return None;
    }
    let length = order.u32_at(bytes, at + 12)? as usize;
    let on_disk = if packed { order.u32_at(bytes, at + 16)? as usize } else { length };
    let start = at + header.bytes();
    let end = start.checked_add(on_disk)?;
    let raw = bytes.get(start..end)?;
    let payload = if packed { unpack(raw, length, found & 0xFF)? } else { raw.to_vec() };
    let time_us = u64::from(seconds) * 1_000_000 + u64::from(micros);
    Some((OldRecord { offset: at as u64, time_us, payload }, end))
}

fn unpack(raw: &[u8], length: usize, provider: u32) -> Option<Vec<u8>> {
    match provider {
        PROVIDER_NONE => Some(raw.to_vec()),
        PROVIDER_LZ4 if length <= MAX_UNPACKED_BYTES => {
            lz4_flex::block::decompress(raw, length).ok().filter(|payload| payload.len() == length)
        }
        _ => None,
    }
}

/// True for what looks like a record but runs into the next one: a write that stopped, with whole records behind it.
fn is_torn(bytes: &[u8], at: usize, end: usize, header: Header) -> bool {
    let followed = end == bytes.len() || record_at(bytes, end, header).is_some();
    !followed && next_record(bytes, at + 1, header) < end
}

/// The first place at or behind `from` where a record begins. Inside a torn record the payload may hold what looks like one; it counts only when
/// another record, or the end, follows it.
fn next_record(bytes: &[u8], from: usize, header: Header) -> usize {
    (from..bytes.len())
        .find(|at| {
            let followed = |(_, end): (OldRecord, usize)| end == bytes.len() || record_at(bytes, end, header).is_some();
            record_at(bytes, *at, header).is_some_and(followed)
        })
        .or_else(|| (from..bytes.len()).find(|at| record_at(bytes, *at, header).is_some()))
        .unwrap_or(bytes.len())
}
