//! `duravip.toml`: virtual addresses, where they may live, and what moves them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use crate::documents::hint;
use crate::documents::place::KeyPath;
use crate::documents::schema::agent::check_argv;
use crate::documents::schema::values::{Host, HostPort, Network};
use crate::documents::schema::{Checker, Context, DocumentKind, Schema, names};
use crate::units::HumanDuration;

mod follow;
mod raw;

use follow::Follows;
pub use raw::{NoQuorum, Plumb, RawCheck, RawDuravip, RawHook, RawMember, RawTopology, RawVip, Rebalance};

/// As many addresses as the daemon promises to move in time.
pub const MAX_VIPS: usize = 10_240;

/// Virtual addresses and what moves them.
#[derive(Debug, Clone, PartialEq)]
pub struct Duravip {
    /// What a part of the cluster without a majority does.
    pub no_quorum: NoQuorum,
    /// The ownership lease L.
    pub dead_after: HumanDuration,
    /// Time between heartbeats h, under a sixth of the lease.
    pub heartbeat: HumanDuration,
    /// How addresses are put on interfaces.
    pub plumb: Plumb,
    /// How long a node must be in the view before it gets addresses back.
    pub mature: HumanDuration,
    /// Announce to everybody; else to known neighbours and the gateway only.
    pub arp_all_hosts: bool,
    /// How addresses go back to nodes that return.
    pub rebalance: Rebalance,
    /// Blocks of addresses and their interfaces.
    pub topologies: BTreeMap<Network, Topology>,
    /// The addresses.
    pub vips: BTreeMap<IpAddr, Vip>,
    /// Weights of members that are not 1.
    pub weights: BTreeMap<String, u32>,
    /// Checks by name.
    pub checks: BTreeMap<String, Check>,
    /// Commands at changes of ownership.
    pub hook: Hook,
}

/// A block of addresses and its interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    /// The interface that carries it.
    pub interface: String,
    /// The prefix length that its addresses get.
    pub prefix_length: u8,
}

/// A virtual address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vip {
    /// The address.
    pub address: IpAddr,
    /// A name for it.
    pub name: Option<String>,
    /// The block it lies in: the longest that holds it.
    pub topology: Network,
    /// Who decides where it lives.
    pub placement: Placement,
    /// The services that live on it.
    pub services: BTreeSet<String>,
    /// Checks that its owner must pass.
    pub checks: BTreeSet<String>,
    /// Labels that its owner must have, all of them.
    pub labels: BTreeSet<String>,
}

/// Who decides where an address lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// The election alone.
    Elected,
    /// This node whenever it is up, else the election.
    Preferred(String),
    /// The address it goes with, in the same step; one that is itself elected.
    Follows(IpAddr),
}

/// A check of a member's health.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What is done.
    pub probe: Probe,
    /// Time between two runs.
    pub interval: HumanDuration,
    /// The longest that a run may take.
    pub timeout: HumanDuration,
    /// Passes in a row that make it good.
    pub rise: u32,
    /// Failures in a row that make it bad.
    pub fall: u32,
}

/// What a check does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// Opens a connection.
    Tcp(HostPort),
    /// Runs a command.
    Exec(Vec<String>),
    /// Asks a URL; with https, whose certificates are believed instead of those that the machine trusts.
    Http(String, Option<PathBuf>),
}

/// Commands at changes of ownership, each an argv.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hook {
    /// After an address came here.
    pub acquired: Option<Vec<String>>,
    /// After an address left.
    pub released: Option<Vec<String>>,
    /// After the state of an address changed.
    pub state: Option<Vec<String>>,
    /// Run once per batch instead of once per address.
    pub batch: bool,
    /// The longest that one may take.
    pub timeout: HumanDuration,
}

impl Duravip {
    /// The weight of a member.
    pub fn weight_of(&self, member: &str) -> u32 {
        self.weights.get(member).copied().unwrap_or(1)
    }
}

impl Schema for Duravip {
    const KIND: DocumentKind = DocumentKind::Duravip;
    type Raw = RawDuravip;

