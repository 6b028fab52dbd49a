//! From open sources to rows: sums without walking, walks that skip what cannot matter, and roll-ups to any prefix length.

use std::rc::Rc;
use std::sync::Arc;

use super::QueryError;
use crate::address::Block;
use crate::merge::{Cursor, Merge, Summer, cursor_bytes};
use crate::segment::{Bases, LEVELS_V4, LEVELS_V6, Segment, Table, TableKey};
use crate::store::build_in_memory;
use crate::work::Work;

/// An open source and the part of it that counts.
pub(crate) type Part = (Arc<Segment>, u16);

/// More sources of a column than this are first merged in memory: a cursor holds up to 7 KiB.
const SIDE_BY_SIDE: usize = 256;

/// Merges address tables of all sources as one column, over everything.
pub(crate) fn merge_all<'a, K: TableKey>(sources: &[Part], work: &'a Work<'a>) -> crate::error::Result<Merge<'a, K>> {
    let all = vec![(K::default(), K::from_u128(u128::MAX))];
    merge_ranges(sources, all, work)
}

fn merge_ranges<'a, K: TableKey>(
    sources: &[Part],
    ranges: Vec<(K, K)>,
    work: &'a Work<'a>,
) -> crate::error::Result<Merge<'a, K>> {
    let (bases, tables) = (Rc::default(), sources.iter());
    let tables = tables.filter_map(|(segment, part)| segment.table::<K>(*part, K::BITS));
    Merge::new(tables.map(|table| (Cursor::new(table, K::BITS, &bases, work), 0)).collect(), ranges)
}

/// The sources of all columns, for blocks of one family.
pub(crate) struct Sources<'a, K> {
    /// Per column.
    columns: Vec<Vec<Part>>,
    /// Addresses that count, ascending.
    ranges: Vec<(K, K)>,
    work: &'a Work<'a>,
    /// Memory of what was merged for this query, and of its cursors.
    held_bytes: usize,
}

impl<K> Drop for Sources<'_, K> {
    fn drop(&mut self) {
        self.work.give_back(self.held_bytes);
    }
}

impl<'a, K: TableKey> Sources<'a, K> {
    pub(crate) fn new(columns: Vec<Vec<Part>>, block: Block, exclude: &[Block], work: &'a Work<'a>) -> Self {
        Self { columns, ranges: ranges_of(block, exclude), work, held_bytes: 0 }
    }

    pub(crate) fn columns(&self) -> usize {
        self.columns.len()
    }

    pub(crate) fn work(&self) -> &'a Work<'a> {
        self.work
    }

    /// The shortest stored level that serves rows of `length` bits without cutting through an excluded block.
    pub(crate) fn level_for(&self, length: u8) -> u8 {
        let levels: &[u8] = if K::BITS == 32 { &LEVELS_V4 } else { &LEVELS_V6 };
        let fits = |level: &&u8| {
            let host = (1_u128 << (K::BITS - **level)) - 1;
            let whole = |(first, last): &(K, K)| first.to_u128() & host == 0 && last.to_u128() & host == host;
            **level >= length && self.ranges.iter().all(whole)
        };
        levels.iter().filter(fits).min().copied().unwrap_or(K::BITS)
    }

    /// The asked ranges as keys of a level, cut to a block.
    pub(crate) fn ranges_at(&self, level: u8, first: K, last: K) -> Vec<(K, K)> {
        let cut = self.ranges.iter().filter(|range| range.0 <= last && range.1 >= first);
        let shift = K::BITS - level;
        cut.map(|range| (range.0.max(first).shift_right(shift), range.1.min(last).shift_right(shift))).collect()
    }

    /// First and last address that count; none when everything is excluded.
    pub(crate) fn bounds(&self) -> Option<(K, K)> {
        Some((self.ranges.first()?.0, self.ranges.last()?.1))
    }

    /// The sums of all addresses from `first` to `last`, per column. A summer that was used before knows places that may be asked again.
    pub(crate) fn sum(
        &self,
        summer: &mut Summer<'a, K>,
        first: K,
        last: K,
        sums: &mut [i64],
    ) -> Result<(), QueryError> {
        sums.fill(0);
        let level = self.level_for_range(first, last);
        for (column, sources) in self.columns.iter().enumerate() {
            for (segment, part) in sources {
                let (table, level) = match segment.table::<K>(*part, level) {
                    Some(table) => (table, level),
                    None => match segment.table::<K>(*part, K::BITS) {
                        Some(table) => (table, K::BITS),
                        None => continue,
                    },
                };
                for (first, last) in self.ranges_at(level, first, last) {
                    sums[column] = sums[column].saturating_add(summer.sum(&table, first, last)?);
                }
            }
        }
        Ok(())
    }

