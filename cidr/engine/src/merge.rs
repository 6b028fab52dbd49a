//! Walking sorted tables: one alone, many together, and sums without walking.
//!
//! A cursor can roll up while it walks: the table of addresses of a small window serves as its /24 table. Merging adds what has the same
//! key, per column (a column is a series, or a union of them).

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::rc::Rc;

use crate::error::Result;
use crate::key::Key;
use crate::segment::{Bases, Ranks, Rows, Table, TableKey};
use crate::work::Work;

/// Walks a table from a first to a last key.
pub(crate) struct Cursor<'a, K: Key> {
    table: Table<K>,
    work: &'a Work<'a>,
    /// Bits by which keys are shortened while walking.
    shift: u8,
    rows: Box<Rows<K>>,
    bases: Rc<RefCell<Bases<K>>>,
    block: usize,
    /// The row under the cursor; with a shift, the first row behind the ones under it.
    at: usize,
    /// The end of the block's rows that are asked.
    stop: usize,
    last: K,
    head: K::Head,
    count: i64,
}

/// Bytes that a cursor holds by itself.
pub(crate) const fn cursor_bytes<K: Key>() -> usize {
    size_of::<Rows<K>>() + size_of::<Cursor<'static, K>>()
}

impl<'a, K: TableKey> Cursor<'a, K> {
    /// A cursor that shows keys of `level`, which is not longer than the table's. Cursors that are walked together share `bases`.
    pub(crate) fn new(table: Table<K>, level: u8, bases: &Rc<RefCell<Bases<K>>>, work: &'a Work<'a>) -> Self {
        let shift = table.info().level - level;
        let (rows, bases, block) = (Box::default(), Rc::clone(bases), usize::MAX);
        Self { table, work, shift, rows, bases, block, at: 0, stop: 0, last: K::default(), head: K::END, count: 0 }
    }

    /// Goes to the first key that is not below `first`; `last` still counts. Both are keys of the cursor's level.
    pub(crate) fn seek(&mut self, first: K, last: K) -> Result<()> {
        self.close();
        let first = K::from_u128(first.to_u128() << self.shift);
        self.last = K::from_u128(last.to_u128() << self.shift | ((1_u128 << self.shift) - 1));
        if self.table.blocks() == 0 {
            return Ok(());
        }
        self.load(self.table.block_of(first))?;
        self.at = self.rows.keys().partition_point(|key| *key < first);
        self.settle()
    }

    /// Leaves the cursor at the end.
    fn close(&mut self) {
        (self.head, self.count) = (K::END, 0);
        (self.at, self.stop) = (0, 0);
    }

    /// The key under the cursor.
    #[inline]
    fn head(&self) -> K::Head {
        self.head
    }

    /// Moves to the next row.
    #[inline]
    fn advance(&mut self) -> Result<()> {
        if self.shift == 0 {
            self.at += 1;
            if self.at < self.stop {
                self.head = self.rows.keys()[self.at].head();
                self.count = self.rows.counts()[self.at];
                return Ok(());
            }
        }
        self.settle()
    }

    /// Moves to the next row on a hit, without a branch that depends on it: which cursors have the lowest key cannot be guessed.
    #[inline]
    fn advance_on(&mut self, hit: bool) -> Result<()> {
        if self.shift > 0 {
            return if hit { self.advance() } else { Ok(()) };
        }
        self.at += usize::from(hit);
        if self.at < self.stop {
            self.head = self.rows.keys()[self.at].head();
            self.count = self.rows.counts()[self.at];
            Ok(())
        } else if hit {
            self.settle()
        } else {
            Ok(())
        }
    }

    /// Shows the row at the cursor, or all with the same shortened key.
    fn settle(&mut self) -> Result<()> {
        if !self.has_row()? {
            self.close();
            return Ok(());
        }
        let above = self.rows.keys()[self.at].shift_right(self.shift);
        (self.head, self.count) = (above.head(), self.rows.counts()[self.at]);
        if self.shift == 0 {
            return Ok(());
        }
        self.at += 1;
        while self.has_row()? && self.rows.keys()[self.at].shift_right(self.shift) == above {
            self.count = self.count.wrapping_add(self.rows.counts()[self.at]);
            self.at += 1;
        }
        Ok(())
    }

