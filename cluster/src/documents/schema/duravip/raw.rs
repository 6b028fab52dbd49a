//! What may be written in `duravip.toml`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::documents::schema::values::{Address, HostPort, Network};
use crate::units::HumanDuration;

/// What may be written.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawDuravip {
    /// What a part of the cluster without a majority does.
    pub no_quorum: Option<NoQuorum>,
    /// The ownership lease.
    pub dead_after: Option<HumanDuration>,
    /// Time between heartbeats.
    pub heartbeat: Option<HumanDuration>,
    /// How addresses are put on interfaces.
    pub plumb: Option<Plumb>,
    /// How long a node must be in the view before it gets addresses back.
    pub mature: Option<HumanDuration>,
    /// Announce to everybody.
    pub arp_all_hosts: Option<bool>,
    /// How addresses go back to nodes that return.
    pub rebalance: Option<Rebalance>,
    /// Blocks of addresses and their interfaces.
    pub topology: Option<BTreeMap<Network, RawTopology>>,
    /// The addresses.
    pub vip: Option<BTreeMap<Address, RawVip>>,
    /// Settings of single members.
    pub member: Option<BTreeMap<String, RawMember>>,
    /// Checks by name.
    pub check: Option<BTreeMap<String, RawCheck>>,
    /// Commands at changes of ownership.
    pub hook: Option<RawHook>,
}

/// What a part of the cluster without a majority does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NoQuorum {
    /// Only a majority serves.
    #[default]
    Stop,
    /// Every part serves; two owners are possible.
    Serve,
    /// Of two members, the one that still sees the network takes what nobody answers for.
    Probe,
}

/// How addresses are put on interfaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Plumb {
    /// The daemon chooses by the number of addresses.
    #[default]
    Auto,
    /// On the interface itself.
    Address,
    /// Over port-less devices of 512 addresses each.
    Spread,
    /// As local host routes (IPv4).
    Route,
}

/// How addresses go back to nodes that return.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rebalance {
    /// By themselves, in batches, after `mature`.
    #[default]
    Auto,
    /// By command only.
    Manual,
}

/// What may be written about a block.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawTopology {
    /// The interface that carries it.
    pub interface: Option<String>,
    /// The prefix length that its addresses get.
    pub prefix_length: Option<u8>,
}

/// What may be written about an address.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawVip {
    /// A name for it.
    pub name: Option<String>,
    /// The node that owns it whenever that node is up.
    pub preference: Option<String>,
    /// The address or name of the one it goes with.
    pub follow: Option<String>,
    /// The services that live on it.
    pub services: Option<Vec<String>>,
    /// Checks that its owner must pass.
    pub checks: Option<Vec<String>>,
    /// Labels that its owner must have.
    pub labels: Option<Vec<String>>,
}

/// What may be written about a member.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawMember {
    /// Its share of the addresses.
    pub weight: Option<u32>,
}

/// What may be written about a check.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawCheck {
    /// Passes when a connection is accepted.
    pub tcp: Option<HostPort>,
    /// Passes when the command exits with 0.
    pub exec: Option<Vec<String>>,
    /// Passes when the URL answers 200 to 399.
    pub http: Option<String>,
    /// Whose certificates are believed where the URL has https, instead of those that the machine trusts.
    pub ca: Option<String>,
    /// Time between two runs.
    pub interval: Option<HumanDuration>,
    /// The longest that a run may take.
    pub timeout: Option<HumanDuration>,
    /// Passes in a row that make it good.
    pub rise: Option<u32>,
    /// Failures in a row that make it bad.
    pub fall: Option<u32>,
}

/// What may be written about hooks.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawHook {
    /// After an address came here.
    pub acquired: Option<Vec<String>>,
    /// After an address left.
    pub released: Option<Vec<String>>,
    /// After the state of an address changed.
    pub state: Option<Vec<String>>,
    /// Run once per batch.
    pub batch: Option<bool>,
    /// The longest that one may take.
    pub timeout: Option<HumanDuration>,
}
