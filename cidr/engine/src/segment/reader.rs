//! Reading a file of sorted rows: mapped from disk, or held in memory for what was merged there.
//!
//! Opening checks the header, the directory and all indexes; blocks are checked as they are read. Mapped instead of read: a query of two
//! blocks in each of thirty files would otherwise pay sixty system calls, which is more than the answer may take. The price is that a
//! disk that fails under a mapping ends the process with SIGBUS; the files are immutable and nobody truncates them.

use std::fs::File;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

use super::block::BLOCK_ROWS;
use super::{Directory, Header, Meta, Ranks, Rows, TableInfo, VERSION, read_header};
use crate::address::Family;
use crate::error::{Error, Result};
use crate::key::Key;

enum Bytes {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }
}

/// An open file.
pub(crate) struct Segment {
    bytes: Bytes,
    path: PathBuf,
    meta: Meta,
    tables: Vec<TableInfo>,
}

impl Segment {
    /// Maps a file and checks everything but its blocks.
    pub(crate) fn open(path: &Path) -> Result<Arc<Self>> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        if file.metadata().map_err(Error::io("look at", path))?.len() == 0 {
            return Err(Error::damaged(path, "the file is empty"));
        }
        #[allow(unsafe_code, reason = "files are immutable once renamed into place, and the directory is locked")]
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io("map", path))?;
        Self::check(Bytes::Mapped(map), path)
    }

    /// The same for a file that was built in memory.
    pub(crate) fn from_memory(bytes: Vec<u8>) -> Result<Arc<Self>> {
        Self::check(Bytes::Owned(bytes), Path::new("(memory)"))
    }

    fn check(bytes: Bytes, path: &Path) -> Result<Arc<Self>> {
        let meta = parse_header(&bytes, path)?;
        let Directory { tables } =
            Directory::read(&bytes).ok_or_else(|| Error::damaged(path, "its end is missing or wrong"))?;
        let segment = Self { bytes, path: path.into(), meta, tables };
        for table in &segment.tables {
            segment
                .check_index(table)
                .ok_or_else(|| Error::damaged(path, format!("the index of /{} is wrong", table.level)))?;
        }
        Ok(Arc::new(segment))
    }

    fn check_index(&self, table: &TableInfo) -> Option<()> {
        let key_bytes = usize::from(table.family.bits() / 8);
        let at = usize::try_from(table.index_at).ok()?;
        let length = (table.blocks as usize).checked_mul(key_bytes + 3 * table.word_bytes())?;
        let bytes = self.bytes.get(at..at.checked_add(length)?)?;
        (crc32c::crc32c(bytes) == super::u32_at(&self.bytes, at + length)?).then_some(())
    }

    pub(crate) fn meta(&self) -> &Meta {
        &self.meta
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn tables(&self) -> &[TableInfo] {
        &self.tables
    }

    /// Bytes of the file.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The table of a part and level.
    pub(crate) fn table<K: TableKey>(self: &Arc<Self>, part: u16, level: u8) -> Option<Table<K>> {
        // Tables are written part by part.
        let from = self.tables.partition_point(|table| table.part < part);
        let mut of_part = self.tables[from..].iter().take_while(|table| table.part == part);
        let info = *of_part.find(|table| table.level == level && table.family.bits() == K::BITS)?;
        Some(Table { segment: Arc::clone(self), info, key: std::marker::PhantomData })
    }

    /// Reads every block and compares it with the indexes. Returns the number of rows of address tables.
    pub(crate) fn verify(self: &Arc<Self>) -> Result<u64> {
        let mut rows = 0;
        for info in &self.tables {
            let found = if info.family.bits() == 32 {
                Table::<u32> { segment: Arc::clone(self), info: *info, key: std::marker::PhantomData }.verify()?
            } else {
                Table::<u128> { segment: Arc::clone(self), info: *info, key: std::marker::PhantomData }.verify()?
            };
            if info.level == info.family.bits() {
                rows += found;
            }
        }
        if self.meta.kind.is_packed() {
            self.verify_sums()?;
        }
        Ok(rows)
    }

    /// The first part of a packed file is the sum of the others.
    fn verify_sums(&self) -> Result<()> {
        for family in [Family::V4, Family::V6] {
            let tables = self.tables.iter().filter(|table| table.family == family && table.level == family.bits());
            let (of_day, of_windows) = tables.fold((0_i64, 0_i64), |(day, windows), table| match table.part {
                0 => (day.wrapping_add(table.total), windows),
                _ => (day, windows.wrapping_add(table.total)),
            });
            if of_day != of_windows {
                let what = format!("its sum over {family} is {of_day}, and that of its windows or days {of_windows}");
                return Err(Error::damaged(self.path(), what));
            }
        }
        Ok(())
    }
}

