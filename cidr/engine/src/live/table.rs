//! A hash table from addresses to counts, made for adding.
//!
//! Open addressing, a power of two, linear steps: an event is one multiplication and, mostly, one cache line. The multiplier is secret
//! and odd, so that whoever chooses the addresses cannot choose the collisions. The zero key marks a free slot; the address zero is kept
//! beside the table.
//!
//! A slot has 32 bits for the count, so that an IPv4 address takes eight bytes: most of an event's time is the wait for its slot. The few
//! counts that do not fit are beside the table. Many events at once are looked at twice: the first time only to have the memory fetch all
//! their slots together.

use std::collections::HashMap;

use crate::key::Key;

/// Counts stay below this, so that they are exact in every reader's numbers, JSON's too.
pub const MAX_COUNT: i64 = 1 << 53;

/// The table may grow no further. What it holds must be written first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("as many addresses are counted as may be kept in memory")]
pub struct Full;

#[derive(Clone)]
pub(crate) struct CountTable<K> {
    slots: Vec<(K, i32)>,
    /// Counts that exceed a slot, which says [`ELSEWHERE`].
    large: HashMap<K, i64>,
    used: usize,
    /// Bits of a hash that are not part of a place.
    shift: u32,
    multiplier: u64,
    zero: Option<i64>,
    /// Most addresses.
    limit: usize,
}

const FIRST_SLOTS: usize = 64;

/// The count is among the large ones.
const ELSEWHERE: i32 = i32::MIN;

/// Events whose slots are fetched together: processors have ten to twenty such fetches under way.
pub(crate) const AT_ONCE: usize = 32;

impl<K: Key> CountTable<K> {
    pub(crate) fn new(seed: u64, limit: usize) -> Self {
        Self {
            slots: Vec::new(),
            large: HashMap::new(),
            used: 0,
            shift: 64,
            multiplier: spread(seed) | 1,
            zero: None,
            limit,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.used + usize::from(self.zero.is_some())
    }

    #[inline]
    fn place(&self, key: K) -> usize {
        let wide = key.to_u128();
        let folded = wide as u64 ^ ((wide >> 64) as u64).wrapping_mul(self.multiplier).rotate_left(32);
        (folded.wrapping_mul(self.multiplier) >> self.shift) as usize
    }

    #[inline]
    pub(crate) fn add(&mut self, key: K, amount: i64) -> Result<(), Full> {
        if key == K::default() {
            return self.add_zero(amount);
        }
        // Half full at most: the walk below ends.
        if self.used * 2 >= self.slots.len() {
            if self.used >= self.limit {
                return self.add_known(key, amount);
            }
            self.grow();
        }
        let mut at = self.place(key);
        let mask = self.slots.len() - 1;
        loop {
            let slot = &mut self.slots[at & mask];
            if slot.0 == key {
                break;
            }
            if slot.0 == K::default() {
                if self.used >= self.limit {
                    return Err(Full);
                }
                *slot = (key, 0);
                self.used += 1;
                break;
            }
            at += 1;
        }
        self.raise(at & mask, amount);
        Ok(())
    }

    /// Adds to the count of a slot.
    #[inline]
    fn raise(&mut self, slot: usize, amount: i64) {
        let (key, count) = self.slots[slot];
        match i32::try_from(i64::from(count).saturating_add(amount)) {
            Ok(sum) if count != ELSEWHERE && sum != ELSEWHERE => self.slots[slot].1 = sum,
            _ => self.raise_large(slot, key, count, amount),
        }
    }

    #[cold]
    fn raise_large(&mut self, slot: usize, key: K, count: i32, amount: i64) {
        let before = if count == ELSEWHERE { self.large.get(&key).copied().unwrap_or(0) } else { i64::from(count) };
        self.large.insert(key, bounded(before, amount));
        self.slots[slot].1 = ELSEWHERE;
    }

    /// Adds many, up to the first that does not fit; returns how many were added.
    pub(crate) fn add_many(&mut self, events: &[(K, i64)]) -> usize {
        let mut added = 0;
        for some in events.chunks(AT_ONCE) {
            self.fetch(some.iter().map(|(key, _)| *key));
            for (key, amount) in some {
                if self.add(*key, *amount).is_err() {
                    return added;
                }
                added += 1;
            }
        }
        added
    }

    /// Looks at the slots of keys that come next. These loads do not wait for each other.
    #[inline]
    pub(crate) fn fetch(&self, keys: impl Iterator<Item = K>) {
        let mask = self.slots.len().wrapping_sub(1);
        let seen = keys.fold(0, |seen, key| {
            let place = if self.slots.is_empty() { 0 } else { self.place(key) & mask };
            seen ^ self.slots.get(place).map_or(0, |slot| slot.1)
        });
        std::hint::black_box(seen);
    }

    /// At the limit, addresses that are there still count.
    #[cold]
    fn add_known(&mut self, key: K, amount: i64) -> Result<(), Full> {
        let slot = self.find(key).ok_or(Full)?;
        self.raise(slot, amount);
        Ok(())
    }

    #[cold]
    fn add_zero(&mut self, amount: i64) -> Result<(), Full> {
        self.zero = Some(bounded(self.zero.unwrap_or(0), amount));
        Ok(())
    }

    fn find(&self, key: K) -> Option<usize> {
        if self.slots.is_empty() {
            return None;
        }
        let mask = self.slots.len() - 1;
        let mut at = self.place(key) & mask;
        while self.slots[at].0 != K::default() {
            if self.slots[at].0 == key {
                return Some(at);
            }
            at = (at + 1) & mask;
        }
        None
    }

    pub(crate) fn get(&self, key: K) -> i64 {
        if key == K::default() {
            return self.zero.unwrap_or(0);
        }
        self.find(key).map_or(0, |slot| self.count(self.slots[slot]))
    }

    /// Sets what is counted for a key that is there.
    pub(crate) fn clear(&mut self, key: K) {
        if key == K::default() {
            self.zero = None;
        } else if let Some(slot) = self.find(key) {
            // The slot stays taken: others may lie behind it.
            self.slots[slot].1 = 0;
            self.large.remove(&key);
        }
    }

    #[inline]
    fn count(&self, (key, count): (K, i32)) -> i64 {
        if count == ELSEWHERE { self.large.get(&key).copied().unwrap_or(0) } else { i64::from(count) }
    }

    #[cold]
    fn grow(&mut self) {
        let slots = (self.slots.len() * 2).max(FIRST_SLOTS);
        self.shift = 64 - slots.trailing_zeros();
        let old = std::mem::replace(&mut self.slots, vec![(K::default(), 0); slots]);
        let mask = slots - 1;
        for (key, count) in old.into_iter().filter(|(key, _)| *key != K::default()) {
            let mut at = self.place(key) & mask;
            while self.slots[at].0 != K::default() {
                at = (at + 1) & mask;
            }
            self.slots[at] = (key, count);
        }
    }

    /// What is counted, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (K, i64)> {
        let zero = self.zero.map(|count| (K::default(), count));
        let taken = self.slots.iter().filter(|(key, _)| *key != K::default());
        taken.map(|slot| (slot.0, self.count(*slot))).chain(zero)
    }
}

