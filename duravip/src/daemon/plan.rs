//! A configuration, translated: what the core needs of it, and what this node needs to carry it out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use cluster::documents::schema::cluster::Node;
use cluster::documents::schema::duravip::{self as schema, Duravip, Plumb};
use cluster::documents::schema::values::{Host, HostPort};
use cluster::documents::{ConfError, NodeConf};
use cluster::subscription::Version;
use duravip_core::{
    Config, ConfigError, ConfigId, MemberId, MemberSpec, NoQuorum, Placement, Rebalance, Spec, Timing, TimingError,
    VipSpec,
};

use crate::effects::plumbing::{Mode, Seat};
use crate::effects::spread;

/// What taking addresses off may cost beyond the lease, with the kernel's fence: its timer's grain, and the clock's.
const UNPLUMB: Duration = Duration::from_millis(20);
/// With more IPv4 addresses than this, `auto` takes routes: an address costs more the more there are.
const MANY: usize = 256;

/// A configuration that this node can carry out.
#[derive(Debug)]
pub struct Plan {
    /// For the core.
    pub config: Arc<Config>,
    /// Who this node is.
    pub me: MemberId,
    /// The members by number.
    pub names: BTreeMap<MemberId, String>,
    /// Where the other members are reached.
    pub peers: BTreeMap<MemberId, HostPort>,
    /// Where this node is reached.
    pub here: HostPort,
    /// Where each address belongs on this machine.
    pub seats: BTreeMap<IpAddr, Seat>,
    /// The LAN interfaces.
    pub interfaces: BTreeSet<String>,
    /// Announce to everybody.
    pub everybody: bool,
    /// Checks by name; only those that some address asks for are run.
    pub checks: BTreeMap<String, schema::Check>,
    /// Commands at changes.
    pub hook: schema::Hook,
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// A document.
    #[error(transparent)]
    Documents(#[from] ConfError),
    /// The core.
    #[error(transparent)]
    Core(#[from] ConfigError),
    /// Its times.
    #[error(transparent)]
    Timing(#[from] TimingError),
    /// This node is not in it.
    #[error("the node {0} is no member: global/cluster.toml does not name it in this subcluster")]
    NoMember(String),
    /// A member that cannot be found.
    #[error("the member {0} has no address in global/cluster.toml")]
    NoAddress(String),
}

/// Translates a configuration.
pub fn plan(conf: &NodeConf<'_>, version: &Version, read_at_ms: u64) -> Result<Plan, PlanError> {
    let duravip: Duravip = conf.load()?;
    let subcluster = conf.subcluster().to_owned();
    let nodes: Vec<&Node> = conf.cluster().members_of(&subcluster).collect();
    let Some(own) = nodes.iter().find(|node| node.name == conf.node()) else {
        return Err(PlanError::NoMember(conf.node().into()));
    };
    let members = duravip_core::number_members(nodes.iter().map(|node| member(node, &duravip)))?;
    let spec = Spec {
        vips: duravip.vips.iter().map(|(address, vip)| (*address, vip_spec(vip))).collect(),
        no_quorum: match duravip.no_quorum {
            schema::NoQuorum::Stop => NoQuorum::Stop,
            schema::NoQuorum::Serve => NoQuorum::Serve,
            schema::NoQuorum::Probe => NoQuorum::Probe,
        },
        mature: duravip.mature.get(),
        rebalance: match duravip.rebalance {
            schema::Rebalance::Auto => Rebalance::Auto,
            schema::Rebalance::Manual => Rebalance::Manual,
        },
        members,
    };
    let timing = Timing::new(duravip.dead_after.get(), duravip.heartbeat.get(), UNPLUMB)?;
    let names = nodes.iter().map(|node| (MemberId::of_name(&node.name), node.name.clone())).collect();
    let me = MemberId::of_name(&own.name);
    let here = reached(own).unwrap_or(HostPort { host: Host::Ip(IpAddr::from([0, 0, 0, 0])), port: own.ports.duravip });
    let mut peers = BTreeMap::new();
    for node in nodes.iter().filter(|node| node.name != own.name) {
        let place = reached(node).ok_or_else(|| PlanError::NoAddress(node.name.clone()))?;
        peers.insert(MemberId::of_name(&node.name), place);
    }
    let seats = if own.witness { BTreeMap::new() } else { seats(&duravip) };
    let used: BTreeSet<&String> = duravip.vips.values().flat_map(|vip| &vip.checks).collect();
    let checks = if own.witness { BTreeMap::new() } else { duravip.checks.clone() };
    Ok(Plan {
        config: Arc::new(Config::new(config_id(version, read_at_ms), timing, spec)?),
        me,
        names,
        peers,
        here,
        interfaces: seats.values().map(|seat| seat.interface.clone()).collect(),
        seats,
        everybody: duravip.arp_all_hosts,
        checks: checks.into_iter().filter(|(name, _)| used.contains(name)).collect(),
        hook: duravip.hook.clone(),
    })
}

fn reached(node: &Node) -> Option<HostPort> {
    node.address.clone().map(|host| HostPort { host, port: node.ports.duravip })
}

/// A directory has no revisions; the time at which it was read orders them instead.
fn config_id(version: &Version, read_at_ms: u64) -> ConfigId {
    let mut commit = [0; 32];
    let bytes = hex::decode(&version.commit).unwrap_or_default();
    let length = bytes.len().min(commit.len());
    commit[..length].copy_from_slice(&bytes[..length]);
    ConfigId { revision: version.serial.unwrap_or(read_at_ms), commit }
}

fn member(node: &Node, duravip: &Duravip) -> MemberSpec {
    MemberSpec {
        name: node.name.clone(),
        weight: duravip.weight_of(&node.name),
        labels: node.labels.clone(),
        witness: node.witness,
    }
}

fn vip_spec(vip: &schema::Vip) -> VipSpec {
    VipSpec {
        name: vip.name.clone(),
        placement: match &vip.placement {
            schema::Placement::Elected => Placement::Elected,
            schema::Placement::Preferred(node) => Placement::Preferred(MemberId::of_name(node)),
            schema::Placement::Follows(address) => Placement::Follows(*address),
        },
        labels: vip.labels.clone(),
        checks: vip.checks.clone(),
        services: vip.services.clone(),
    }
}

fn seats(duravip: &Duravip) -> BTreeMap<IpAddr, Seat> {
    let mode = match duravip.plumb {
        Plumb::Address => Mode::Address,
        Plumb::Spread => Mode::Spread,
        Plumb::Route => Mode::Route,
        Plumb::Auto if duravip.vips.keys().filter(|address| address.is_ipv4()).count() > MANY => Mode::Route,
        Plumb::Auto => Mode::Address,
    };
    let seat = |(number, vip): (usize, &schema::Vip)| {
        let topology = duravip.topologies.get(&vip.topology)?;
        let seat = Seat {
            interface: topology.interface.clone(),
            prefix_length: topology.prefix_length,
            mode,
            device: number / spread::PER_DEVICE,
        };
        Some((vip.address, seat))
    };
    duravip.vips.values().enumerate().filter_map(seat).collect()
}