fn parse_header(bytes: &[u8], path: &Path) -> Result<Meta> {
    match read_header(bytes) {
        Header::Meta(meta) => Ok(*meta),
        Header::Version(found) => Err(Error::Version { path: path.into(), found, known: VERSION }),
        Header::Damaged => Err(Error::damaged(path, "its beginning is not that of a file of counts")),
    }
}

/// Keys that tables exist for.
pub(crate) trait TableKey: Key {}
impl TableKey for u32 {}
impl TableKey for u128 {}

/// Blocks of first parts that were decoded for ranked tables. Days of a month that are walked side by side want the same ones, so the
/// cursors of a walk share them.
pub(crate) struct Bases<K> {
    ranks: Ranks,
    slots: Vec<Base<K>>,
}

struct Base<K> {
    file: u64,
    level: u8,
    block: usize,
    rows: Rows<K>,
}

/// A ranked block reaches over about eight blocks of its first part, and a question is mostly about a few series.
const BASES: usize = 32;

impl<K: Key> Default for Bases<K> {
    fn default() -> Self {
        Self { ranks: Ranks::default(), slots: Vec::new() }
    }
}

impl<K: TableKey> Bases<K> {
    /// Bytes when it is full.
    pub(crate) const fn bytes() -> usize {
        size_of::<Self>() + BASES * size_of::<Base<K>>()
    }

    /// The slot that has a block of a table, which is read when it is not there.
    fn slot(&mut self, table: &Table<K>, block: usize) -> Result<usize> {
        if self.slots.is_empty() {
            let empty = || Base { file: 0, level: 0, block: usize::MAX, rows: Rows::default() };
            self.slots.resize_with(BASES, empty);
        }
        let (file, level) = (table.segment.meta.id, table.info.level);
        let at = (block + file as usize % 4 * 8) % BASES;
        let slot = &mut self.slots[at];
        if (slot.file, slot.level, slot.block) != (file, level, block) {
            slot.block = usize::MAX;
            table.read_plain(block, &mut slot.rows)?;
            (slot.file, slot.level, slot.block) = (file, level, block);
        }
        Ok(at)
    }
}

/// A sorted table of a file.
#[derive(Clone)]
pub(crate) struct Table<K> {
    segment: Arc<Segment>,
    info: TableInfo,
    key: std::marker::PhantomData<K>,
}

impl<K: TableKey> Table<K> {
    pub(crate) fn info(&self) -> &TableInfo {
        &self.info
    }

    pub(crate) fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    pub(crate) fn blocks(&self) -> usize {
        self.info.blocks as usize
    }

    fn column(&self, skip_bytes: usize) -> usize {
        self.info.index_at as usize + self.blocks() * skip_bytes
    }

    /// The first key of a block.
    pub(crate) fn first(&self, block: usize) -> K {
        K::read(&self.segment.bytes[self.column(0) + block * K::BYTES..])
    }

    fn word(&self, column: usize, block: usize) -> u64 {
        let bytes = self.info.word_bytes();
        let at = self.column(K::BYTES + column * bytes) + block * bytes;
        let word = match self.info.narrow {
            true => super::u32_at(&self.segment.bytes, at).map(u64::from),
            false => super::u64_at(&self.segment.bytes, at),
        };
        // The index was found inside the file when it was opened.
        word.unwrap_or(0)
    }

    /// The largest count in a block.
    pub(crate) fn max(&self, block: usize) -> i64 {
        self.word(1, block) as i64
    }

    /// The sum of all counts before a block; for the number of blocks, the total.
    pub(crate) fn sum_before(&self, block: usize) -> i64 {
        if block >= self.blocks() { self.info.total } else { self.word(2, block) as i64 }
    }

