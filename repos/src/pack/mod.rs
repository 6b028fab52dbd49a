//! The pack format: writing, scanning, indexing, and gluing packs together.
//!
//! Byte layouts stand beside the code that writes them. A pack is `PACK`, version 2, the number of objects (both
//! big-endian 32 bit), the entries, and the SHA-1 of all that. An entry is a header (see [`entry_header`]), for deltas a
//! reference to the base, and a zlib stream.
//!
//! Deltas are read, kept and passed on, but only resolved where an index has to be made for a pack that has some; that
//! is left to `gix-pack`. New deltas are made where packs are glued together, between versions of the same path.

mod delta;
mod glue;
mod index;
mod install;
mod installed;
mod scan;
mod write;

pub(crate) use glue::{Source, Versions, crc_of, glue, ids};
pub(crate) use index::{IndexEntry, write_index};
pub(crate) use install::{Staged, index_staged};
pub(crate) use installed::{claimed_id, claimed_id_of_file, create_pack_file, index_is_sound, same_bytes};
pub(crate) use scan::{Scanned, ScannedEntry, scan, scan_keeping};
pub(crate) use write::PackWriter;

use crate::reader::ObjectKind;

/// The checksum at the end of a pack.
pub(crate) const TRAILER_BYTES: usize = 20;
/// Magic, version and number of objects.
pub(crate) const HEADER_BYTES: usize = 12;

pub(crate) const OFS_DELTA: u8 = 6;
pub(crate) const REF_DELTA: u8 = 7;

/// The header of a pack of `objects` objects.
pub(crate) fn pack_header(objects: u32) -> [u8; HEADER_BYTES] {
    let mut header = *b"PACK\0\0\0\x02\0\0\0\0";
    header[8..].copy_from_slice(&objects.to_be_bytes());
    header
}

/// The number of a kind in an entry header.
pub(crate) fn kind_number(kind: ObjectKind) -> u8 {
    match kind {
        ObjectKind::Commit => 1,
        ObjectKind::Tree => 2,
        ObjectKind::Blob => 3,
        ObjectKind::Tag => 4,
    }
}

pub(crate) fn kind_of_number(number: u8) -> Option<ObjectKind> {
    Some(match number {
        1 => ObjectKind::Commit,
        2 => ObjectKind::Tree,
        3 => ObjectKind::Blob,
        4 => ObjectKind::Tag,
        _ => return None,
    })
}

/// Appends an entry header: the type in bits 4–6 of the first byte, the unpacked size in its low 4 bits and then 7 bits
/// per byte, least significant first; the top bit says that another byte follows.
pub(crate) fn entry_header(type_number: u8, size_bytes: u64, out: &mut Vec<u8>) {
    let mut rest = size_bytes >> 4;
    let mut byte = (type_number << 4) | (size_bytes & 15) as u8;
    while rest > 0 {
        out.push(byte | 0x80);
        byte = (rest & 0x7f) as u8;
        rest >>= 7;
    }
    out.push(byte);
}

/// Appends the distance from a delta back to its base: 7 bits per byte, most significant first, with one added to
/// every continuation so that no distance has two forms.
pub(crate) fn base_distance(distance: u64, out: &mut Vec<u8>) {
    let mut bytes = [0u8; 10];
    let mut at = bytes.len() - 1;
    let mut rest = distance;
    bytes[at] = (rest & 0x7f) as u8;
    while rest >> 7 > 0 {
        rest = (rest >> 7) - 1;
        at -= 1;
        bytes[at] = 0x80 | (rest & 0x7f) as u8;
    }
    out.extend_from_slice(&bytes[at..]);
}