    fn resolve(raw: RawDuravip, context: &Context<'_>, check: &mut Checker<'_>) -> Self {
        let (dead_after, heartbeat) = resolve_times(raw.dead_after, raw.heartbeat, check);
        let checks = resolve_checks(raw.check.unwrap_or_default(), check);
        let topologies = resolve_topologies(raw.topology.unwrap_or_default(), check);
        let raw_vips: BTreeMap<IpAddr, RawVip> =
            raw.vip.unwrap_or_default().into_iter().map(|(address, vip)| (address.0, vip)).collect();
        if !raw_vips.is_empty() {
            check_electorate(raw.no_quorum, context, check);
            check_members(context, check);
        }
        let vips = resolve_vips(&raw_vips, &topologies, &checks, context, check);
        Self {
            no_quorum: raw.no_quorum.unwrap_or_default(),
            dead_after,
            heartbeat,
            plumb: raw.plumb.unwrap_or_default(),
            mature: raw.mature.unwrap_or(HumanDuration::from_secs(5)),
            arp_all_hosts: raw.arp_all_hosts.unwrap_or(true),
            rebalance: raw.rebalance.unwrap_or_default(),
            topologies,
            vips,
            weights: resolve_members(raw.member.unwrap_or_default(), context, check),
            checks,
            hook: resolve_hook(raw.hook.unwrap_or_default(), check),
        }
    }
}

/// The lease and the heartbeat. The protocol promises nothing for a heartbeat of a sixth of the lease or more.
fn resolve_times(
    dead_after: Option<HumanDuration>,
    heartbeat: Option<HumanDuration>,
    check: &mut Checker<'_>,
) -> (HumanDuration, HumanDuration) {
    let shortest = HumanDuration::from_millis(40);
    let longest = HumanDuration::from_secs(60);
    let lease = dead_after.unwrap_or(HumanDuration::from_millis(300));
    if lease < shortest || lease > longest {
        check.refuse(
            &KeyPath::keys(["dead_after"]),
            format!("dead_after = \"{lease}\" is not between {shortest} and {longest}"),
        );
    }
    let Some(beat) = heartbeat else {
        return (lease, (lease.get() / 8).into());
    };
    let path = KeyPath::keys(["heartbeat"]);
    if beat.get() * 6 >= lease.get() {
        let sixth = HumanDuration::from_millis(lease.as_millis() / 6);
        let message = format!("heartbeat = \"{beat}\" is not under a sixth of dead_after = \"{lease}\" ({sixth})");
        let usual: HumanDuration = (lease.get() / 8).into();
        check.refuse_with_hint(&path, message, format!("leave it out for an eighth, {usual}"));
    } else if beat < HumanDuration::from_millis(1) {
        check.refuse(&path, "a heartbeat is at least 1ms");
    }
    (lease, beat)
}

/// Two voters cannot form a majority without each other, so the operator has to say what the survivor does.
fn check_electorate(no_quorum: Option<NoQuorum>, context: &Context<'_>, check: &mut Checker<'_>) {
    let voters: Vec<&str> = context.cluster.members_of(context.subcluster).map(|node| node.name.as_str()).collect();
    let path = KeyPath::keys(["no_quorum"]);
    if voters.len() == 2 && no_quorum.is_none() {
        let message = format!(
            "with two members ({} and {}) neither is a majority when the other is gone, so no_quorum must be chosen",
            voters[0], voters[1]
        );
        let hint = "\"stop\": no addresses until both are back; \"serve\": both sides serve and there may be two owners; \
                    \"probe\": the survivor takes what nobody answers for; or add a third node with witness = true";
        check.refuse_with_hint(&path, message, hint);
    }
    if voters.len() > 2 && no_quorum == Some(NoQuorum::Probe) {
        let message = format!("no_quorum = \"probe\" is for two members, and there are {}", voters.len());
        check.refuse_with_hint(&path, message, "with three or more a majority decides: \"stop\" or \"serve\"");
    }
}

/// Members must find each other.
fn check_members(context: &Context<'_>, check: &mut Checker<'_>) {
    let members: Vec<_> = context.cluster.members_of(context.subcluster).collect();
    if members.len() < 2 {
        return;
    }
    let mut seen: BTreeMap<(&Host, u16), &str> = BTreeMap::new();
    for node in members {
        let path = KeyPath::keys(["vip"]);
        let Some(address) = &node.address else {
            let message = format!("the member {} has no address in global/cluster.toml", node.name);
            check.refuse_with_hint(&path, message, "the members reach each other at these addresses");
            continue;
        };
        if let Some(other) = seen.insert((address, node.ports.duravip), &node.name) {
            let message =
                format!("the members {other} and {} have the same address and port in global/cluster.toml", node.name);
            check.refuse_with_hint(&path, message, "give one of them another address or ports = { duravip = … }");
        }
    }
}

fn resolve_topologies(raw: BTreeMap<Network, RawTopology>, check: &mut Checker<'_>) -> BTreeMap<Network, Topology> {
    let mut topologies = BTreeMap::new();
    for (network, raw) in raw {
        let path = KeyPath::keys(["topology", &network.to_string()]);
        let interface = raw.interface.unwrap_or_default();
        if interface.is_empty() {
            check.missing(&path, "interface");
        } else if let Some(reason) = refuse_interface(&interface) {
            check.refuse(&path.key("interface"), reason);
        }
        let longest = network.longest_prefix();
        let prefix_length = raw.prefix_length.unwrap_or(longest);
        if prefix_length > longest || prefix_length == 0 {
            check.refuse(&path.key("prefix_length"), format!("prefix_length is 1 to {longest} for {network}"));
        }
        topologies.insert(network, Topology { interface, prefix_length });
    }
    topologies
}

