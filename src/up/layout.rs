//! What `eccluster up` keeps in its directory, so that running it again resumes the same cluster.
//!
//! ```text
//! DIR/up.toml            the ports that were chosen, kept so that clone URLs go on working, and whether the nodes are wired
//! DIR/lock               held while `up` runs
//! DIR/env                to be sourced: how eccfg finds the cluster
//! DIR/netrc              the admin user for curl (0600)
//! DIR/git-credentials    the admin user for git's credential store (0600)
//! DIR/bin/               a link for each program
//! DIR/n1/data/           ecconfigd's data directory
//! DIR/n2/join-token      with which the node joins, until it has (0600)
//! DIR/n1/conf/           the node's working copy
//! DIR/n1/etc/            boot.toml and agent.toml
//! DIR/n1/agent/          the agent's state
//! DIR/n1/run/            control sockets
//! DIR/n1/*.log           what each process wrote
//! ```

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use cluster::files::write_atomic;
use serde::{Deserialize, Serialize};

/// The first node's usual port (contract.md), and that of its web service; others follow in steps of one.
pub(crate) const SERVER_PORT: u16 = 2027;
const WEB_PORT: u16 = 8027;

/// The file that remembers the ports.
const PORTS: &str = "up.toml";

/// The directory of a cluster on this machine.
pub(crate) struct Layout {
    dir: PathBuf,
}

/// The sockets that the host reaches a node through; they stay open over restarts of the node's programs.
pub(crate) struct Sockets {
    pub(crate) server: TcpListener,
    pub(crate) web: TcpListener,
}

/// The ports of one node on the host's loopback address.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ports {
    pub(crate) server: u16,
    pub(crate) web: u16,
}

impl Ports {
    pub(crate) fn server_address(self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.server))
    }
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Remembered {
    /// Whether the nodes know each other by their addresses on wires between namespaces; else by the host's ports.
    #[serde(default)]
    wired: bool,
    #[serde(default)]
    node: BTreeMap<String, Ports>,
}

