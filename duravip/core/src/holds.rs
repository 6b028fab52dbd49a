//! What a member has on the network, counted by state: with thousands of addresses, questions that are asked at every event
//! must not look through all of them.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// How an address is held.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Hold {
    /// Looking first whether somebody else answers for it.
    Probing,
    /// The shell was told to put it on.
    Plumbing,
    /// It is on.
    On,
    /// The shell was told to take it off.
    Releasing,
}

/// The addresses of a member and how it holds them.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Holds {
    holds: BTreeMap<IpAddr, Hold>,
    on: usize,
    releasing: usize,
}

impl Holds {
    pub(crate) fn get(&self, address: IpAddr) -> Option<Hold> {
        self.holds.get(&address).copied()
    }

    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        self.holds.contains_key(&address)
    }

    /// Holds an address, or holds it differently.
    pub(crate) fn set(&mut self, address: IpAddr, hold: Hold) {
        let before = self.holds.insert(address, hold);
        self.count(before, Some(hold));
    }

    pub(crate) fn remove(&mut self, address: IpAddr) {
        let before = self.holds.remove(&address);
        self.count(before, None);
    }

    fn count(&mut self, before: Option<Hold>, after: Option<Hold>) {
        self.on += usize::from(after == Some(Hold::On));
        self.on -= usize::from(before == Some(Hold::On));
        self.releasing += usize::from(after == Some(Hold::Releasing));
        self.releasing -= usize::from(before == Some(Hold::Releasing));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.holds.is_empty()
    }

    /// Whether nothing is on its way off.
    pub(crate) fn is_clean(&self) -> bool {
        self.releasing == 0
    }

    /// Whether nothing is on its way, on or off.
    pub(crate) fn is_all_on(&self) -> bool {
        self.on == self.holds.len()
    }

    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.holds.keys().copied()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (IpAddr, Hold)> {
        self.holds.iter().map(|(address, hold)| (*address, *hold))
    }
}
