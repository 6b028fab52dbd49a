//! `ecconfigd init`: a new cluster of one node.
//!
//! The steps are ordered so that an interrupted init can be repeated: secrets and certificates are written first and taken over by a
//! repetition, the replicated state comes next, and `ecconfigd.toml`, which `run` needs, is written last. Its presence means that all of
//! it happened, and a further init is refused.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use cluster::documents::schema::values::{Host, HostPort};
use cluster::error::Chain;
use cluster::files;
use cluster::identity::{self, Ca, DEFAULT_VALIDITY, Identity, IdentityError, KeyRequest, NodeCert, NodeRole};
use cluster::lock::{DirLock, Owner};
use serde::Serialize;

use crate::accounts::password::{self, Secret};
use crate::core::{Bootstrap, Core, CoreLimits, CoreOptions, FIRST_RAFT_ID, RegisterNode};
use crate::error::Error;
use crate::http::certificate_record;
use crate::state::{NodeKind, NodeName, NodeRecord, RepoName, Role, UserRecord};
use crate::templates::{self, FirstNode};

/// The first account.
pub const ADMIN: &str = "admin";
/// The settings file in the data directory.
pub const CONFIG_FILE: &str = "ecconfigd.toml";
/// The node's identity in the data directory.
pub const IDENTITY_DIR: &str = "identity";
/// The CA's certificate in the data directory.
pub const CA_FILE: &str = "ca.pem";
/// The first password in the data directory.
pub const PASSWORD_FILE: &str = "admin-password";

/// What a new cluster is made of.
#[derive(Debug, Clone)]
pub struct Options {
    /// The data directory; made if it does not exist.
    pub data: PathBuf,
    /// The first node's name.
    pub node: String,
    /// Where it listens.
    pub listen: HostPort,
    /// Where others reach it; default: where it listens.
    pub advertise: Option<HostPort>,
    /// Its subcluster, whose repository is made.
    pub subcluster: String,
    /// The cluster's name.
    pub cluster: String,
    /// A link that shall lead to the node's identity, such as `/etc/eccluster/identity`.
    pub link: Option<PathBuf>,
}

/// What was made.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The cluster's name.
    pub cluster: String,
    /// The node's name.
    pub node: String,
    /// Where the server will be reached.
    pub url: String,
    /// The CA's certificate.
    pub ca: PathBuf,
    /// The file with the password of `admin`.
    pub admin_password_file: PathBuf,
    /// The node's identity.
    pub identity: PathBuf,
}

