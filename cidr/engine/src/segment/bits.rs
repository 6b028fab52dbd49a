//! Bits side by side, and numbers packed into the width that most of them need.
//!
//! A frame packs up to 256 numbers: the low `width` bits of all of them, then, for the few that need more, their place and their upper
//! bits. The width is the one that makes the frame smallest. Counts and distances between neighbours are mostly tiny with a few giants
//! among them, so this beats packing by the largest, and it decodes without a branch per number.
//!
//! ```text
//! u8 width · u8 number of exceptions · u8 bits per exception
//! low bits, packed · places of the exceptions, a byte each · their upper bits, packed
//! ```
//!
//! Packed bits are little-endian: number i begins at bit i × width. Readers load whole words, so a file goes on for at least
//! [`SLACK`] bytes after its last frame.
//!
//! A plane frame is for numbers that get rarer as they grow: places of a day's addresses among a month's, counts. It is a Rice code turned
//! on its side. The low `width` bits of all numbers are packed as above. Of what is above them, plane 0 has a bit per number, set where it
//! exceeds 0; plane 1 a bit per number that was set in plane 0, set where it exceeds 1; and so on. What is still left after the last plane
//! is a frame. It takes a tenth more bits than the numbers have information, where a frame takes a third more, and decodes by walking set bits.
//!
//! ```text
//! u8 width · u8 planes · low bits, packed · bits of all planes · a frame of what exceeds the planes, when anything does
//! ```

use crate::key::Key;

/// Most numbers in a frame: a place is a byte.
pub(crate) const FRAME: usize = 256;

/// The widest number that one unaligned load of eight bytes always covers.
pub(crate) const NARROW: u32 = 57;

/// Bytes that must follow the last frame of a file.
pub(crate) const SLACK: usize = 24;

/// Appends packed bits.
struct BitWriter<'a> {
    out: &'a mut Vec<u8>,
    waiting: u128,
    bits: u32,
}

impl<'a> BitWriter<'a> {
    fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out, waiting: 0, bits: 0 }
    }

    fn put(&mut self, value: u128, width: u32) {
        if width > 64 {
            self.put_word(value as u64, 64);
            self.put_word((value >> 64) as u64, width - 64);
        } else {
            self.put_word(value as u64, width);
        }
    }

    fn put_word(&mut self, value: u64, width: u32) {
        self.waiting |= u128::from(value) << self.bits;
        self.bits += width;
        if self.bits >= 64 {
            self.out.extend_from_slice(&(self.waiting as u64).to_le_bytes());
            self.waiting >>= 64;
            self.bits -= 64;
        }
    }

    fn finish(self) {
        let bytes = self.bits.div_ceil(8) as usize;
        self.out.extend_from_slice(&(self.waiting as u64).to_le_bytes()[..bytes]);
    }
}

fn low(value: u128, width: u32) -> u128 {
    if width >= 128 { value } else { value & ((1 << width) - 1) }
}

/// Appends a frame of `values`, at most [`FRAME`] of them.
pub(crate) fn write_frame(out: &mut Vec<u8>, values: &[u128]) {
    debug_assert!(values.len() <= FRAME);
    let (width, exceptions, rest) = best_width(values);
    out.extend_from_slice(&[width as u8, exceptions as u8, rest as u8]);
    let mut packed = BitWriter::new(out);
    for value in values {
        packed.put(low(*value, width), width);
    }
    packed.finish();
    if exceptions == 0 {
        return;
    }
    let wide = || values.iter().enumerate().filter(|(_, value)| low(**value, width) != **value);
    out.extend(wide().map(|(place, _)| place as u8));
    let mut packed = BitWriter::new(out);
    for (_, value) in wide() {
        packed.put(value >> width, rest);
    }
    packed.finish();
}

/// The width with the smallest frame, how many numbers exceed it, and the upper bits that those need.
fn best_width(values: &[u128]) -> (u32, usize, u32) {
    let mut lengths = [0_usize; 129];
    for value in values {
        lengths[(128 - value.leading_zeros()) as usize] += 1;
    }
    let longest = (0..=128).rev().find(|bits| lengths[*bits] > 0).unwrap_or(0);
    let (mut best, mut best_bits) = ((longest as u32, 0, 0), longest * values.len());
    let mut wider = 0;
    for width in (0..longest).rev() {
        wider += lengths[width + 1];
        let bits = width * values.len() + wider * (8 + longest - width);
        if wider < FRAME && bits < best_bits {
            (best, best_bits) = ((width as u32, wider, (longest - width) as u32), bits);
        }
    }
    best
}

