//! Running a question: which rows, in which order, within the memory that there is.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::rows::{Region, Sources};
use super::{QueryError, Row, RowSink, When};
use crate::address::Block;
use crate::key::Key;
use crate::merge::{Merge, Summer};
use crate::segment::TableKey;

/// What is asked of the sources of a period.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ask {
    pub(crate) block: Block,
    /// Shortest and longest prefix of the rows.
    pub(crate) sizes: (u8, u8),
    pub(crate) threshold: Option<i64>,
    pub(crate) when: When,
}

impl Ask {
    fn passes(&self, counts: &[i64]) -> bool {
        self.threshold.is_none_or(|threshold| counts[0] >= threshold) && counts.iter().any(|count| *count != 0)
    }

    fn emit(&self, block: Block, counts: &[i64], sink: &mut RowSink<'_>) -> Result<(), QueryError> {
        if self.passes(counts) { sink.row(&Row { when: self.when, block, counts }) } else { Ok(()) }
    }
}

/// Rows in the order of their blocks; a block comes before those inside it.
pub(crate) fn by_block<'a, K: TableKey>(
    ask: &Ask,
    sources: &mut Sources<'a, K>,
    summer: &mut Summer<'a, K>,
    sink: &mut RowSink<'_>,
) -> Result<(), QueryError> {
    let Some((first, last)) = sources.bounds() else { return Ok(()) };
    let (shortest, longest) = ask.sizes;
    let mut counts = vec![0; sources.columns()];
    if longest == ask.block.length() {
        sources.sum(summer, first, last, &mut counts)?;
        return ask.emit(ask.block, &counts, sink);
    }
    let level = sources.level_for(longest);
    let prunes = shortest == longest && longest == level && ask.threshold.is_some_and(|threshold| threshold > 0);
    sources.prepare(prunes.then_some(level))?;
    if shortest < longest {
        return Tree { ask, sources, level, longest }.walk(first, last, shortest, sink);
    }
    let ranges = if prunes {
        let threshold = ask.threshold.unwrap_or(0);
        let regions = sources.regions(level)?;
        regions.iter().filter(|region| region.bound >= threshold).map(|region| (region.first, region.last)).collect()
    } else {
        sources.ranges_at(level, first, last)
    };
    let mut walk = Grouped::new(sources.walk(level, ranges)?, level - longest, counts.len());
    while let Some(key) = walk.next(&mut counts)? {
        ask.emit(Block::of_key(key, longest), &counts, sink)?;
    }
    Ok(())
}

/// A walk with keys shortened to the length of the rows.
struct Grouped<'a, K: Key> {
    merge: Merge<'a, K>,
    shift: u8,
    ahead: Option<K>,
    counts_ahead: Vec<i64>,
    started: bool,
}

impl<'a, K: TableKey> Grouped<'a, K> {
    fn new(merge: Merge<'a, K>, shift: u8, columns: usize) -> Self {
        Self { merge, shift, ahead: None, counts_ahead: vec![0; columns], started: false }
    }

    fn next(&mut self, counts: &mut [i64]) -> Result<Option<K>, QueryError> {
        if self.shift == 0 {
            return Ok(self.merge.next(counts)?);
        }
        if !self.started {
            self.started = true;
            self.ahead = self.merge.next(&mut self.counts_ahead)?;
        }
        let Some(key) = self.ahead.map(|key| key.shift_right(self.shift)) else { return Ok(None) };
        counts.fill(0);
        while let Some(ahead) = self.ahead
            && ahead.shift_right(self.shift) == key
        {
            add(counts, &self.counts_ahead);
            self.ahead = self.merge.next(&mut self.counts_ahead)?;
        }
        Ok(Some(key))
    }
}

fn add(sums: &mut [i64], counts: &[i64]) {
    sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum = sum.saturating_add(*count));
}

