//! Finding out what client and server have in common (gitprotocol-pack(5), "Packfile Negotiation").

use std::collections::{BinaryHeap, HashSet};

use super::Result;
use super::objects::Objects;
use crate::{ObjectKind, Oid};

/// Commits looked at to answer "is enough in common", all times together that a request makes us ask it. Beyond it the
/// answer is no, which is always safe: the client then offers more, and ends by saying `done`.
const MAX_STEPS: usize = 200_000;

/// What the client has offered and we have, too.
pub(crate) struct Common<'a> {
    objects: &'a Objects,
    wants: Vec<Oid>,
    /// In the order of the client's offers.
    pub(crate) ids: Vec<Oid>,
    known: HashSet<Oid>,
    /// The commits among them, tags followed.
    commits: HashSet<Oid>,
    oldest_s: i64,
    enough: Option<bool>,
    steps_left: usize,
}

impl<'a> Common<'a> {
    pub(crate) fn new(objects: &'a Objects, wants: &[Oid]) -> Self {
        Common {
            objects,
            wants: wants.to_vec(),
            ids: Vec::new(),
            known: HashSet::new(),
            commits: HashSet::new(),
            oldest_s: i64::MAX,
            enough: None,
            steps_left: MAX_STEPS,
        }
    }

    /// Notes an offer; true if we have it.
    pub(crate) fn offer(&mut self, id: Oid) -> Result<bool> {
        if self.known.contains(&id) {
            return Ok(true);
        }
        if self.objects.kind_at_hand(id)?.is_none() {
            return Ok(false);
        }
        let Some((_, end, kind)) = self.objects.peel(id)? else { return Ok(false) };
        self.known.insert(id);
        self.ids.push(id);
        if kind == ObjectKind::Commit && self.commits.insert(end) {
            self.oldest_s = self.oldest_s.min(self.objects.links(end)?.time_s);
            self.enough = self.enough.filter(|enough| *enough);
        }
        Ok(true)
    }

    /// True if every wanted commit leads to something in common, so that more offers would improve little.
    pub(crate) fn is_enough(&mut self) -> Result<bool> {
        if let Some(enough) = self.enough {
            return Ok(enough);
        }
        let enough = !self.commits.is_empty() && self.all_lead_to_common()?;
        self.enough = Some(enough);
        Ok(enough)
    }

    fn all_lead_to_common(&mut self) -> Result<bool> {
        for want in 0..self.wants.len() {
            let Some((_, end, kind)) = self.objects.peel(self.wants[want])? else { return Ok(false) };
            if kind == ObjectKind::Commit && !self.leads_to_common(end)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn leads_to_common(&mut self, from: Oid) -> Result<bool> {
        let mut seen = HashSet::from([from]);
        let mut queue = BinaryHeap::from([(self.objects.links(from)?.time_s, from)]);
        while let Some((time_s, id)) = queue.pop() {
            if self.commits.contains(&id) {
                return Ok(true);
            }
            if self.steps_left == 0 {
                return Ok(false);
            }
            self.steps_left -= 1;
            // Nothing that is older than all of them leads to one of them.
            if time_s < self.oldest_s {
                continue;
            }
            for parent in &self.objects.links(id)?.parents {
                if seen.insert(*parent) {
                    queue.push((self.objects.links(*parent)?.time_s, *parent));
                }
            }
        }
        Ok(false)
    }
}
