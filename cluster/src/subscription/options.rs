//! What every daemon takes on its command line, and what it gets for it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

use super::{Settings, Subscription, Wanted};
use crate::documents::SearchPath;
use crate::documents::search_path::SearchPathError;
use crate::error::Chain;
use crate::files::{self, FileError};
use crate::http_client::{ApiClient, ClientError, ServerUrl};
use crate::identity::{ClusterKey, DEFAULT_DIR, IdentityError, ReloadingIdentity, Renewer, check_node_name};
use crate::lock::{DirLock, LockError, Owner};
use crate::shutdown::Shutdown;

/// Where a daemon's configuration comes from and as whom it acts.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Configuration")]
pub struct DaemonOptions {
    /// The node to act as [default: the one the identity names]
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    /// Follow a working copy, or a directory laid out like one
    #[arg(long, value_name = "DIR", required_unless_present = "server", conflicts_with = "server")]
    pub conf: Option<PathBuf>,
    /// Follow the cluster's servers, tried in order; repeat for several
    #[arg(long, value_name = "URL")]
    pub server: Vec<ServerUrl>,
    /// State that must survive a restart [default: /var/lib/eccluster/PROGRAM/NODE]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// The node's key, certificate and CA
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DIR)]
    pub identity: PathBuf,
    /// 32 bytes in hex, the same on all members: authenticates them to each other without certificates
    #[arg(long, value_name = "FILE")]
    pub cluster_key: Option<PathBuf>,
}

