//! A version is one content, and what it says about an address is acted on by one member.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;

use super::Watch;
use crate::Table;

impl Watch {
    pub(super) fn same_content(&mut self, node: usize, table: &Table) {
        let mut hasher = DefaultHasher::new();
        (&table.header, table.config, &table.spec, &table.entries).hash(&mut hasher);
        let content = hasher.finish();
        let known = *self.contents.entry(table.version).or_insert(content);
        if known != content {
            self.violated(0, format!("n{} has another table {} than the others", node + 1, table.version));
        }
    }

    pub(super) fn one_actor(&mut self, now_us: u64, node: usize, table: &Table, addresses: &[IpAddr]) {
        for address in addresses {
            let Some(entry) = table.entries.get(address) else {
                self.violated(now_us, format!("n{} takes {address}, which its table does not have", node + 1));
                continue;
            };
            let actor = *self.acted.entry((*address, entry.since)).or_insert(node);
            if actor != node {
                let version = entry.since;
                self.violated(now_us, format!("n{} and n{} both take {address} by {version}", actor + 1, node + 1));
            }
        }
    }
}
