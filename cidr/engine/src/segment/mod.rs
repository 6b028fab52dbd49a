//! Files of sorted rows: the format, its writer and its reader. (docs/formats.md has the picture.)
//!
//! A file is immutable. Each table is sorted by key and cut into blocks; the index has for each block its first key, place, maximum and
//! the sum of all before it. So a sum over any range touches two blocks, and the largest counts are found without reading the small ones.

pub(crate) mod bits;
mod block;
mod meta;
mod reader;
mod writer;

pub(crate) use block::{Coding, Ranks, Rows};
pub use meta::Kind;
pub(crate) use meta::{Meta, Part, read_text, write_text};
pub(crate) use reader::{Bases, Segment, Table, TableKey};
pub(crate) use writer::{LEVELS_V4, LEVELS_V6, SegmentWriter, WriteError};

use crate::address::Family;

/// The newest version that this build reads. A packed day is version 2 and a packed month version 3; everything else is written as
/// version 1, which it still is.
pub(crate) const VERSION: u32 = 3;

pub(crate) const MAGIC: &[u8; 8] = b"ECCIDRSG";
const END_MAGIC: &[u8; 8] = b"ECCIDREN";

/// Bytes after the directory: its place, its length, its checksum, the closing magic.
const FOOTER: usize = 24;

// The index and the footer follow the last block.
const _: () = assert!(FOOTER >= bits::SLACK, "frames are read by whole words");

/// One entry of the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TableInfo {
    pub(crate) part: u16,
    pub(crate) family: Family,
    /// Length of the prefixes that are its keys.
    pub(crate) level: u8,
    /// Its blocks have places in the first part's table of addresses instead of addresses.
    pub(crate) ranked: bool,
    /// How its blocks are packed.
    pub(crate) coding: Coding,
    /// Places, maxima and sums of its index have four bytes instead of eight.
    pub(crate) narrow: bool,
    pub(crate) blocks: u32,
    pub(crate) rows: u64,
    pub(crate) index_at: u64,
    /// The sum of all counts.
    pub(crate) total: i64,
}

impl TableInfo {
    /// Bytes of a place, maximum or sum in its index.
    fn word_bytes(&self) -> usize {
        if self.narrow { 4 } else { 8 }
    }
}

/// Bytes of a directory entry.
const ENTRY: usize = 32;

/// Beside the family of a table that is ranked, whose blocks are plane frames, whose index is narrow.
const RANKED: u8 = 0x80;
const PLANES: u8 = 0x40;
const NARROW_INDEX: u8 = 0x20;

/// The tables of a file.
struct Directory {
    tables: Vec<TableInfo>,
}

impl Directory {
    /// The directory and the footer, for a file of which `at` bytes are written.
    fn write(&self, at: u64) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.tables.len() * ENTRY + FOOTER);
        for table in &self.tables {
            out.extend_from_slice(&table.part.to_le_bytes());
            let family = if table.family == Family::V4 { 4 } else { 6 };
            let planes = table.coding == Coding::Planes;
            let flags = [(table.ranked, RANKED), (planes, PLANES), (table.narrow, NARROW_INDEX)];
            let flags = flags.iter().filter(|(set, _)| *set).fold(0, |flags, (_, flag)| flags | flag);
            out.extend_from_slice(&[family | flags, table.level]);
            out.extend_from_slice(&table.blocks.to_le_bytes());
            out.extend_from_slice(&table.rows.to_le_bytes());
            out.extend_from_slice(&table.index_at.to_le_bytes());
            out.extend_from_slice(&table.total.to_le_bytes());
        }
        let length = out.len() as u32;
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&at.to_le_bytes());
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(END_MAGIC);
        out
    }

    /// Reads the directory of a whole file.
    fn read(data: &[u8]) -> Option<Self> {
        let footer = data.get(data.len().checked_sub(FOOTER)?..)?;
        if &footer[16..] != END_MAGIC {
            return None;
        }
        let at = usize::try_from(u64_at(footer, 0)?).ok()?;
        let length = u32_at(footer, 8)? as usize;
        let bytes = data.get(at..at.checked_add(length)?)?;
        if at + length + FOOTER != data.len() || crc32c::crc32c(bytes) != u32_at(footer, 12)? {
            return None;
        }
        let mut tables = Vec::with_capacity(length / ENTRY);
        for entry in bytes.chunks(ENTRY) {
            let has = |flag| entry[2] & flag != 0;
            let family = match entry.get(2)? & !(RANKED | PLANES | NARROW_INDEX) {
                4 => Family::V4,
                6 => Family::V6,
                _ => return None,
            };
            tables.push(TableInfo {
                part: u16::from_le_bytes([entry[0], entry[1]]),
                family,
                level: *entry.get(3).filter(|level| **level <= family.bits())?,
                ranked: has(RANKED),
                coding: if has(PLANES) { Coding::Planes } else { Coding::Frames },
                narrow: has(NARROW_INDEX),
                blocks: u32_at(entry, 4)?,
                rows: u64_at(entry, 8)?,
                index_at: u64_at(entry, 16)?,
                total: u64_at(entry, 24)? as i64,
            });
        }
        Some(Self { tables })
    }
}

/// Magic, version, length of the meta, the meta, and a checksum of it all.
fn header(meta: &Meta) -> Vec<u8> {
    let mut body = Vec::new();
    meta.write(&mut body);
    let mut out = Vec::with_capacity(body.len() + 20);
    out.extend_from_slice(MAGIC);
    let version: u32 = match meta.kind {
        Kind::PackedMonth => 3,
        Kind::Packed => 2,
        _ => 1,
    };
    out.extend_from_slice(&version.to_le_bytes());
    out.extend_from_slice(&(body.len() as u32).to_le_bytes());
    out.extend_from_slice(&body);
    out.extend_from_slice(&crc32c::crc32c(&out).to_le_bytes());
    out
}

/// What the beginning of a file says.
enum Header {
    Meta(Box<Meta>),
    /// Ours, but of another build.
    Version(u32),
    Damaged,
}

fn read_header(data: &[u8]) -> Header {
    let parse = || {
        if data.get(..8)? != MAGIC {
            return None;
        }
        let version = u32_at(data, 8)?;
        if !(1..=VERSION).contains(&version) {
            return Some(Header::Version(version));
        }
        let end = 16_usize.checked_add(u32_at(data, 12)? as usize)?;
        let mut at = 16;
        if crc32c::crc32c(data.get(..end)?) != u32_at(data, end)? {
            return None;
        }
        Meta::read(&data[..end], &mut at).map(|meta| Header::Meta(Box::new(meta)))
    };
    parse().unwrap_or(Header::Damaged)
}

pub(crate) fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    let bytes = data.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

pub(crate) fn u64_at(data: &[u8], at: usize) -> Option<u64> {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(data.get(at..at.checked_add(8)?)?);
    Some(u64::from_le_bytes(bytes))
}
