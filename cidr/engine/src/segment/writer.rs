//! Writing a file of sorted rows from front to back.
//!
//! Blocks go out as they fill, whichever table they belong to; the indexes are kept (0.11 bytes per row) and follow at the end. So
//! writing needs no more memory for a month than for a minute, and never goes back.

use std::io::{self, Write};

use super::block::{BLOCK_ROWS, write_block, write_ranked_block};
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
    fn new(level: u8) -> Self {
        Self {
            level,
            keys: Vec::with_capacity(BLOCK_ROWS),
            ranks: None,
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

    fn push<W: Write>(&mut self, key: K, count: i64, out: &mut Counted<W>) -> io::Result<()> {
        if self.keys.len() == BLOCK_ROWS {
            self.flush(out)?;
        }
        self.keys.push(key);
        self.counts.push(count);
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
            None => write_block(&mut self.scratch, &self.keys, &self.counts),
            Some(ranks) => {
                write_ranked_block(&mut self.scratch, ranks, &self.counts);
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
        self.offsets.iter().for_each(|offset| index.extend_from_slice(&offset.to_le_bytes()));
        for column in [&self.maxima, &self.sums] {
            column.iter().for_each(|value| index.extend_from_slice(&value.to_le_bytes()));
        }
        index.extend_from_slice(&crc32c::crc32c(&index).to_le_bytes());
        let index_at = out.at;
        out.put(&index)?;
        let family = if K::BITS == 32 { Family::V4 } else { Family::V6 };
        let blocks = self.firsts.len() as u32;
        let (level, ranked) = (self.level, self.ranks.is_some());
        Ok(TableInfo { part, family, level, ranked, blocks, rows: self.rows, index_at, total: self.total })
    }
}

/// A level with the row that still grows.
type Level<K> = (TableBuilder<K>, Option<(K, i64)>);

/// The addresses of one family and part with the levels above them.
struct Tower<K> {
    addresses: TableBuilder<K>,
    levels: Vec<Level<K>>,
    last: Option<K>,
}

impl<K: Key> Tower<K> {
    fn new(levels: &[u8]) -> Self {
        let levels = levels.iter().map(|level| (TableBuilder::new(*level), None)).collect();
        Self { addresses: TableBuilder::new(K::BITS), levels, last: None }
    }

    /// Without levels, and ranked.
    fn ranked() -> Self {
        let mut tower = Self::new(&[]);
        tower.addresses.ranks = Some(Vec::with_capacity(BLOCK_ROWS));
        tower
    }

    fn push<W: Write>(&mut self, key: K, count: i64, base: &mut BaseKeys<K>, out: &mut Counted<W>) -> io::Result<()> {
        assert!(self.last.is_none_or(|last| last < key), "rows come in ascending order, {key:?} after {:?}", self.last);
        self.last = Some(key);
        self.addresses.push(key, count, out)?;
        match &mut self.addresses.ranks {
            Some(ranks) => ranks.push(base.rank(key)),
            None => base.note(key),
        }
        for (table, open) in &mut self.levels {
            let above = key.shift_right(K::BITS - table.level);
            match open {
                Some((at, sum)) if *at == above => *sum = sum.wrapping_add(count),
                _ => {
                    if let Some((at, sum)) = open.replace((above, count)).filter(|(_, sum)| *sum != 0) {
                        table.push(at, sum, out)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn finish<W: Write>(mut self, part: u16, out: &mut Counted<W>, done: &mut Vec<TableInfo>) -> io::Result<()> {
        if self.last.is_none() {
            return Ok(());
        }
        done.push(self.addresses.finish(part, out)?);
        for (table, open) in &mut self.levels {
            if let Some((at, sum)) = open.take().filter(|(_, sum)| *sum != 0) {
                table.push(at, sum, out)?;
            }
            done.push(table.finish(part, out)?);
        }
        Ok(())
    }
}

/// The addresses of a packed day's first part, which its windows name by their places. They are held in memory, 4 or 16 bytes each.
#[derive(Default)]
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
        assert!(self.keys.get(self.at) == Some(&key), "the first part has every address of the others, {key:?} too");
        self.at as u32
    }
}

/// Writes a file: for each part IPv4 in ascending order, then IPv6. The first part of a packed day is its sum, with every address of the
/// windows that follow, even where the counts add up to zero.
pub(crate) struct SegmentWriter<W> {
    out: Counted<W>,
    with_levels: bool,
    part: u16,
    v4: Tower<u32>,
    v6: Tower<u128>,
    packed: bool,
    base_v4: BaseKeys<u32>,
    base_v6: BaseKeys<u128>,
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
        let (v4, v6) = towers(with_levels);
        let packed = meta.kind == Kind::Packed;
        let base_v4 = BaseKeys { wanted: packed, ..BaseKeys::default() };
        let base_v6 = BaseKeys { wanted: packed, ..BaseKeys::default() };
        let (tables, part) = (Vec::new(), 0);
        Ok(Self { out, with_levels, part, v4, v6, packed, base_v4, base_v6, tables, magnitude: 0, most: 0, rows: 0 })
    }

    /// True in the part that has rows whose count is zero.
    pub(crate) fn keeps_zeros(&self) -> bool {
        self.packed && self.part == 0
    }

    /// Adds a row. Zero counts say nothing and are left out, but for the sums of a packed day.
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
        let (v4, v6) = if self.packed { (Tower::ranked(), Tower::ranked()) } else { towers(self.with_levels) };
        if self.packed {
            self.most = self.most.max(std::mem::take(&mut self.magnitude));
            (self.base_v4.at, self.base_v6.at) = (0, 0);
        }
        std::mem::replace(&mut self.v4, v4).finish(self.part, &mut self.out, &mut self.tables)?;
        std::mem::replace(&mut self.v6, v6).finish(self.part, &mut self.out, &mut self.tables)?;
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

fn towers(with_levels: bool) -> (Tower<u32>, Tower<u128>) {
    if with_levels { (Tower::new(&LEVELS_V4), Tower::new(&LEVELS_V6)) } else { (Tower::new(&[]), Tower::new(&[])) }
}
