//! The index of a pack, version 2.

use std::io::{self, Write};

use crate::Oid;
use crate::oid::PackId;

/// Where an object is in its pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct IndexEntry {
    pub(crate) id: Oid,
    pub(crate) offset: u64,
    pub(crate) crc32: u32,
}

/// Writes an index:
///
/// ```text
/// ff 't' 'O' 'c'  00 00 00 02
/// 256 × u32   how many ids begin with a byte ≤ n
/// n × [u8;20] ids, sorted
/// n × u32     CRC-32 of each entry
/// n × u32     offset, or with the top bit set the position in the next table
/// m × u64     offsets that need more than 31 bits
/// [u8;20]     checksum of the pack
/// [u8;20]     SHA-1 of all of the above
/// ```
pub(crate) fn write_index(out: &mut dyn Write, entries: &mut [IndexEntry], pack: PackId) -> io::Result<()> {
    entries.sort_unstable();
    let mut bytes = Vec::with_capacity(8 + 1024 + entries.len() * 28 + 40);
    bytes.extend_from_slice(b"\xfftOc\0\0\0\x02");
    bytes.extend(fan_out(entries).iter().flat_map(|count| count.to_be_bytes()));
    entries.iter().for_each(|entry| bytes.extend_from_slice(entry.id.as_bytes()));
    entries.iter().for_each(|entry| bytes.extend_from_slice(&entry.crc32.to_be_bytes()));
    let mut far = Vec::new();
    for entry in entries.iter() {
        let near = match u32::try_from(entry.offset) {
            Ok(offset) if offset < 1 << 31 => offset,
            _ => {
                far.push(entry.offset);
                (1 << 31) | (far.len() as u32 - 1)
            }
        };
        bytes.extend_from_slice(&near.to_be_bytes());
    }
    bytes.extend(far.iter().flat_map(|offset| offset.to_be_bytes()));
    bytes.extend_from_slice(pack.0.as_bytes());
    let mut hasher = gix::hash::hasher(gix::hash::Kind::Sha1);
    hasher.update(&bytes);
    let checksum = hasher.try_finalize().map_err(|err| io::Error::other(err.to_string()))?;
    bytes.extend_from_slice(checksum.as_slice());
    out.write_all(&bytes)
}

fn fan_out(sorted: &[IndexEntry]) -> [u32; 256] {
    let mut counts = [0u32; 256];
    sorted.iter().for_each(|entry| counts[usize::from(entry.id.as_bytes()[0])] += 1);
    let mut sum = 0;
    counts.iter_mut().for_each(|count| {
        sum += *count;
        *count = sum;
    });
    counts
}
