//! Windows of a monitor that are over, for those who ask.
//!
//! Whoever counts holds the monitor; whoever asks must not hold it for as long as it takes to sort millions of addresses. So a window that is over is
//! put aside as it is, shared, and sorted by whoever needs its order first: a question, an export, or who has nothing better to do. What is
//! asked for ([`Question`], [`Held`]) is taken from the monitor in a moment and worked out without it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::counter::Tables;
use crate::address::{Address, Block, Family};
use crate::store::Counts;

/// Counts with running sums, so that a block is two binary searches.
pub struct Sealed {
    counts: Counts,
    sums_v4: Vec<i64>,
    sums_v6: Vec<i64>,
}

impl Sealed {
    /// Adds the sums.
    pub fn new(counts: Counts) -> Self {
        let sums = |counts: &mut dyn Iterator<Item = i64>| {
            let mut sum = 0_i64;
            let running = counts.map(|count| {
                sum = sum.saturating_add(count);
                sum
            });
            std::iter::once(0).chain(running.collect::<Vec<_>>()).collect()
        };
        let sums_v4 = sums(&mut counts.v4().iter().map(|row| row.1));
        let sums_v6 = sums(&mut counts.v6().iter().map(|row| row.1));
        Self { counts, sums_v4, sums_v6 }
    }

    fn count(&self, block: &Block) -> i64 {
        let (first, last) = (block.first(), block.last());
        match block.family() {
            Family::V4 => {
                let rows = self.counts.v4();
                let from = rows.partition_point(|row| u128::from(row.0) < first);
                let to = rows.partition_point(|row| u128::from(row.0) <= last);
                self.sums_v4[to] - self.sums_v4[from]
            }
            Family::V6 => {
                let rows = self.counts.v6();
                let from = rows.partition_point(|row| row.0 < first);
                let to = rows.partition_point(|row| row.0 <= last);
                self.sums_v6[to] - self.sums_v6[from]
            }
        }
    }
}

/// A window that is over. Cheap to clone.
#[derive(Clone)]
pub struct Past {
    /// The window's number.
    pub(super) index: i64,
    window: Arc<Window>,
    /// Addresses that were forgotten since. They are left out by whoever asks: to make the window anew takes as long as it is large.
    removed: Arc<BTreeSet<Address>>,
}

struct Window {
    /// As it was counted, until somebody sorts it.
    counted: Mutex<Option<Tables>>,
    sealed: OnceLock<Sealed>,
}

impl Past {
    pub(super) fn counted(index: i64, tables: Tables) -> Self {
        Self::of(index, Window { counted: Mutex::new(Some(tables)), sealed: OnceLock::new() })
    }

    pub(super) fn sealed(index: i64, sealed: Sealed) -> Self {
        Self::of(index, Window { counted: Mutex::default(), sealed: OnceLock::from(sealed) })
    }

    fn of(index: i64, window: Window) -> Self {
        Self { index, window: Arc::new(window), removed: Arc::default() }
    }

    /// Sorts it, so that nobody who asks has to. Waits for whoever is doing that already.
    pub fn sort(&self) {
        self.in_order();
    }

    /// Whether that was done.
    pub fn is_sorted(&self) -> bool {
        self.window.sealed.get().is_some()
    }

    fn in_order(&self) -> &Sealed {
        self.window.sealed.get_or_init(|| {
            let counted = self.window.counted.lock().unwrap_or_else(PoisonError::into_inner).take();
            Sealed::new(counted.map(|tables| tables.settle()).unwrap_or_default())
        })
    }

    pub(super) fn remove(&mut self, address: Address) {
        Arc::make_mut(&mut self.removed).insert(address);
    }

    fn count(&self, block: &Block) -> i64 {
        let sealed = self.in_order();
        let removed =
            self.removed.iter().map(|address| Block::from(*address)).filter(|address| block.contains(address));
        removed.fold(sealed.count(block), |sum, address| sum.saturating_sub(sealed.count(&address)))
    }

    fn counts(&self) -> Counts {
        let counts = &self.in_order().counts;
        if self.removed.is_empty() {
            return counts.clone();
        }
        let v4 = counts.v4().iter().copied().filter(|row| !self.removed.contains(&Address::V4(row.0))).collect();
        let v6 = counts.v6().iter().copied().filter(|row| !self.removed.contains(&Address::V6(row.0))).collect();
        Counts::from_rows(v4, v6)
    }
}

/// What was asked of a monitor, with the windows that answer it as they were then.
pub struct Question {
    pub(super) block: Block,
    /// What the current window said.
    pub(super) current: i64,
    pub(super) past: Vec<Past>,
}

impl Question {
    /// The sum. May have to sort, so it is called where that holds nobody up.
    pub fn answer(&self) -> i64 {
        self.past.iter().map(|past| past.count(&self.block)).fold(self.current, i64::saturating_add)
    }
}

/// What a monitor held at a moment.
pub struct Held {
    pub(super) window_s: i64,
    pub(super) index: i64,
    pub(super) current: Tables,
    pub(super) past: Vec<Past>,
}

impl Held {
    /// The windows' starts with their counts. Sorts, so it is called where that holds nobody up.
    pub fn windows(self) -> Vec<(i64, Counts)> {
        let start = |index: i64| index.saturating_mul(self.window_s);
        let past = self.past.iter().map(|past| (start(past.index), past.counts()));
        let current = Some((start(self.index), self.current.settle())).filter(|(_, counts)| !counts.is_empty());
        past.chain(current).collect()
    }
}