    /// True when there is a row at the cursor, which may go to the next block for it.
    #[inline]
    fn has_row(&mut self) -> Result<bool> {
        if self.at < self.stop {
            return Ok(true);
        }
        let next = self.block.wrapping_add(1);
        if self.stop < self.rows.keys().len() || next >= self.table.blocks() || self.table.first(next) > self.last {
            return Ok(false);
        }
        self.load(next)?;
        self.at = 0;
        Ok(self.stop > 0)
    }

    fn load(&mut self, block: usize) -> Result<()> {
        if self.block != block {
            self.work.block(self.table.segment().meta().id)?;
            self.block = usize::MAX;
            self.table.read(block, &mut self.rows, &mut self.bases.borrow_mut())?;
            self.block = block;
        }
        let keys = self.rows.keys();
        self.stop = match keys.last() {
            Some(highest) if *highest > self.last => keys.partition_point(|key| *key <= self.last),
            _ => keys.len(),
        };
        Ok(())
    }
}

/// So few cursors are looked through one by one, which the processor does without a wrong guess; more go through a heap.
const FEW: usize = 32;

/// Walks several tables as one, over several ranges.
pub(crate) struct Merge<'a, K: Key> {
    cursors: Vec<(Cursor<'a, K>, usize)>,
    /// The cursors' keys, side by side.
    heads: Vec<K::Head>,
    heap: BinaryHeap<Reverse<(K::Head, u32)>>,
    ranges: std::vec::IntoIter<(K, K)>,
    keeps_zeros: bool,
}

impl<'a, K: TableKey> Merge<'a, K> {
    /// Cursors with their columns; `ranges` are ascending and do not touch.
    pub(crate) fn new(cursors: Vec<(Cursor<'a, K>, usize)>, ranges: Vec<(K, K)>) -> Result<Self> {
        let heads = vec![K::END; cursors.len()];
        let mut merge =
            Self { cursors, heads, heap: BinaryHeap::new(), ranges: Vec::new().into_iter(), keeps_zeros: false };
        merge.restart(ranges)?;
        Ok(merge)
    }

    /// The same cursors over other ranges.
    pub(crate) fn restart(&mut self, ranges: Vec<(K, K)>) -> Result<()> {
        self.ranges = ranges.into_iter();
        self.next_range().map(drop)
    }

    /// Shows keys with nothing but zeros, too.
    pub(crate) fn keep_zeros(&mut self) {
        self.keeps_zeros = true;
    }

    fn next_range(&mut self) -> Result<bool> {
        self.heap.clear();
        let Some((first, last)) = self.ranges.next() else {
            self.cursors.iter_mut().for_each(|(cursor, _)| cursor.close());
            self.heads.fill(K::END);
            return Ok(false);
        };
        let many = self.cursors.len() > FEW;
        for (index, (cursor, _)) in self.cursors.iter_mut().enumerate() {
            cursor.seek(first, last)?;
            self.heads[index] = cursor.head();
            if many && cursor.head() != K::END {
                self.heap.push(Reverse((cursor.head(), index as u32)));
            }
        }
        Ok(true)
    }

    /// The next key that is not zero in every column, with its counts.
    #[inline]
    pub(crate) fn next(&mut self, counts: &mut [i64]) -> Result<Option<K>> {
        loop {
            let found = if self.cursors.len() > FEW { self.next_of_many(counts)? } else { self.next_of_few(counts)? };
            match found {
                Some(key) if self.keeps_zeros || counts.iter().any(|count| *count != 0) => return Ok(Some(key)),
                Some(_) => {}
                None if self.next_range()? => {}
                None => return Ok(None),
            }
        }
    }

    #[inline]
    fn next_of_few(&mut self, counts: &mut [i64]) -> Result<Option<K>> {
        let lowest = self.heads.iter().copied().min().unwrap_or(K::END);
        if lowest == K::END {
            return Ok(None);
        }
        counts.fill(0);
        for (head, (cursor, column)) in self.heads.iter_mut().zip(&mut self.cursors) {
            let hit = *head == lowest;
            counts[*column] = counts[*column].saturating_add(if hit { cursor.count } else { 0 });
            cursor.advance_on(hit)?;
            *head = cursor.head();
        }
        Ok(K::of_head(lowest))
    }

    fn next_of_many(&mut self, counts: &mut [i64]) -> Result<Option<K>> {
        let Some(Reverse((lowest, _))) = self.heap.peek().copied() else { return Ok(None) };
        counts.fill(0);
        while let Some(mut top) = self.heap.peek_mut()
            && top.0.0 == lowest
        {
            let (cursor, column) = &mut self.cursors[top.0.1 as usize];
            counts[*column] = counts[*column].saturating_add(cursor.count);
            cursor.advance()?;
            if cursor.head() == K::END {
                std::collections::binary_heap::PeekMut::pop(top);
            } else {
                top.0.0 = cursor.head();
            }
        }
        Ok(K::of_head(lowest))
    }
}

/// Sums over ranges from the running sums: at most two blocks are read per range.
pub(crate) struct Summer<'a, K> {
    rows: Box<Rows<K>>,
    ranks: Ranks,
    /// Where the bounds of the last range lie in the first part of a packed file, whose windows are mostly asked one after the other.
    bounds: [Option<Bound<K>>; 2],
    work: &'a Work<'a>,
}

