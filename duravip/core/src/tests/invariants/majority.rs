//! Nobody takes an address before a majority of the voters has had the version that gives it, or a later one; the voters
//! are those that the version names.

use std::net::IpAddr;

use super::Watch;
use crate::{Member, MemberId, Table, Version};

impl Watch {
    pub(super) fn note_newest(&mut self, node: usize, table: &Table) {
        let newest = self.newest.entry(MemberId(node as u64 + 1)).or_default();
        *newest = table.version.max(*newest);
        self.electorates.entry(table.version).or_insert_with(|| table.header.electorate.clone());
    }

    pub(super) fn majority_has_it(&mut self, now_us: u64, node: usize, core: &Member, addresses: &[IpAddr]) {
        for address in addresses {
            let Some(entry) = core.cluster.table.entries.get(address) else { continue };
            let later = core.commit() >= entry.since && self.had_by_majority(core.commit());
            if !self.had_by_majority(entry.since) && !later {
                let version = entry.since;
                self.violated(now_us, format!("n{} takes {address} before a majority has {version}", node + 1));
            }
        }
    }

    fn had_by_majority(&self, version: Version) -> bool {
        let has = |member| self.newest.get(&member).is_some_and(|newest| *newest >= version);
        self.electorates.get(&version).is_some_and(|electorate| electorate.majority(has))
    }
}