/// Rows of several prefix lengths, a block before those inside it.
///
/// The sum of a block is known after its last address, but is written before its first one: so the rows below a block of the shortest length
/// wait in memory. Where they do not fit, the block's sum is taken from the running sums instead, and its two halves are walked by
/// themselves.
struct Tree<'a, 'b, K> {
    ask: &'b Ask,
    sources: &'b Sources<'a, K>,
    level: u8,
    longest: u8,
}

/// Rows that wait for the end of their block.
struct Waiting {
    blocks: Vec<Block>,
    counts: Vec<i64>,
    columns: usize,
    /// For each length from the shortest on, the row that still grows. What is added to one reaches the ones above it when it is closed.
    open: Vec<usize>,
}

impl Waiting {
    fn new(columns: usize) -> Self {
        Self { blocks: Vec::new(), counts: Vec::new(), columns, open: Vec::new() }
    }

    fn open(&mut self, block: Block) {
        self.open.push(self.blocks.len());
        self.blocks.push(block);
        self.counts.resize(self.counts.len() + self.columns, 0);
    }

    /// Closes all but the first `keep` rows that grow.
    fn close(&mut self, keep: usize) {
        while self.open.len() > keep {
            let Some(closed) = self.open.pop() else { return };
            let Some(above) = self.open.last() else { return };
            let (before, from) = self.counts.split_at_mut(closed * self.columns);
            add(&mut before[above * self.columns..][..self.columns], &from[..self.columns]);
        }
    }

    /// Adds to the longest of the rows that grow.
    fn add(&mut self, counts: &[i64]) {
        if let Some(row) = self.open.last() {
            add(&mut self.counts[row * self.columns..][..self.columns], counts);
        }
    }
}

impl<K: TableKey> Tree<'_, '_, K> {
    fn walk(&self, first: K, last: K, shortest: u8, sink: &mut RowSink<'_>) -> Result<(), QueryError> {
        let mut from = first;
        while let Some(block) = self.walk_until_full(from, last, shortest, sink)? {
            self.split(block, shortest, sink)?;
            if block.last() >= last.to_u128() {
                break;
            }
            from = K::from_u128(block.last() + 1);
        }
        Ok(())
    }

    /// Gives out complete blocks until one is too large to wait for, and returns that one.
    fn walk_until_full(
        &self,
        first: K,
        last: K,
        shortest: u8,
        sink: &mut RowSink<'_>,
    ) -> Result<Option<Block>, QueryError> {
        let columns = self.sources.columns();
        let row_bytes = size_of::<Block>() + columns * size_of::<i64>();
        // Vectors double: half of what is left may be used.
        let most_rows = (self.sources.work().left() / 2 / row_bytes).max(2 * K::BITS as usize);
        let ranges = self.sources.ranges_at(self.level, first, last);
        let mut walk = Grouped::new(self.sources.walk(self.level, ranges)?, self.level - self.longest, columns);
        let mut waiting = Waiting::new(columns);
        let mut counts = vec![0; columns];
        let mut before: Option<K> = None;
        while let Some(key) = walk.next(&mut counts)? {
            let same = before.map_or(0, |before| common_bits(before, key, self.longest));
            if same < shortest {
                self.flush(&mut waiting, sink)?;
            }
            waiting.close(usize::from((same + 1).saturating_sub(shortest)));
            for length in shortest + waiting.open.len() as u8..=self.longest {
                waiting.open(Block::of_key(key.shift_right(self.longest - length), length));
            }
            waiting.add(&counts);
            before = Some(key);
            if waiting.blocks.len() > most_rows && shortest < self.longest {
                return Ok(waiting.blocks.first().copied());
            }
        }
        self.flush(&mut waiting, sink)?;
        Ok(None)
    }

    fn flush(&self, waiting: &mut Waiting, sink: &mut RowSink<'_>) -> Result<(), QueryError> {
        waiting.close(0);
        // What waited is noted; that it fits was seen to while it grew.
        let bytes = waiting.blocks.capacity() * size_of::<Block>() + waiting.counts.capacity() * size_of::<i64>();
        if self.sources.work().take(bytes).is_ok() {
            self.sources.work().give_back(bytes);
        }
        for (block, counts) in waiting.blocks.iter().zip(waiting.counts.chunks(waiting.columns)) {
            self.ask.emit(*block, counts, sink)?;
        }
        waiting.blocks.clear();
        waiting.counts.clear();
        Ok(())
    }