#[inline]
fn bounded(count: i64, amount: i64) -> i64 {
    count.saturating_add(amount).clamp(-MAX_COUNT, MAX_COUNT)
}

/// Spreads a seed over all bits.
const fn spread(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// Mostly small, sometimes about as large as a slot holds.
    fn amount() -> impl Strategy<Value = i64> {
        prop_oneof![8 => -5_i64..100, 1 => -(1_i64 << 32)..1 << 32, 1 => Just(i64::from(i32::MAX)), 1 => Just(i64::from(i32::MIN))]
    }

    proptest! {
        #[test]
        fn counts_as_a_map_does(
            events in proptest::collection::vec((0_u128..300, amount(), 0_u8..20), 0..2_000),
            seed in any::<u64>(),
        ) {
            let (mut table, mut map) = (CountTable::<u128>::new(seed, 10_000), BTreeMap::new());
            for (key, amount, what) in events {
                // Keys that differ only above 64 bits, too.
                let key = if key % 2 == 0 { key } else { key << 96 };
                if what == 0 {
                    table.clear(key);
                    map.insert(key, 0);
                } else {
                    table.add(key, amount).unwrap();
                    *map.entry(key).or_insert(0) += amount;
                }
                prop_assert_eq!(table.get(key), map[&key]);
            }
            let mut at_once = CountTable::<u128>::new(seed, 10_000);
            prop_assert_eq!(at_once.add_many(&table.iter().collect::<Vec<_>>()), table.len());
            prop_assert!(table.iter().all(|(key, count)| at_once.get(key) == count));
            let found: BTreeMap<u128, i64> = table.iter().filter(|(_, count)| *count != 0).collect();
            map.retain(|_, count| *count != 0);
            prop_assert_eq!(found, map);
        }
    }

    #[test]
    fn a_full_table_still_counts_what_it_knows() {
        for limit in [1, 31, 32, 33, 100, 1_000] {
            let mut table = CountTable::<u32>::new(1, limit);
            for key in 1..=limit as u32 {
                table.add(key, 1).unwrap();
            }
            assert_eq!(table.add(5_000_000, 1), Err(Full), "limit {limit}");
            assert_eq!(table.add_many(&[(1, 0), (5_000_000, 1), (1, 1)]), 1);
            table.add(1, 1).unwrap();
            assert_eq!((table.get(1), table.len(), table.get(5_000_000)), (2, limit, 0));
        }
    }

    #[test]
    fn counts_never_wrap() {
        let mut table = CountTable::<u32>::new(1, 10);
        for _ in 0..3 {
            table.add(7, i64::MAX).unwrap();
        }
        assert_eq!(table.get(7), MAX_COUNT);
    }
}