/// What the kernel takes as the name of an interface.
fn refuse_interface(name: &str) -> Option<String> {
    let bad = name.len() > 15
        || matches!(name, "." | "..")
        || name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control());
    bad.then(|| {
        format!(
            "\"{}\" cannot be the name of an interface (1 to 15 characters without / and :)",
            crate::documents::place::shortened(name)
        )
    })
}

fn resolve_checks(raw: BTreeMap<String, RawCheck>, check: &mut Checker<'_>) -> BTreeMap<String, Check> {
    let mut checks = BTreeMap::new();
    for (name, raw) in raw {
        let path = KeyPath::keys(["check", &name]);
        if let Some(reason) = names::refuse_item_name(&name) {
            check.refuse(&path, reason);
        }
        check_argv(raw.exec.as_deref(), &path.key("exec"), check);
        let mut probes = Vec::new();
        probes.extend(raw.tcp.map(Probe::Tcp));
        probes.extend(raw.exec.map(Probe::Exec));
        if let Some(url) = &raw.http
            && !is_http_url(url)
        {
            check.refuse(&path.key("http"), "expected a URL such as \"http://127.0.0.1:8080/health\"");
        }
        if let Some(ca) = &raw.ca {
            if !raw.http.as_ref().is_some_and(|url| url.starts_with("https://")) {
                check.refuse(&path.key("ca"), "ca goes with http = \"https://…\"");
            } else if !ca.starts_with('/') {
                check.refuse(&path.key("ca"), "expected the absolute path of a PEM file");
            }
        }
        probes.extend(raw.http.map(|url| Probe::Http(url, raw.ca.map(PathBuf::from))));
        if probes.len() != 1 {
            check.refuse(&path, format!("the check \"{name}\" needs exactly one of tcp, exec and http"));
        }
        let interval = raw.interval.unwrap_or(HumanDuration::from_secs(1));
        let timeout = raw.timeout.unwrap_or(HumanDuration::from_secs(1));
        for (key, written) in [("interval", raw.interval), ("timeout", raw.timeout)] {
            if written.is_some_and(|written| written < HumanDuration::from_millis(10)) {
                check.refuse(&path.key(key), format!("{key} is at least 10ms"));
            }
        }
        for (key, written) in [("rise", raw.rise), ("fall", raw.fall)] {
            if written == Some(0) {
                check.refuse(&path.key(key), format!("{key} is at least 1"));
            }
        }
        if let Some(probe) = probes.pop() {
            checks.insert(
                name,
                Check { probe, interval, timeout, rise: raw.rise.unwrap_or(2), fall: raw.fall.unwrap_or(3) },
            );
        } else {
            // Named all the same, so that addresses which use it are not blamed too.
            checks.insert(name, Check { probe: Probe::Exec(Vec::new()), interval, timeout, rise: 1, fall: 1 });
        }
    }
    checks
}

fn is_http_url(url: &str) -> bool {
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/') && !url.contains(char::is_whitespace))
}

fn resolve_members(
    raw: BTreeMap<String, RawMember>,
    context: &Context<'_>,
    check: &mut Checker<'_>,
) -> BTreeMap<String, u32> {
    let mut weights = BTreeMap::new();
    for (name, raw) in raw {
        let path = KeyPath::keys(["member", &name]);
        if !context.knows(&name) {
            check.unknown_node(&path, &name, context);
        }
        if raw.weight.is_some_and(|weight| weight > 1_000) {
            check.refuse(&path.key("weight"), "weight is 0 (no addresses by election) to 1000");
        }
        weights.insert(name, raw.weight.unwrap_or(1));
    }
    weights
}

fn resolve_hook(raw: RawHook, check: &mut Checker<'_>) -> Hook {
    let path = KeyPath::keys(["hook"]);
    for (key, argv) in [("acquired", &raw.acquired), ("released", &raw.released), ("state", &raw.state)] {
        check_argv(argv.as_deref(), &path.key(key), check);
    }
    Hook {
        acquired: raw.acquired,
        released: raw.released,
        state: raw.state,
        batch: raw.batch.unwrap_or(false),
        timeout: raw.timeout.unwrap_or(HumanDuration::from_secs(10)),
    }
}

