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

/// With more addresses than this they get no lifetime: renewing them all the time would cost more than it gives.
const RENEWED: usize = 1024;

/// Where addresses are named.
pub const DOCUMENT: &str = "duravip.toml";

/// A configuration that this node can carry out.
#[derive(Debug, Clone)]
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

impl Plan {
    /// The same, as of another version that changed nothing for this node; nothing if it is of that version. A leader
    /// adopts a configuration that most members have: also those for whom it says what the one before it said.
    pub fn at(&self, version: &Version) -> Option<Self> {
        let id = config_id(version);
        let moved = !self.config.stranger && self.config.id != id;
        moved.then(|| Self { config: Arc::new(Config { id, ..(*self.config).clone() }), ..self.clone() })
    }

    /// Where there is no fence: how long the kernel keeps an address that nobody renews. It counts in whole seconds.
    pub fn lifetime(&self) -> Option<Duration> {
        let seconds = self.config.timing.lease().as_millis().div_ceil(1000) as u64;
        (self.seats.len() <= RENEWED).then_some(Duration::from_secs(seconds))
    }
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

/// Translates a configuration. A witness may vote in another subcluster than its own, whose documents it does not have.
pub fn plan(conf: &NodeConf<'_>, version: &Version, votes_in: Option<&str>) -> Result<Plan, PlanError> {
    let subcluster = votes_in.unwrap_or(conf.subcluster());
    let nodes: Vec<&Node> = conf.cluster().members_of(subcluster).collect();
    let Some(own) = nodes.iter().find(|node| node.name == conf.node()) else {
        return Err(PlanError::NoMember(conf.node().into()));
    };
    if subcluster == conf.subcluster() {
        let duravip: Duravip = conf.load()?;
        let foreign = foreign(conf, &duravip, &nodes)?;
        of_member(duravip, foreign, version, own, &nodes)
    } else {
        of_stranger(own, &nodes)
    }
}

/// The longest there may be: what the members of that subcluster use is in a document that this node does not have.
fn longest() -> Result<Timing, TimingError> {
    Timing::new(Duration::from_secs(60), Duration::from_secs(60) / 8, UNPLUMB)
}

fn of_stranger(own: &Node, nodes: &[&Node]) -> Result<Plan, PlanError> {
    let member = |node: &&Node| MemberSpec {
        name: node.name.clone(),
        weight: 1,
        labels: node.labels.clone(),
        witness: node.witness,
    };
    let members = duravip_core::number_members(nodes.iter().map(member))?;
    Ok(Plan {
        config: Arc::new(Config::of_stranger(ConfigId::NONE, longest()?, members)?),
        me: MemberId::of_name(&own.name),
        names: names(nodes),
        peers: peers(own, nodes)?,
        here: here(own),
        seats: BTreeMap::new(),
        interfaces: BTreeSet::new(),
        everybody: true,
        checks: BTreeMap::new(),
        hook: schema::Hook::default(),
    })
}

fn names(nodes: &[&Node]) -> BTreeMap<MemberId, String> {
    nodes.iter().map(|node| (MemberId::of_name(&node.name), node.name.clone())).collect()
}

fn here(own: &Node) -> HostPort {
    reached(own).unwrap_or(HostPort { host: Host::Ip(IpAddr::from([0, 0, 0, 0])), port: own.ports.duravip })
}

fn peers(own: &Node, nodes: &[&Node]) -> Result<BTreeMap<MemberId, HostPort>, PlanError> {
    let mut peers = BTreeMap::new();
    for node in nodes.iter().filter(|node| node.name != own.name) {
        let place = reached(node).ok_or_else(|| PlanError::NoAddress(node.name.clone()))?;
        peers.insert(MemberId::of_name(&node.name), place);
    }
    Ok(peers)
}

/// What only other members' files have, as the first of those has it. Documents that differ are read once for each set of
/// layers. What is wrong with another's document is that one's to say.
fn foreign(conf: &NodeConf<'_>, own: &Duravip, nodes: &[&Node]) -> Result<BTreeMap<IpAddr, VipSpec>, PlanError> {
    let mut read = BTreeSet::from([conf.layers(DOCUMENT)?]);
    let mut foreign = BTreeMap::new();
    for node in nodes.iter().filter(|node| !node.witness && node.name != conf.node()) {
        let theirs = conf.of(&node.name);
        if !read.insert(theirs.layers(DOCUMENT)?) {
            continue;
        }
        let Ok(duravip) = theirs.load::<Duravip>() else { continue };
        for (address, vip) in duravip.vips.iter().filter(|(address, _)| !own.vips.contains_key(*address)) {
            foreign.entry(*address).or_insert_with(|| vip_spec(vip));
        }
    }
    // Whom an address follows in the file of one member may itself follow, or be nowhere, in what all have together.
    let placed = |address: &IpAddr| match own.vips.get(address).map(vip_spec).or_else(|| foreign.get(address).cloned())
    {
        Some(vip) => !matches!(vip.placement, Placement::Follows(_)),
        None => false,
    };
    let lost = |vip: &VipSpec| matches!(vip.placement, Placement::Follows(lead) if !placed(&lead));
    let alone: Vec<IpAddr> = foreign.iter().filter(|(_, vip)| lost(vip)).map(|(address, _)| *address).collect();
    for (_, vip) in foreign.iter_mut().filter(|(address, _)| alone.contains(address)) {
        vip.placement = Placement::Elected;
    }
    Ok(foreign)
}

fn of_member(
    duravip: Duravip,
    foreign: BTreeMap<IpAddr, VipSpec>,
    version: &Version,
    own: &Node,
    nodes: &[&Node],
) -> Result<Plan, PlanError> {
    let members = duravip_core::number_members(nodes.iter().map(|node| member(node, &duravip)))?;
    let elsewhere = foreign.keys().copied().collect();
    let mut vips: BTreeMap<IpAddr, VipSpec> =
        duravip.vips.iter().map(|(address, vip)| (*address, vip_spec(vip))).collect();
    vips.extend(foreign);
    let spec = Spec {
        vips,
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
    let seats = if own.witness { BTreeMap::new() } else { seats(&duravip) };
    let used: BTreeSet<&String> = duravip.vips.values().flat_map(|vip| &vip.checks).collect();
    let checks = if own.witness { BTreeMap::new() } else { duravip.checks.clone() };
    Ok(Plan {
        config: Arc::new(Config { foreign: elsewhere, ..Config::new(config_id(version), timing, spec)? }),
        me: MemberId::of_name(&own.name),
        names: names(nodes),
        peers: peers(own, nodes)?,
        here: here(own),
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

/// Every node numbers its targets by itself; what grows for all members alike are the revisions of the repositories. A
/// directory has none: what members read at different times has to be the same configuration for all of them.
fn config_id(version: &Version) -> ConfigId {
    let mut commit = [0; 32];
    let bytes = hex::decode(&version.commit).unwrap_or_default();
    let length = bytes.len().min(commit.len());
    commit[..length].copy_from_slice(&bytes[..length]);
    ConfigId { revision: version.repos.values().map(|head| head.revision).sum(), commit }
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

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use cluster::documents::MemoryFiles;

    /// The plan of a node, from what its configuration says.
    pub(crate) fn plan_of(node: &str, duravip: &str) -> Result<Plan, PlanError> {
        let cluster = "[node.n1]\naddress = \"10.0.0.1\"\n[node.n2]\naddress = \"n2.example\"\nports = { duravip = 9 }\n\
                       [node.n3]\naddress = \"10.0.0.3\"\nwitness = true\n[node.elsewhere]\nsubcluster = \"east\"\n";
        let files = MemoryFiles::from_texts([("global/cluster.toml", cluster), ("default/duravip.toml", duravip)]);
        let conf = NodeConf::read(&files, node, None).unwrap();
        plan(&conf, &Version::of_directory("ab".repeat(20)), None)
    }

    const TOPOLOGY: &str = "[topology.\"10.1.0.0/16\"]\ninterface = \"eth1\"\nprefix_length = 24\n";

    #[test]
    fn members_places_and_seats_are_what_the_documents_say() {
        let text = format!(
            "{TOPOLOGY}[vip.\"10.1.1.1\"]\nname = \"mx\"\npreference = \"n2\"\n[vip.\"10.1.1.2\"]\nfollow = \"mx\"\nchecks = [\"a\"]\n\
             [check.a]\ntcp = \"127.0.0.1:25\"\n[check.unused]\ntcp = \"127.0.0.1:26\"\n"
        );
        let plan = plan_of("n1", &text).unwrap();
        assert_eq!(plan.names.values().collect::<Vec<_>>().len(), 3);
        assert_eq!(plan.peers[&MemberId::of_name("n2")].to_string(), "n2.example:9");
        assert_eq!(plan.here.to_string(), "10.0.0.1:4803");
        let seat = &plan.seats[&"10.1.1.1".parse().unwrap()];
        assert_eq!((&*seat.interface, seat.prefix_length, seat.mode), ("eth1", 24, Mode::Address));
        let vips = &plan.config.spec.vips;
        assert_eq!(vips[&"10.1.1.1".parse().unwrap()].placement, Placement::Preferred(MemberId::of_name("n2")));
        assert_eq!(vips[&"10.1.1.2".parse().unwrap()].placement, Placement::Follows("10.1.1.1".parse().unwrap()));
        assert_eq!(plan.checks.keys().collect::<Vec<_>>(), ["a"], "what no address asks for is not run");
        assert_eq!((plan.config.id.revision, plan.config.id.commit[0]), (0, 0xAB));
        assert!(plan.at(&Version::of_directory("ab".repeat(20))).is_none(), "the version it is of");
        let later = plan.at(&Version::of_directory("cd".repeat(20))).unwrap();
        assert_eq!((later.config.id.commit[0], &later.config.spec), (0xCD, &plan.config.spec));
        let witness = plan_of("n3", &text).unwrap();
        assert!(witness.seats.is_empty() && witness.checks.is_empty() && witness.config.spec.vips.len() == 2);
        assert!(matches!(plan_of("elsewhere", &text), Err(PlanError::Documents(_) | PlanError::NoAddress(_))));
    }

    #[test]
    fn a_witness_votes_elsewhere_without_the_documents_there_and_nobody_else_does() {
        let cluster = "[node.n1]\naddress = \"10.0.0.1\"\n[node.n2]\naddress = \"10.0.0.2\"\n\
                       [node.w]\naddress = \"10.0.0.9\"\nwitness = true\nsubcluster = \"east\"\n[node.e1]\nsubcluster = \"east\"\n";
        let files = MemoryFiles::from_texts([("global/cluster.toml", cluster)]);
        let plan_of = |node: &str, votes_in| {
            let conf = NodeConf::read(&files, node, None).unwrap();
            plan(&conf, &Version::of_directory("ab".repeat(20)), votes_in)
        };
        let plan = plan_of("w", Some("default")).unwrap();
        assert_eq!(plan.names.values().collect::<Vec<_>>().len(), 3);
        assert!(plan.config.stranger && plan.config.spec.members[&plan.me].witness && plan.seats.is_empty());
        assert!(plan.at(&Version::of_directory("cd".repeat(20))).is_none(), "it says nothing about configurations");
        assert!(matches!(plan_of("e1", Some("default")), Err(PlanError::NoMember(_))));
    }

    #[test]
    fn addresses_that_only_others_have_are_known_and_not_served_whoever_reads() {
        let cluster = "[node.n1]\naddress = \"10.0.0.1\"\ngroups = [\"mail\"]\n[node.n2]\naddress = \"10.0.0.2\"\n\
                       groups = [\"mail\"]\n[node.n3]\naddress = \"10.0.0.3\"\n";
        let usual = format!("{TOPOLOGY}[vip.\"10.1.1.1\"]\n");
        let files = MemoryFiles::from_texts([
            ("global/cluster.toml", cluster),
            ("default/duravip.toml", &usual),
            ("mail/duravip.toml", "[vip.\"10.1.1.2\"]\nname = \"mx\"\n[vip.\"10.1.1.3\"]\nfollow = \"mx\"\n"),
            ("n3/duravip.toml", "unset = [\"vip\"]\n[vip.\"10.1.1.4\"]\n"),
        ]);
        let plan_of = |node: &str| {
            let conf = NodeConf::read(&files, node, None).unwrap();
            plan(&conf, &Version::of_directory("ab".repeat(20)), None).unwrap()
        };
        let plans: Vec<Plan> = ["n1", "n2", "n3"].map(plan_of).into();
        for plan in &plans {
            assert_eq!(plan.config.spec, plans[0].config.spec, "the same table whoever leads");
            assert_eq!(plan.config.spec.vips.len(), 4);
            let served: BTreeSet<IpAddr> = plan.seats.keys().copied().collect();
            assert!(served.is_disjoint(&plan.config.foreign) && served.len() + plan.config.foreign.len() == 4);
        }
        assert_eq!(plans[2].seats.keys().map(IpAddr::to_string).collect::<Vec<_>>(), ["10.1.1.4"]);
        let mx = plans[2].config.spec.vips[&"10.1.1.3".parse().unwrap()].placement;
        assert_eq!(mx, Placement::Follows("10.1.1.2".parse().unwrap()));
    }

    #[test]
    fn revisions_are_those_of_the_repositories_whatever_number_the_node_gives_its_target() {
        let id = |serial: u64, revision: u64| {
            let head = |revision| cluster::api::Head { revision, commit: format!("{revision:040}") };
            let heads = [("default".to_owned(), head(revision)), ("global".to_owned(), head(3))];
            config_id(&Version::of_target(serial, heads.into()))
        };
        assert_eq!(id(5, 7), id(900, 7));
        assert!(id(5, 8).may_follow(id(900, 7)) && !id(900, 7).may_follow(id(5, 8)));
    }

    #[test]
    fn many_ipv4_addresses_become_routes_unless_the_file_says_how() {
        let vips = |count: usize| {
            (0..count).map(|n| format!("[vip.\"10.1.{}.{}\"]\n", n / 250, n % 250 + 1)).collect::<String>()
        };
        let modes = |head: &str, count: usize| -> BTreeSet<String> {
            let plan = plan_of("n1", &format!("{head}{TOPOLOGY}{}", vips(count))).unwrap();
            plan.seats.values().map(|seat| format!("{:?} {}", seat.mode, seat.device)).collect()
        };
        assert_eq!(modes("", MANY), BTreeSet::from(["Address 0".to_owned()]));
        assert_eq!(modes("plumb = \"spread\"\n", 600), BTreeSet::from(["Spread 0".to_owned(), "Spread 1".to_owned()]));
        assert!(modes("", MANY + 1).iter().all(|mode| mode.starts_with("Route")));
    }
}
