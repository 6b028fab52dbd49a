//! Counts of one window in memory, as they are handed to the store.

use crate::address::Address;

/// Counts per address: sorted, each address once, none zero.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    v4: Vec<(u32, i64)>,
    v6: Vec<(u128, i64)>,
}

impl Counts {
    /// From rows in any order; the same address twice is one count.
    pub fn from_rows(v4: Vec<(u32, i64)>, v6: Vec<(u128, i64)>) -> Self {
        Self { v4: settled(v4), v6: settled(v6) }
    }

    /// IPv4 in ascending order.
    pub fn v4(&self) -> &[(u32, i64)] {
        &self.v4
    }

    /// IPv6 in ascending order.
    pub fn v6(&self) -> &[(u128, i64)] {
        &self.v6
    }

    /// The sum of both, address by address.
    pub fn plus(&self, other: &Self) -> Self {
        let both = |a: &[(u32, i64)], b: &[(u32, i64)]| [a, b].concat();
        let both_v6 = |a: &[(u128, i64)], b: &[(u128, i64)]| [a, b].concat();
        Self::from_rows(both(&self.v4, &other.v4), both_v6(&self.v6, &other.v6))
    }

    /// How many addresses there are.
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// True without any.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl FromIterator<(Address, i64)> for Counts {
    fn from_iter<I: IntoIterator<Item = (Address, i64)>>(rows: I) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (address, count) in rows {
            match address {
                Address::V4(bits) => v4.push((bits, count)),
                Address::V6(bits) => v6.push((bits, count)),
            }
        }
        Self::from_rows(v4, v6)
    }
}

fn settled<K: Ord + Copy>(mut rows: Vec<(K, i64)>) -> Vec<(K, i64)> {
    if !rows.is_sorted_by(|a, b| a.0 < b.0) {
        rows.sort_unstable_by_key(|(key, _)| *key);
        rows.dedup_by(|later, kept| {
            let same = later.0 == kept.0;
            if same {
                kept.1 = kept.1.saturating_add(later.1);
            }
            same
        });
    }
    rows.retain(|(_, count)| *count != 0);
    rows
}
