//! One pass over a pack as it comes in.
//!
//! Nothing of a pack is believed. The scanner inflates every entry (into nothing), holds it against the limits while the
//! bytes flow, checks the checksum, and remembers where each entry is. What is no delta gets its name here; deltas
//! are only measured, by the sizes they declare, so that resolving them later cannot cost more than was allowed.

use std::collections::HashMap;
use std::io::{Read, Write};

use bytes::Bytes;
use flate2::{Crc, Decompress, FlushDecompress, Status};

use crate::oid::PackId;
use crate::pack::{HEADER_BYTES, OFS_DELTA, REF_DELTA, TRAILER_BYTES, kind_of_number};
use crate::quarantine::PackLimits;
use crate::reader::ObjectKind;
use crate::{Oid, PackError};

/// What a pass found.
#[derive(Debug)]
pub(crate) struct Scanned {
    pub(crate) entries: Vec<ScannedEntry>,
    pub(crate) id: PackId,
    /// Of the whole pack.
    pub(crate) bytes: u64,
    /// What is in the whole ones, if that was asked for.
    pub(crate) kept: Vec<(ObjectKind, Bytes)>,
}

/// An entry of a pack.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ScannedEntry {
    pub(crate) offset: u64,
    pub(crate) crc32: u32,
    pub(crate) what: What,
}

/// What an entry is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum What {
    /// A whole object.
    Whole(Oid),
    /// A delta against an earlier entry.
    OffsetDelta,
    /// A delta against this object, in the pack or not.
    RefDelta(Oid),
}

impl ScannedEntry {
    /// The name of a whole object; a delta's is not known yet.
    pub(crate) fn whole_id(&self) -> Option<Oid> {
        match self.what {
            What::Whole(id) => Some(id),
            What::OffsetDelta | What::RefDelta(_) => None,
        }
    }
}

impl Scanned {
    /// True if the names of some objects are not known yet.
    pub(crate) fn has_deltas(&self) -> bool {
        self.entries.iter().any(|entry| !matches!(entry.what, What::Whole(_)))
    }

    /// True if a delta names its base by id.
    pub(crate) fn has_ref_deltas(&self) -> bool {
        self.entries.iter().any(|entry| matches!(entry.what, What::RefDelta(_)))
    }
}

/// Reads a pack to its end, copying it to `copy` on the way. Bytes after the end are an error.
pub(crate) fn scan(pack: &mut dyn Read, copy: &mut dyn Write, limits: &PackLimits) -> Result<Scanned, PackError> {
    scan_with(pack, copy, limits, None)
}

/// The same without a copy, keeping whole objects in memory: all that the limits let through.
pub(crate) fn scan_keeping(pack: &mut dyn Read, limits: &PackLimits) -> Result<Scanned, PackError> {
    scan_with(pack, &mut std::io::sink(), limits, Some(Vec::new()))
}

fn scan_with(
    pack: &mut dyn Read,
    copy: &mut dyn Write,
    limits: &PackLimits,
    kept: Option<Vec<(ObjectKind, Bytes)>>,
) -> Result<Scanned, PackError> {
    let mut input = Input::new(pack, copy, limits);
    let count = pack_head(&mut input)?;
    over("number of objects", u64::from(count), u64::from(limits.max_objects))?;
    let mut scanner = Scanner {
        limits,
        inflate: Decompress::new(true),
        out: vec![0; 32 << 10],
        unpacked_bytes: 0,
        depths: HashMap::new(),
        kept,
    };
    // The number comes from the sender: no more than the limit is reserved for, and little of it in advance.
    let mut entries = Vec::with_capacity(count.min(64 << 10) as usize);
    for _ in 0..count {
        entries.push(scanner.entry(&mut input)?);
    }
    let (id, bytes) = input.finish()?;
    Ok(Scanned { entries, id, bytes, kept: scanner.kept.unwrap_or_default() })
}

fn over(what: &'static str, value: u64, limit: u64) -> Result<(), PackError> {
    if value > limit { Err(PackError::Limit { what, value, limit }) } else { Ok(()) }
}

fn pack_head(input: &mut Input<'_>) -> Result<u32, PackError> {
    let mut head = [0; HEADER_BYTES];
    for byte in &mut head {
        *byte = input.byte()?;
    }
    if &head[..4] != b"PACK" {
        return Err(PackError::damaged("it does not begin with PACK"));
    }
    let version = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
    if version != 2 {
        return Err(PackError::damaged(format!("version {version} is not supported")));
    }
    Ok(u32::from_be_bytes([head[8], head[9], head[10], head[11]]))
}

struct Scanner<'a> {
    limits: &'a PackLimits,
    inflate: Decompress,
    out: Vec<u8>,
    unpacked_bytes: u64,
    /// How many deltas lie under the entry at an offset; only of entries that are deltas.
    depths: HashMap<u64, u32>,
    /// Whole objects, if they are kept.
    kept: Option<Vec<(ObjectKind, Bytes)>>,
}

