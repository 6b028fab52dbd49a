//! Judges what clients saw of a repository's head.
//!
//! The head is a register that only goes up: commit N sets it to N, a read returns it. A history of such a register is linearizable exactly
//! if nothing that began after an operation had ended knows less than that operation: a read is not below it, a commit is above it; and no
//! read knows a commit that had not begun. That needs one pass over the operations in order of time instead of a search.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// What an operation came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Saw {
    /// A commit was acknowledged as this revision.
    Committed(u64),
    /// A read returned this revision.
    Read(u64),
}

/// One operation of one client that was answered. What was not answered may or may not have happened; the history says nothing about it.
#[derive(Debug, Clone)]
pub struct Operation {
    /// Who did it, for the error text.
    pub client: String,
    pub began: Instant,
    pub ended: Instant,
    pub saw: Saw,
}

impl Operation {
    /// For error texts.
    fn shown(&self) -> String {
        format!("{} saw {:?} between {:?} and {:?}", self.client, self.saw, self.began, self.ended)
    }

    fn revision(&self) -> u64 {
        match self.saw {
            Saw::Committed(revision) | Saw::Read(revision) => revision,
        }
    }
}

/// Says what is wrong with the history, if anything is.
pub fn check(operations: &[Operation]) -> Result<(), String> {
    let committed: Vec<&Operation> = operations.iter().filter(|one| matches!(one.saw, Saw::Committed(_))).collect();
    let mut seen = BTreeSet::new();
    if let Some(twice) = committed.iter().find(|one| !seen.insert(one.revision())) {
        return Err(format!("revision {} was given to two commits: {}", twice.revision(), twice.shown()));
    }
    let began: BTreeMap<u64, Instant> = committed.iter().map(|one| (one.revision(), one.began)).collect();
    for read in operations.iter().filter(|one| matches!(one.saw, Saw::Read(_))) {
        if began.get(&read.revision()).is_some_and(|began| *began > read.ended) {
            return Err(format!("a read saw a commit that had not begun: {}", read.shown()));
        }
    }
    let mut by_begin: Vec<&Operation> = operations.iter().collect();
    by_begin.sort_by_key(|one| one.began);
    let mut by_end = by_begin.clone();
    by_end.sort_by_key(|one| one.ended);
    let mut ended = by_end.into_iter().peekable();
    let mut newest: Option<&Operation> = None;
    for one in by_begin {
        while let Some(over) = ended.next_if(|over| over.ended < one.began) {
            if newest.is_none_or(|newest| over.revision() > newest.revision()) {
                newest = Some(over);
            }
        }
        let Some(before) = newest else { continue };
        let fine = match one.saw {
            Saw::Committed(revision) => revision > before.revision(),
            Saw::Read(revision) => revision >= before.revision(),
        };
        if !fine {
            return Err(format!("{}\nbegan after the end of\n{}", one.shown(), before.shown()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn history(operations: &[(u64, u64, Saw)]) -> Result<(), String> {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let operations = operations.iter().map(|(began, ended, saw)| Operation {
            client: String::new(),
            began: at(*began),
            ended: at(*ended),
            saw: *saw,
        });
        check(&operations.collect::<Vec<_>>())
    }

    #[test]
    fn what_overlaps_may_be_in_any_order() {
        use Saw::{Committed, Read};
        history(&[(0, 10, Committed(2)), (1, 9, Committed(1)), (2, 8, Read(2)), (3, 7, Read(0)), (11, 12, Read(2))])
            .unwrap();
        // The commit of revision 3 was never answered.
        history(&[(0, 1, Committed(2)), (2, 3, Read(3)), (4, 5, Committed(4))]).unwrap();
    }

    #[test]
    fn every_rule_can_be_broken() {
        use Saw::{Committed, Read};
        for (what, operations) in [
            ("stale read", &[(0, 1, Committed(2)), (2, 3, Read(1))][..]),
            ("reads go back", &[(0, 1, Read(5)), (2, 3, Read(4))]),
            ("a commit below an older one", &[(0, 1, Committed(5)), (2, 3, Committed(4))]),
            ("a commit that a read knew before", &[(0, 1, Read(5)), (2, 3, Committed(5))]),
            ("a revision twice", &[(0, 5, Committed(5)), (1, 6, Committed(5))]),
            ("a read of the future", &[(0, 1, Read(5)), (2, 3, Committed(5))]),
        ] {
            assert!(history(operations).is_err(), "{what}");
        }
    }
}
