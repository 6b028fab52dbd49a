//! From settings to a client: servers, trust, login; and the questions to a person that fill the gaps.
//!
//! Trust comes from the CA that was named, the working copy's, or the one of this node's identity. Where none is known a person may
//! type the CA's fingerprint; nothing is ever trusted on first sight. A login that is missing is asked for on a terminal; without one a
//! node that can read its identity acts as itself, and everybody else goes without.

use std::path::PathBuf;
use std::sync::Arc;

use cluster::http_client::{ApiClient, ClientError, Credentials, ServerUrl};
use cluster::identity::{Fingerprint, Identity, Peer, ReloadingIdentity};
use repos::worktree::WorkingCopy;
use zeroize::Zeroizing;

use crate::commands::Context;
use crate::environment::Environment;
use crate::error::CommandError;
use crate::place::{self, CopyInfo};
use crate::server::Server;
use crate::settings::{Login, Settings};

/// Who a command has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// This machine's node, by its identity.
    Node,
    /// Anybody who may read.
    Reader,
    /// A person or program with a login: what they do is recorded under their name.
    Person,
}

/// The user that `ecconfigd init` makes.
const FIRST_USER: &str = "admin";

impl Context<'_> {
    /// A client for the servers that the settings, or `wc`, name.
    pub async fn server(&mut self, wc: Option<&WorkingCopy>, need: Need) -> Result<Server, CommandError> {
        let settings = self.settings()?.clone();
        let info = wc.map(CopyInfo::load).transpose()?.unwrap_or_default();
        let servers = servers(&settings, &info)?;
        let identity = node_identity(&self.environment, need)?;
        if let (Need::Node, Some(identity)) = (need, &identity) {
            let ca_pem = identity.current().ca_pem().to_owned();
            if known_ca(&settings, wc, None)?.is_some_and(|known| !is_among(identity, &known)) {
                return Err(of_another_cluster(&self.environment));
            }
            let client = ApiClient::as_node(servers, identity.clone())?;
            return Ok(Server::new(client, ca_pem));
        }
        let ca_pem = match known_ca(&settings, wc, identity.as_deref())? {
            Some(pem) => pem,
            None => self.ask_for_ca(&servers).await?,
        };
        // A machine may be a node of one cluster and have working copies of another: there it is a stranger.
        let identity = identity.filter(|identity| is_among(identity, &ca_pem));
        let credentials = self.credentials(&settings, &info, identity, need)?;
        tracing::debug!(?servers, ?credentials, "connecting");
        Ok(Server::new(ApiClient::new(servers, &ca_pem, credentials)?, ca_pem))
    }

    fn credentials(
        &mut self,
        settings: &Settings,
        info: &CopyInfo,
        identity: Option<Arc<ReloadingIdentity>>,
        need: Need,
    ) -> Result<Credentials, CommandError> {
        let username = settings.username.clone().or_else(|| info.username.clone());
        match (&settings.login, identity, need) {
            (Login::Token(token), ..) => return Ok(Credentials::Bearer(Zeroizing::new(token.expose().to_owned()))),
            (Login::Password(password), ..) => {
                let username = username.unwrap_or_else(|| FIRST_USER.to_owned());
                return Ok(Credentials::Basic { username, password: Zeroizing::new(password.expose().to_owned()) });
            }
            // A user name was given: that person is meant, not this node.
            (Login::Missing, Some(identity), Need::Reader) if settings.username.is_none() => {
                return Ok(Credentials::Identity(identity));
            }
            _ => {}
        }
        let Some(terminal) = self.ui.terminal() else { return Ok(Credentials::None) };
        let asked = |error| CommandError::because("no login was given", error);
        let username = match username {
            Some(username) => username,
            None => {
                let answer = terminal.ask(&format!("User name [{FIRST_USER}]: ")).map_err(asked)?;
                if answer.trim().is_empty() { FIRST_USER.to_owned() } else { answer.trim().to_owned() }
            }
        };
        let password = terminal.ask_secret(&format!("Password of {username}: ")).map_err(asked)?;
        Ok(Credentials::Basic { username, password: Zeroizing::new(password) })
    }

    /// Whoever set the cluster up can read the fingerprint there; typing it is the proof that this is the right cluster.
    async fn ask_for_ca(&mut self, servers: &[ServerUrl]) -> Result<String, CommandError> {
        let missing = || {
            CommandError::failed("the cluster's CA is not known")
                .or_hint("name its certificate with --ca FILE; ecconfigd has it as ca.pem in its data directory")
        };
        let terminal = self.ui.terminal().ok_or_else(missing)?;
        let typed = terminal.ask("SHA-256 fingerprint of the cluster's CA: ").map_err(|_| missing())?;
        let fingerprint: Fingerprint =
            typed.trim().parse().map_err(|error| CommandError::because("that is no fingerprint", error))?;
        let (client, pinned) = ApiClient::pinned(servers.to_vec(), fingerprint)?;
        client.get_bytes("/api/v1/ca", 1 << 20).await?;
        pinned.ca_pem().ok_or_else(|| CommandError::failed("the server did not show its CA"))
    }

    /// The node that a command is about when none is named: this machine's.
    pub fn node(&mut self, wc: Option<&WorkingCopy>) -> Result<String, CommandError> {
        if let Some(name) = self.environment.text("ECCFG_NODE") {
            return Ok(name.to_owned());
        }
        if let Some(node) = wc.map(CopyInfo::load).transpose()?.and_then(|info| info.node) {
            return Ok(node);
        }
        let of_identity = identity_of_node(&self.environment).map(|peer| peer.node);
        Ok(of_identity.unwrap_or_else(|| self.environment.short_host_name().to_owned()))
    }
}

