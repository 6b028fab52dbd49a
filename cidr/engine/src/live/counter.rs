//! The window that is being counted: all series of this node since the last hand-in.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;

use super::table::{CountTable, Full};
use crate::address::{Address, Block, Family};
use crate::key::Key;
use crate::store::Counts;

/// Counts of one series.
#[derive(Clone)]
pub(crate) struct Tables {
    v4: CountTable<u32>,
    v6: CountTable<u128>,
}

impl Tables {
    pub(crate) fn new(seed: u64, limit: usize) -> Self {
        Self { v4: CountTable::new(seed, limit), v6: CountTable::new(seed.rotate_left(17), limit) }
    }

    #[inline]
    pub(crate) fn add(&mut self, address: Address, amount: i64) -> Result<(), Full> {
        match address {
            Address::V4(bits) => self.v4.add(bits, amount),
            Address::V6(bits) => self.v6.add(bits, amount),
        }
    }

    pub(crate) fn add_v4(&mut self, events: &[(u32, i64)]) -> Result<(), (usize, Refusal)> {
        let added = self.v4.add_many(events);
        if added < events.len() { Err((added, Full.into())) } else { Ok(()) }
    }

    pub(crate) fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    pub(crate) fn clear(&mut self, address: Address) {
        match address {
            Address::V4(bits) => self.v4.clear(bits),
            Address::V6(bits) => self.v6.clear(bits),
        }
    }

    pub(crate) fn count(&self, block: &Block) -> i64 {
        match block.family() {
            Family::V4 => count(&self.v4, block),
            Family::V6 => count(&self.v6, block),
        }
    }

    pub(crate) fn settle(&self) -> Counts {
        Counts::from_rows(self.v4.iter().collect(), self.v6.iter().collect())
    }
}

/// A look-up waits for memory about as long as it takes to look through this many slots in their order.
const SLOTS_PER_LOOKUP: u128 = 32;

/// Looks up every address of a small block, and looks through everything for a large one: whoever counts waits for it.
fn count<K: Key>(table: &CountTable<K>, block: &Block) -> i64 {
    let (first, last) = (block.first(), block.last());
    if last - first < table.len() as u128 / (SLOTS_PER_LOOKUP / 2) {
        return (first..=last).map(|number| table.get(K::from_u128(number))).fold(0, i64::saturating_add);
    }
    let inside = table.iter().filter(|(key, _)| (first..=last).contains(&key.to_u128()));
    inside.map(|(_, count)| count).fold(0, i64::saturating_add)
}

/// A series of the live window, for adding without looking its name up again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SeriesId(u32);

impl SeriesId {
    /// Its place: series are numbered from 0 as they come.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Why an event was not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Too many addresses: hand in what was counted, then go on.
    #[error(transparent)]
    Full(#[from] Full),
    /// Too many series.
    #[error("as many series are counted as may be kept in memory")]
    TooManySeries,
    /// Not the name of a series.
    #[error("this is not the name of a series: letters, digits and - _ . up to 63")]
    Name,
}

/// How much is kept in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most series: names come from the network.
    pub series: usize,
    /// Most addresses of a series and family in one window; 8 bytes each for IPv4 and 32 for IPv6, up to four times that while it grows.
    pub addresses: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { series: 1_024, addresses: 4 << 20 }
    }
}

/// Whatever takes events by series: a window, or a window and what is kept beside it.
pub trait Tally {
    /// The series of this name.
    fn series(&mut self, name: &[u8]) -> Result<SeriesId, Refusal>;

    /// Counts an event.
    fn add(&mut self, series: SeriesId, address: Address, amount: i64) -> Result<(), Refusal>;

    /// Counts many events of IPv4 addresses; with a refusal comes how many were counted before it.
    fn add_v4(&mut self, series: SeriesId, events: &[(u32, i64)]) -> Result<(), (usize, Refusal)>;
}

/// The window that is being counted.
pub struct LiveWindow {
    names: HashMap<Box<[u8]>, SeriesId, RandomState>,
    series: Vec<(String, Tables)>,
    limits: Limits,
    seed: u64,
}

impl LiveWindow {
    /// An empty window. The seed is secret: see the table.
    pub fn new(limits: Limits, seed: u64) -> Self {
        Self { names: HashMap::new(), series: Vec::new(), limits, seed }
    }

    /// Addresses that every series can still take, whichever they are.
    pub fn room(&self) -> usize {
        let fullest = self.series.iter().map(|(_, tables)| tables.v4.len().max(tables.v6.len())).max();
        self.limits.addresses.saturating_sub(fullest.unwrap_or(0))
    }

    /// Forgets what was counted for an address.
    pub fn remove(&mut self, series: &str, address: Address) {
        if let Some(id) = self.names.get(series.as_bytes()) {
            self.series[id.0 as usize].1.clear(address);
        }
    }

    /// What was counted for a block since the last hand-in.
    pub fn count(&self, series: &str, block: &Block) -> i64 {
        let id = self.names.get(series.as_bytes());
        id.map_or(0, |id| self.series[id.0 as usize].1.count(block))
    }

    /// Addresses in memory.
    pub fn len(&self) -> usize {
        self.series.iter().map(|(_, tables)| tables.len()).sum()
    }

    /// True when nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ends the window: returns what was counted and begins with nothing. Ids given out before are no longer good.
    pub fn seal(&mut self) -> Vec<(String, Counts)> {
        self.names.clear();
        let series = std::mem::take(&mut self.series);
        series
            .into_iter()
            .map(|(name, tables)| (name, tables.settle()))
            .filter(|(_, counts)| !counts.is_empty())
            .collect()
    }
}

impl Tally for LiveWindow {
    fn series(&mut self, name: &[u8]) -> Result<SeriesId, Refusal> {
        if let Some(id) = self.names.get(name) {
            return Ok(*id);
        }
        let good = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        let text = std::str::from_utf8(name).map_err(|_| Refusal::Name)?;
        if name.is_empty() || name.len() > 63 || !name.iter().all(good) || matches!(name[0], b'-' | b'.') {
            return Err(Refusal::Name);
        }
        if self.series.len() >= self.limits.series {
            return Err(Refusal::TooManySeries);
        }
        let id = SeriesId(self.series.len() as u32);
        self.series.push((text.to_owned(), Tables::new(self.seed ^ u64::from(id.0), self.limits.addresses)));
        self.names.insert(name.into(), id);
        Ok(id)
    }

    #[inline]
    fn add(&mut self, series: SeriesId, address: Address, amount: i64) -> Result<(), Refusal> {
        Ok(self.series[series.0 as usize].1.add(address, amount)?)
    }

    fn add_v4(&mut self, series: SeriesId, events: &[(u32, i64)]) -> Result<(), (usize, Refusal)> {
        self.series[series.0 as usize].1.add_v4(events)
    }
}
