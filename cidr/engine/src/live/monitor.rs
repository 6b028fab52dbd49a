//! A monitor such as "300,6": the counts of one series over the last six windows of 300 seconds, in memory, for questions that cannot wait.
//!
//! The window that is counted is a hash table; those before it are sorted with running sums, so that a block over five of them is ten
//! binary searches. Time comes from the caller and should be a clock that never goes back; when it does, the newest window goes on.

use std::collections::VecDeque;

use super::counter::Tables;
use super::table::Full;
use crate::address::{Address, Block, Family};
use crate::store::Counts;

/// Counts of a series over the last windows.
pub struct Monitor {
    window_s: i64,
    windows: usize,
    limit: usize,
    seed: u64,
    /// The number of the newest window.
    index: i64,
    current: Tables,
    /// Newest first, with their numbers.
    sealed: VecDeque<(i64, Sealed)>,
}

struct Sealed {
    counts: Counts,
    sums_v4: Vec<i64>,
    sums_v6: Vec<i64>,
}

impl Sealed {
    fn new(counts: Counts) -> Self {
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

    fn without(self, address: Address) -> Self {
        let v4 = self.counts.v4().iter().copied().filter(|row| Address::V4(row.0) != address).collect();
        let v6 = self.counts.v6().iter().copied().filter(|row| Address::V6(row.0) != address).collect();
        Self::new(Counts::from_rows(v4, v6))
    }
}

impl Monitor {
    /// `windows` windows of `window_s` seconds, the current one among them, each with at most `limit` addresses per family.
    pub fn new(window_s: u32, windows: u32, limit: usize, seed: u64) -> Self {
        Self {
            window_s: i64::from(window_s.max(1)),
            windows: windows.max(1) as usize,
            limit,
            seed,
            index: i64::MIN,
            current: Tables::new(seed, limit),
            sealed: VecDeque::new(),
        }
    }

    /// Ends windows that are over.
    fn turn(&mut self, now_s: i64) {
        let index = now_s.div_euclid(self.window_s);
        if index <= self.index {
            return;
        }
        let over = std::mem::replace(&mut self.current, Tables::new(self.seed ^ index as u64, self.limit));
        if over.len() > 0 {
            self.sealed.push_front((self.index, Sealed::new(over.settle())));
        }
        self.index = index;
        let oldest = index.saturating_sub(self.windows as i64 - 1);
        self.sealed.retain(|(index, _)| *index >= oldest);
    }

    /// Counts an event.
    pub fn add(&mut self, address: Address, amount: i64, now_s: i64) -> Result<(), Full> {
        self.turn(now_s);
        self.current.add(address, amount)
    }

    /// Counts many; returns how many found no room.
    pub fn add_v4(&mut self, mut events: &[(u32, i64)], now_s: i64) -> u64 {
        self.turn(now_s);
        let mut refused = 0;
        while let Err((counted, _)) = self.current.add_v4(events) {
            refused += 1;
            events = &events[counted + 1..];
        }
        refused
    }

    /// What was counted for a block in the windows `from` to `to`; window 0 is the current one.
    pub fn count(&mut self, block: &Block, from: u32, to: u32, now_s: i64) -> i64 {
        self.turn(now_s);
        let current = if from == 0 { self.current.count(block) } else { 0 };
        let wanted = |index: i64| (i64::from(from)..=i64::from(to)).contains(&self.index.saturating_sub(index));
        let sealed = self.sealed.iter().filter(|(index, _)| wanted(*index)).map(|(_, sealed)| sealed.count(block));
        sealed.fold(current, i64::saturating_add)
    }

    /// How long a window is, and how many there are.
    pub fn shape(&self) -> (u32, u32) {
        (self.window_s as u32, self.windows as u32)
    }

    /// What is held, for keeping over a restart: the windows' starts with their counts.
    pub fn export(&self) -> Vec<(i64, Counts)> {
        let start = |index: i64| index.saturating_mul(self.window_s);
        let sealed = self.sealed.iter().map(|(index, sealed)| (start(*index), sealed.counts.clone()));
        let current = Some((start(self.index), self.current.settle())).filter(|(_, counts)| !counts.is_empty());
        sealed.chain(current).collect()
    }