#[derive(Clone, Copy)]
struct Bound<K> {
    file: u64,
    level: u8,
    key: K,
    rank: u32,
}

impl<'a, K: TableKey> Summer<'a, K> {
    pub(crate) fn new(work: &'a Work<'a>) -> Self {
        Self { rows: Box::default(), ranks: Ranks::default(), bounds: [None, None], work }
    }

    /// The sum over keys of the table from `first` to `last`.
    pub(crate) fn sum(&mut self, table: &Table<K>, first: K, last: K) -> Result<i64> {
        let blocks = table.blocks();
        if blocks == 0 || last < table.first(0) {
            return Ok(0);
        }
        let low = table.block_of(first);
        let high = table.block_of(last);
        let whole = last.to_u128() == u128::MAX >> (128 - u32::from(table.info().level).max(1));
        let from_start = first <= table.first(low);
        let mut below = table.sum_before(low);
        let mut loaded = None;
        if !from_start {
            self.load(table, low)?;
            loaded = Some(low);
            let at = self.place(table, first, false)?;
            below = add(below, &self.rows.counts()[..at]);
        }
        if whole {
            return Ok(table.sum_before(blocks).wrapping_sub(below));
        }
        if loaded != Some(high) {
            self.load(table, high)?;
        }
        let at = self.place(table, last, true)?;
        Ok(add(table.sum_before(high), &self.rows.counts()[..at]).wrapping_sub(below))
    }

    /// How many rows of the loaded block are below `key`; with `and_it`, or are it. In a ranked block places are compared, not keys.
    fn place(&mut self, table: &Table<K>, key: K, and_it: bool) -> Result<usize> {
        if !table.info().ranked {
            return Ok(self.rows.keys().partition_point(|other| *other < key || (and_it && *other == key)));
        }
        let (file, slot) = (table.segment().meta().id, usize::from(and_it));
        let level = table.info().level;
        let rank = match self.bounds[slot] {
            Some(known) if (known.file, known.level) == (file, level) && known.key == key => known.rank,
            _ => {
                self.work.block(file)?;
                // A box of its own: the loaded block is still wanted.
                let rank = table.first_part()?.rank_of(key, and_it, &mut Box::default())?;
                self.bounds[slot] = Some(Bound { file, level, key, rank });
                rank
            }
        };
        Ok(self.ranks.places().partition_point(|other| *other < rank))
    }

    fn load(&mut self, table: &Table<K>, block: usize) -> Result<()> {
        self.work.block(table.segment().meta().id)?;
        if table.info().ranked {
            return table.read_ranks(block, &mut self.rows, &mut self.ranks);
        }
        table.read(block, &mut self.rows, &mut Bases::default())
    }
}

fn add(sum: i64, counts: &[i64]) -> i64 {
    counts.iter().fold(sum, |sum, count| sum.wrapping_add(*count))
}
