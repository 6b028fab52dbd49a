//! Writing a file of sorted rows from front to back.
//!
//! Blocks go out as they fill, whichever table they belong to; the indexes are kept (0.11 bytes per row) and follow at the end. So
//! writing needs no more memory for a month than for a minute, and never goes back.

use std::io::{self, Write};

use super::block::{BLOCK_ROWS, Coding, write_block, write_ranked_block};
use super::meta::Meta;
use super::{Directory, Kind, TableInfo};
use crate::address::Family;
use crate::key::Key;

/// Prefix lengths with tables of their own beside the addresses.
pub(crate) const LEVELS_V4: [u8; 1] = [24];
/// The same for IPv6, longest first.
pub(crate) const LEVELS_V6: [u8; 2] = [64, 48];

/// Sums of all counts of a file stay below this, so that sums over any of its parts are exact.
const MAX_TOTAL: u128 = 1 << 62;

/// Why a file could not be written.
#[derive(Debug)]
pub(crate) enum WriteError {
    Io(io::Error),
    /// The counts are too large to be summed.
    TooLarge,
}

impl From<io::Error> for WriteError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Counts bytes on their way out.
struct Counted<W> {
    out: W,
    at: u64,
}

impl<W: Write> Counted<W> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.at += bytes.len() as u64;
        Ok(())
    }
}

/// One table under construction.
struct TableBuilder<K> {
    level: u8,
    keys: Vec<K>,
    /// Places of the keys, in a ranked table.
    ranks: Option<Vec<u32>>,
    coding: Coding,
    counts: Vec<i64>,
    firsts: Vec<K>,
    offsets: Vec<u64>,
    maxima: Vec<i64>,
    sums: Vec<i64>,
    rows: u64,
    total: i64,
    scratch: Vec<u8>,
}

impl<K: Key> TableBuilder<K> {
    fn new(level: u8, shape: Shape) -> Self {
        Self {
            level,
            keys: Vec::with_capacity(BLOCK_ROWS),
            ranks: shape.ranked.then(|| Vec::with_capacity(BLOCK_ROWS)),
            coding: shape.coding,
            counts: Vec::with_capacity(BLOCK_ROWS),
            firsts: Vec::new(),
            offsets: Vec::new(),
            maxima: Vec::new(),
            sums: Vec::new(),
            rows: 0,
            total: 0,
            scratch: Vec::new(),
        }
    }

    fn push<W: Write>(&mut self, key: K, count: i64, base: &mut BaseKeys<K>, out: &mut Counted<W>) -> io::Result<()> {
        if self.keys.len() == BLOCK_ROWS {
            self.flush(out)?;
        }
        self.keys.push(key);
        self.counts.push(count);
        match &mut self.ranks {
            Some(ranks) => ranks.push(base.rank(key)),
            None => base.note(key),
        }
        Ok(())
    }

    fn flush<W: Write>(&mut self, out: &mut Counted<W>) -> io::Result<()> {
        let Some(first) = self.keys.first() else { return Ok(()) };
        self.firsts.push(*first);
        self.offsets.push(out.at);
        self.maxima.push(self.counts.iter().copied().max().unwrap_or(0));
        self.sums.push(self.total);
        self.scratch.clear();
        match &mut self.ranks {
            None => write_block(&mut self.scratch, &self.keys, &self.counts, self.coding),
            Some(ranks) => {
                write_ranked_block(&mut self.scratch, ranks, &self.counts, self.coding);
                ranks.clear();
            }
        }
        out.put(&self.scratch)?;
        self.rows += self.keys.len() as u64;
        self.total = self.counts.iter().fold(self.total, |sum, count| sum.wrapping_add(*count));
        self.keys.clear();
        self.counts.clear();
        Ok(())
    }

    /// Writes the index and says where it is.
    fn finish<W: Write>(&mut self, part: u16, out: &mut Counted<W>) -> io::Result<TableInfo> {
        self.flush(out)?;
        let mut index = std::mem::take(&mut self.scratch);
        index.clear();
        self.firsts.iter().for_each(|first| first.write(&mut index));
        let fits = |column: &[i64]| column.iter().all(|value| u32::try_from(*value).is_ok());
        let narrow =
            self.coding == Coding::Planes && u32::try_from(out.at).is_ok() && fits(&self.maxima) && fits(&self.sums);
        let bytes = if narrow { 4 } else { 8 };
        self.offsets.iter().for_each(|offset| index.extend_from_slice(&offset.to_le_bytes()[..bytes]));
        for column in [&self.maxima, &self.sums] {
            column.iter().for_each(|value| index.extend_from_slice(&value.to_le_bytes()[..bytes]));
        }
        index.extend_from_slice(&crc32c::crc32c(&index).to_le_bytes());
        let index_at = out.at;
        out.put(&index)?;
        let family = if K::BITS == 32 { Family::V4 } else { Family::V6 };
        let blocks = self.firsts.len() as u32;
        let (level, ranked, coding) = (self.level, self.ranks.is_some(), self.coding);
        let (rows, total) = (self.rows, self.total);
        Ok(TableInfo { part, family, level, ranked, coding, narrow, blocks, rows, index_at, total })
    }
}

