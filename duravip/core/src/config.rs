//! What the core needs from `duravip.toml` and `cluster.toml`, checked once: addresses and where they may live, members
//! and their weights, times. The shell translates; nothing here reads a file.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::ids::{ConfigId, MemberId};

/// As many members as one segment is meant for, twice over; the assignment keeps them in the bits of a word.
pub const MAX_MEMBERS: usize = 64;

/// A configuration that a member was given.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Config {
    /// Which one.
    pub id: ConfigId,
    /// Heartbeat and lease.
    pub timing: Timing,
    /// What becomes part of the table.
    pub spec: Spec,
    /// A witness from another subcluster: it knows who the members are, and nothing of their addresses and times. It says
    /// nothing about configurations, and leads only until somebody else can.
    pub stranger: bool,
    /// Addresses that only other members' files have: this member knows of them, so that it does not depend on who leads
    /// which addresses there are, and says that it cannot serve them.
    pub foreign: BTreeSet<IpAddr>,
}

/// What the table is made from. It travels with the table, so that a leader or an owner needs no file of its own.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Spec {
    /// The members, witnesses among them.
    pub members: BTreeMap<MemberId, MemberSpec>,
    /// The addresses.
    pub vips: BTreeMap<IpAddr, VipSpec>,
    /// What a part without a majority does.
    pub no_quorum: NoQuorum,
    /// How long a member must be in the view before addresses go back to it.
    pub mature: Duration,
    /// Whether addresses go back by themselves.
    pub rebalance: Rebalance,
}

/// A member.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct MemberSpec {
    /// Its name, for people.
    pub name: String,
    /// Its share of the addresses.
    pub weight: u32,
    /// Its labels.
    pub labels: BTreeSet<String>,
    /// It votes and never owns an address.
    pub witness: bool,
}

/// An address.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct VipSpec {
    /// Its name.
    pub name: Option<String>,
    /// Who decides where it lives.
    pub placement: Placement,
    /// Labels that its owner must have, all of them.
    pub labels: BTreeSet<String>,
    /// Checks that its owner must pass.
    pub checks: BTreeSet<String>,
    /// The services that live on it.
    pub services: BTreeSet<String>,
}

/// Who decides where an address lives.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub enum Placement {
    /// The balance alone.
    #[default]
    Elected,
    /// This member whenever it may, else the balance.
    Preferred(MemberId),
    /// It goes with this address, which follows nobody itself.
    Follows(IpAddr),
}

impl Placement {
    /// Whether these prefer different members.
    pub(crate) fn differs_in_preference(self, other: Self) -> bool {
        matches!((self, other), (Self::Preferred(mine), Self::Preferred(theirs)) if mine != theirs)
    }
}

/// What a part of the cluster without a majority does.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub enum NoQuorum {
    /// Only a majority serves.
    #[default]
    Stop,
    /// Every part serves; two owners are possible.
    Serve,
    /// Of two members, one that still sees the network takes what nobody answers for.
    Probe,
}

/// Whether addresses go back by themselves.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub enum Rebalance {
    /// After `mature`, in batches.
    #[default]
    Auto,
    /// By order only.
    Manual,
}

/// The protocol's times. The promise P is half the lease: with that one proportion, of two timings the longer one is
/// longer in every respect, and a leader that does not know which of two was in force waits for the longer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Timing {
    lease: Duration,
    heartbeat: Duration,
    unplumb: Duration,
}

/// Times that the protocol cannot keep its word with.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum TimingError {
    /// Too few heartbeats fit into a promise: one late packet would cost the leader its office.
    #[error("heartbeat {heartbeat:?} is not under a sixth of the lease {lease:?}")]
    HeartbeatTooLong {
        /// As configured.
        heartbeat: Duration,
        /// As configured.
        lease: Duration,
    },
    /// Scheduling noise alone would end such a lease.
    #[error("a lease of {0:?} is not between 40ms and 60s")]
    Lease(Duration),
    /// A heartbeat of nothing never ends.
    #[error("a heartbeat of {0:?} is under 1ms")]
    HeartbeatTooShort(Duration),
}

impl Timing {
    /// The lease L, the heartbeat h, and the budget U for taking addresses off an interface.
    pub fn new(lease: Duration, heartbeat: Duration, unplumb: Duration) -> Result<Self, TimingError> {
        if lease < Duration::from_millis(40) || lease > Duration::from_secs(60) {
            return Err(TimingError::Lease(lease));
        }
        if heartbeat < Duration::from_millis(1) {
            return Err(TimingError::HeartbeatTooShort(heartbeat));
        }
        if heartbeat * 6 >= lease {
            return Err(TimingError::HeartbeatTooLong { heartbeat, lease });
        }
        Ok(Self { lease, heartbeat, unplumb })
    }

    /// L: how long an owner may answer after the acknowledgement that its lease runs from.
    pub fn lease(self) -> Duration {
        self.lease
    }

    /// P: how long a voter elects nobody else after an acknowledgement.
    pub fn promise(self) -> Duration {
        self.lease / 2
    }

    /// h: time between heartbeats.
    pub fn heartbeat(self) -> Duration {
        self.heartbeat
    }

    /// What clocks may differ over a lease: rates within 0.1 % of each other, twice.
    pub fn slack(self) -> Duration {
        self.lease / 500
    }

