//! Which commits a client lacks.
//!
//! The walk goes from new to old by commit time and paints what the client has ("hidden") over what it wants. Times
//! may lie: then a commit may have been taken for lacking before the paint reached it. The paint is carried on to
//! what was seen before, and the walk goes a little further than it must; what still slips through is sent although
//! the client has it, which is harmless. The reverse cannot happen.

use std::collections::{BinaryHeap, HashMap, HashSet};

use super::Result;
use super::objects::Objects;
use crate::Oid;

/// How many more hidden commits are looked at after nothing wanted is left, as in git.
const SLOP: usize = 5;
/// How much older than its parent a commit may claim to be before a search for an ancestor gives up: clocks lie, but
/// within one cluster not by more than a day.
pub(crate) const CLOCK_SKEW_S: i64 = 86_400;

/// The commits reachable from `wants` and not from `hidden`, children before parents as far as times are true.
/// The parents of commits in `cut` do not count, on either side.
pub(crate) fn lacking(objects: &Objects, wants: &[Oid], hidden: &[Oid], cut: &HashSet<Oid>) -> Result<Vec<Oid>> {
    let mut walk = Walk { objects, cut, seen: HashMap::new(), queue: BinaryHeap::new(), wanted_in_queue: 0 };
    for id in hidden {
        walk.hide(*id)?;
    }
    for id in wants {
        walk.want(*id)?;
    }
    let mut found = Vec::new();
    let mut slop = SLOP;
    while walk.wanted_in_queue > 0 || slop > 0 {
        if walk.wanted_in_queue > 0 {
            slop = SLOP;
        } else {
            slop -= 1;
        }
        let Some((_, id)) = walk.queue.pop() else { break };
        walk.visit(id, &mut found)?;
    }
    found.retain(|id| !walk.seen[id].hidden);
    Ok(found)
}

/// All commits reachable from `tips`, newest first, without the parents of those in `cut`; `keep` may end a line of
/// history: a commit that it refuses is left out, with everything that is reached only through it.
pub(crate) fn reachable(
    objects: &Objects,
    tips: &[Oid],
    cut: &HashSet<Oid>,
    mut keep: impl FnMut(Oid, i64) -> bool,
) -> Result<Vec<Oid>> {
    let mut seen = HashSet::new();
    let mut queue = BinaryHeap::new();
    let mut found = Vec::new();
    let mut next: Vec<Oid> = tips.to_vec();
    loop {
        for id in next.drain(..) {
            if seen.insert(id) {
                queue.push((objects.links(id)?.time_s, id));
            }
        }
        let Some((time_s, id)) = queue.pop() else { return Ok(found) };
        if keep(id, time_s) {
            found.push(id);
            if !cut.contains(&id) {
                next.extend_from_slice(&objects.links(id)?.parents);
            }
        }
    }
}

/// One of `targets`, which must be commits, that is neither one of `tips` nor an ancestor of one, if there is such. Lines
/// of history that are older than all targets are given up.
pub(crate) fn unreachable(objects: &Objects, tips: &[Oid], targets: &[Oid]) -> Result<Option<Oid>> {
    let mut missing: HashSet<Oid> = targets.iter().copied().collect();
    let mut oldest_s = i64::MAX;
    for id in targets {
        oldest_s = oldest_s.min(objects.links(*id)?.time_s);
    }
    let oldest_s = oldest_s.saturating_sub(CLOCK_SKEW_S);
    let mut seen: HashSet<Oid> = HashSet::new();
    let mut queue = BinaryHeap::new();
    let mut next: Vec<Oid> = tips.to_vec();
    loop {
        for id in next.drain(..) {
            if seen.insert(id) {
                missing.remove(&id);
                queue.push((objects.links(id)?.time_s, id));
            }
        }
        if missing.is_empty() {
            return Ok(None);
        }
        let Some((time_s, id)) = queue.pop() else { break };
        if time_s >= oldest_s {
            next.extend_from_slice(&objects.links(id)?.parents);
        }
    }
    Ok(targets.iter().copied().find(|id| missing.contains(id)))
}

struct Walk<'a> {
    objects: &'a Objects,
    cut: &'a HashSet<Oid>,
    seen: HashMap<Oid, Paint>,
    queue: BinaryHeap<(i64, Oid)>,
    wanted_in_queue: usize,
}

#[derive(Clone, Copy)]
struct Paint {
    hidden: bool,
    queued: bool,
}

impl Walk<'_> {
    fn parents(&self, id: Oid) -> Result<Vec<Oid>> {
        if self.cut.contains(&id) { Ok(Vec::new()) } else { Ok(self.objects.links(id)?.parents.clone()) }
    }

    fn visit(&mut self, id: Oid, found: &mut Vec<Oid>) -> Result<()> {
        let paint = self.seen.get_mut(&id).expect("everything in the queue was painted");
        paint.queued = false;
        let hidden = paint.hidden;
        if !hidden {
            self.wanted_in_queue -= 1;
            found.push(id);
        }
        for parent in self.parents(id)? {
            if hidden { self.hide(parent)? } else { self.want(parent)? }
        }
        Ok(())
    }

    fn want(&mut self, id: Oid) -> Result<()> {
        if !self.seen.contains_key(&id) {
            self.enqueue(id, false)?;
            self.wanted_in_queue += 1;
        }
        Ok(())
    }

    /// Hides a commit and, of its ancestors, those that were visited already.
    fn hide(&mut self, id: Oid) -> Result<()> {
        let mut pending = vec![id];
        while let Some(id) = pending.pop() {
            let Some(paint) = self.seen.get_mut(&id) else {
                self.enqueue(id, true)?;
                continue;
            };
            if paint.hidden {
                continue;
            }
            paint.hidden = true;
            if paint.queued {
                self.wanted_in_queue -= 1;
            } else {
                pending.extend(self.parents(id)?);
            }
        }
        Ok(())
    }

    fn enqueue(&mut self, id: Oid, hidden: bool) -> Result<()> {
        self.seen.insert(id, Paint { hidden, queued: true });
        self.queue.push((self.objects.links(id)?.time_s, id));
        Ok(())
    }
}