/// How the tables of a part are written.
#[derive(Debug, Clone, Copy)]
struct Shape {
    /// Tables of the prefixes beside that of the addresses.
    levels: bool,
    /// Keys are places in the first part.
    ranked: bool,
    /// Rows with a count of zero are kept: other parts have them.
    zeros: bool,
    coding: Coding,
}

impl Shape {
    fn of(kind: Kind, part: u16, with_levels: bool) -> Self {
        let ranked = kind.is_packed() && part > 0;
        match kind {
            Kind::PackedMonth => Self { levels: true, ranked, zeros: part == 0, coding: Coding::Planes },
            Kind::Packed => Self { levels: part == 0, ranked, zeros: part == 0, coding: Coding::Frames },
            _ => Self { levels: with_levels, ranked, zeros: false, coding: Coding::Frames },
        }
    }
}

/// A level with the row that still grows.
type Level<K> = (TableBuilder<K>, Option<(K, i64)>);

/// The addresses of one family and part with the levels above them.
struct Tower<K> {
    addresses: TableBuilder<K>,
    levels: Vec<Level<K>>,
    last: Option<K>,
    /// Levels have rows with a count of zero.
    zeros: bool,
}

impl<K: Key> Tower<K> {
    fn new(levels: &[u8], shape: Shape, zeros: bool) -> Self {
        let levels = if shape.levels { levels } else { &[] };
        let levels = levels.iter().map(|level| (TableBuilder::new(*level, shape), None)).collect();
        Self { addresses: TableBuilder::new(K::BITS, shape), levels, last: None, zeros }
    }

