//! A death moves what the dead had, once each, and leaves everybody who is left with a fair share; nothing else moves, at
//! once or later.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::tests::world::World;

/// Who answers for what.
pub(crate) type Owners = BTreeMap<IpAddr, usize>;

impl World {
    /// What each host answers for; an error where that is not one host.
    pub(crate) fn sole_owners(&self, addresses: impl Iterator<Item = IpAddr>) -> Result<Owners, String> {
        let one = |address: IpAddr| match self.owners(address)[..] {
            [owner] => Ok((address, owner)),
            ref owners => Err(format!("{address} is answered for by {owners:?} (from 0)")),
        };
        addresses.map(one).collect()
    }

    /// What is wrong with what moved since `before`, with these hosts dead. What the kernels were told meanwhile counts, not
    /// only where everything came to rest.
    pub(crate) fn unmoved(&self, before: &Owners, dead: &BTreeSet<usize>) -> Result<(), String> {
        let after = self.sole_owners(before.keys().copied())?;
        for (address, owner) in before {
            if !dead.contains(owner) && after[address] != *owner {
                return Err(format!("{address} moved from n{}, which lives, to n{}", owner + 1, after[address] + 1));
            }
        }
        for (node, address) in self.watch.changed.iter().filter(|(node, _)| !dead.contains(node)) {
            let inherited = before.get(address).is_some_and(|owner| dead.contains(owner)) && after[address] == *node;
            if !inherited {
                return Err(format!("n{} was given {address} or had to give it up, for nothing", node + 1));
            }
        }
        let serves = |node: &usize| {
            let host = &self.hosts[*node];
            let witness = host.config.spec.members.get(&host.id).is_none_or(|member| member.witness);
            !dead.contains(node) && !witness
        };
        let share = |node: usize| after.values().filter(|owner| **owner == node).count();
        let shares: BTreeMap<usize, usize> =
            (0..self.hosts.len()).filter(serves).map(|node| (node + 1, share(node))).collect();
        let (least, most) = (shares.values().min().copied(), shares.values().max().copied());
        match (least, most) {
            (Some(least), Some(most)) if most > least + 1 => Err(format!("the shares are not even: {shares:?}")),
            _ => Ok(()),
        }
    }
}
