//! `ecconfigd join`: this machine becomes a member of a cluster that exists.
//!
//! The steps are ordered so that an interrupted join can be repeated at any of them: the key is kept on disk before anybody sees it, and the
//! cluster recognises the key when it comes again with the same, by then used up token. `ecconfigd.toml`, which `run` needs, is written
//! last. From then on the leader brings the node into the group, as a learner first; it needs nothing but to run.

use std::fs;
use std::io;
use std::path::PathBuf;

use cluster::api::{JoinRequest, JoinResponse};
use cluster::documents::schema::values::HostPort;
use cluster::files;
use cluster::http_client::{ApiClient, ClientError, ServerUrl};
use cluster::identity::{self, IdentityError, JoinToken, KeyRequest};
use cluster::lock::{DirLock, Owner};
use serde::Serialize;

use crate::core::Core;
use crate::error::Error;
use crate::init::{CA_FILE, CONFIG_FILE, IDENTITY_DIR, advertised, host_name, link_identity, write_config};
use crate::state::NodeName;

/// The key of a join that is under way.
const KEY_FILE: &str = "join.key";

/// How to join.
#[derive(Debug, Clone)]
pub struct Options {
    /// The data directory; made if it does not exist.
    pub data: PathBuf,
    /// This node's name.
    pub node: String,
    /// Where it will listen.
    pub listen: HostPort,
    /// Where others reach it; default: where it listens.
    pub advertise: Option<HostPort>,
    /// Servers of the cluster, tried in order.
    pub servers: Vec<ServerUrl>,
    /// The one-time token.
    pub token: JoinToken,
    /// Holds everything and never votes.
    pub learner: bool,
    /// A link that shall lead to the node's identity, such as `/etc/eccluster/identity`.
    pub link: Option<PathBuf>,
}

/// What was joined.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The cluster's name.
    pub cluster: String,
    /// The node's name.
    pub node: String,
    /// Its subcluster.
    pub subcluster: String,
    /// Its number in the Raft group.
    pub raft_id: u64,
    /// Where the server will be reached.
    pub url: String,
    /// The CA's certificate.
    pub ca: PathBuf,
    /// Its SHA-256, which the token carried.
    pub ca_fingerprint: String,
    /// The node's identity.
    pub identity: PathBuf,
}

/// Why the node did not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// There is a cluster in the directory already.
    #[error("{} holds a cluster already", data.display())]
    Done {
        /// The data directory.
        data: PathBuf,
    },
    /// A name that cannot be.
    #[error("{0}")]
    Name(String),
    /// A file could not be written.
    #[error(transparent)]
    File(#[from] files::FileError),
    /// The directory is in use.
    #[error(transparent)]
    Lock(#[from] cluster::lock::LockError),
    /// Keys and certificates.
    #[error("cannot make the node's identity")]
    Identity(#[from] IdentityError),
    /// The cluster refused, or could not be reached.
    #[error("the cluster did not take this node in")]
    Request(#[from] ClientError),
    /// The data directory.
    #[error("cannot prepare the data directory")]
    Core(#[from] Error),
}

/// Joins.
pub async fn join(options: &Options) -> Result<Report, JoinError> {
    let word = |error: &dyn std::fmt::Display| JoinError::Name(error.to_string());
    identity::check_node_name(&options.node).map_err(|error| word(&error))?;
    let node: NodeName = options.node.parse().map_err(|error| word(&error))?;
    let data = &options.data;
    files::create_dirs(data, 0o755)?;
    let _lock = DirLock::acquire(data, &Owner::current("ecconfigd", &options.node))?;
    if data.join(CONFIG_FILE).exists() {
        return Err(JoinError::Done { data: data.clone() });
    }
    let key_path = data.join(KEY_FILE);
    let key = KeyRequest::kept(&key_path, &options.node)?;
    let address = advertised(&options.listen, options.advertise.as_ref());
    let answer = ask(options, &address, key.csr_pem()).await?;
    let identity = key.certified(&answer.certificate_pem, &answer.ca_pem)?;
    if identity.ca_fingerprint() != options.token.ca_fingerprint() || identity.node() != options.node {
        return Err(JoinError::Name("the cluster answered with the certificate of another cluster or node".into()));
    }
    Core::prepare_joined(data, &node, answer.raft_id)?;
    identity.store(&data.join(IDENTITY_DIR))?;
    files::write_atomic(&data.join(CA_FILE), answer.ca_pem.as_bytes(), 0o644)?;
    write_config(data, &options.listen, options.advertise.as_ref())?;
    // The identity has it now.
    if let Err(error) = fs::remove_file(&key_path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %key_path.display(), %error, "the join's copy of the key is left behind");
    }
    if let Some(link) = &options.link {
        link_identity(link, &data.join(IDENTITY_DIR));
    }
    Ok(Report {
        cluster: answer.cluster,
        node: options.node.clone(),
        subcluster: answer.subcluster,
        raft_id: answer.raft_id,
        url: format!("https://{address}"),
        ca: data.join(CA_FILE),
        ca_fingerprint: options.token.ca_fingerprint().to_string(),
        identity: data.join(IDENTITY_DIR),
    })
}

/// The token leaves this machine only after the server has shown the CA with the fingerprint inside the token.
async fn ask(options: &Options, address: &HostPort, csr_pem: &str) -> Result<JoinResponse, ClientError> {
    let (client, _) = ApiClient::pinned(options.servers.clone(), options.token.ca_fingerprint())?;
    let names = [Some(options.listen.host.to_string()), host_name()];
    let request = JoinRequest {
        token: options.token.expose().to_string(),
        node: options.node.clone(),
        csr_pem: csr_pem.to_owned(),
        address: address.to_string(),
        names: names.into_iter().flatten().collect(),
        learner: options.learner,
    };
    // The key makes a repetition harmless, on every server.
    client.post_json_idempotent("/api/v1/join", &request, &options.token.id()).await
}