/// Why no cluster was made.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// There is one already.
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
    /// The admin's password.
    #[error("cannot make the password of {ADMIN}")]
    Password(#[from] password::PasswordError),
    /// The replicated state.
    #[error("cannot make the cluster's state")]
    Core(#[from] Error),
}

/// Makes a cluster.
pub async fn init(options: &Options) -> Result<Report, InitError> {
    let names = Names::check(options)?;
    files::create_dirs(&options.data, 0o755)?;
    let _lock = DirLock::acquire(&options.data, &Owner::current("ecconfigd", &options.node))?;
    if options.data.join(CONFIG_FILE).exists() {
        return Err(InitError::Done { data: options.data.clone() });
    }
    let (ca, identity) = trust(options)?;
    let admin = admin(options)?;
    let advertise = advertised(&options.listen, options.advertise.as_ref());
    state(options, &names, admin, &identity, &advertise).await?;
    write_config(&options.data, &options.listen, options.advertise.as_ref())?;
    if let Some(link) = &options.link {
        link_identity(link, &options.data.join(IDENTITY_DIR));
    }
    Ok(Report {
        cluster: ca.cluster_name(),
        node: options.node.clone(),
        url: format!("https://{advertise}"),
        ca: options.data.join(CA_FILE),
        admin_password_file: options.data.join(PASSWORD_FILE),
        identity: options.data.join(IDENTITY_DIR),
    })
}

struct Names {
    node: NodeName,
    subcluster: RepoName,
}

impl Names {
    fn check(options: &Options) -> Result<Self, InitError> {
        let word = |error: &dyn std::fmt::Display| InitError::Name(error.to_string());
        identity::check_node_name(&options.node).map_err(|error| word(&error))?;
        identity::check_subcluster_name(&options.subcluster).map_err(|error| word(&error))?;
        let cluster = options.cluster.trim();
        if cluster.is_empty()
            || cluster.len() > 63
            || !cluster.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
        {
            return Err(InitError::Name(format!(
                "{cluster:?} cannot be a cluster's name: letters, digits, '-' and '.', at most 63"
            )));
        }
        Ok(Self {
            node: options.node.parse().map_err(|error| word(&error))?,
            subcluster: options.subcluster.parse().map_err(|error| word(&error))?,
        })
    }
}

/// The CA and the node's certificate, taken over from an interrupted init where they are whole.
fn trust(options: &Options) -> Result<(Ca, Identity), InitError> {
    let ca = match Ca::load(&options.data) {
        Ok(ca) => ca,
        Err(IdentityError::Missing { .. }) => {
            let ca = Ca::create(options.cluster.trim())?;
            ca.store(&options.data)?;
            ca
        }
        Err(error) => return Err(error.into()),
    };
    let key = KeyRequest::generate(&options.node)?;
    let chain = ca.issue(key.csr_pem(), &certificate(options), DEFAULT_VALIDITY)?;
    let identity = key.certified(&chain.pem, &chain.ca_pem)?;
    identity.store(&options.data.join(IDENTITY_DIR))?;
    Ok((ca, identity))
}

fn certificate(options: &Options) -> NodeCert {
    let certificate = NodeCert::new(&options.node, &options.subcluster, NodeRole::Voter)
        .reached_at(&options.listen.to_string())
        .reached_at(&advertised(&options.listen, options.advertise.as_ref()).to_string());
    match host_name() {
        Some(host) => certificate.reached_at(&host),
        None => certificate,
    }
}

/// The host's name, unless it is one that cannot be in a certificate: that must not keep a cluster from being made.
pub(crate) fn host_name() -> Option<String> {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    name.filter(|name| name.parse::<Host>().is_ok())
}

/// Where others reach the node: what was asked for, else the listen address, else, if that is a wildcard, the host's name.
pub(crate) fn advertised(listen: &HostPort, advertise: Option<&HostPort>) -> HostPort {
    if let Some(advertise) = advertise {
        return advertise.clone();
    }
    match &listen.host {
        Host::Ip(ip) if ip.is_unspecified() => {
            let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
            let host = name.and_then(|name| name.parse().ok()).unwrap_or(Host::Name("localhost".into()));
            HostPort { host, port: listen.port }
        }
        _ => listen.clone(),
    }
}

/// The admin's account. The password is on disk before its hash is in the state.
fn admin(options: &Options) -> Result<UserRecord, InitError> {
    let path = options.data.join(PASSWORD_FILE);
    let password = match files::read_limited(&path, 4096)? {
        Some(bytes) if !bytes.trim_ascii().is_empty() => {
            Secret::new(String::from_utf8_lossy(bytes.trim_ascii()).into_owned())
        }
        _ => {
            let password = random_password()?;
            files::write_atomic(&path, format!("{}\n", password.expose()).as_bytes(), 0o600)?;
            password
        }
    };
    Ok(UserRecord {
        name: ADMIN.into(),
        password_hash: password::hash(&password)?,
        role: Role::Admin,
        full_name: String::new(),
        email: String::new(),
        created_time_ms: crate::http::now_ms(),
        generation: 0,
    })
}

/// 24 letters and digits: 142 bits, and nothing that a shell or a URL would mind.
fn random_password() -> Result<Secret, password::PasswordError> {
    const LETTERS: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let mut password = String::with_capacity(24);
    while password.len() < 24 {
        let mut bytes = [0u8; 32];
        getrandom::fill(&mut bytes).map_err(|error| password::PasswordError::Hash(error.to_string()))?;
        // 248 = 4 × 62: bytes beyond it would make some letters likelier.
        let letters = bytes.iter().filter(|byte| **byte < 248).map(|byte| char::from(LETTERS[usize::from(byte % 62)]));
        password.extend(letters.take(24 - password.len()));
    }
    Ok(Secret::new(password))
}

/// The replicated state with its repositories, account and first node. Taken over where an interrupted init had made it.
async fn state(
    options: &Options,
    names: &Names,
    admin: UserRecord,
    identity: &Identity,
    advertise: &HostPort,
) -> Result<(), InitError> {
    let core_options = || CoreOptions {
        data: options.data.clone(),
        node: names.node.clone(),
        address: advertise.to_string(),
        peers: BTreeMap::new(),
        limits: CoreLimits::default(),
    };
    let first_node = FirstNode {
        name: options.node.clone(),
        host: advertise.host.to_string(),
        port: advertise.port,
        subcluster: options.subcluster.clone(),
    };
    let first = Bootstrap {
        cluster: options.cluster.trim().to_owned(),
        admin,
        subcluster: names.subcluster.clone(),
        repos: vec![
            (names.subcluster.clone(), templates::subcluster()),
            (RepoName::global(), templates::global(&first_node)),
        ],
    };
    let core = match Core::bootstrap(core_options(), first).await {
        Err(Error::Exists { .. }) => Core::open(core_options()).await?,
        made => made?,
    };
    let registered = async {
        core.wait_ready(std::time::Duration::from_secs(30)).await?;
        let record = own_record(names, identity, advertise)?;
        core.register_node(RegisterNode { record, token: None }).await
    };
    let registered = registered.await;
    core.shutdown().await;
    registered?;
    Ok(())
}

fn own_record(names: &Names, identity: &Identity, advertise: &HostPort) -> Result<NodeRecord, Error> {
    let certificate = certificate_record(identity.cert_pem(), identity.peer().not_after).map_err(Error::internal)?;
    Ok(NodeRecord {
        name: names.node.clone(),
        subcluster: names.subcluster.clone(),
        kind: NodeKind::Server,
        raft_id: Some(FIRST_RAFT_ID),
        address: Some(advertise.to_string()),
        joined_time_ms: crate::http::now_ms(),
        certificates: vec![certificate],
    })
}

pub(crate) fn write_config(
    data: &Path,
    listen: &HostPort,
    advertise: Option<&HostPort>,
) -> Result<(), files::FileError> {
    let quoted = |address: &HostPort| toml::Value::String(address.to_string()).to_string();
    let mut text = format!(
        "# Settings of ecconfigd on this machine. Limits and their defaults: docs/operating.\n\nlisten = {}\n",
        quoted(listen)
    );
    if let Some(advertise) = advertise {
        text.push_str(&format!("advertise = {}        # where the others reach this server\n", quoted(advertise)));
    }
    files::write_atomic(&data.join(CONFIG_FILE), text.as_bytes(), 0o644)
}

/// Makes the usual place of a node's identity lead to this one. An existing link or directory is kept, a dangling link is replaced, and
/// nothing that goes wrong here is an error: the cluster is made.
pub fn link_identity(link: &Path, identity: &Path) {
    let linked = || -> Result<(), files::FileError> {
        match fs::symlink_metadata(link) {
            Ok(found) if !found.file_type().is_symlink() || fs::metadata(link).is_ok() => return Ok(()),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Ok(()),
            _ => {}
        }
        if let Some(parent) = link.parent() {
            files::create_dirs(parent, 0o755)?;
        }
        let target = fs::canonicalize(identity).unwrap_or_else(|_| identity.to_owned());
        files::symlink_atomic(&target, link)
    };
    if let Err(error) = linked() {
        tracing::warn!(link = %link.display(), error = %Chain(&error), "the identity is not linked to its usual place");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn passwords_are_letters_and_digits() {
        let (one, two) = (random_password().unwrap(), random_password().unwrap());
        assert!(one.expose().len() == 24 && one.expose().bytes().all(|b| b.is_ascii_alphanumeric()));
        assert_ne!(one.expose(), two.expose());
    }

    #[test]
    fn a_link_is_kept_unless_it_dangles() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two, link) = (dir.path().join("one"), dir.path().join("two"), dir.path().join("etc/identity"));
        fs::create_dir(&one).unwrap();
        fs::create_dir(&two).unwrap();
        link_identity(&link, &one);
        assert_eq!(fs::canonicalize(&link).unwrap(), fs::canonicalize(&one).unwrap());
        link_identity(&link, &two);
        assert_eq!(fs::canonicalize(&link).unwrap(), fs::canonicalize(&one).unwrap(), "kept");
        fs::remove_dir(&one).unwrap();
        link_identity(&link, &two);
        assert_eq!(fs::canonicalize(&link).unwrap(), fs::canonicalize(&two).unwrap(), "replaced");
    }
}