    fn push<W: Write>(&mut self, key: K, count: i64, base: &mut Dictionary<K>, out: &mut Counted<W>) -> io::Result<()> {
        assert!(self.last.is_none_or(|last| last < key), "rows come in ascending order, {key:?} after {:?}", self.last);
        self.last = Some(key);
        self.addresses.push(key, count, &mut base.addresses, out)?;
        for ((table, open), base) in self.levels.iter_mut().zip(&mut base.levels) {
            let above = key.shift_right(K::BITS - table.level);
            match open {
                Some((at, sum)) if *at == above => *sum = sum.wrapping_add(count),
                _ => {
                    let done = open.replace((above, count));
                    if let Some((at, sum)) = done.filter(|(_, sum)| *sum != 0 || self.zeros) {
                        table.push(at, sum, base, out)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn finish<W: Write>(
        mut self,
        part: u16,
        base: &mut Dictionary<K>,
        out: &mut Counted<W>,
        done: &mut Vec<TableInfo>,
    ) -> io::Result<()> {
        if self.last.is_none() {
            return Ok(());
        }
        done.push(self.addresses.finish(part, out)?);
        for ((table, open), base) in self.levels.iter_mut().zip(&mut base.levels) {
            if let Some((at, sum)) = open.take().filter(|(_, sum)| *sum != 0 || self.zeros) {
                table.push(at, sum, base, out)?;
            }
            done.push(table.finish(part, out)?);
        }
        Ok(())
    }
}

/// The keys of a packed file's first part, which the other parts name by their places.
struct Dictionary<K> {
    addresses: BaseKeys<K>,
    levels: Vec<BaseKeys<K>>,
}

impl<K: Key> Dictionary<K> {
    fn new(kind: Kind, levels: &[u8]) -> Self {
        let keys = |wanted| BaseKeys { wanted, keys: Vec::new(), at: 0 };
        let levels = levels.iter().map(|_| keys(kind == Kind::PackedMonth)).collect();
        Self { addresses: keys(kind.is_packed()), levels }
    }

    fn restart(&mut self) {
        self.addresses.at = 0;
        self.levels.iter_mut().for_each(|level| level.at = 0);
    }
}

/// Keys of a table of the first part. They are held in memory, 4 or 16 bytes each.
struct BaseKeys<K> {
    wanted: bool,
    keys: Vec<K>,
    /// Where the last one was found: those of a part ascend.
    at: usize,
}

impl<K: Key> BaseKeys<K> {
    fn note(&mut self, key: K) {
        if self.wanted {
            self.keys.push(key);
        }
    }

    fn rank(&mut self, key: K) -> u32 {
        self.at += self.keys[self.at..].iter().take_while(|other| **other < key).count();
        assert!(self.keys.get(self.at) == Some(&key), "the first part has every key of the others, {key:?} too");
        self.at as u32
    }
}

/// Writes a file: for each part IPv4 in ascending order, then IPv6. The first part of a packed file is its sum, with every address of the
/// windows or days that follow, even where the counts add up to zero.
pub(crate) struct SegmentWriter<W> {
    out: Counted<W>,
    kind: Kind,
    with_levels: bool,
    part: u16,
    v4: Tower<u32>,
    v6: Tower<u128>,
    base_v4: Dictionary<u32>,
    base_v6: Dictionary<u128>,
    tables: Vec<TableInfo>,
    magnitude: u128,
    /// The largest magnitude of a part that is summed by itself.
    most: u128,
    rows: u64,
}

impl<W: Write> SegmentWriter<W> {
    /// Begins a file. Levels are for files that are asked often; a window of a few thousand rows is rolled up on the fly.
    pub(crate) fn new(out: W, meta: &Meta, with_levels: bool) -> io::Result<Self> {
        let mut out = Counted { out, at: 0 };
        out.put(&super::header(meta))?;
        let kind = meta.kind;
        let (v4, v6) = towers(kind, 0, with_levels);
        let (base_v4, base_v6) = (Dictionary::new(kind, &LEVELS_V4), Dictionary::new(kind, &LEVELS_V6));
        let (tables, part) = (Vec::new(), 0);
        Ok(Self { out, kind, with_levels, part, v4, v6, base_v4, base_v6, tables, magnitude: 0, most: 0, rows: 0 })
    }

    /// True in the part that has rows whose count is zero.
    pub(crate) fn keeps_zeros(&self) -> bool {
        Shape::of(self.kind, self.part, self.with_levels).zeros
    }

    /// Adds a row. Zero counts say nothing and are left out, but for the sums of a packed file.
    pub(crate) fn v4(&mut self, key: u32, count: i64) -> io::Result<()> {
        if count == 0 && !self.keeps_zeros() {
            return Ok(());
        }
        debug_assert!(self.v6.last.is_none(), "IPv4 comes before IPv6");
        self.weigh(count);
        self.v4.push(key, count, &mut self.base_v4, &mut self.out)
    }

    /// The same for IPv6.
    pub(crate) fn v6(&mut self, key: u128, count: i64) -> io::Result<()> {
        if count == 0 && !self.keeps_zeros() {
            return Ok(());
        }
        self.weigh(count);
        self.v6.push(key, count, &mut self.base_v6, &mut self.out)
    }

    fn weigh(&mut self, count: i64) {
        self.magnitude += u128::from(count.unsigned_abs());
        self.rows += 1;
    }

    /// Ends a part; what follows belongs to the next.
    pub(crate) fn end_part(&mut self) -> io::Result<()> {
        let (v4, v6) = towers(self.kind, self.part + 1, self.with_levels);
        std::mem::replace(&mut self.v4, v4).finish(self.part, &mut self.base_v4, &mut self.out, &mut self.tables)?;
        std::mem::replace(&mut self.v6, v6).finish(self.part, &mut self.base_v6, &mut self.out, &mut self.tables)?;
        if self.kind.is_packed() {
            self.most = self.most.max(std::mem::take(&mut self.magnitude));
            self.base_v4.restart();
            self.base_v6.restart();
        }
        self.part += 1;
        Ok(())
    }

    /// Ends the file. Returns the output, the file's length and the number of rows.
    pub(crate) fn finish(mut self) -> Result<(W, u64, u64), WriteError> {
        if self.v4.last.is_some() || self.v6.last.is_some() {
            self.end_part()?;
        }
        if self.magnitude.max(self.most) > MAX_TOTAL {
            return Err(WriteError::TooLarge);
        }
        let footer = Directory { tables: self.tables }.write(self.out.at);
        self.out.put(&footer)?;
        Ok((self.out.out, self.out.at, self.rows))
    }
}

fn towers(kind: Kind, part: u16, with_levels: bool) -> (Tower<u32>, Tower<u128>) {
    let shape = Shape::of(kind, part, with_levels);
    // The levels of a packed day have no other parts.
    let zeros = shape.zeros && kind == Kind::PackedMonth;
    (Tower::new(&LEVELS_V4, shape, zeros), Tower::new(&LEVELS_V6, shape, zeros))
}
