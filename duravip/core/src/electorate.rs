//! Who votes. Not whatever a file says at the moment: the set changes only by a table version that majorities of the
//! old and of the new set acknowledged, so that two majorities of what different members believe always share a member.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::ids::MemberId;

/// The voters, and while they change, those who come after them.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Electorate {
    /// The voters.
    pub voters: BTreeSet<MemberId>,
    /// While a change is under way: a majority of these is needed as well.
    pub next: Option<BTreeSet<MemberId>>,
}

impl Electorate {
    /// These voters, and no change under way.
    pub fn of(voters: impl IntoIterator<Item = MemberId>) -> Self {
        Self { voters: voters.into_iter().collect(), next: None }
    }

    /// Whether those who said yes decide.
    pub fn majority(&self, yes: impl Fn(MemberId) -> bool) -> bool {
        self.agreed(yes).unwrap_or(false)
    }

    /// The largest value that a majority has reached; nothing without voters.
    pub fn agreed<T: Ord + Copy>(&self, reached: impl Fn(MemberId) -> T) -> Option<T> {
        let median = |set: &BTreeSet<MemberId>| {
            let mut values: Vec<T> = set.iter().map(|member| reached(*member)).collect();
            values.sort_unstable_by(|a, b| b.cmp(a));
            values.get(values.len() / 2).copied()
        };
        let old = median(&self.voters)?;
        match &self.next {
            Some(next) => Some(old.min(median(next)?)),
            None => Some(old),
        }
    }

    /// Whether this member votes, now or after the change.
    pub fn contains(&self, member: MemberId) -> bool {
        self.voters.contains(&member) || self.next.as_ref().is_some_and(|next| next.contains(&member))
    }

    /// All who vote, now or after the change.
    pub fn everyone(&self) -> BTreeSet<MemberId> {
        self.voters.iter().chain(self.next.iter().flatten()).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(numbers: &[u64]) -> BTreeSet<MemberId> {
        numbers.iter().map(|number| MemberId(*number)).collect()
    }

    #[test]
    fn a_majority_is_more_than_half() {
        for n in 1..=7_u64 {
            let electorate = Electorate::of((1..=n).map(MemberId));
            for yes in 0..=n {
                assert_eq!(electorate.majority(|member| member.0 <= yes), yes * 2 > n, "{yes} of {n}");
            }
        }
        assert!(!Electorate::default().majority(|_| true), "nobody is no majority");
    }

    #[test]
    fn a_change_needs_both_sets() {
        let electorate = Electorate { voters: ids(&[1, 2, 3]), next: Some(ids(&[3, 4, 5])) };
        assert!(!electorate.majority(|member| member.0 <= 3), "1 2 3 hold only one of the new set");
        assert!(electorate.majority(|member| [2, 3, 4].contains(&member.0)));
        assert!(!electorate.majority(|member| member.0 >= 3));
        assert_eq!(electorate.agreed(|member| member.0), Some(2));
        assert_eq!(electorate.everyone(), ids(&[1, 2, 3, 4, 5]));
    }
}
