//! History: listing commits, ancestry, merge bases.
//!
//! Commits are visited by the time they carry, newest first. Times may lie, so nothing that must be right depends on
//! them: ancestry and merge bases go on until no open question is left, and times only decide how soon that is.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

use crate::object::Links;
use crate::reader::{CommitInfo, Mode, Reader};
use crate::{Error, Oid, RepoPath, Result};

/// What [`Reader::log`] lists.
#[derive(Debug, Clone)]
pub struct LogOptions {
    /// Only commits that changed this file or directory, compared with every one of their parents.
    pub path: Option<RepoPath>,
    /// At most so many.
    pub limit: usize,
    /// Pass over so many first.
    pub skip: usize,
    /// Follow first parents only, and compare with them only.
    pub first_parent: bool,
    /// Leave out these commits and everything they descend from.
    pub hide: Vec<Oid>,
    /// Give up looking after so many commits: a path that never changed must not cost the whole history.
    pub max_visited: usize,
}

impl Default for LogOptions {
    fn default() -> Self {
        LogOptions { path: None, limit: 100, skip: 0, first_parent: false, hide: Vec::new(), max_visited: 1_000_000 }
    }
}

impl Reader {
    /// The commits that `from` descends from, itself first; newest first, a commit before its parents where times allow.
    pub fn log(&self, from: Oid, options: &LogOptions) -> Result<Vec<CommitInfo>> {
        let mut walk = Walk::new(self, &[from], &options.hide, options.first_parent)?;
        let mut memory = PathMemory { reader: self, seen: HashMap::new() };
        let mut skip = options.skip;
        let mut out = Vec::new();
        for _ in 0..options.max_visited {
            if out.len() >= options.limit {
                break;
            }
            let Some((id, links)) = walk.next()? else { break };
            if let Some(path) = &options.path
                && !memory.changed(&links, path, options.first_parent)?
            {
                continue;
            }
            match skip {
                0 => out.push(self.commit(id)?),
                _ => skip -= 1,
            }
        }
        Ok(out)
    }

    /// True if `ancestor` is `commit` or one of the commits it descends from.
    pub fn is_ancestor(&self, ancestor: Oid, commit: Oid) -> Result<bool> {
        if ancestor == commit {
            return Ok(true);
        }
        Ok(self.common(ancestor, commit)?.flags.get(&ancestor).is_some_and(|flags| flags & OF_B != 0))
    }

    /// A best common ancestor, if the two have one. Of several, one that no other one descends from.
    pub fn merge_base(&self, a: Oid, b: Oid) -> Result<Option<Oid>> {
        if a == b {
            return Ok(Some(a));
        }
        let Common { mut found, .. } = self.common(a, b)?;
        // Nearly always there is one. Otherwise, drop each that another one descends from.
        while found.len() > 1 {
            let (first, second) = (found[0], found[1]);
            let drop_first = self.is_ancestor(first, second)?;
            found.remove(usize::from(!drop_first));
        }
        Ok(found.pop())
    }

    /// Paints what `a` and what `b` descend from until only common ground is left, as git does.
    fn common(&self, a: Oid, b: Oid) -> Result<Common> {
        let mut buffer = Vec::new();
        let mut queue = Queue::default();
        let mut common = Common { flags: HashMap::from([(a, OF_A), (b, OF_B)]), found: Vec::new() };
        // How many queued commits may still teach us something.
        for id in [a, b] {
            queue.push(id, self.links(id, &mut buffer)?);
        }
        while queue.any(|id| common.flags.get(&id).is_some_and(|flags| flags & STALE == 0)) {
            let Some((id, links)) = queue.pop() else { break };
            let mut flags = common.flags.get(&id).copied().unwrap_or(0);
            if flags & (OF_A | OF_B) == OF_A | OF_B {
                if flags & (STALE | FOUND) == 0 {
                    common.flags.insert(id, flags | FOUND);
                    common.found.push(id);
                }
                flags |= STALE;
            }
            let hand_on = flags & (OF_A | OF_B | STALE);
            for parent in links.parents {
                let known = common.flags.entry(parent).or_insert(0);
                if *known & hand_on != hand_on {
                    *known |= hand_on;
                    queue.push(parent, self.links(parent, &mut buffer)?);
                }
            }
        }
        common.found.retain(|id| common.flags.get(id).is_some_and(|flags| flags & STALE == 0));
        Ok(common)
    }
}

const OF_A: u8 = 1;
const OF_B: u8 = 2;
/// Below a common ancestor.
const STALE: u8 = 4;
const FOUND: u8 = 8;