    /// After this much silence a member has nothing any more.
    pub fn silence(self) -> Duration {
        self.lease + self.slack() + self.unplumb
    }

    /// A new leader waits this long after its election for members that it has not heard.
    pub fn inherited(self) -> Duration {
        self.lease - self.promise() + self.slack() + self.unplumb
    }

    /// Long enough for both.
    pub fn longer(self, other: Self) -> Self {
        Self {
            lease: self.lease.max(other.lease),
            heartbeat: self.heartbeat.max(other.heartbeat),
            unplumb: self.unplumb.max(other.unplumb),
        }
    }
}

/// A configuration that the core refuses.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// More members than the assignment's words have bits.
    #[error("{0} members are more than {MAX_MEMBERS}")]
    TooManyMembers(usize),
    /// The hash of two names is the same.
    #[error("the names {0} and {1} have the same number; rename one of them")]
    SameNumber(String, String),
    /// Following an address that is unknown or follows itself.
    #[error("{0} follows {1}, which is not an address that is placed by itself")]
    Follow(IpAddr, IpAddr),
    /// Two members and no word on what the survivor does is refused where the file is read; this is the other half.
    #[error("no_quorum = \"probe\" is for two voters, and there are {0}")]
    Probe(usize),
}

impl Config {
    /// What a witness of another subcluster knows. Its times are the longest there may be: whoever does not know better
    /// is silent for as long as any promise of an earlier run can last.
    pub fn of_stranger(
        id: ConfigId,
        longest: Timing,
        members: BTreeMap<MemberId, MemberSpec>,
    ) -> Result<Self, ConfigError> {
        let spec = Spec { members, ..Spec::default() };
        Ok(Self { stranger: true, ..Self::new(id, longest, spec)? })
    }

    /// Checks what the schema cannot see.
    pub fn new(id: ConfigId, timing: Timing, spec: Spec) -> Result<Self, ConfigError> {
        if spec.members.len() > MAX_MEMBERS {
            return Err(ConfigError::TooManyMembers(spec.members.len()));
        }
        if spec.no_quorum == NoQuorum::Probe && spec.members.len() > 2 {
            return Err(ConfigError::Probe(spec.members.len()));
        }
        for (address, vip) in &spec.vips {
            if let Placement::Follows(target) = vip.placement {
                let placed = spec.vips.get(&target).map(|target| target.placement);
                if placed.is_none() || matches!(placed, Some(Placement::Follows(_))) {
                    return Err(ConfigError::Follow(*address, target));
                }
            }
        }
        Ok(Self { id, timing, spec, stranger: false, foreign: BTreeSet::new() })
    }
}

/// Numbers for a list of named members; refuses two names with one number.
pub fn number_members(
    members: impl IntoIterator<Item = MemberSpec>,
) -> Result<BTreeMap<MemberId, MemberSpec>, ConfigError> {
    let mut numbered: BTreeMap<MemberId, MemberSpec> = BTreeMap::new();
    for member in members {
        let id = MemberId::of_name(&member.name);
        if let Some(other) = numbered.get(&id)
            && other.name != member.name
        {
            return Err(ConfigError::SameNumber(other.name.clone(), member.name));
        }
        numbered.insert(id, member);
    }
    Ok(numbered)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn times_that_break_the_protocol_are_refused() {
        let ms = Duration::from_millis;
        let timing = |h, l| Timing::new(ms(l), ms(h), ms(20));
        for (h, l) in [(25, 200), (50, 303), (10, 80), (40, 300), (6, 40)] {
            assert!(timing(h, l).is_ok(), "{h} {l}");
        }
        assert!(matches!(timing(100, 300), Err(TimingError::HeartbeatTooLong { .. })));
        assert!(matches!(timing(50, 300), Err(TimingError::HeartbeatTooLong { .. })), "exactly a sixth");
        assert!(matches!(timing(5, 39), Err(TimingError::Lease(_))));
        assert!(matches!(timing(0, 300), Err(TimingError::HeartbeatTooShort(_))));
    }

    #[test]
    fn of_two_timings_the_longer_is_longer_in_everything() {
        let a = Timing::new(Duration::from_millis(200), Duration::from_millis(25), Duration::from_millis(20)).unwrap();
        let b = Timing::new(Duration::from_millis(300), Duration::from_millis(20), Duration::from_millis(5)).unwrap();
        let both = a.longer(b);
        for one in [a, b] {
            assert!(both.silence() >= one.silence());
            assert!(both.inherited() >= one.inherited());
            assert!(both.promise() >= one.promise());
        }
    }

    #[test]
    fn followers_follow_something() {
        let address = |last| IpAddr::from([10, 0, 0, last]);
        let follows = |target| VipSpec { placement: Placement::Follows(target), ..VipSpec::default() };
        let timing = Timing::new(Duration::from_millis(300), Duration::from_millis(40), Duration::ZERO).unwrap();
        let mut spec = Spec::default();
        spec.vips.insert(address(1), VipSpec::default());
        spec.vips.insert(address(2), follows(address(1)));
        assert!(Config::new(ConfigId::NONE, timing, spec.clone()).is_ok());
        spec.vips.insert(address(3), follows(address(2)));
        assert_eq!(Config::new(ConfigId::NONE, timing, spec), Err(ConfigError::Follow(address(3), address(2))));
    }
}