/// Reads a frame of `out.len()` numbers at `at`; returns where it ends, or none when it leaves the data.
pub(crate) fn read_frame<K: Key>(data: &[u8], at: usize, out: &mut [K]) -> Option<usize> {
    let (width, at, exceptions) = frame_head(data, at, out.len(), u32::from(K::BITS))?;
    K::unpack(data, at * 8, width, out)?;
    let Some(tail) = exceptions else { return Some(at + packed_bytes(out.len(), width)) };
    let mut upper = [K::default(); FRAME];
    let upper = &mut upper[..tail.count];
    K::unpack(data, tail.upper_at * 8, tail.bits, upper)?;
    for (place, upper) in data.get(tail.places_at..tail.upper_at)?.iter().zip(upper) {
        let value = out.get_mut(usize::from(*place))?;
        *value = K::from_u128(value.to_u128() | upper.to_u128() << width);
    }
    Some(tail.end)
}

/// The same for counts.
pub(crate) fn read_count_frame(data: &[u8], at: usize, out: &mut [u64]) -> Option<usize> {
    let (width, at, exceptions) = frame_head(data, at, out.len(), 64)?;
    unpack_u64(data, at * 8, width, out)?;
    let Some(tail) = exceptions else { return Some(at + packed_bytes(out.len(), width)) };
    let mut upper = [0_u64; FRAME];
    let upper = &mut upper[..tail.count];
    unpack_u64(data, tail.upper_at * 8, tail.bits, upper)?;
    for (place, upper) in data.get(tail.places_at..tail.upper_at)?.iter().zip(upper) {
        *out.get_mut(usize::from(*place))? |= *upper << width;
    }
    Some(tail.end)
}

/// Most planes of a plane frame.
const MAX_PLANES: usize = 8;

/// Appends a plane frame of `values`, at most [`FRAME`] of them, each below 2^64.
pub(crate) fn write_plane_frame(out: &mut Vec<u8>, values: &[u128]) {
    debug_assert!(values.len() <= FRAME);
    let (width, planes) = best_planes(values);
    out.extend_from_slice(&[width as u8, planes as u8]);
    let mut packed = BitWriter::new(out);
    for value in values {
        packed.put(low(*value, width), width);
    }
    packed.finish();
    let mut left: Vec<u128> = values.iter().map(|value| value >> width).collect();
    let mut bits = BitWriter::new(out);
    for plane in 0..planes as u128 {
        left.iter().for_each(|value| bits.put(u128::from(*value > plane), 1));
        left.retain(|value| *value > plane);
    }
    bits.finish();
    if !left.is_empty() {
        left.iter_mut().for_each(|value| *value -= planes as u128);
        write_frame(out, &left);
    }
}

/// The width and the number of planes that make a plane frame smallest, or nearly: widths around the middle number's are looked at.
fn best_planes(values: &[u128]) -> (u32, usize) {
    let mut lengths: Vec<u32> = values.iter().map(|value| 128 - value.leading_zeros()).collect();
    lengths.sort_unstable();
    let middle = lengths.get(lengths.len() / 2).copied().unwrap_or(0);
    let mut best = (u32::MAX as usize, 0, 0);
    for width in middle.saturating_sub(2)..=(middle + 1).min(NARROW) {
        let mut left: Vec<u128> = values.iter().map(|value| value >> width).collect();
        let mut bits = width as usize * values.len();
        for planes in 0..=MAX_PLANES {
            let cost = bits + frame_bits(&left);
            if cost < best.0 {
                best = (cost, width, planes);
            }
            // A set bit costs time when it is read, too: a quarter of a bit for that.
            bits += left.len();
            left.retain(|value| *value > 0);
            bits += left.len() / 4;
            left.iter_mut().for_each(|value| *value -= 1);
        }
    }
    (best.1, best.2)
}

/// Bits of a frame, or of none.
fn frame_bits(values: &[u128]) -> usize {
    if values.is_empty() {
        return 0;
    }
    let (width, exceptions, rest) = best_width(values);
    24 + width as usize * values.len() + exceptions * (8 + rest as usize)
}

