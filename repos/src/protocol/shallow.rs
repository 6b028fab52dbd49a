//! Where a client's history is to end: `shallow`, `deepen`, `deepen-relative`, `deepen-since` and `deepen-not`
//! (gitprotocol-pack(5), "Shallow Clone"; gitprotocol-v2(5), "shallow-info").
//!
//! The rules are git's. The most surprising one: the commit at the requested depth is reported as shallow even if it is
//! the first commit of all.

use std::collections::HashSet;

use super::graph;
use super::objects::Objects;
use super::{Error, Result};
use crate::{ObjectKind, Oid};

/// A client that means "everything" asks for this depth.
pub(crate) const INFINITE_DEPTH: u32 = 0x7fff_ffff;

/// How much history a client wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Deepen {
    /// Commits from the wanted ones, or (if `relative`) from where the history ends now. 0: not asked for.
    pub(crate) depth: u32,
    pub(crate) relative: bool,
    /// Only commits since this time.
    pub(crate) since_s: Option<i64>,
    /// Only commits that these do not reach.
    pub(crate) not: Vec<Oid>,
}

impl Deepen {
    pub(crate) fn is_asked(&self) -> bool {
        self.depth > 0 || self.by_walk()
    }

    fn by_walk(&self) -> bool {
        self.since_s.is_some() || !self.not.is_empty()
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.depth > 0 && self.by_walk() {
            return Err(Error::malformed("deepen and deepen-since (or deepen-not) cannot be used together"));
        }
        Ok(())
    }
}

/// How the edge of a client's history moves.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Edges {
    /// Commits that become shallow, in a stable order.
    pub(crate) shallow: Vec<Oid>,
    /// Commits that no longer are.
    pub(crate) unshallow: Vec<Oid>,
    /// The parents of the latter: wanted, too.
    pub(crate) more_wants: Vec<Oid>,
    /// Commits whose parents do not count when looking for what to send.
    pub(crate) cut: HashSet<Oid>,
}

/// Moves the edges of a client that has `client_shallow` and asks for `wants`. `tips` are what the references name.
pub(crate) fn edges(
    objects: &Objects,
    wants: &[Oid],
    client_shallow: &[Oid],
    deepen: &Deepen,
    tips: impl FnOnce() -> Result<Vec<Oid>>,
) -> Result<Edges> {
    let wants = commits_of(objects, wants)?;
    // What we do not have cannot end any history of ours.
    let client_shallow: Vec<Oid> = commits_of(objects, client_shallow)?;
    let reach = if deepen.depth == INFINITE_DEPTH {
        let ends = reachable_ends(objects, &tips()?, &client_shallow)?;
        Reach { inside: ends.into_iter().collect(), border: Vec::new() }
    } else if deepen.depth > 0 && deepen.relative {
        let ends = reachable_ends(objects, &tips()?, &client_shallow)?;
        by_depth(objects, &ends, deepen.depth.saturating_add(1))?
    } else if deepen.depth > 0 {
        by_depth(objects, &wants, deepen.depth)?
    } else if deepen.by_walk() {
        by_walk(objects, &wants, deepen)?
    } else {
        Reach::default()
    };
    moved(objects, &client_shallow, reach)
}

/// The commits inside the requested history, and those at its border.
#[derive(Default)]
struct Reach {
    inside: HashSet<Oid>,
    border: Vec<Oid>,
}

fn moved(objects: &Objects, client_shallow: &[Oid], reach: Reach) -> Result<Edges> {
    let had: HashSet<Oid> = client_shallow.iter().copied().collect();
    let mut edges = Edges { cut: had.clone(), ..Edges::default() };
    for id in reach.border {
        if !had.contains(&id) && !reach.inside.contains(&id) && edges.cut.insert(id) {
            edges.shallow.push(id);
        }
    }
    for id in client_shallow {
        if reach.inside.contains(id) {
            edges.unshallow.push(*id);
            edges.more_wants.extend_from_slice(&objects.links(*id)?.parents);
        }
    }
    Ok(edges)
}

/// Those of `ids` that are commits, or tags of commits, and are here.
fn commits_of(objects: &Objects, ids: &[Oid]) -> Result<Vec<Oid>> {
    let mut commits = Vec::with_capacity(ids.len());
    for id in ids {
        if let Some((_, end, ObjectKind::Commit)) = objects.peel(*id)? {
            commits.push(end);
        }
    }
    Ok(commits)
}

/// The ends of the client's history that the references lead to: what is behind any other is not to be had.
fn reachable_ends(objects: &Objects, tips: &[Oid], client_shallow: &[Oid]) -> Result<Vec<Oid>> {
    let mut ends: HashSet<Oid> = HashSet::new();
    let mut oldest_s = i64::MAX;
    for id in client_shallow {
        ends.insert(*id);
        oldest_s = oldest_s.min(objects.links(*id)?.time_s);
    }
    let oldest_s = oldest_s.saturating_sub(graph::CLOCK_SKEW_S);
    let mut found = graph::reachable(objects, tips, &HashSet::new(), |_, time_s| time_s >= oldest_s)?;
    found.retain(|id| ends.contains(id));
    Ok(found)
}

/// Level by level, so that each commit is first met at its least depth.
fn by_depth(objects: &Objects, from: &[Oid], depth: u32) -> Result<Reach> {
    let mut reach = Reach::default();
    let mut seen: HashSet<Oid> = HashSet::new();
    let mut level: Vec<Oid> = from.iter().copied().filter(|id| seen.insert(*id)).collect();
    for at in 1..=depth {
        if level.is_empty() {
            break;
        }
        if at == depth {
            reach.border = level;
            break;
        }
        let mut next = Vec::new();
        for id in level {
            reach.inside.insert(id);
            next.extend(objects.links(id)?.parents.iter().copied().filter(|parent| seen.insert(*parent)));
        }
        level = next;
    }
    Ok(reach)
}

fn by_walk(objects: &Objects, wants: &[Oid], deepen: &Deepen) -> Result<Reach> {
    let not = commits_of(objects, &deepen.not)?;
    let excluded: HashSet<Oid> = graph::reachable(objects, &not, &HashSet::new(), |_, _| true)?.into_iter().collect();
    let since_s = deepen.since_s.unwrap_or(i64::MIN);
    let chosen =
        graph::reachable(objects, wants, &HashSet::new(), |id, time_s| time_s >= since_s && !excluded.contains(&id))?;
    if chosen.is_empty() {
        return Err(Error::Refused("no commits selected for shallow requests".into()));
    }
    let inside: HashSet<Oid> = chosen.iter().copied().collect();
    let mut border = HashSet::new();
    for id in &chosen {
        if objects.links(*id)?.parents.iter().any(|parent| !inside.contains(parent)) {
            border.insert(*id);
        }
    }
    // A border behind another one is not sent, so it must not be named: git's own server does, and its client then fails
    // when that border is to move.
    let reached = graph::reachable(objects, wants, &border, |id, _| inside.contains(&id))?;
    let (border, inside) = reached.into_iter().partition::<Vec<_>, _>(|id| border.contains(id));
    Ok(Reach { inside: inside.into_iter().collect(), border })
}
