//! A block: up to 256 rows of a sorted table.
//!
//! ```text
//! u32 CRC32C of everything after it · u16 bytes of the block · u8 rows − 1
//! frame of the distances between neighbouring keys, minus one (the first key is in the index)
//! varint zigzag of the smallest count · frame of the counts minus the smallest
//! ```
//!
//! In a ranked table a block has no keys but their places in another table: a varint of the first, and a frame of the distances minus
//! one. Of a day's 200,000 addresses a window has every fortieth: their distances are much smaller numbers than those of addresses.
//!
//! In a packed month, counts and places are plane frames instead of frames.
//!
//! The checksum is looked at on every read: it costs less than the unpacking does.

use super::bits::{self, FRAME};
use crate::key::Key;

/// Most rows of a block.
pub(crate) const BLOCK_ROWS: usize = FRAME;

const HEAD: usize = 7;

/// How counts and places are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coding {
    Frames,
    /// Smaller, and half as fast: for what is kept long.
    Planes,
}

impl Coding {
    fn write(self, out: &mut Vec<u8>, values: &[u128]) {
        match self {
            Self::Frames => bits::write_frame(out, values),
            Self::Planes => bits::write_plane_frame(out, values),
        }
    }
}

/// The rows of one block, decoded. Kept and refilled by a cursor.
pub(crate) struct Rows<K> {
    keys: [K; BLOCK_ROWS],
    counts: [i64; BLOCK_ROWS],
    len: usize,
}

impl<K: Key> Default for Rows<K> {
    fn default() -> Self {
        Self { keys: [K::default(); BLOCK_ROWS], counts: [0; BLOCK_ROWS], len: 0 }
    }
}

impl<K: Key> Rows<K> {
    pub(crate) fn keys(&self) -> &[K] {
        &self.keys[..self.len]
    }

    pub(crate) fn counts(&self) -> &[i64] {
        &self.counts[..self.len]
    }

    /// Decodes the block at `at`; none when it is not what was written.
    pub(crate) fn read(&mut self, data: &[u8], at: usize, first: K, coding: Coding) -> Option<()> {
        self.len = 0;
        let (end, rows) = checked(data, at)?;
        let position = bits::read_frame(data, at + HEAD, &mut self.keys[1..rows])?;
        self.keys[0] = first;
        let one = K::from_u128(1);
        let mut key = first;
        for slot in &mut self.keys[1..rows] {
            key = key.wrapping_add(*slot).wrapping_add(one);
            *slot = key;
        }
        self.read_counts(data, position, rows, end, coding)
    }

    /// Decodes a block of a ranked table: its counts, and its places into `ranks`. The keys are for the caller to fill in.
    pub(crate) fn read_ranked(&mut self, data: &[u8], at: usize, ranks: &mut Ranks, coding: Coding) -> Option<()> {
        (self.len, ranks.len) = (0, 0);
        let (end, rows) = checked(data, at)?;
        let mut position = at + HEAD;
        let mut rank = u32::try_from(bits::read_varint(data, &mut position)?).ok()?;
        position = match coding {
            Coding::Frames => bits::read_frame(data, position, &mut ranks.places[1..rows])?,
            Coding::Planes => {
                let mut distances = [0_u64; BLOCK_ROWS];
                let end = bits::read_plane_frame(data, position, &mut distances[1..rows])?;
                ranks.places[1..rows].iter_mut().zip(&distances[1..rows]).for_each(|(slot, far)| *slot = *far as u32);
                end
            }
        };
        ranks.places[0] = rank;
        for slot in &mut ranks.places[1..rows] {
            rank = rank.wrapping_add(*slot).wrapping_add(1);
            *slot = rank;
        }
        ranks.len = rows;
        self.read_counts(data, position, rows, end, coding)
    }

    /// The keys, to be filled in.
    pub(crate) fn keys_mut(&mut self) -> &mut [K] {
        &mut self.keys[..self.len]
    }

    fn read_counts(&mut self, data: &[u8], at: usize, rows: usize, end: usize, coding: Coding) -> Option<()> {
        let mut position = at;
        let smallest = bits::unzigzag(bits::read_varint(data, &mut position)?);
        let mut packed = [0_u64; BLOCK_ROWS];
        let position = match coding {
            Coding::Frames => bits::read_count_frame(data, position, &mut packed[..rows])?,
            Coding::Planes => bits::read_plane_frame(data, position, &mut packed[..rows])?,
        };
        for (count, packed) in self.counts[..rows].iter_mut().zip(&packed) {
            *count = smallest.wrapping_add(*packed as i64);
        }
        self.len = rows;
        (position == end).then_some(())
    }
}

/// The places of a ranked block's rows.
pub(crate) struct Ranks {
    places: [u32; BLOCK_ROWS],
    len: usize,
}

impl Default for Ranks {
    fn default() -> Self {
        Self { places: [0; BLOCK_ROWS], len: 0 }
    }
}

impl Ranks {
    pub(crate) fn places(&self) -> &[u32] {
        &self.places[..self.len]
    }
}

