//! What a query or a merge may use, and what it has used: memory, blocks, and the caller's patience.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use crate::error::{Error, Result};

/// Limits and counters of one run. One thread runs it, so plain cells do.
pub(crate) struct Work<'a> {
    stop: &'a dyn Fn() -> bool,
    memory_limit: usize,
    memory: Cell<usize>,
    memory_peak: Cell<usize>,
    blocks: Cell<u64>,
    rows: Cell<u64>,
    /// Blocks by file id, when somebody wants to know.
    tally: RefCell<Option<HashMap<u64, u64>>>,
}

/// The run would need more memory than it may use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OverLimit;

impl<'a> Work<'a> {
    /// `stop` is asked once per block, about every microsecond.
    pub(crate) fn new(stop: &'a dyn Fn() -> bool, memory_limit: usize) -> Self {
        let zero = || Cell::new(0);
        Self {
            stop,
            memory_limit,
            memory: zero(),
            memory_peak: zero(),
            blocks: Cell::new(0),
            rows: Cell::new(0),
            tally: RefCell::new(None),
        }
    }

    /// Notes a block of a file that is about to be read, and ends the run when the caller wants that.
    pub(crate) fn block(&self, file: u64) -> Result<()> {
        self.blocks.set(self.blocks.get() + 1);
        if let Some(tally) = self.tally.borrow_mut().as_mut() {
            *tally.entry(file).or_default() += 1;
        }
        self.check()
    }

    /// Counts blocks by file from now on.
    pub(crate) fn tally(&self) {
        *self.tally.borrow_mut() = Some(HashMap::new());
    }

    pub(crate) fn take_tally(&self) -> HashMap<u64, u64> {
        self.tally.borrow_mut().take().unwrap_or_default()
    }

    pub(crate) fn check(&self) -> Result<()> {
        if (self.stop)() { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// Takes memory, or says that there is none left.
    pub(crate) fn take(&self, bytes: usize) -> Result<(), OverLimit> {
        let used = self.memory.get().saturating_add(bytes);
        if used > self.memory_limit {
            return Err(OverLimit);
        }
        self.memory.set(used);
        self.memory_peak.set(self.memory_peak.get().max(used));
        Ok(())
    }

    pub(crate) fn give_back(&self, bytes: usize) {
        self.memory.set(self.memory.get().saturating_sub(bytes));
    }

    /// What may still be taken.
    pub(crate) fn left(&self) -> usize {
        self.memory_limit - self.memory.get()
    }

    pub(crate) fn limit(&self) -> usize {
        self.memory_limit
    }

    pub(crate) fn row(&self) {
        self.rows.set(self.rows.get() + 1);
    }

    pub(crate) fn blocks(&self) -> u64 {
        self.blocks.get()
    }

    pub(crate) fn rows(&self) -> u64 {
        self.rows.get()
    }

    pub(crate) fn memory_peak(&self) -> usize {
        self.memory_peak.get()
    }
}
