//! Whether what clients saw of a repository's head can have happened one after the other.
//!
//! A head is a register that only moves forward: each write gives it a revision that no other write has. That makes the usual search
//! unnecessary: the revisions say in which order the operations took effect, and all that is left to see is whether that order contradicts
//! real time. An operation that began after another one was answered must not show an older revision; a read must show a revision that was
//! written, with its value, and not before that write began. Time: the sorting, n log n.
//!
//! Writes whose outcome nobody knows are given with [`Op::maybe`]: they may have taken effect at any time after they began, or never.
//!
//! Used by the simulation (`ecconfigd/src/sim/`) and by tests of whole clusters; depends on nothing.

use std::collections::BTreeMap;
use std::fmt::Debug;

/// From the call to the answer, by one clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interval {
    /// When the client asked.
    pub invoked_ns: u64,
    /// When it had the answer.
    pub answered_ns: u64,
}

/// What a client did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It moved the head to this revision.
    Write,
    /// It read this revision.
    Read,
    /// It tried to move the head and was not told what became of it; the revision is what others saw of it.
    Maybe,
}

/// One operation on one head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Op<V> {
    /// What was done.
    pub kind: Kind,
    /// The revision that was written or read; 0 is the empty head.
    pub revision: u64,
    /// The commit at this revision.
    pub value: V,
    /// When.
    pub interval: Interval,
}

impl<V> Op<V> {
    /// A write that was acknowledged.
    pub fn write(revision: u64, value: V, interval: Interval) -> Self {
        Self { kind: Kind::Write, revision, value, interval }
    }

    /// A read that was answered.
    pub fn read(revision: u64, value: V, interval: Interval) -> Self {
        Self { kind: Kind::Read, revision, value, interval }
    }

    /// A write without an answer that turned out to have taken effect; it began at `invoked_ns`.
    pub fn maybe(revision: u64, value: V, invoked_ns: u64) -> Self {
        Self { kind: Kind::Maybe, revision, value, interval: Interval { invoked_ns, answered_ns: u64::MAX } }
    }
}

/// Checks a history of one head. `Err` says which operations contradict each other.
pub fn check<V: Clone + PartialEq + Debug>(ops: &[Op<V>]) -> Result<(), String> {
    let writes = writes(ops)?;
    for read in ops.iter().filter(|op| op.kind == Kind::Read && op.revision > 0) {
        let Some(write) = writes.get(&read.revision) else {
            return Err(format!("{read:?} shows a revision that nobody wrote"));
        };
        if write.value != read.value {
            return Err(format!("{read:?} shows another commit than {write:?} wrote"));
        }
        if read.interval.answered_ns < write.interval.invoked_ns {
            return Err(format!("{read:?} was answered before {write:?} began"));
        }
    }
    check_order(ops)
}

/// The writes by revision; two of one revision are a contradiction.
fn writes<V: PartialEq + Debug>(ops: &[Op<V>]) -> Result<BTreeMap<u64, &Op<V>>, String> {
    let mut writes = BTreeMap::new();
    for op in ops.iter().filter(|op| op.kind != Kind::Read) {
        if op.revision == 0 {
            return Err(format!("{op:?} wrote the empty head"));
        }
        if let Some(other) = writes.insert(op.revision, op) {
            return Err(format!("{op:?} and {other:?} wrote one revision"));
        }
    }
    Ok(writes)
}

