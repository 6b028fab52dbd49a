//! Making deltas between two versions of the same thing.
//!
//! A commit changes a few lines of a file, and one entry in each tree above it: what two versions share is nearly always
//! a beginning and an end. That alone is looked for; it finds most of what there is to save, at the cost of comparing.
//!
//! A delta is the size of its base, the size of its result (7 bits per byte, least significant first), and instructions:
//! `1xxxxxxx` copies from the base (bits 0–3 say which bytes of the offset follow, bits 4–6 which of the size), `0nnnnnnn`
//! inserts the next n bytes.

/// One instruction copies no more, as git does it.
const MAX_COPY_BYTES: usize = 0xffff;
const MAX_INSERT_BYTES: usize = 0x7f;

/// The delta that makes `new` of `base`, if it is at most half as large as `new`.
pub(crate) fn make(base: &[u8], new: &[u8]) -> Option<Vec<u8>> {
    let shared = base.len().min(new.len());
    let head = (0..shared).take_while(|at| base[*at] == new[*at]).count();
    let tail = (0..shared - head).take_while(|at| base[base.len() - 1 - at] == new[new.len() - 1 - at]).count();
    if head + tail < new.len() / 2 {
        return None;
    }
    let mut out = Vec::new();
    size(base.len(), &mut out);
    size(new.len(), &mut out);
    copy(0, head, &mut out);
    for piece in new[head..new.len() - tail].chunks(MAX_INSERT_BYTES) {
        out.push(piece.len() as u8);
        out.extend_from_slice(piece);
    }
    copy(base.len() - tail, tail, &mut out);
    // Offsets have four bytes; and a delta that did not give back what went in would lose it for good.
    (base.len() <= u32::MAX as usize && out.len() <= new.len() / 2 && apply(base, &out).as_deref() == Some(new))
        .then_some(out)
}

fn size(value: usize, out: &mut Vec<u8>) {
    let mut rest = value;
    while rest > 0x7f {
        out.push(0x80 | (rest & 0x7f) as u8);
        rest >>= 7;
    }
    out.push(rest as u8);
}

fn copy(offset: usize, length: usize, out: &mut Vec<u8>) {
    let mut at = 0;
    while at < length {
        let piece = (length - at).min(MAX_COPY_BYTES);
        let instruction = out.len();
        out.push(0x80);
        let numbers = ((offset + at) as u32).to_le_bytes().into_iter().chain((piece as u16).to_le_bytes());
        for (bit, byte) in numbers.enumerate().filter(|(_, byte)| *byte != 0) {
            out[instruction] |= 1 << bit;
            out.push(byte);
        }
        at += piece;
    }
}

/// What a delta of ours makes of `base`.
fn apply(base: &[u8], delta: &[u8]) -> Option<Vec<u8>> {
    let mut rest = delta.iter().copied();
    let mut number = || {
        let mut value = 0usize;
        for shift in (0..63).step_by(7) {
            let byte = rest.next()?;
            value |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    };
    let (base_len, new_len) = (number()?, number()?);
    let mut out = Vec::with_capacity(new_len);
    while let Some(instruction) = rest.next() {
        if instruction & 0x80 == 0 {
            for _ in 0..instruction {
                out.push(rest.next()?);
            }
            continue;
        }
        let mut bytes = [0u8; 6];
        for (bit, byte) in bytes.iter_mut().enumerate() {
            if instruction & (1 << bit) != 0 {
                *byte = rest.next()?;
            }
        }
        let offset = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
        let length = usize::from(u16::from_le_bytes([bytes[4], bytes[5]]));
        out.extend_from_slice(base.get(offset..offset + length)?);
    }
    (base_len == base.len() && new_len == out.len()).then_some(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_has_nothing_in_common_is_left_alone() {
        assert_eq!(make(b"aaaaaaaaaaaaaaaa", b"bbbbbbbbbbbbbbbb"), None);
        assert_eq!(make(b"", b"new"), None);
    }

    #[test]
    fn a_change_in_the_middle_is_small() {
        let base: Vec<u8> = (0..200_000u32).flat_map(u32::to_le_bytes).collect();
        let mut new = base.clone();
        new.splice(300_000..300_010, *b"something else");
        let delta = make(&base, &new).unwrap();
        assert!(delta.len() < 150, "{}", delta.len());
        assert_eq!(apply(&base, &delta).unwrap(), new);
    }

    proptest! {
        #[test]
        fn deltas_give_back_what_went_in(head in prop::collection::vec(any::<u8>(), 0..400), a in prop::collection::vec(any::<u8>(), 0..200), b in prop::collection::vec(any::<u8>(), 0..200), tail in prop::collection::vec(any::<u8>(), 0..400)) {
            let (base, new) = ([head.clone(), a, tail.clone()].concat(), [head, b, tail].concat());
            if let Some(delta) = make(&base, &new) {
                prop_assert_eq!(apply(&base, &delta).unwrap(), new);
            }
        }
    }
}