/// The end and the number of rows of the block at `at`, when its checksum is right.
fn checked(data: &[u8], at: usize) -> Option<(usize, usize)> {
    let head = data.get(at..at.checked_add(HEAD)?)?;
    let bytes = usize::from(u16::from_le_bytes([head[4], head[5]]));
    let body = data.get(at + 4..at + bytes)?;
    let stored = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
    (stored == crc32c::crc32c(body)).then_some((at + bytes, usize::from(head[6]) + 1))
}

/// Appends a block of rows with ascending keys to `out`.
pub(crate) fn write_block<K: Key>(out: &mut Vec<u8>, keys: &[K], counts: &[i64], coding: Coding) {
    write_rows(out, None, keys, counts, coding);
}

/// The same for a ranked table.
pub(crate) fn write_ranked_block(out: &mut Vec<u8>, ranks: &[u32], counts: &[i64], coding: Coding) {
    write_rows(out, ranks.first().copied(), ranks, counts, coding);
}

fn write_rows<K: Key>(out: &mut Vec<u8>, first: Option<u32>, keys: &[K], counts: &[i64], coding: Coding) {
    debug_assert!(!keys.is_empty() && keys.len() <= BLOCK_ROWS && keys.len() == counts.len());
    let start = out.len();
    out.extend_from_slice(&[0, 0, 0, 0, 0, 0, (keys.len() - 1) as u8]);
    if let Some(first) = first {
        bits::write_varint(out, u64::from(first));
    }
    let mut values = [0_u128; BLOCK_ROWS];
    for (slot, pair) in values.iter_mut().zip(keys.windows(2)) {
        *slot = pair[1].to_u128() - pair[0].to_u128() - 1;
    }
    // Addresses may need 128 bits, which planes cannot have.
    let of_keys = if first.is_some() { coding } else { Coding::Frames };
    of_keys.write(out, &values[..keys.len() - 1]);
    let smallest = counts.iter().copied().min().unwrap_or(0);
    bits::write_varint(out, bits::zigzag(smallest));
    for (slot, count) in values.iter_mut().zip(counts) {
        *slot = u128::from(count.wrapping_sub(smallest) as u64);
    }
    coding.write(out, &values[..counts.len()]);
    let bytes = out.len() - start;
    // 256 rows of 16 + 8 bytes and two frames stay far below 64 KiB.
    out[start + 4..start + 6].copy_from_slice(&(bytes as u16).to_le_bytes());
    let crc = crc32c::crc32c(&out[start + 4..]);
    out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn a_block_reads_back_and_notices_any_flipped_bit(
            rows in proptest::collection::btree_map(any::<u128>(), any::<i64>(), 1..=BLOCK_ROWS),
            flip in any::<prop::sample::Index>(),
            coding in prop_oneof![Just(Coding::Frames), Just(Coding::Planes)],
        ) {
            let (keys, counts): (Vec<u128>, Vec<i64>) = rows.into_iter().unzip();
            let mut bytes = Vec::new();
            write_block(&mut bytes, &keys, &counts, coding);
            let end = bytes.len();
            bytes.extend([0; bits::SLACK]);
            let mut read = Rows::default();
            read.read(&bytes, 0, keys[0], coding).unwrap();
            prop_assert_eq!(read.keys(), &keys[..]);
            prop_assert_eq!(read.counts(), &counts[..]);
            let bit = flip.index(end * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(read.read(&bytes, 0, keys[0], coding).is_none());
        }

        #[test]
        fn ranks_read_back_and_any_flipped_bit_is_noticed(
            rows in proptest::collection::btree_map(any::<u32>(), -5_i64..1000, 1..=BLOCK_ROWS),
            flip in any::<prop::sample::Index>(),
            coding in prop_oneof![Just(Coding::Frames), Just(Coding::Planes)],
        ) {
            let (ranks, counts): (Vec<u32>, Vec<i64>) = rows.into_iter().unzip();
            let mut bytes = Vec::new();
            write_ranked_block(&mut bytes, &ranks, &counts, coding);
            let end = bytes.len();
            bytes.extend([0; bits::SLACK]);
            let (mut read, mut places) = (Rows::<u128>::default(), Ranks::default());
            read.read_ranked(&bytes, 0, &mut places, coding).unwrap();
            prop_assert_eq!((places.places(), read.counts()), (&ranks[..], &counts[..]));
            let bit = flip.index(end * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(read.read_ranked(&bytes, 0, &mut places, coding).is_none());
        }

        #[test]
        fn narrow_keys_too(rows in proptest::collection::btree_map(any::<u32>(), -5_i64..1000, 1..=BLOCK_ROWS)) {
            let rows: BTreeMap<u32, i64> = rows;
            let (keys, counts): (Vec<u32>, Vec<i64>) = rows.into_iter().unzip();
            let mut bytes = vec![1, 2, 3];
            write_block(&mut bytes, &keys, &counts, Coding::Frames);
            bytes.extend([0; bits::SLACK]);
            let mut read = Rows::default();
            read.read(&bytes, 3, keys[0], Coding::Frames).unwrap();
            prop_assert_eq!(read.keys(), &keys[..]);
            prop_assert_eq!(read.counts(), &counts[..]);
        }
    }
}
