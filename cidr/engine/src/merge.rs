//! Walking sorted tables: one alone, many together, and sums without walking.
//!
//! A cursor can roll up while it walks: the table of addresses of a small window serves as its /24 table. Merging adds what has the same
//! key, per column (a column is a series, or a union of them).

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::error::Result;
use crate::segment::{Rows, Table, TableKey};
use crate::work::Work;

/// Walks a table from a first to a last key.
pub(crate) struct Cursor<'a, K> {
    table: Table<K>,
    work: &'a Work<'a>,
    /// Bits by which keys are shortened while walking.
    shift: u8,
    rows: Box<Rows<K>>,
    block: usize,
    at: usize,
    last: K,
    head: Option<(K, i64)>,
}

/// Bytes that a cursor holds.
pub(crate) const fn cursor_bytes<K>() -> usize {
    size_of::<Rows<K>>() + size_of::<Cursor<'static, K>>()
}

impl<'a, K: TableKey> Cursor<'a, K> {
    /// A cursor that shows keys of `level`, which is not longer than the table's.
    pub(crate) fn new(table: Table<K>, level: u8, work: &'a Work<'a>) -> Self {
        let shift = table.info().level - level;
        let block = usize::MAX;
        Self { table, work, shift, rows: Box::default(), block, at: 0, last: K::default(), head: None }
    }

    /// Goes to the first key that is not below `first`; `last` still counts. Both are keys of the cursor's level.
    pub(crate) fn seek(&mut self, first: K, last: K) -> Result<()> {
        self.head = None;
        let first = K::from_u128(first.to_u128() << self.shift);
        self.last = K::from_u128(last.to_u128() << self.shift | ((1_u128 << self.shift) - 1));
        if self.table.blocks() == 0 {
            return Ok(());
        }
        self.load(self.table.block_of(first))?;
        self.at = self.rows.keys().partition_point(|key| *key < first);
        self.advance()
    }

    /// The row under the cursor.
    #[inline]
    pub(crate) fn head(&self) -> Option<(K, i64)> {
        self.head
    }

    /// Moves to the next row.
    #[inline]
    pub(crate) fn advance(&mut self) -> Result<()> {
        self.head = self.take()?;
        if self.shift == 0 {
            return Ok(());
        }
        let Some((key, mut sum)) = self.head else { return Ok(()) };
        let above = key.shift_right(self.shift);
        while let Some((key, count)) = self.peek()?
            && key.shift_right(self.shift) == above
        {
            sum = sum.wrapping_add(count);
            self.at += 1;
        }
        self.head = Some((above, sum));
        Ok(())
    }

    #[inline]
    fn take(&mut self) -> Result<Option<(K, i64)>> {
        let row = self.peek()?;
        self.at += 1;
        Ok(row)
    }

    #[inline]
    fn peek(&mut self) -> Result<Option<(K, i64)>> {
        if self.at >= self.rows.keys().len() {
            let next = self.block.wrapping_add(1);
            if next >= self.table.blocks() || self.table.first(next) > self.last {
                return Ok(None);
            }
            self.load(next)?;
            self.at = 0;
        }
        let key = self.rows.keys()[self.at];
        Ok((key <= self.last).then(|| (key, self.rows.counts()[self.at])))
    }

    fn load(&mut self, block: usize) -> Result<()> {
        if self.block != block {
            self.work.block(self.table.segment().meta().id)?;
            self.block = usize::MAX;
            self.table.read(block, &mut self.rows)?;
            self.block = block;
        }
        Ok(())
    }
}

/// So few cursors are looked through one by one; more go through a heap.
const FEW: usize = 6;

/// Walks several tables as one, over several ranges.
pub(crate) struct Merge<'a, K> {
    cursors: Vec<(Cursor<'a, K>, usize)>,
    heap: BinaryHeap<Reverse<(K, u32)>>,
    ranges: std::vec::IntoIter<(K, K)>,
}