/// Reads a plane frame of `out.len()` numbers at `at`; returns where it ends, or none when it leaves the data.
pub(crate) fn read_plane_frame(data: &[u8], at: usize, out: &mut [u64]) -> Option<usize> {
    let head = data.get(at..at + 2)?;
    let (width, planes) = (u32::from(head[0]), usize::from(head[1]));
    if width > NARROW || planes > MAX_PLANES {
        return None;
    }
    unpack_narrow(data, (at + 2) * 8, width, out, |value| value)?;
    let mut bit = (at + 2 + packed_bytes(out.len(), width)) * 8;
    // The places of the numbers that are left; a place never moves to a higher slot.
    let mut left: [u8; FRAME] = std::array::from_fn(|place| place as u8);
    let mut count = out.len();
    for _ in 0..planes {
        let mut kept = 0;
        for from in (0..count).step_by(NARROW as usize) {
            let some = (count - from).min(NARROW as usize);
            let mut word = load_word(data, bit)? & ((1 << some) - 1);
            while word != 0 {
                let place = left[from + word.trailing_zeros() as usize];
                let slot = out.get_mut(usize::from(place))?;
                *slot = slot.wrapping_add(1 << width);
                left[kept] = place;
                kept += 1;
                word &= word - 1;
            }
            bit += some;
        }
        count = kept;
    }
    let end = bit.div_ceil(8);
    if count == 0 {
        return Some(end);
    }
    let mut upper = [0_u64; FRAME];
    let end = read_count_frame(data, end, &mut upper[..count])?;
    for (place, upper) in left[..count].iter().zip(upper) {
        let slot = out.get_mut(usize::from(*place))?;
        *slot = slot.wrapping_add(upper << width);
    }
    Some(end)
}

/// At least [`NARROW`] bits from `bit` on.
#[inline]
fn load_word(data: &[u8], bit: usize) -> Option<u64> {
    let mut word = [0; 8];
    word.copy_from_slice(data.get(bit / 8..bit / 8 + 8)?);
    Some(u64::from_le_bytes(word) >> (bit % 8))
}

struct Tail {
    count: usize,
    bits: u32,
    places_at: usize,
    upper_at: usize,
    end: usize,
}

/// Width, start of the packed bits, and the exceptions when there are any. Widths that no writer chooses are refused.
fn frame_head(data: &[u8], at: usize, numbers: usize, widest: u32) -> Option<(u32, usize, Option<Tail>)> {
    let head = data.get(at..at + 3)?;
    let (width, count, bits) = (u32::from(head[0]), usize::from(head[1]), u32::from(head[2]));
    if width > widest {
        return None;
    }
    let start = at + 3;
    if count == 0 {
        return Some((width, start, None));
    }
    if width + bits > widest || width == widest {
        return None;
    }
    let places_at = start + packed_bytes(numbers, width);
    let upper_at = places_at + count;
    let end = upper_at + packed_bytes(count, bits);
    Some((width, start, Some(Tail { count, bits, places_at, upper_at, end })))
}

const fn packed_bytes(numbers: usize, width: u32) -> usize {
    (numbers * width as usize).div_ceil(8)
}

fn unpack_u64(data: &[u8], bit: usize, width: u32, out: &mut [u64]) -> Option<()> {
    if width <= NARROW {
        return unpack_narrow(data, bit, width, out, |value| value);
    }
    unpack_wide(data, bit, width, out, |value| value as u64)
}

/// Numbers of at most [`NARROW`] bits, one load each.
#[inline]
pub(crate) fn unpack_narrow<T>(
    data: &[u8],
    bit: usize,
    width: u32,
    out: &mut [T],
    make: impl Fn(u64) -> T,
) -> Option<()> {
    if out.is_empty() {
        return Some(());
    }
    let mask = (1_u64 << width) - 1;
    let start = bit / 8;
    let bytes = packed_bytes(out.len(), width);
    let data = data.get(start..start + bytes + 8)?;
    let mut bit = bit % 8;
    for slot in out {
        let at = bit / 8;
        let word = data.get(at..at + 8)?;
        let word = u64::from_le_bytes([word[0], word[1], word[2], word[3], word[4], word[5], word[6], word[7]]);
        *slot = make(word >> (bit % 8) & mask);
        bit += width as usize;
    }
    Some(())
}

/// Numbers of any width up to 128 bits, in two loads.
pub(crate) fn unpack_wide<T>(
    data: &[u8],
    bit: usize,
    width: u32,
    out: &mut [T],
    make: impl Fn(u128) -> T,
) -> Option<()> {
    let load = |bit: usize| -> Option<u128> {
        let mut word = [0; 16];
        word.copy_from_slice(data.get(bit / 8..bit / 8 + 16)?);
        Some(u128::from_le_bytes(word) >> (bit % 8))
    };
    let mut bit = bit;
    for slot in out {
        // After the shift at least 121 bits are good; the second load fills in what lies above 64.
        let lower = load(bit)?;
        let value = if width <= 120 { lower } else { lower & u128::from(u64::MAX) | load(bit + 64)? << 64 };
        *slot = make(low(value, width));
        bit += width as usize;
    }
    Some(())
}

