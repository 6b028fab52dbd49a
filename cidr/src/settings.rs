//! A configuration as the daemon uses it: `cidr.toml`, the cluster's nodes, and the lists of blocks.

use std::collections::BTreeMap;
use std::sync::Arc;

use cidr_engine::Care;
use cidr_engine::lists::{List, Lists};
use cluster::documents::schema::cidr::{Cidr, Maintain};
use cluster::documents::schema::values::HostPort;
use cluster::subscription::{Snapshot, Wanted, WantedError};

/// Where lists are in each directory of the search path.
const LISTS: &str = "cidr/lists/";

/// What this program reads.
pub fn wanted() -> Result<Wanted, WantedError> {
    // Of every directory: the node's groups are in `cluster.toml`, and may change.
    let pattern = format!("*/{LISTS}*");
    Wanted::documents(["cidr.toml", "cluster.toml"]).files([pattern.as_str()])
}

/// A configuration in use.
pub struct Settings {
    /// The document.
    pub cidr: Cidr,
    /// The nodes that keep and answer.
    pub servers: Vec<String>,
    /// Where other nodes of the subcluster are reached, this one left out.
    pub peers: BTreeMap<String, HostPort>,
    /// Lists of blocks.
    pub lists: Lists,
    /// Which configuration this is, for people.
    pub version: String,
}

impl Settings {
    /// Reads a snapshot. Lists that did not change are taken from the settings before.
    pub fn read(snapshot: &Snapshot, node: &str, before: &Self) -> Result<Self, String> {
        let conf = snapshot.conf().map_err(|error| error.to_string())?;
        let cidr: Cidr = conf.load().map_err(|error| error.to_string())?;
        let servers = if cidr.servers.is_empty() { vec![node.to_owned()] } else { cidr.servers.clone() };
        let nodes = conf.cluster().nodes.values();
        let own = |peer: &&cluster::documents::schema::cluster::Node| {
            peer.name != node && (peer.subcluster == conf.subcluster() || servers.contains(&peer.name))
        };
        let reached = nodes.filter(own).filter_map(|peer| {
            let host = peer.address.clone()?;
            Some((peer.name.clone(), HostPort { host, port: peer.ports.cidr }))
        });
        let peers: BTreeMap<String, HostPort> = reached.collect();
        for server in servers.iter().filter(|server| *server != node && !peers.contains_key(*server)) {
            tracing::warn!(server, "cluster.toml has no address for this CIDR server: windows wait for it here");
        }
        let lists = read_lists(snapshot, conf.search_path().directories(), &before.lists);
        Ok(Self { cidr, servers, peers, lists, version: snapshot.version().to_string() })
    }

    /// No configuration yet: nothing is kept or answered.
    pub fn none() -> Self {
        let cidr = Cidr {
            servers: Vec::new(),
            as_logger: cluster::documents::schema::cidr::AsLogger {
                log_interval: cluster::units::HumanDuration::from_secs(60),
                base_dir: None,
                include_default: cluster::documents::schema::cidr::IncludeDefault::All,
                include: Vec::new(),
                exclude: Vec::new(),
            },
            maintain: Maintain { retention: None, condense: None },
            maintain_series: BTreeMap::new(),
            series: BTreeMap::new(),
        };
        Self { cidr, servers: Vec::new(), peers: BTreeMap::new(), lists: Lists::default(), version: String::new() }
    }

    /// The length of a window.
    pub fn interval_s(&self) -> u32 {
        // The schema keeps it within a day.
        (self.cidr.as_logger.log_interval.as_millis() / 1_000).clamp(1, 86_400) as u32
    }

    /// The monitors' shapes by series.
    pub fn shapes(&self) -> BTreeMap<String, (u32, u32)> {
        let shape =
            |series: &cluster::documents::schema::cidr::Series| (series.monitor.window_s, series.monitor.windows);
        self.cidr.series.iter().map(|(name, series)| (name.clone(), shape(series))).collect()
    }

    /// How long a series is kept.
    pub fn care_of(&self, series: &str) -> Care {
        const DAY_MS: u64 = 86_400_000;
        let days =
            |duration: cluster::units::HumanDuration| (duration.as_millis() / DAY_MS).min(u64::from(u32::MAX)) as u32;
        let Maintain { retention, condense } = self.cidr.maintain_of(series);
        Care { retention_days: retention.map(days), condense_days: condense.map(days) }
    }
}

/// Of a list in several directories, the most specific one counts, as with every file along a search path.
fn read_lists(snapshot: &Snapshot, directories: &[String], before: &Lists) -> Lists {
    let mut lists = Lists::default();
    for directory in directories {
        let prefix = format!("{directory}/{LISTS}");
        for (path, content) in snapshot.files(&prefix) {
            let Some(name) = path.strip_prefix(&prefix) else { continue };
            if lists.get(name).is_none() && !name.starts_with('.') {
                lists.insert(name, read_list(path, content, before.get(name)));
            }
        }
    }
    lists
}

fn read_list(path: &str, content: &[u8], before: Option<&Arc<List>>) -> Arc<List> {
    if let Some(before) = before.filter(|before| before.source() == List::digest(content)) {
        return Arc::clone(before);
    }
    let parsed = List::parse(&String::from_utf8_lossy(content));
    for error in parsed.errors.iter().take(5) {
        tracing::warn!(path, line = error.line, "{}", error.message);
    }
    if parsed.refused > 0 {
        tracing::warn!(path, lines = parsed.refused, "lines that are no entries were left out");
    }
    tracing::info!(path, entries = parsed.list.len(), "list loaded");
    Arc::new(parsed.list)
}