/// Nothing that began after an answer is older than that answer.
fn check_order<V: Debug>(ops: &[Op<V>]) -> Result<(), String> {
    let mut begins: Vec<&Op<V>> = ops.iter().collect();
    let mut ends: Vec<&Op<V>> = ops.iter().filter(|op| op.kind != Kind::Maybe).collect();
    begins.sort_by_key(|op| op.interval.invoked_ns);
    ends.sort_by_key(|op| op.interval.answered_ns);
    let mut ends = ends.into_iter().peekable();
    let mut newest: Option<&Op<V>> = None;
    for op in begins {
        while let Some(end) = ends.next_if(|end| end.interval.answered_ns < op.interval.invoked_ns) {
            if newest.is_none_or(|newest| end.revision > newest.revision) {
                newest = Some(end);
            }
        }
        let Some(before) = newest else { continue };
        // A read may show the same revision again; a write makes a new one.
        let floor = before.revision + u64::from(op.kind != Kind::Read);
        if op.revision < floor {
            return Err(format!("{op:?} began after {before:?} was answered"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(invoked_ns: u64, answered_ns: u64) -> Interval {
        Interval { invoked_ns, answered_ns }
    }

    fn refused(ops: &[Op<char>], because: &str) {
        let error = check(ops).expect_err("this history is impossible");
        assert!(error.contains(because), "{error}");
    }

    #[test]
    fn one_after_the_other_is_fine() {
        let ops = [
            Op::read(0, ' ', at(0, 1)),
            Op::write(1, 'a', at(2, 3)),
            Op::read(1, 'a', at(4, 5)),
            Op::write(2, 'b', at(6, 7)),
            Op::read(2, 'b', at(8, 9)),
        ];
        assert_eq!(check(&ops), Ok(()));
    }

    #[test]
    fn what_overlaps_may_go_either_way() {
        let write = Op::write(1, 'a', at(0, 10));
        for revision in [0, 1] {
            let value = if revision == 0 { ' ' } else { 'a' };
            assert_eq!(check(&[write.clone(), Op::read(revision, value, at(3, 4))]), Ok(()));
        }
        // Two writes that overlap: their revisions say which came first.
        assert_eq!(check(&[Op::write(2, 'b', at(0, 5)), Op::write(1, 'a', at(0, 9))]), Ok(()));
    }

    #[test]
    fn a_stale_read_is_found() {
        refused(&[Op::write(1, 'a', at(0, 1)), Op::read(0, ' ', at(2, 3))], "began after");
    }

    #[test]
    fn reads_do_not_go_back() {
        let ops = [Op::write(1, 'a', at(0, 9)), Op::read(1, 'a', at(1, 2)), Op::read(0, ' ', at(3, 4))];
        refused(&ops, "began after");
    }

    #[test]
    fn a_write_does_not_take_effect_in_the_past() {
        refused(&[Op::write(2, 'b', at(0, 1)), Op::write(1, 'a', at(2, 3))], "began after");
        refused(&[Op::read(2, 'b', at(0, 1)), Op::write(2, 'b', at(2, 3))], "before");
    }

    #[test]
    fn a_revision_is_written_once_with_one_value() {
        refused(&[Op::write(1, 'a', at(0, 1)), Op::write(1, 'b', at(0, 1))], "one revision");
        refused(&[Op::write(1, 'a', at(0, 1)), Op::read(1, 'b', at(2, 3))], "another commit");
        refused(&[Op::read(3, 'c', at(0, 1))], "nobody wrote");
    }

    #[test]
    fn a_write_without_an_answer_may_come_late() {
        let maybe = Op::maybe(1, 'a', 0);
        let ops = [maybe.clone(), Op::read(0, ' ', at(5, 6)), Op::read(1, 'a', at(7, 8))];
        assert_eq!(check(&ops), Ok(()));
        refused(&[Op::read(1, 'a', at(0, 1)), Op::maybe(1, 'a', 5)], "before");
    }

    /// Histories that were made by a real register pass; with one answer exchanged for an older one they do not.
    #[test]
    fn a_real_register_passes_and_a_broken_one_does_not() {
        let mut state = 7_u64;
        let mut next = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for _ in 0..200 {
            let (mut revision, mut ops) = (0, Vec::new());
            for step in 0..40_u64 {
                // Takes effect at this instant, and was asked and answered around it.
                let instant = 1000 + step * 10;
                let interval = at(instant - next(100), instant + next(100));
                if next(2) == 0 {
                    revision += 1;
                    ops.push(Op::write(revision, revision, interval));
                } else {
                    ops.push(Op::read(revision, revision, interval));
                }
            }
            assert_eq!(check(&ops), Ok(()));
            ops.push(Op::read(revision, revision, at(5000, 5001)));
            assert_eq!(check(&ops), Ok(()));
            if revision > 0 {
                ops.push(Op::read(revision - 1, revision - 1, at(5002, 5003)));
                assert!(check(&ops).is_err());
            }
        }
    }
}