    fn level_for_range(&self, first: K, last: K) -> u8 {
        let span = first.to_u128() ^ last.to_u128();
        let aligned = (128 - span.leading_zeros()) as u8;
        self.level_for(K::BITS - aligned.min(K::BITS))
    }

    /// Merges sources in memory where there are too many of them for walking side by side, or, with `exactly`, where they have no table of
    /// that level.
    pub(crate) fn prepare(&mut self, exactly: Option<u8>) -> Result<(), QueryError> {
        for column in 0..self.columns.len() {
            if let Some(level) = exactly {
                let has = |part: &Part| part.0.table::<K>(part.1, level).is_some();
                let (ready, lacking): (Vec<_>, Vec<_>) = std::mem::take(&mut self.columns[column])
                    .into_iter()
                    .filter(|part| part.0.table::<K>(part.1, K::BITS).is_some())
                    .partition(has);
                self.columns[column] = ready;
                if !lacking.is_empty() {
                    let folded = self.fold(lacking)?;
                    self.columns[column].push((folded, 0));
                }
            }
            if self.columns[column].len() > SIDE_BY_SIDE {
                let all = std::mem::take(&mut self.columns[column]);
                let folded = self.fold(all)?;
                self.columns[column].push((folded, 0));
            }
        }
        let all = || self.columns.iter().flatten();
        let ranked = all().any(|(segment, part)| *part > 0 && segment.meta().kind.is_packed());
        let walk_bytes = all().count() * cursor_bytes::<K>() + if ranked { Bases::<K>::bytes() } else { 0 };
        self.take(walk_bytes)?;
        self.held_bytes += walk_bytes;
        Ok(())
    }

    /// The sum of many sources as one in memory.
    fn fold(&mut self, mut sources: Vec<Part>) -> Result<Arc<Segment>, QueryError> {
        loop {
            let rest = sources.split_off(sources.len().min(SIDE_BY_SIDE));
            let folded = self.fold_few(&sources)?;
            if rest.is_empty() {
                return Ok(folded);
            }
            sources = rest;
            sources.push((folded, 0));
        }
    }

    fn fold_few(&mut self, sources: &[Part]) -> Result<Arc<Segment>, QueryError> {
        // What is merged is at most as large as what it is merged from; a buffer that grows needs twice that for a moment.
        let guess = sources.iter().map(|(segment, _)| segment.len()).sum::<usize>() * 2;
        let guess = guess.min(self.work.left() / 2).max(1 << 12);
        self.take(guess)?;
        let (work, ranges) = (self.work, self.ranges.clone());
        let meta = crate::store::memory_meta();
        let folded = build_in_memory(&meta, |file| {
            let io = |source| crate::error::Error::Io { action: "write", path: "(memory)".into(), source };
            let mut merge = merge_ranges::<K>(sources, ranges, work)?;
            let mut count = [0];
            while let Some(key) = merge.next(&mut count)? {
                match K::BITS {
                    32 => file.v4(key.to_u128() as u32, count[0]).map_err(io)?,
                    _ => file.v6(key.to_u128(), count[0]).map_err(io)?,
                }
            }
            Ok(())
        })?;
        self.work.give_back(guess);
        self.take(folded.len())?;
        self.held_bytes += folded.len();
        Ok(folded)
    }

    fn take(&self, bytes: usize) -> Result<(), QueryError> {
        self.work.take(bytes).map_err(|_| QueryError::Memory { limit_bytes: self.work.limit() })
    }

    /// All tables with their columns, at a level or, where there is none, the addresses.
    fn tables(&self, level: u8) -> Vec<(Table<K>, usize)> {
        let columns = self.columns.iter().enumerate();
        let parts = columns.flat_map(|(column, parts)| parts.iter().map(move |part| (part, column)));
        let table = |segment: &Arc<Segment>, part| {
            segment.table::<K>(part, level).or_else(|| segment.table::<K>(part, K::BITS))
        };
        parts.filter_map(|((segment, part), column)| Some((table(segment, *part)?, column))).collect()
    }