impl Scanner<'_> {
    fn entry(&mut self, input: &mut Input<'_>) -> Result<ScannedEntry, PackError> {
        let offset = input.begin_entry()?;
        let (type_number, size) = entry_head(input)?;
        over("size of an object", size, self.limits.max_object_bytes)?;
        let what = match type_number {
            OFS_DELTA => {
                let base = offset
                    .checked_sub(distance(input)?)
                    .filter(|base| *base >= HEADER_BYTES as u64 && *base < offset)
                    .ok_or_else(|| {
                        PackError::damaged(format!("the delta at {offset} has its base outside of the pack"))
                    })?;
                self.deepen(offset, self.depths.get(&base).copied().unwrap_or(0))?;
                self.delta(input, size)?;
                What::OffsetDelta
            }
            REF_DELTA => {
                let mut id = [0; 20];
                for byte in &mut id {
                    *byte = input.byte()?;
                }
                self.deepen(offset, 0)?;
                self.delta(input, size)?;
                What::RefDelta(Oid::from_bytes(id))
            }
            number => match kind_of_number(number) {
                Some(kind) => What::Whole(self.whole(input, kind, size)?),
                None => {
                    return Err(PackError::damaged(format!(
                        "the entry at {offset} has type {number}, which does not exist"
                    )));
                }
            },
        };
        Ok(ScannedEntry { offset, crc32: input.end_entry()?, what })
    }

    fn deepen(&mut self, offset: u64, below: u32) -> Result<(), PackError> {
        over("depth of deltas", u64::from(below) + 1, u64::from(self.limits.max_delta_depth))?;
        self.depths.insert(offset, below + 1);
        Ok(())
    }

    fn whole(&mut self, input: &mut Input<'_>, kind: ObjectKind, size: u64) -> Result<Oid, PackError> {
        let mut hasher = gix::hash::hasher(gix::hash::Kind::Sha1);
        hasher.update(format!("{kind} {size}\0").as_bytes());
        self.account(size)?;
        let mut data = self.kept.as_ref().map(|_| Vec::with_capacity(size as usize));
        self.unpack(input, size, &mut |bytes| {
            hasher.update(bytes);
            if let Some(data) = &mut data {
                data.extend_from_slice(bytes);
            }
        })?;
        if let (Some(kept), Some(data)) = (&mut self.kept, data) {
            kept.push((kind, data.into()));
        }
        hasher.try_finalize().map(Oid::from).map_err(|err| PackError::damaged(err.to_string()))
    }

    /// A delta begins with the sizes of its base and of its result.
    fn delta(&mut self, input: &mut Input<'_>, size: u64) -> Result<(), PackError> {
        let mut head = Vec::with_capacity(20);
        self.unpack(input, size, &mut |bytes| {
            let room = 20usize.saturating_sub(head.len()).min(bytes.len());
            head.extend_from_slice(&bytes[..room]);
        })?;
        let sizes =
            delta_size(&head).and_then(|(base, used)| delta_size(&head[used..]).map(|(result, _)| (base, result)));
        let (base, result) = sizes.ok_or_else(|| PackError::damaged("a delta does not say how large its result is"))?;
        over("size of an object", base.max(result), self.limits.max_object_bytes)?;
        self.account(size)?;
        self.account(result)
    }

    fn account(&mut self, bytes: u64) -> Result<(), PackError> {
        self.unpacked_bytes = self.unpacked_bytes.saturating_add(bytes);
        over("unpacked size", self.unpacked_bytes, self.limits.max_unpacked_bytes)
    }

    fn unpack(&mut self, input: &mut Input<'_>, size: u64, sink: &mut dyn FnMut(&[u8])) -> Result<(), PackError> {
        self.inflate.reset(true);
        loop {
            let (in_before, out_before) = (self.inflate.total_in(), self.inflate.total_out());
            let status =
                self.inflate.decompress(input.available()?, &mut self.out, FlushDecompress::None).map_err(|err| {
                    PackError::damaged(format!("the entry at {} does not unpack: {err}", input.entry_offset))
                })?;
            let (taken, made) = (self.inflate.total_in() - in_before, self.inflate.total_out() - out_before);
            input.take(taken as usize);
            sink(&self.out[..made as usize]);
            let so_far = self.inflate.total_out();
            if so_far > size || (status == Status::StreamEnd && so_far < size) {
                return Err(PackError::damaged(format!(
                    "the entry at {} does not have the size it says",
                    input.entry_offset
                )));
            }
            match status {
                Status::StreamEnd => return Ok(()),
                _ if taken == 0 && made == 0 => {
                    return Err(PackError::damaged(format!("the entry at {} does not unpack", input.entry_offset)));
                }
                _ => {}
            }
        }
    }
}

fn entry_head(input: &mut Input<'_>) -> Result<(u8, u64), PackError> {
    let first = input.byte()?;
    let mut size = u64::from(first & 15);
    let mut shift = 4;
    let mut byte = first;
    while byte & 0x80 != 0 {
        byte = input.byte()?;
        if shift > 56 {
            return Err(PackError::damaged("the size of an entry does not fit"));
        }
        size |= u64::from(byte & 0x7f) << shift;
        shift += 7;
    }
    Ok(((first >> 4) & 7, size))
}