    /// A block with too many rows below it: its own row, then its halves.
    fn split(&self, block: Block, shortest: u8, sink: &mut RowSink<'_>) -> Result<(), QueryError> {
        let mut sums = vec![0; self.sources.columns()];
        let (start, end) = (block.first(), block.last());
        let mut summer = Summer::new(self.sources.work());
        self.sources.sum(&mut summer, K::from_u128(start), K::from_u128(end), &mut sums)?;
        self.ask.emit(block, &sums, sink)?;
        let middle = start + (end - start) / 2;
        self.walk(K::from_u128(start), K::from_u128(middle), shortest + 1, sink)?;
        self.walk(K::from_u128(middle + 1), K::from_u128(end), shortest + 1, sink)
    }
}

/// Leading bits that two keys of `length` bits share.
fn common_bits<K: Key>(a: K, b: K, length: u8) -> u8 {
    let differs = 128 - (a.to_u128() ^ b.to_u128()).leading_zeros() as u8;
    length.saturating_sub(differs)
}

/// A row that competes for a place at the top. Greater means that it comes first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    count: i64,
    when: When,
    block: Block,
    /// The counts of the other columns.
    rest: Box<[i64]>,
}

impl Candidate {
    fn key(&self) -> (i64, std::cmp::Reverse<(When, u128, u8)>) {
        (self.count, std::cmp::Reverse((self.when, self.block.first(), self.block.length())))
    }
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The best rows of a pass, worst on top of the heap.
pub(crate) struct Top {
    most: usize,
    heap: BinaryHeap<std::cmp::Reverse<Candidate>>,
    /// Rows from here on were given out by earlier passes.
    below: Option<Candidate>,
}

impl Top {
    pub(crate) fn new(most: usize, below: Option<Candidate>) -> Self {
        Self { most, heap: BinaryHeap::new(), below }
    }

    fn is_full(&self) -> bool {
        self.heap.len() >= self.most
    }

    /// True when no row of a region can get in.
    fn shuts_out<K: TableKey>(&self, region: &Region<K>, when: When, level: u8) -> bool {
        let Some(worst) = self.heap.peek().filter(|_| self.is_full()) else { return false };
        let first = Block::of_key(region.first, level);
        let best = (region.bound, std::cmp::Reverse((when, first.first(), first.length())));
        best < worst.0.key()
    }

    fn offer(&mut self, when: When, block: Block, counts: &[i64]) {
        let candidate = |rest| Candidate { count: counts[0], when, block, rest };
        let bare = candidate(Box::default());
        if self.below.as_ref().is_some_and(|below| bare >= *below) {
            return;
        }
        if self.is_full() {
            if self.heap.peek().is_none_or(|worst| bare < worst.0) {
                return;
            }
            self.heap.pop();
        }
        self.heap.push(std::cmp::Reverse(candidate(counts[1..].into())));
    }

    /// The rows, best first.
    pub(crate) fn into_rows(self) -> Vec<Candidate> {
        self.heap.into_sorted_vec().into_iter().map(|row| row.0).collect()
    }