/// Seven bits per byte, lowest first.
pub(crate) fn write_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Reads what [`write_varint`] wrote and moves `at` behind it.
pub(crate) fn read_varint(data: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = *data.get(*at)?;
        *at += 1;
        if shift == 63 && byte > 1 {
            return None;
        }
        value |= u64::from(byte & 0x7F) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// Small negative numbers become small positive ones.
pub(crate) const fn zigzag(value: i64) -> u64 {
    (value << 1 ^ value >> 63) as u64
}

pub(crate) const fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn any_width() -> impl Strategy<Value = u128> {
        (any::<u128>(), 0_u32..128).prop_map(|(value, shift)| value >> shift)
    }

    proptest! {
        #[test]
        fn frames_give_back_what_was_put_in(mut values in proptest::collection::vec(any_width(), 0..=FRAME)) {
            let mut bytes = vec![7, 7];
            write_frame(&mut bytes, &values);
            let end = bytes.len();
            bytes.extend([0xAA; SLACK]);
            let mut read = vec![0_u128; values.len()];
            prop_assert_eq!(read_frame(&bytes, 2, &mut read), Some(end));
            prop_assert_eq!(&read, &values);

            for value in &mut values {
                *value &= u128::from(u64::MAX);
            }
            let mut bytes = Vec::new();
            write_frame(&mut bytes, &values);
            let end = bytes.len();
            bytes.extend([0xAA; SLACK]);
            let mut read = vec![0_u64; values.len()];
            prop_assert_eq!(read_count_frame(&bytes, 0, &mut read), Some(end));
            prop_assert_eq!(read.iter().map(|v| u128::from(*v)).collect::<Vec<_>>(), values);
        }

        #[test]
        fn plane_frames_too(
            values in proptest::collection::vec((any::<u64>(), 0_u32..64, any::<bool>()), 0..=FRAME),
            widest in 0_u32..64,
        ) {
            // Mostly small ones, as in life, and some of any width.
            let value = |(value, shift, any): (u64, u32, bool)| value >> if any { shift } else { shift.max(widest) };
            let values: Vec<u128> = values.into_iter().map(value).map(u128::from).collect();
            let mut bytes = vec![7];
            write_plane_frame(&mut bytes, &values);
            let end = bytes.len();
            bytes.extend([0xAA; SLACK]);
            let mut read = vec![0_u64; values.len()];
            prop_assert_eq!(read_plane_frame(&bytes, 1, &mut read), Some(end));
            prop_assert_eq!(read.iter().map(|v| u128::from(*v)).collect::<Vec<_>>(), values);
        }

        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..400), at in 0_usize..400) {
            let _ = read_frame(&bytes, at, &mut [0_u32; 200]);
            let _ = read_frame(&bytes, at, &mut [0_u128; 200]);
            let _ = read_count_frame(&bytes, at, &mut [0_u64; 200]);
            let _ = read_plane_frame(&bytes, at, &mut [0_u64; 200]);
            let _ = read_varint(&bytes, &mut at.clone());
        }

        #[test]
        fn varints_and_zigzag(value in any::<i64>()) {
            let mut bytes = Vec::new();
            write_varint(&mut bytes, zigzag(value));
            let mut at = 0;
            prop_assert_eq!(read_varint(&bytes, &mut at).map(unzigzag), Some(value));
            prop_assert_eq!(at, bytes.len());
        }
    }

    #[test]
    fn planes_take_little_more_than_the_numbers_say() {
        // Distances with a mean of eight, as an address of a month is there every eighth day: 4.35 bits each, of a perfect code.
        let mut state = 1_u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40).is_multiple_of(8)
        };
        let mut next = || (0..).take_while(|_| !random()).count() as u128;
        let (mut planes, mut frames) = (Vec::new(), Vec::new());
        for _ in 0..100 {
            let values: Vec<u128> = (0..256).map(|_| next()).collect();
            write_plane_frame(&mut planes, &values);
            write_frame(&mut frames, &values);
        }
        let bits = |bytes: &[u8]| bytes.len() as f64 * 8.0 / 25_600.0;
        assert!(bits(&planes) < 4.75 && bits(&planes) + 0.4 < bits(&frames), "{} {}", bits(&planes), bits(&frames));
    }

    #[test]
    fn one_giant_does_not_widen_its_neighbours() {
        let mut values = vec![1_u128; 256];
        values[17] = u128::from(u32::MAX);
        let mut bytes = Vec::new();
        write_frame(&mut bytes, &values);
        assert!(bytes.len() <= 3 + 32 + 1 + 4, "{} bytes", bytes.len());
    }
}