    /// A walk over keys of `level`, which [`level_for`](Self::level_for) gave.
    pub(crate) fn walk(&self, level: u8, ranges: Vec<(K, K)>) -> Result<Merge<'a, K>, QueryError> {
        let (bases, tables) = (Rc::default(), self.tables(level));
        let cursors = tables.into_iter().map(|(table, column)| (Cursor::new(table, level, &bases, self.work), column));
        Ok(Merge::new(cursors.collect(), ranges)?)
    }

    /// The asked keys of `level` cut at the blocks of the largest table, each piece with what the first column can be at most in it.
    ///
    /// The bound is never below zero: an address may be missing in one table and be there in another.
    pub(crate) fn regions(&self, level: u8) -> Result<Vec<Region<K>>, QueryError> {
        let tables: Vec<Table<K>> =
            self.tables(level).into_iter().filter(|(_, column)| *column == 0).map(|(table, _)| table).collect();
        let Some((low, high)) = self.bounds() else { return Ok(Vec::new()) };
        let ranges = self.ranges_at(level, low, high);
        let widest = tables.iter().max_by_key(|table| table.blocks()).filter(|table| table.blocks() > 0);
        let pieces = widest.map_or(0, Table::blocks) + ranges.len();
        self.take(pieces * size_of::<Region<K>>())?;
        let mut regions = Vec::new();
        for (first, last) in ranges {
            cut(widest, first, last, &mut regions);
        }
        for table in tables.iter().filter(|table| table.blocks() > 0) {
            raise_bounds(table, &mut regions);
        }
        self.work.give_back(pieces * size_of::<Region<K>>());
        Ok(regions)
    }
}

/// A piece of the key space, and the most that the first column can be for a key in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Region<K> {
    pub(crate) bound: i64,
    pub(crate) first: K,
    pub(crate) last: K,
}

fn cut<K: TableKey>(table: Option<&Table<K>>, first: K, last: K, regions: &mut Vec<Region<K>>) {
    let mut start = first;
    if let Some(table) = table {
        let mut block = table.block_of(first) + 1;
        while block < table.blocks() && table.first(block) <= last {
            let next = table.first(block);
            if next > start {
                regions.push(Region { bound: 0, first: start, last: K::from_u128(next.to_u128() - 1) });
                start = next;
            }
            block += 1;
        }
    }
    regions.push(Region { bound: 0, first: start, last });
}

fn raise_bounds<K: TableKey>(table: &Table<K>, regions: &mut [Region<K>]) {
    let mut block = regions.first().map_or(0, |region| table.block_of(region.first));
    for region in regions {
        while block + 1 < table.blocks() && table.first(block + 1) <= region.first {
            block += 1;
        }
        let mut most = 0;
        let mut at = block;
        while at < table.blocks() && table.first(at) <= region.last {
            most = most.max(table.max(at));
            at += 1;
        }
        region.bound = region.bound.saturating_add(most);
        // The last block may go on into the next region.
        block = block.max(at.saturating_sub(1));
    }
}

/// A block without the excluded ones, as ascending ranges.
fn ranges_of<K: TableKey>(block: Block, exclude: &[Block]) -> Vec<(K, K)> {
    let mut holes: Vec<(u128, u128)> = exclude.iter().map(|hole| (hole.first(), hole.last())).collect();
    holes.sort_unstable();
    let (mut ranges, mut start) = (Vec::new(), Some(block.first()));
    for (first, last) in holes {
        let Some(from) = start.filter(|from| *from <= block.last()) else { break };
        if last < from || first > block.last() {
            continue;
        }
        if first > from {
            ranges.push((from, first - 1));
        }
        start = last.checked_add(1);
    }
    if let Some(from) = start.filter(|from| *from <= block.last()) {
        ranges.push((from, block.last()));
    }
    ranges.into_iter().map(|(first, last)| (K::from_u128(first), K::from_u128(last))).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn ranges(block: &str, exclude: &[&str]) -> Vec<(u32, u32)> {
        let exclude: Vec<Block> = exclude.iter().map(|block| block.parse().unwrap()).collect();
        ranges_of(block.parse().unwrap(), &exclude)
    }

    #[test]
    fn holes_in_a_block() {
        let ten = 10 << 24;
        assert_eq!(ranges("10.0.0.0/30", &[]), [(ten, ten + 3)]);
        assert_eq!(ranges("10.0.0.0/30", &["10.0.0.1/32"]), [(ten, ten), (ten + 2, ten + 3)]);
        assert_eq!(ranges("10.0.0.0/30", &["10.0.0.0/31", "10.0.0.2/32"]), [(ten + 3, ten + 3)]);
        assert_eq!(ranges("10.0.0.0/30", &["10.0.0.0/8"]), []);
        assert_eq!(ranges("10.0.0.0/30", &["11.0.0.0/8", "9.0.0.0/8"]), [(ten, ten + 3)]);
        assert_eq!(ranges("0.0.0.0/0", &["128.0.0.0/1"]), [(0, u32::MAX / 2)]);
        assert_eq!(ranges("0.0.0.0/0", &["0.0.0.0/1", "10.0.0.0/8"]), [(1 << 31, u32::MAX)]);
    }
}