    /// Bytes of a row.
    pub(crate) fn row_bytes(columns: usize) -> usize {
        // The heap's vector doubles, and a boxed slice has an allocation of its own.
        2 * size_of::<Candidate>() + if columns > 1 { 16 + 8 * columns } else { 0 }
    }
}

impl Candidate {
    pub(crate) fn emit(&self, counts: &mut Vec<i64>, sink: &mut RowSink<'_>) -> Result<(), QueryError> {
        counts.clear();
        counts.push(self.count);
        counts.extend_from_slice(&self.rest);
        sink.row(&Row { when: self.when, block: self.block, counts })
    }
}

/// Offers all rows of a period to the top.
pub(crate) fn by_count<'a, K: TableKey>(
    ask: &Ask,
    sources: &mut Sources<'a, K>,
    summer: &mut Summer<'a, K>,
    top: &mut Top,
) -> Result<(), QueryError> {
    let Some((first, last)) = sources.bounds() else { return Ok(()) };
    let (shortest, longest) = ask.sizes;
    let mut counts = vec![0; sources.columns()];
    if longest == ask.block.length() {
        sources.sum(summer, first, last, &mut counts)?;
        offer(ask, ask.block, &counts, top);
        return Ok(());
    }
    let level = sources.level_for(longest);
    if shortest == longest && longest == level {
        return by_bound(ask, sources, level, top);
    }
    sources.prepare(None)?;
    let ranges = sources.ranges_at(level, first, last);
    let mut walk = Grouped::new(sources.walk(level, ranges)?, level - longest, counts.len());
    let mut open: Vec<Vec<i64>> = vec![vec![0; counts.len()]; usize::from(longest - shortest)];
    let mut before: Option<K> = None;
    // Blocks longer than what the next key shares with the last are complete.
    let close = |before: K, shared: Option<u8>, open: &mut [Vec<i64>], top: &mut Top| {
        for length in (shortest..longest).filter(|length| shared.is_none_or(|shared| *length > shared)) {
            let sums = &mut open[usize::from(length - shortest)];
            offer(ask, Block::of_key(before.shift_right(longest - length), length), sums, top);
            sums.fill(0);
        }
    };
    while let Some(key) = walk.next(&mut counts)? {
        if let Some(before) = before {
            close(before, Some(common_bits(before, key, longest)), &mut open, top);
        }
        open.iter_mut().for_each(|sums| add(sums, &counts));
        offer(ask, Block::of_key(key, longest), &counts, top);
        before = Some(key);
    }
    if let Some(before) = before {
        close(before, None, &mut open, top);
    }
    Ok(())
}

fn offer(ask: &Ask, block: Block, counts: &[i64], top: &mut Top) {
    if ask.passes(counts) {
        top.offer(ask.when, block, counts);
    }
}

/// Visits regions in the order of what they can hold, until the rest cannot change the top.
fn by_bound<K: TableKey>(ask: &Ask, sources: &mut Sources<'_, K>, level: u8, top: &mut Top) -> Result<(), QueryError> {
    sources.prepare(Some(level))?;
    let threshold = ask.threshold.unwrap_or(i64::MIN);
    let possible = sources.regions(level)?.into_iter().filter(|region| region.bound >= threshold);
    let mut regions: BinaryHeap<ByBound<K>> = possible.map(ByBound).collect();
    let mut counts = vec![0; sources.columns()];
    let mut walk = sources.walk(level, Vec::new())?;
    while let Some(ByBound(region)) = regions.pop() {
        if top.shuts_out(&region, ask.when, level) {
            return Ok(());
        }
        walk.restart(vec![(region.first, region.last)])?;
        while let Some(key) = walk.next(&mut counts)? {
            offer(ask, Block::of_key(key, level), &counts, top);
        }
    }
    Ok(())
}

/// Highest bound first, then lowest address.
#[derive(PartialEq, Eq)]
struct ByBound<K>(Region<K>);

impl<K: Ord> Ord for ByBound<K> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.bound.cmp(&other.0.bound).then_with(|| other.0.first.cmp(&self.0.first))
    }
}

impl<K: Ord> PartialOrd for ByBound<K> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The sum of one block, for a row of a trend.
pub(crate) fn sum_of<'a, K: TableKey>(
    sources: &Sources<'a, K>,
    summer: &mut Summer<'a, K>,
    counts: &mut [i64],
) -> Result<(), QueryError> {
    counts.fill(0);
    match sources.bounds() {
        Some((first, last)) => sources.sum(summer, first, last, counts),
        None => Ok(()),
    }
}
