//! Who is wrong when replicas differ: never the one that most voters agree with.
//!
//! A node only ever judges itself, from the hashes that voters say they had at one index. It is wrong when a majority of all voters, and not
//! only of those that answered, says the same and it says something else. That majority can also go on without it, which is what makes
//! it safe to step aside. Where no side has a majority nobody can be blamed: everybody goes on and says so.

use std::collections::BTreeMap;

use crate::state::Hash;

/// What a node makes of the others' hashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nobody differs.
    Equal,
    /// So many voters agree on another hash: a majority of them.
    Wrong {
        /// How many.
        with: usize,
    },
    /// This node is with the majority, and others are not.
    OthersDiffer,
    /// There are several hashes and no majority for any.
    Disputed,
}

/// Judges a node's own hash by those that other voters told. `votes`: it is a voter itself. `voters`: how many there are, this one included.
pub(crate) fn judge(own: Hash, votes: bool, told: &[Hash], voters: usize) -> Verdict {
    let mut counts: BTreeMap<Hash, usize> = BTreeMap::new();
    for hash in told.iter().chain(votes.then_some(&own)) {
        *counts.entry(*hash).or_default() += 1;
    }
    if told.iter().all(|hash| *hash == own) {
        return Verdict::Equal;
    }
    match counts.into_iter().find(|(_, count)| *count > voters / 2) {
        Some((hash, _)) if hash == own => Verdict::OthersDiffer,
        Some((_, with)) => Verdict::Wrong { with },
        None => Verdict::Disputed,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    const RIGHT: Hash = [1; 32];
    const WRONG: Hash = [2; 32];

    #[test]
    fn a_majority_decides_and_nothing_less() {
        assert_eq!(judge(RIGHT, true, &[], 1), Verdict::Equal);
        assert_eq!(judge(RIGHT, true, &[RIGHT], 3), Verdict::Equal);
        assert_eq!(judge(WRONG, true, &[RIGHT, RIGHT], 3), Verdict::Wrong { with: 2 });
        assert_eq!(judge(RIGHT, true, &[RIGHT, WRONG], 3), Verdict::OthersDiffer);
        // One of three does not answer: who of the two is wrong cannot be known.
        assert_eq!(judge(RIGHT, true, &[WRONG], 3), Verdict::Disputed);
        assert_eq!(judge(WRONG, true, &[RIGHT], 2), Verdict::Disputed);
        // A learner's word does not count, also for itself.
        assert_eq!(judge(WRONG, false, &[RIGHT], 1), Verdict::Wrong { with: 1 });
        assert_eq!(judge(WRONG, false, &[RIGHT], 3), Verdict::Disputed);
    }

    proptest! {
        /// As long as fewer than half of the voters are wrong, however they differ and whoever answers, no right node is blamed.
        #[test]
        fn a_right_node_is_never_blamed(
            wrong in prop::collection::vec(1..3u8, 0..4),
            more in 1..3usize,
            heard in prop::collection::vec(any::<bool>(), 8),
        ) {
            let right = vec![0; wrong.len() + more];
            let hashes: Vec<u8> = wrong.into_iter().chain(right).collect();
            for (at, own) in hashes.iter().enumerate() {
                let told = hashes.iter().enumerate().filter(|(other, _)| *other != at && heard[*other]);
                let told: Vec<Hash> = told.map(|(_, hash)| [*hash; 32]).collect();
                let verdict = judge([*own; 32], true, &told, hashes.len());
                let blamed = matches!(verdict, Verdict::Wrong { .. });
                prop_assert!(!blamed || *own != 0, "{hashes:?} {told:?}");
                if heard.iter().take(hashes.len()).all(|heard| *heard) {
                    prop_assert_eq!(blamed, *own != 0);
                }
            }
        }
    }
}