impl<'a, K: TableKey> Merge<'a, K> {
    /// Cursors with their columns; `ranges` are ascending and do not touch.
    pub(crate) fn new(cursors: Vec<(Cursor<'a, K>, usize)>, ranges: Vec<(K, K)>) -> Result<Self> {
        let mut merge = Self { cursors, heap: BinaryHeap::new(), ranges: Vec::new().into_iter() };
        merge.restart(ranges)?;
        Ok(merge)
    }

    /// The same cursors over other ranges.
    pub(crate) fn restart(&mut self, ranges: Vec<(K, K)>) -> Result<()> {
        self.ranges = ranges.into_iter();
        self.next_range().map(drop)
    }

    fn next_range(&mut self) -> Result<bool> {
        self.heap.clear();
        let Some((first, last)) = self.ranges.next() else {
            self.cursors.iter_mut().for_each(|(cursor, _)| cursor.head = None);
            return Ok(false);
        };
        let many = self.cursors.len() > FEW;
        for (index, (cursor, _)) in self.cursors.iter_mut().enumerate() {
            cursor.seek(first, last)?;
            if many && let Some((key, _)) = cursor.head() {
                self.heap.push(Reverse((key, index as u32)));
            }
        }
        Ok(true)
    }

    /// The next key that is not zero in every column, with its counts.
    pub(crate) fn next(&mut self, counts: &mut [i64]) -> Result<Option<K>> {
        loop {
            let found = if self.cursors.len() > FEW { self.next_of_many(counts)? } else { self.next_of_few(counts)? };
            match found {
                Some(key) if counts.iter().any(|count| *count != 0) => return Ok(Some(key)),
                Some(_) => {}
                None if self.next_range()? => {}
                None => return Ok(None),
            }
        }
    }

    fn next_of_few(&mut self, counts: &mut [i64]) -> Result<Option<K>> {
        let heads = self.cursors.iter().filter_map(|(cursor, _)| cursor.head());
        let Some(lowest) = heads.map(|(key, _)| key).min() else { return Ok(None) };
        counts.fill(0);
        for (cursor, column) in &mut self.cursors {
            if let Some((key, count)) = cursor.head()
                && key == lowest
            {
                counts[*column] = counts[*column].saturating_add(count);
                cursor.advance()?;
            }
        }
        Ok(Some(lowest))
    }

    fn next_of_many(&mut self, counts: &mut [i64]) -> Result<Option<K>> {
        let Some(Reverse((lowest, _))) = self.heap.peek().copied() else { return Ok(None) };
        counts.fill(0);
        while let Some(mut top) = self.heap.peek_mut()
            && top.0.0 == lowest
        {
            let (cursor, column) = &mut self.cursors[top.0.1 as usize];
            let count = cursor.head().map_or(0, |(_, count)| count);
            counts[*column] = counts[*column].saturating_add(count);
            cursor.advance()?;
            match cursor.head() {
                Some((key, _)) => top.0.0 = key,
                None => drop(std::collections::binary_heap::PeekMut::pop(top)),
            }
        }
        Ok(Some(lowest))
    }
}

/// Sums over ranges from the running sums: at most two blocks are read per range.
pub(crate) struct Summer<'a, K> {
    rows: Box<Rows<K>>,
    work: &'a Work<'a>,
}

impl<'a, K: TableKey> Summer<'a, K> {
    pub(crate) fn new(work: &'a Work<'a>) -> Self {
        Self { rows: Box::default(), work }
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
            let at = self.rows.keys().partition_point(|key| *key < first);
            below = add(below, &self.rows.counts()[..at]);
        }
        if whole {
            return Ok(table.sum_before(blocks).wrapping_sub(below));
        }
        if loaded != Some(high) {
            self.load(table, high)?;
        }
        let at = self.rows.keys().partition_point(|key| *key <= last);
        Ok(add(table.sum_before(high), &self.rows.counts()[..at]).wrapping_sub(below))
    }

    fn load(&mut self, table: &Table<K>, block: usize) -> Result<()> {
        self.work.block(table.segment().meta().id)?;
        table.read(block, &mut self.rows)
    }
}

fn add(sum: i64, counts: &[i64]) -> i64 {
    counts.iter().fold(sum, |sum, count| sum.wrapping_add(*count))
}
