//! A monitor such as "300,6": the counts of one series over the last six windows of 300 seconds, in memory, for questions that cannot wait.
//!
//! The window that is counted is a hash table; those before it are sorted with running sums, so that a block over five of them is ten
//! binary searches. Nothing here sorts: an event that ends a window of millions of addresses costs what any other does (see [`Past`]).
//! Time comes from the caller and should be a clock that never goes back; when it does, the newest window goes on.

use std::collections::VecDeque;

use super::counter::Tables;
use super::past::{Held, Past, Question, Sealed};
use super::table::Full;
use crate::address::{Address, Block};

/// Counts of a series over the last windows.
pub struct Monitor {
    window_s: i64,
    windows: usize,
    limit: usize,
    seed: u64,
    /// The number of the newest window.
    index: i64,
    current: Tables,
    /// Newest first; those of an earlier run at the end, one of which may have the current number.
    past: VecDeque<Past>,
    /// Those that ended and were not taken by whoever sorts them.
    ended: Vec<Past>,
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
            past: VecDeque::new(),
            ended: Vec::new(),
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
            let past = Past::counted(self.index, over);
            self.ended.push(past.clone());
            self.past.push_front(past);
        }
        self.index = index;
        let oldest = index.saturating_sub(self.windows as i64 - 1);
        self.past.retain(|past| past.index >= oldest);
        self.ended.retain(|past| past.index >= oldest);
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
        self.ask(block, from, to, now_s).answer()
    }

    /// The same for callers who let go of the monitor before they have the answer.
    pub fn ask(&mut self, block: &Block, from: u32, to: u32, now_s: i64) -> Question {
        self.turn(now_s);
        let current = if from == 0 { self.current.count(block) } else { 0 };
        let wanted = |index: i64| (i64::from(from)..=i64::from(to)).contains(&self.index.saturating_sub(index));
        let past = self.past.iter().filter(|past| wanted(past.index)).cloned().collect();
        Question { block: *block, current, past }
    }

    /// Windows that ended since the last call: sorted now, they need not be when somebody asks.
    pub fn take_ended(&mut self) -> Vec<Past> {
        std::mem::take(&mut self.ended)
    }

    /// How long a window is, and how many there are.
    pub fn shape(&self) -> (u32, u32) {
        (self.window_s as u32, self.windows as u32)
    }

    /// What is held, for keeping over a restart.
    pub fn export(&self) -> Held {
        let past = self.past.iter().cloned().collect();
        Held { window_s: self.window_s, index: self.index, current: self.current.clone(), past }
    }

    /// Takes windows of an earlier run back, by their starts; those that are too old by now are dropped. Call it before the first event.
    pub fn import(&mut self, windows: Vec<(i64, Sealed)>, now_s: i64) {
        self.turn(now_s);
        let oldest = self.index.saturating_sub(self.windows as i64 - 1);
        let windows = windows.into_iter().map(|(start, sealed)| (start.div_euclid(self.window_s), sealed));
        let kept = windows.filter(|(index, _)| (oldest..=self.index).contains(index));
        self.past.extend(kept.map(|(index, sealed)| Past::sealed(index, sealed)));
    }

    /// Forgets an address.
    pub fn remove(&mut self, address: Address, now_s: i64) {
        self.turn(now_s);
        self.current.clear(address);
        self.past.iter_mut().for_each(|past| past.remove(address));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::address::Family;
    use crate::store::Counts;
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
        let kept = monitor.export().windows();
        for (later_s, expected) in [(0, 252), (300, 248), (1_500, 128), (1_800, 0)] {
            let now = 7 * 300 + 299 + later_s;
            let mut again = Monitor::new(300, 6, 1_000, 2);
            again.import(sealed(&kept), now);
            assert_eq!(again.count(&block, 0, 100, now), expected, "{later_s} s later");
        }
    }

    fn sealed(windows: &[(i64, Counts)]) -> Vec<(i64, Sealed)> {
        windows.iter().map(|(start, counts)| (*start, Sealed::new(counts.clone()))).collect()
    }

    #[test]
    fn the_event_that_ends_a_window_sorts_nothing() {
        let mut monitor = Monitor::new(300, 3, 1_000, 1);
        let (address, block) = ("10.0.0.1".parse().unwrap(), "10.0.0.0/24".parse().unwrap());
        monitor.add(address, 1, 0).unwrap();
        assert!(monitor.take_ended().is_empty());
        monitor.add(address, 2, 300).unwrap();
        let _ = (monitor.ask(&block, 0, 2, 300), monitor.export());
        monitor.remove("10.0.0.2".parse().unwrap(), 300);
        let ended = monitor.take_ended();
        assert_eq!(ended.iter().map(Past::is_sorted).collect::<Vec<_>>(), [false]);
        ended[0].sort();
        assert!(ended[0].is_sorted() && monitor.take_ended().is_empty());
        assert_eq!(monitor.count(&block, 0, 2, 300), 3);
        // Nobody takes them: then no more are kept than windows.
        for window in 2..50 {
            monitor.add(address, 1, window * 300).unwrap();
        }
        assert_eq!(monitor.take_ended().len(), 2);
    }

    /// What a list of events says: the newest window, then address, amount and window.
    fn listed(list: &[(u32, i64, i64)], block: &Block, (from, to): (u32, u32), newest: i64) -> i64 {
        let inside = list.iter().filter(|(bits, _, window)| {
            let age = newest - window;
            age < 4 && (i64::from(from)..=i64::from(to)).contains(&age) && block.contains(&Address::V4(*bits).into())
        });
        inside.map(|(_, amount, _)| amount).sum()
    }

    proptest! {
        #[test]
        fn counts_as_a_list_does(
            events in proptest::collection::vec((0_u32..40, -3_i64..20, 0_i64..50, 0_u8..30), 1..300),
            length in 0_u8..=32,
        ) {
            let mut monitor = Monitor::new(10, 4, 1_000, 3);
            let mut list: Vec<(u32, i64, i64)> = Vec::new();
            let (mut now, mut newest) = (1_000_000_i64, i64::MIN);
            // Answers that are still owed, with what they have to be: as it was when they were asked for.
            let (mut owed, mut held) = (Vec::new(), Vec::new());
            let everything = "0.0.0.0/0".parse().unwrap();
            for (bits, amount, passed, what) in events {
                // Now and then the clock goes back, or far ahead.
                now += match what { 0 => -passed, 1 => passed * 100, _ => passed / 10 };
                newest = newest.max(now.div_euclid(10));
                let block = Block::new(Family::V4, bits.into(), length);
                let span = (u32::from(what % 4), u32::from(what % 7));
                match what {
                    2 | 3 => {
                        monitor.remove(Address::V4(bits), now);
                        list.retain(|(other, ..)| *other != bits);
                    }
                    4 => monitor.take_ended().iter().for_each(Past::sort),
                    5 => {
                        let mut again = Monitor::new(10, 4, 1_000, 4);
                        again.import(sealed(&monitor.export().windows()), now.max(newest * 10));
                        monitor = again;
                    }
                    _ => {
                        monitor.add(Address::V4(bits), amount, now).unwrap();
                        list.push((bits, amount, newest));
                    }
                }
                let expected = listed(&list, &block, span, newest);
                prop_assert_eq!(monitor.count(&block, span.0, span.1, now), expected);
                owed.push((monitor.ask(&block, span.0, span.1, now), expected));
                if what % 8 == 0 {
                    held.push((monitor.export(), listed(&list, &everything, (0, 3), newest)));
                }
            }
            for (question, expected) in owed {
                prop_assert_eq!(question.answer(), expected);
            }
            for (held, expected) in held {
                let rows: Vec<i64> = held.windows().iter().flat_map(|(_, counts)| counts.v4().to_vec()).map(|row| row.1).collect();
                prop_assert_eq!(rows.iter().sum::<i64>(), expected);
            }
        }
    }
}