    /// The first block that may hold `key` or something after it; the number of blocks when there is none.
    ///
    /// That is the last block whose first key is not above `key`, or block 0.
    pub(crate) fn block_of(&self, key: K) -> usize {
        let (mut low, mut high) = (0, self.blocks());
        while low < high {
            let middle = low + (high - low) / 2;
            if self.first(middle) <= key {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low.saturating_sub(1)
    }

    /// Decodes a block; one of a ranked table with the keys of the first part. `bases` is kept for the next block.
    pub(crate) fn read(&self, block: usize, rows: &mut Rows<K>, bases: &mut Bases<K>) -> Result<()> {
        if !self.info.ranked {
            return self.read_plain(block, rows);
        }
        self.read_ranks(block, rows, &mut bases.ranks)?;
        let first_part = self.first_part()?;
        let (keys, mut done) = (rows.keys_mut(), 0);
        while let Some(rank) = bases.ranks.places().get(done) {
            let at = *rank as usize / BLOCK_ROWS;
            if at >= first_part.blocks() {
                return Err(self.wrong_block(block));
            }
            let slot = bases.slot(&first_part, at)?;
            let known = bases.slots[slot].rows.keys();
            let inside = bases.ranks.places()[done..].iter().map(|rank| *rank as usize);
            for (key, rank) in keys[done..].iter_mut().zip(inside.take_while(|rank| rank / BLOCK_ROWS == at)) {
                *key = *known.get(rank % BLOCK_ROWS).ok_or_else(|| self.wrong_block(block))?;
                done += 1;
            }
        }
        Ok(())
    }

    fn read_plain(&self, block: usize, rows: &mut Rows<K>) -> Result<()> {
        let at = usize::try_from(self.word(0, block)).ok();
        let read = at.and_then(|at| rows.read(&self.segment.bytes, at, self.first(block), self.info.coding));
        read.ok_or_else(|| self.wrong_block(block))
    }

    /// Decodes a block of a ranked table without its keys.
    pub(crate) fn read_ranks(&self, block: usize, rows: &mut Rows<K>, ranks: &mut Ranks) -> Result<()> {
        let at = usize::try_from(self.word(0, block)).ok();
        let read = at.and_then(|at| rows.read_ranked(&self.segment.bytes, at, ranks, self.info.coding));
        read.ok_or_else(|| self.wrong_block(block))
    }

    /// The table that the places of a ranked table are about.
    pub(crate) fn first_part(&self) -> Result<Self> {
        let table = self.segment.table(0, self.info.level).filter(|table| !table.info.ranked);
        table.ok_or_else(|| Error::damaged(self.segment.path(), "it has windows or days, and no sums"))
    }

    /// How many keys of a table that is not ranked are below `key`; with `and_it`, or are it. `rows` is for the work.
    pub(crate) fn rank_of(&self, key: K, and_it: bool, rows: &mut Rows<K>) -> Result<u32> {
        if self.blocks() == 0 {
            return Ok(0);
        }
        let block = self.block_of(key);
        self.read_plain(block, rows)?;
        let inside = rows.keys().partition_point(|other| *other < key || (and_it && *other == key));
        // All blocks but the last are full.
        Ok((block * BLOCK_ROWS + inside) as u32)
    }

    fn wrong_block(&self, block: usize) -> Error {
        Error::damaged(self.segment.path(), format!("block {block} of its /{} table is wrong", self.info.level))
    }

    fn verify(&self) -> Result<u64> {
        let (mut rows, mut bases) = (Rows::default(), Bases::default());
        let (mut total, mut count, mut last) = (0_i64, 0, None);
        let wrong = |what: &str, block: usize| {
            Err(Error::damaged(self.segment.path(), format!("{what} block {block} of /{}", self.info.level)))
        };
        for block in 0..self.blocks() {
            if self.sum_before(block) != total {
                return wrong("the running sum is wrong before", block);
            }
            self.read(block, &mut rows, &mut bases)?;
            if rows.keys().first() != Some(&self.first(block)) {
                return wrong("the index is wrong for", block);
            }
            let ascending = rows.keys().is_sorted_by(|a, b| a < b) && last.is_none_or(|last| last < rows.keys()[0]);
            if !ascending {
                return wrong("the order is wrong in", block);
            }
            if rows.counts().iter().max() != Some(&self.max(block)) {
                return wrong("the maximum is wrong for", block);
            }
            last = rows.keys().last().copied();
            total = rows.counts().iter().fold(total, |sum, count| sum.wrapping_add(*count));
            count += rows.keys().len() as u64;
        }
        if total != self.info.total || count != self.info.rows {
            return wrong("the total is wrong after", self.blocks());
        }
        Ok(count)
    }
}
