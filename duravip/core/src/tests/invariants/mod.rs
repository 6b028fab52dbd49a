//! What must never be seen, each in its own file, and what must be seen once things are calm.

mod covered;
mod exclusive;
mod majority;
mod one_table;
mod unmoved;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

pub(crate) use self::unmoved::Owners;
use crate::{Electorate, Member, MemberId, Table, Version};

/// Watches a world.
#[derive(Default)]
pub(crate) struct Watch {
    pub(crate) violations: Vec<String>,
    /// Two owners are no violation (`no_quorum = "serve"`).
    pub(crate) overlap_allowed: bool,
    pub(crate) overlaps: u64,
    /// Addresses put on and taken off, in all.
    pub(crate) changes: u64,
    pub(crate) changed: BTreeSet<(usize, IpAddr)>,
    contents: BTreeMap<Version, u64>,
    acted: BTreeMap<(IpAddr, Version), usize>,
    newest: BTreeMap<MemberId, Version>,
    electorates: BTreeMap<Version, Electorate>,
}

impl Watch {
    pub(crate) fn violated(&mut self, now_us: u64, what: String) {
        self.violations.push(format!("at {} ms: {what}", now_us / 1000));
    }

    /// A member has a new table.
    pub(crate) fn has(&mut self, node: usize, table: &Table) {
        self.note_newest(node, table);
    }

    /// It lived on with it: one that died on the way to its disk told nobody what was in it.
    pub(crate) fn keeps(&mut self, node: usize, table: &Table) {
        self.same_content(node, table);
    }

    /// A member takes addresses.
    pub(crate) fn acting(&mut self, now_us: u64, node: usize, core: &Member, addresses: &[IpAddr]) {
        self.one_actor(now_us, node, &core.cluster.table, addresses);
        self.majority_has_it(now_us, node, core, addresses);
    }
}