struct Common {
    flags: HashMap<Oid, u8>,
    found: Vec<Oid>,
}

/// Commits by time, newest first; among equals, in the order they came.
#[derive(Default)]
struct Queue {
    heap: BinaryHeap<(i64, Reverse<u64>, Oid)>,
    links: HashMap<Oid, Links>,
    count: u64,
}

impl Queue {
    fn push(&mut self, id: Oid, links: Links) {
        self.count += 1;
        self.heap.push((links.time_s, Reverse(self.count), id));
        self.links.insert(id, links);
    }

    fn pop(&mut self) -> Option<(Oid, Links)> {
        let (_, _, id) = self.heap.pop()?;
        // Queued twice: the second time finds the same links.
        let links = self.links.get(&id)?.clone();
        Some((id, links))
    }

    fn any(&self, wanted: impl Fn(Oid) -> bool) -> bool {
        self.heap.iter().any(|(_, _, id)| wanted(*id))
    }
}

/// The commits that some tips descend from, without those that others do.
pub(crate) struct Walk<'a> {
    reader: &'a Reader,
    queue: BinaryHeap<(i64, Reverse<u64>, Oid)>,
    count: u64,
    links: HashMap<Oid, Links>,
    hidden: HashSet<Oid>,
    /// Queued, and not hidden as far as is known.
    open: HashSet<Oid>,
    first_parent: bool,
    buffer: Vec<u8>,
}

impl<'a> Walk<'a> {
    /// Hidden tips that are not here hide nothing.
    pub(crate) fn new(reader: &'a Reader, tips: &[Oid], hide: &[Oid], first_parent: bool) -> Result<Walk<'a>> {
        let mut walk = Walk {
            reader,
            queue: BinaryHeap::new(),
            count: 0,
            links: HashMap::new(),
            hidden: HashSet::new(),
            open: HashSet::new(),
            first_parent,
            buffer: Vec::new(),
        };
        for id in hide {
            match walk.push(*id, true) {
                Ok(()) | Err(Error::Missing { .. } | Error::WrongKind { .. }) => {}
                Err(err) => return Err(err),
            }
        }
        for id in tips {
            walk.push(*id, false)?;
        }
        Ok(walk)
    }

    fn push(&mut self, id: Oid, hide: bool) -> Result<()> {
        let is_new = !self.links.contains_key(&id);
        if is_new {
            let links = self.reader.links(id, &mut self.buffer)?;
            self.links.insert(id, links);
        }
        let newly_hidden = hide && self.hidden.insert(id);
        if newly_hidden {
            self.open.remove(&id);
        }
        if is_new || newly_hidden {
            if !self.hidden.contains(&id) {
                self.open.insert(id);
            }
            self.count += 1;
            self.queue.push((self.links[&id].time_s, Reverse(self.count), id));
        }
        Ok(())
    }

    /// The next commit, newest first.
    pub(crate) fn next(&mut self) -> Result<Option<(Oid, Links)>> {
        while !self.open.is_empty() {
            let Some((_, _, id)) = self.queue.pop() else { break };
            let links = self.links[&id].clone();
            let hide = self.hidden.contains(&id);
            let parents = if self.first_parent && !hide {
                &links.parents[..links.parents.len().min(1)]
            } else {
                &links.parents[..]
            };
            for parent in parents {
                self.push(*parent, hide)?;
            }
            if self.open.remove(&id) {
                return Ok(Some((id, links)));
            }
        }
        Ok(None)
    }
}

/// What a path was in trees that were looked at: each tree is asked about twice, as a commit's and as a parent's.
struct PathMemory<'a> {
    reader: &'a Reader,
    seen: HashMap<Oid, Option<(Mode, Oid)>>,
}

impl PathMemory<'_> {
    fn at(&mut self, tree: Oid, path: &RepoPath) -> Result<Option<(Mode, Oid)>> {
        if let Some(known) = self.seen.get(&tree) {
            return Ok(*known);
        }
        let found = self.reader.entry(tree, path)?.map(|entry| (entry.mode, entry.id));
        self.seen.insert(tree, found);
        Ok(found)
    }

    fn changed(&mut self, links: &Links, path: &RepoPath, first_parent: bool) -> Result<bool> {
        let here = self.at(links.tree, path)?;
        if links.parents.is_empty() {
            return Ok(here.is_some());
        }
        let considered = if first_parent { 1 } else { links.parents.len() };
        for parent in &links.parents[..considered] {
            let tree = self.reader.tree_of(*parent)?;
            if self.at(tree, path)? == here {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