fn resolve_vips(
    raw: &BTreeMap<IpAddr, RawVip>,
    topologies: &BTreeMap<Network, Topology>,
    checks: &BTreeMap<String, Check>,
    context: &Context<'_>,
    check: &mut Checker<'_>,
) -> BTreeMap<IpAddr, Vip> {
    if raw.len() > MAX_VIPS {
        check.refuse(&KeyPath::keys(["vip"]), format!("{} addresses; at most {MAX_VIPS} are managed", raw.len()));
    }
    let follows = Follows::new(raw);
    let own: BTreeMap<IpAddr, &str> = context
        .cluster
        .nodes
        .values()
        .filter_map(|node| match node.address {
            Some(Host::Ip(ip)) => Some((ip, node.name.as_str())),
            _ => None,
        })
        .collect();
    let mut vips = BTreeMap::new();
    for (address, written) in raw {
        let path = KeyPath::keys(["vip", &address.to_string()]);
        check_address(*address, &own, &path, check);
        let topology = topology_of(*address, topologies);
        if topology.is_none() {
            let message = format!("{address} lies in no topology");
            check.refuse_with_hint(&path, message, "a [topology.\"BLOCK\"] says which interface carries it");
        }
        check_lists(written, checks, &path, check);
        let placement = resolve_placement(*address, written, &follows, &path, context, check);
        let Some(topology) = topology else { continue };
        vips.insert(
            *address,
            Vip {
                address: *address,
                name: written.name.clone(),
                topology,
                placement,
                services: written.services.iter().flatten().cloned().collect(),
                checks: written.checks.iter().flatten().cloned().collect(),
                labels: written.labels.iter().flatten().cloned().collect(),
            },
        );
    }
    vips
}

fn check_address(address: IpAddr, own: &BTreeMap<IpAddr, &str>, path: &KeyPath, check: &mut Checker<'_>) {
    if let Some(node) = own.get(&address) {
        check.refuse(path, format!("{address} is the node {node}'s own address and is never managed"));
    }
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    let mapped = matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    if address.is_unspecified() || address.is_multicast() || broadcast || mapped {
        check.refuse(path, format!("{address} is not an address that a node can own"));
    }
}

fn topology_of(address: IpAddr, topologies: &BTreeMap<Network, Topology>) -> Option<Network> {
    topologies.keys().copied().filter(|network| network.contains(address)).max_by_key(|network| network.prefix_length())
}

fn check_lists(raw: &RawVip, checks: &BTreeMap<String, Check>, path: &KeyPath, check: &mut Checker<'_>) {
    if raw.name.as_deref().is_some_and(|name| names::refuse_item_name(name).is_some() || name.parse::<IpAddr>().is_ok())
    {
        check.refuse(&path.key("name"), "a name has letters, digits and - _ . and is no address");
    }
    for (index, name) in raw.checks.iter().flatten().enumerate() {
        if checks.contains_key(name) {
            continue;
        }
        let path = path.key("checks").index(index);
        let message = format!(
            "there is no [check.{}]",
            crate::documents::place::quoted_key(&crate::documents::place::shortened(name))
        );
        match hint::nearest(name, checks.keys().map(String::as_str)) {
            Some(near) => check.refuse_with_hint(&path, message, format!("did you mean \"{near}\"?")),
            None => check.refuse(&path, message),
        }
    }
}

fn resolve_placement(
    address: IpAddr,
    raw: &RawVip,
    follows: &Follows<'_>,
    path: &KeyPath,
    context: &Context<'_>,
    check: &mut Checker<'_>,
) -> Placement {
    if let Some(preference) = &raw.preference {
        check_preference(preference, &path.key("preference"), context, check);
    }
    let Some(target) = &raw.follow else {
        return raw.preference.clone().map_or(Placement::Elected, Placement::Preferred);
    };
    if raw.preference.is_some() {
        let message = "an address that follows another cannot have a preference of its own";
        check.refuse_with_hint(&path.key("preference"), message, "give the preference to the one that is followed");
    }
    match follows.leader_of(address) {
        Ok(leader) => Placement::Follows(leader),
        Err(reason) => {
            match hint::nearest(target, follows.names.keys().copied()).filter(|near| near != target) {
                Some(near) => check.refuse_with_hint(&path.key("follow"), reason, format!("did you mean \"{near}\"?")),
                None => check.refuse(&path.key("follow"), reason),
            }
            Placement::Elected
        }
    }
}

fn check_preference(node: &str, path: &KeyPath, context: &Context<'_>, check: &mut Checker<'_>) {
    if !context.knows(node) {
        check.unknown_node(path, node, context);
    } else if context.cluster.nodes.get(node).is_some_and(|node| node.witness) {
        check.refuse(path, format!("{node} is a witness and never owns an address"));
    } else if context.is_foreign(node) {
        check.refuse(path, format!("{node} belongs to another subcluster"));
    }
}