/// A daemon that could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Neither an option nor an identity says who this is.
    #[error("no node is named: give --node, or an identity in {}", identity.display())]
    NoNode {
        /// Where an identity was looked for.
        identity: PathBuf,
    },
    /// The option and the identity disagree.
    #[error("--node {node} is not the node of the identity in {}, which is {certified}", identity.display())]
    OtherNode {
        /// What the option says.
        node: String,
        /// What the certificate says.
        certified: String,
        /// The identity's directory.
        identity: PathBuf,
    },
    /// The node's identity cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The servers cannot be used.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The data directory cannot be made.
    #[error(transparent)]
    Data(#[from] FileError),
    /// The data directory is in use.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// `EC_CONF_SEARCH_PATH` is wrong.
    #[error("EC_CONF_SEARCH_PATH: {0}")]
    SearchPath(#[from] SearchPathError),
}

/// A daemon set up: who it is, where its state is, what it follows.
#[derive(Debug)]
pub struct Daemon {
    /// The node.
    pub node: String,
    /// Its subcluster, where a certificate says so.
    pub subcluster: Option<String>,
    /// Where its state is. Locked for this process as long as this value lives.
    pub data: PathBuf,
    /// The node's identity, where there is one. Renewed (with servers) and reloaded in the background.
    pub identity: Option<Arc<ReloadingIdentity>>,
    /// A client of the cluster that acts as the node, with servers only.
    pub client: Option<ApiClient>,
    /// The members' shared key, where one is given.
    pub cluster_key: Option<ClusterKey>,
    /// The configuration.
    pub subscription: Subscription,
    /// Keeps other processes out of the data directory.
    pub lock: DirLock,
}

impl DaemonOptions {
    /// Sets a daemon up: finds out who it is, takes its data directory, and subscribes to what it wants. Background tasks run on
    /// `shutdown` and end with it.
    pub async fn open(&self, program: &str, wanted: Wanted, shutdown: &Shutdown) -> Result<Daemon, DaemonError> {
        let identity = self.load_identity()?;
        let node = self.node_of(identity.as_deref())?;
        let cluster_key = self.cluster_key.as_deref().map(ClusterKey::load).transpose()?;
        let data = self.data.clone().unwrap_or_else(|| default_data(program, &node));
        files::create_dirs(&data, 0o755)?;
        let lock = DirLock::acquire(&data, &Owner::current(program, &node))?;
        let search_path = SearchPath::from_env(&node).transpose()?;
        if let Some(search_path) = &search_path {
            tracing::warn!(%search_path, "EC_CONF_SEARCH_PATH overrides the node's search path");
        }
        let subcluster = identity.as_ref().map(|identity| identity.current().peer().subcluster.clone());
        let settings = Settings {
            program: program.into(),
            node: node.clone(),
            subcluster: subcluster.clone(),
            data: data.clone(),
            wanted,
            search_path,
            reloads: shutdown.reloads(),
            stop: shutdown.token(),
        };
        let client = self.client(identity.clone())?;
        let subscription = match (&self.conf, &client) {
            (Some(conf), _) => Subscription::conf_dir(conf, settings),
            (None, Some(client)) => Subscription::server(client.clone(), settings),
            (None, None) => return Err(no_source().into()),
        };
        keep_fresh(identity.as_ref(), client.as_ref(), shutdown);
        Ok(Daemon { node, subcluster, data, identity, client, cluster_key, subscription, lock })
    }

    /// With servers an identity is needed; with a directory it is used where there is one.
    fn load_identity(&self) -> Result<Option<Arc<ReloadingIdentity>>, DaemonError> {
        match ReloadingIdentity::load(&self.identity) {
            Ok(identity) => Ok(Some(identity)),
            Err(IdentityError::Missing { .. }) if self.server.is_empty() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn node_of(&self, identity: Option<&ReloadingIdentity>) -> Result<String, DaemonError> {
        let certified = identity.map(|identity| identity.current().node().to_owned());
        match (&self.node, certified) {
            (Some(node), Some(certified)) if *node != certified => {
                Err(DaemonError::OtherNode { node: node.clone(), certified, identity: self.identity.clone() })
            }
            (Some(node), _) => {
                check_node_name(node)?;
                Ok(node.clone())
            }
            (None, Some(certified)) => Ok(certified),
            (None, None) => Err(DaemonError::NoNode { identity: self.identity.clone() }),
        }
    }

    fn client(&self, identity: Option<Arc<ReloadingIdentity>>) -> Result<Option<ApiClient>, DaemonError> {
        match identity {
            Some(identity) if !self.server.is_empty() => Ok(Some(ApiClient::as_node(self.server.clone(), identity)?)),
            _ => Ok(None),
        }
    }
}

fn no_source() -> ClientError {
    ClientError::Setup { what: "configuration", why: "neither --conf nor --server is given".into() }
}

/// The place of a daemon's state when nobody says otherwise.
pub fn default_data(program: &str, node: &str) -> PathBuf {
    Path::new("/var/lib/eccluster").join(program).join(node)
}

fn keep_fresh(identity: Option<&Arc<ReloadingIdentity>>, client: Option<&ApiClient>, shutdown: &Shutdown) {
    let Some(identity) = identity else { return };
    let peer = identity.current().peer().clone();
    if peer.not_after <= time::OffsetDateTime::now_utc() {
        let error = IdentityError::Invalid {
            what: identity.dir().display().to_string(),
            why: format!("the certificate of {} expired at {}", peer.node, peer.not_after),
        };
        tracing::error!(error = %Chain(&error), "enroll this node again");
    }
    shutdown.spawn(identity.clone().watch(shutdown.token()));
    if let Some(client) = client {
        shutdown.spawn(Renewer::new(identity.clone()).run(client.clone(), shutdown.token()));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::identity::{Ca, DEFAULT_VALIDITY, KeyRequest, NodeCert, NodeRole};
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        daemon: DaemonOptions,
    }

    fn parse(args: &[&str]) -> Result<DaemonOptions, clap::error::ErrorKind> {
        let program = Program::try_parse_from([&["program"], args].concat());
        program.map(|program| program.daemon).map_err(|error| error.kind())
    }

    #[test]
    fn exactly_one_source() {
        use clap::error::ErrorKind::{ArgumentConflict, MissingRequiredArgument, ValueValidation};
        assert_eq!(parse(&[]).unwrap_err(), MissingRequiredArgument);
        assert_eq!(parse(&["--conf", "/c", "--server", "https://a:1"]).unwrap_err(), ArgumentConflict);
        assert_eq!(parse(&["--server", "http://a:1"]).unwrap_err(), ValueValidation);
        assert_eq!(parse(&["--conf", "/c"]).unwrap().identity, Path::new(DEFAULT_DIR));
        let servers = parse(&["--server", "https://a:1", "--server", "b"]).unwrap().server;
        assert_eq!(servers.iter().map(ServerUrl::as_str).collect::<Vec<_>>(), ["https://a:1", "https://b:2027"]);
    }

    #[tokio::test]
    async fn the_identity_decides_who_a_daemon_is() {
        let top = tempfile::tempdir().unwrap();
        let path = |name: &str| top.path().join(name);
        let options = |node: Option<&str>| DaemonOptions {
            node: node.map(Into::into),
            conf: Some(path("conf")),
            data: Some(path("data")),
            identity: path("identity"),
            ..DaemonOptions::default()
        };
        let shutdown = Shutdown::new();
        let open = async |options: DaemonOptions| options.open("logd", Wanted::default(), &shutdown).await;

        assert!(matches!(open(options(None)).await, Err(DaemonError::NoNode { .. })));
        assert!(matches!(open(options(Some("../n1"))).await, Err(DaemonError::Identity(_))));
        let daemon = open(options(Some("n1"))).await.unwrap();
        assert_eq!((&*daemon.node, daemon.subcluster.as_deref(), daemon.identity.is_some()), ("n1", None, false));
        let held = open(options(Some("n1"))).await.unwrap_err().to_string();
        assert!(held.contains("logd of node n1"), "{held}");
        drop(daemon);
        let with_servers = DaemonOptions { conf: None, server: vec!["n1".parse().unwrap()], ..options(Some("n1")) };
        assert!(matches!(open(with_servers).await, Err(DaemonError::Identity(IdentityError::Missing { .. }))));

        let key = KeyRequest::generate("n1").unwrap();
        let ca = Ca::create("test").unwrap();
        let cert = NodeCert::new("n1", "east", NodeRole::Client);
        let chain = ca.issue(key.csr_pem(), &cert, DEFAULT_VALIDITY).unwrap();
        key.certified(&chain.pem, &chain.ca_pem).unwrap().store(&path("identity")).unwrap();
        let other = open(options(Some("n2"))).await.unwrap_err().to_string();
        assert!(other.contains("--node n2") && other.contains("which is n1"), "{other}");
        let daemon = open(options(None)).await.unwrap();
        assert_eq!((&*daemon.node, daemon.subcluster.as_deref(), daemon.client.is_some()), ("n1", Some("east"), false));
    }
}