fn distance(input: &mut Input<'_>) -> Result<u64, PackError> {
    let mut byte = input.byte()?;
    let mut value = u64::from(byte & 0x7f);
    while byte & 0x80 != 0 {
        byte = input.byte()?;
        value = value
            .checked_add(1)
            .and_then(|value| value.checked_mul(128))
            .ok_or_else(|| PackError::damaged("the distance to a base does not fit"))?
            | u64::from(byte & 0x7f);
    }
    Ok(value)
}

/// A size at the beginning of a delta: 7 bits per byte, least significant first. Answers how many bytes it took, too.
fn delta_size(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0;
    for (at, byte) in bytes.iter().enumerate().take(9) {
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some((value, at + 1));
        }
    }
    None
}

/// The incoming bytes: buffered, hashed, copied on, counted.
struct Input<'a> {
    pack: &'a mut dyn Read,
    copy: &'a mut dyn Write,
    hasher: gix::hash::Hasher,
    crc: Crc,
    buffer: Vec<u8>,
    /// In `buffer`: up to where bytes went to hasher and copy, up to where they are used, up to where they are valid.
    passed_on: usize,
    used: usize,
    filled: usize,
    /// Of the pack, before `buffer[0]`.
    before_bytes: u64,
    max_bytes: u64,
    entry_offset: u64,
}

impl<'a> Input<'a> {
    fn new(pack: &'a mut dyn Read, copy: &'a mut dyn Write, limits: &PackLimits) -> Self {
        Input {
            pack,
            copy,
            hasher: gix::hash::hasher(gix::hash::Kind::Sha1),
            crc: Crc::new(),
            buffer: vec![0; limits.buffer_len()],
            passed_on: 0,
            used: 0,
            filled: 0,
            before_bytes: 0,
            max_bytes: limits.max_bytes,
            entry_offset: 0,
        }
    }

    fn position(&self) -> u64 {
        self.before_bytes + self.used as u64
    }

    fn byte(&mut self) -> Result<u8, PackError> {
        let byte = self.available()?[0];
        self.used += 1;
        Ok(byte)
    }

    fn take(&mut self, count: usize) {
        self.used += count;
    }

    /// At least one byte, or an error.
    fn available(&mut self) -> Result<&[u8], PackError> {
        if self.used == self.filled && !self.fill()? {
            return Err(PackError::Truncated { received_bytes: self.position() });
        }
        Ok(&self.buffer[self.used..self.filled])
    }

    /// Reads more; false at the end.
    fn fill(&mut self) -> Result<bool, PackError> {
        self.pass_on()?;
        self.before_bytes += self.used as u64;
        (self.passed_on, self.used, self.filled) = (0, 0, 0);
        self.filled = read_some(self.pack, &mut self.buffer)?;
        over("size of the pack", self.before_bytes + self.filled as u64, self.max_bytes)?;
        Ok(self.filled > 0)
    }

    fn pass_on(&mut self) -> Result<(), PackError> {
        let bytes = &self.buffer[self.passed_on..self.used];
        self.hasher.update(bytes);
        self.crc.update(bytes);
        self.copy.write_all(bytes).map_err(|source| PackError::Io { action: "store", source })?;
        self.passed_on = self.used;
        Ok(())
    }

    fn begin_entry(&mut self) -> Result<u64, PackError> {
        self.pass_on()?;
        self.crc.reset();
        self.entry_offset = self.position();
        Ok(self.entry_offset)
    }

    fn end_entry(&mut self) -> Result<u32, PackError> {
        self.pass_on()?;
        Ok(self.crc.sum())
    }

    fn finish(mut self) -> Result<(PackId, u64), PackError> {
        self.pass_on()?;
        let hasher = std::mem::replace(&mut self.hasher, gix::hash::hasher(gix::hash::Kind::Sha1));
        let checksum = hasher.try_finalize().map_err(|err| PackError::damaged(err.to_string()))?;
        let mut trailer = [0; TRAILER_BYTES];
        for byte in &mut trailer {
            *byte = self.byte()?;
        }
        if trailer != checksum.as_slice() {
            return Err(PackError::damaged("its checksum is wrong"));
        }
        self.pass_on()?;
        if self.used < self.filled || read_some(self.pack, &mut [0])? > 0 {
            return Err(PackError::damaged("there are bytes after its end"));
        }
        Ok((PackId(Oid::from_bytes(trailer)), self.position()))
    }
}

fn read_some(from: &mut dyn Read, buffer: &mut [u8]) -> Result<usize, PackError> {
    loop {
        match from.read(buffer) {
            Ok(count) => return Ok(count),
            Err(err) if err.kind() == std::io::ErrorKind::Interrupted => {}
            Err(err) if err.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(0),
            Err(source) => return Err(PackError::Io { action: "receive", source }),
        }
    }
}