    /// Takes windows of an earlier run back; those that are too old by now are dropped. Call it before the first event.
    pub fn import(&mut self, windows: Vec<(i64, Counts)>, now_s: i64) {
        self.turn(now_s);
        let oldest = self.index.saturating_sub(self.windows as i64 - 1);
        for (start, counts) in windows {
            let index = start.div_euclid(self.window_s);
            if index == self.index {
                // More than the limit cannot be: it was written with the same one.
                let v4 = counts.v4().iter().map(|(bits, count)| (Address::V4(*bits), *count));
                let v6 = counts.v6().iter().map(|(bits, count)| (Address::V6(*bits), *count));
                v4.chain(v6).for_each(|(address, count)| self.current.add(address, count).unwrap_or_default());
            } else if (oldest..self.index).contains(&index) {
                self.sealed.push_back((index, Sealed::new(counts)));
            }
        }
    }

    /// Forgets an address.
    pub fn remove(&mut self, address: Address, now_s: i64) {
        self.turn(now_s);
        self.current.clear(address);
        let sealed = std::mem::take(&mut self.sealed);
        self.sealed = sealed.into_iter().map(|(index, sealed)| (index, sealed.without(address))).collect();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn windows_turn_and_the_current_one_is_zero() {
        let mut monitor = Monitor::new(300, 6, 1_000, 1);
        let address = "10.0.0.1".parse().unwrap();
        let block = "10.0.0.0/24".parse().unwrap();
        for window in 0..8 {
            monitor.add(address, 1 << window, window * 300 + 7).unwrap();
        }
        let now = 7 * 300 + 299;
        assert_eq!(monitor.count(&block, 0, 0, now), 128);
        assert_eq!(monitor.count(&block, 1, 2, now), 64 + 32);
        assert_eq!(monitor.count(&block, 0, 100, now), 128 + 64 + 32 + 16 + 8 + 4);
        monitor.remove(address, now);
        assert_eq!(monitor.count(&block, 0, 100, now), 0);
    }

    #[test]
    fn windows_survive_a_restart() {
        let mut monitor = Monitor::new(300, 6, 1_000, 1);
        let (address, block) = ("10.0.0.1".parse().unwrap(), "10.0.0.0/24".parse().unwrap());
        for window in 0..8 {
            monitor.add(address, 1 << window, window * 300 + 7).unwrap();
        }
        let kept = monitor.export();
        for (later_s, expected) in [(0, 252), (300, 248), (1_500, 128), (1_800, 0)] {
            let now = 7 * 300 + 299 + later_s;
            let mut again = Monitor::new(300, 6, 1_000, 2);
            again.import(kept.clone(), now);
            assert_eq!(again.count(&block, 0, 100, now), expected, "{later_s} s later");
        }
    }

    proptest! {
        #[test]
        fn counts_as_a_list_does(
            events in proptest::collection::vec((0_u32..40, -3_i64..20, 0_i64..50, 0_u8..30), 1..300),
            length in 0_u8..=32,
        ) {
            let mut monitor = Monitor::new(10, 4, 1_000, 3);
            let (mut list, mut now, mut newest) = (Vec::new(), 1_000_000_i64, i64::MIN);
            for (bits, amount, passed, what) in events {
                // Now and then the clock goes back, or far ahead.
                now += match what { 0 => -passed, 1 => passed * 100, _ => passed / 10 };
                newest = newest.max(now.div_euclid(10));
                monitor.add(Address::V4(bits), amount, now).unwrap();
                list.push((bits, amount, newest));
                let block = Block::new(Family::V4, bits.into(), length);
                let (from, to) = (u32::from(what % 4), u32::from(what % 7));
                let expected: i64 = list.iter()
                    .filter(|(bits, _, window)| {
                        let age = newest - window;
                        age < 4 && (i64::from(from)..=i64::from(to)).contains(&age) && block.contains(&Address::V4(*bits).into())
                    })
                    .map(|(_, amount, _)| amount)
                    .sum();
                prop_assert_eq!(monitor.count(&block, from, to, now), expected);
            }
        }
    }
}