impl Layout {
    /// Takes or makes the directory; only its owner may look inside, because it holds credentials.
    pub(crate) fn open(dir: Option<PathBuf>) -> anyhow::Result<Layout> {
        let dir = match dir {
            Some(dir) => dir,
            None => default_dir()?,
        };
        let dir = std::path::absolute(&dir).with_context(|| format!("cannot resolve {}", dir.display()))?;
        use std::os::unix::fs::DirBuilderExt as _;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(Layout { dir })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn node(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(crate) fn data(&self, node: &str) -> PathBuf {
        self.node(node).join("data")
    }

    pub(crate) fn ca(&self) -> PathBuf {
        self.data("n1").join("ca.pem")
    }

    pub(crate) fn password(&self) -> PathBuf {
        self.data("n1").join("admin-password")
    }

    /// Whether the nodes of the cluster in this directory are wired to each other; `None` before the first run.
    pub(crate) fn remembered_wires(&self) -> anyhow::Result<Option<bool>> {
        let remembered = read_remembered(&self.dir.join(PORTS))?;
        Ok((!remembered.node.is_empty()).then_some(remembered.wired))
    }

    /// How many nodes the cluster in this directory has; 0 before the first run.
    pub(crate) fn remembered_nodes(&self) -> anyhow::Result<u8> {
        let remembered = read_remembered(&self.dir.join(PORTS))?;
        u8::try_from(remembered.node.len()).context("up.toml names too many nodes")
    }

    /// Opens the ports of these nodes: those of the last run, or the usual ones where they are free, or any free ones. They
    /// stay open from here on, so that nobody else can get them in between.
    pub(crate) fn open_ports(&self, count: u8, wired: bool) -> anyhow::Result<Vec<(Ports, Sockets)>> {
        let path = self.dir.join(PORTS);
        let mut remembered = read_remembered(&path)?;
        remembered.wired = wired;
        let mut opened = Vec::new();
        for (step, number) in (0u16..).zip(1..=count) {
            let node = node_name(number);
            let sockets = match remembered.node.get(&node) {
                Some(ports) => Sockets { server: known_port(ports.server, &node)?, web: known_port(ports.web, &node)? },
                None => Sockets { server: free_port(SERVER_PORT + step)?, web: free_port(WEB_PORT + step)? },
            };
            let ports = Ports { server: sockets.server.local_addr()?.port(), web: sockets.web.local_addr()?.port() };
            remembered.node.insert(node, ports);
            opened.push((ports, sockets));
        }
        write_atomic(&path, toml::to_string(&remembered)?.as_bytes(), 0o600)?;
        Ok(opened)
    }

    /// Writes the files with which git, curl and eccfg find the cluster; the password goes into files, never into arguments.
    pub(crate) fn write_credentials(&self, servers: &[SocketAddr]) -> anyhow::Result<()> {
        let path = self.password();
        let password = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let password = password.trim_end();
        let urls: Vec<String> = servers.iter().map(|server| format!("https://{server}")).collect();
        let netrc = format!("machine {} login admin password {password}\n", Ipv4Addr::LOCALHOST);
        write_atomic(&self.dir.join("netrc"), netrc.as_bytes(), 0o600)?;
        write_atomic(
            &self.dir.join("git-credentials"),
            servers.iter().map(|server| format!("https://admin:{password}@{server}\n")).collect::<String>().as_bytes(),
            0o600,
        )?;
        let env = format!(
            "# how eccfg finds the cluster of {dir}; source it\nexport PATH={dir}/bin:\"$PATH\"\nexport ECCFG_SERVER={urls}\nexport ECCFG_CA={ca}\n\
             export ECCFG_USERNAME=admin\nECCFG_PASSWORD=$(cat {path})\nexport ECCFG_PASSWORD\n",
            dir = quoted(&self.dir),
            urls = urls.join(","),
            ca = quoted(&self.ca()),
            path = quoted(&path)
        );
        Ok(write_atomic(&self.dir.join("env"), env.as_bytes(), 0o600)?)
    }
}

/// What a node is called.
pub(crate) fn node_name(number: u8) -> String {
    format!("n{number}")
}

/// A path as one word of a shell.
pub(crate) fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

fn default_dir() -> anyhow::Result<PathBuf> {
    if let Some(state) = std::env::var_os("XDG_STATE_HOME").filter(|value| !value.is_empty()) {
        return Ok(PathBuf::from(state).join("eccluster/up"));
    }
    match std::env::var_os("HOME").filter(|value| !value.is_empty()) {
        Some(home) => Ok(PathBuf::from(home).join(".local/state/eccluster/up")),
        None => bail!("neither XDG_STATE_HOME nor HOME is set: name a directory with --dir"),
    }
}

fn read_remembered(path: &Path) -> anyhow::Result<Remembered> {
    match std::fs::read_to_string(path) {
        Ok(text) => toml::from_str(&text).with_context(|| format!("cannot read {}", path.display())),
        Err(missing) if missing.kind() == std::io::ErrorKind::NotFound => Ok(Remembered::default()),
        Err(cause) => Err(cause).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// A port of the last run: what people have cloned from it names it, so no other will do.
fn known_port(port: u16, node: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).with_context(|| {
        format!("cannot listen on 127.0.0.1:{port}, which {node} had at its last run and others may have noted")
    })
}

/// The wanted port when it is free on the loopback address, else one that the kernel picks.
fn free_port(wanted: u16) -> anyhow::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, wanted))
        .or_else(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
        .context("no free port on 127.0.0.1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_remembered_and_never_shared() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::open(Some(dir.path().join("up"))).unwrap();
        let ports =
            |opened: Vec<(Ports, Sockets)>| -> Vec<Ports> { opened.into_iter().map(|(ports, _)| ports).collect() };
        assert_eq!(layout.remembered_wires().unwrap(), None);
        let opened = layout.open_ports(3, true).unwrap();
        let taken = layout.open_ports(3, true).err().expect("they are open").to_string();
        assert!(taken.contains("which n1 had at its last run"), "{taken}");
        let first = ports(opened);
        let mut all: Vec<u16> = first.iter().flat_map(|ports| [ports.server, ports.web]).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 6);
        assert_eq!(first, ports(layout.open_ports(3, true).unwrap()));
        assert_eq!((layout.remembered_wires().unwrap(), layout.remembered_nodes().unwrap()), (Some(true), 3));
    }

    #[test]
    fn a_path_is_one_word_of_a_shell() {
        assert_eq!(quoted(Path::new("/srv/up")), "/srv/up");
        assert_eq!(quoted(Path::new("/srv/it's here")), r"'/srv/it'\''s here'");
    }
}