fn servers(settings: &Settings, info: &CopyInfo) -> Result<Vec<ServerUrl>, CommandError> {
    if !settings.servers.is_empty() {
        return Ok(settings.servers.clone());
    }
    let remembered: Result<Vec<ServerUrl>, ClientError> = info.servers.iter().map(|url| url.parse()).collect();
    match remembered? {
        servers if servers.is_empty() => Err(CommandError::NoServer),
        servers => Ok(servers),
    }
}

/// This machine's identity: required to act as the node, welcome otherwise.
fn node_identity(environment: &Environment, need: Need) -> Result<Option<Arc<ReloadingIdentity>>, CommandError> {
    let dir = environment.identity();
    match ReloadingIdentity::load(&dir) {
        Ok(identity) => Ok(Some(identity)),
        Err(_) if need != Need::Node => Ok(None),
        Err(error) => {
            Err(CommandError::because(format!("this machine has no usable identity in {}", dir.display()), error)
                .or_hint("`eccfg node enroll` makes one"))
        }
    }
}

/// What the identity of this machine's node says, if it can be read.
pub fn identity_of_node(environment: &Environment) -> Option<Peer> {
    Identity::load(&environment.identity()).ok().map(|identity| identity.peer().clone())
}

fn known_ca(
    settings: &Settings,
    wc: Option<&WorkingCopy>,
    identity: Option<&ReloadingIdentity>,
) -> Result<Option<String>, CommandError> {
    if let Some(file) = &settings.ca {
        return read_ca(file).map(Some);
    }
    if let Some(file) = wc.map(place::ca_file).filter(|file| file.exists()) {
        return read_ca(&file).map(Some);
    }
    Ok(identity.map(|identity| identity.current().ca_pem().to_owned()))
}

/// True if the CA that issued `identity` is one of those in `trusted`. A file without any is told about when it is used.
fn is_among(identity: &ReloadingIdentity, trusted: &str) -> bool {
    let trusted = Fingerprint::all_in(trusted);
    trusted.is_empty() || trusted.contains(&identity.current().ca_fingerprint())
}

fn of_another_cluster(environment: &Environment) -> CommandError {
    let dir = environment.identity();
    CommandError::failed(format!("the identity in {} is not of the cluster that is asked for", dir.display()))
        .or_hint("ECCFG_IDENTITY names another one; without --auto a login will do")
}

fn read_ca(file: &PathBuf) -> Result<String, CommandError> {
    std::fs::read_to_string(file).map_err(|source| CommandError::io("read the CA certificate", file, source))
}
