//! The node-local files `boot.toml` and `agent.toml`, and what they come to together with the options.

use std::path::{Path, PathBuf};

use cluster::documents::schema::agent::Agent;
use cluster::documents::schema::boot::Boot;
use cluster::documents::{LocalError, load_local};
use cluster::http_client::ServerUrl;
use repos::worktree::Ownership;

use super::services::Services;
use crate::ownership;

/// The node-local files, by their names in the directory.
pub(crate) const FILES: &[&str] = &[BOOT, AGENT];
const BOOT: &str = "boot.toml";
const AGENT: &str = "agent.toml";

/// What the node-local files say.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Which of them were there.
    pub(crate) found: Vec<PathBuf>,
    /// How this node keeps its working copy.
    pub(crate) boot: Boot,
    /// Who owns a working copy that the agent makes.
    pub(crate) ownership: Ownership,
    /// What follows the files.
    pub(crate) services: Services,
}

/// The node-local files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// One of them cannot be read or understood.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// All patterns together are more than a matcher takes.
    #[error("{path}: the patterns of the services are too many", path = .0.display())]
    Patterns(PathBuf, #[source] globset::Error),
    /// The owner is nobody on this machine.
    #[error("{path}: owner: {reason}", path = .0.display(), reason = .1)]
    Owner(PathBuf, String),
    /// No server is named anywhere.
    #[error("no server is named, neither by --server nor by `servers` in {path}", path = .0.display())]
    NoServer(PathBuf),
    /// A file that said something has gone while the agent runs.
    #[error("{path} has gone; SIGHUP says that this is meant", path = .0.display())]
    Gone(PathBuf),
    /// A server's name is no URL.
    #[error("{0:?} is not a server such as https://n1.example:2027")]
    BadServer(String),
}

impl Config {
    /// Reads both files; one that is missing says nothing.
    pub(crate) fn load(dir: &Path) -> Result<Config, ConfigError> {
        let found = FILES.iter().map(|name| dir.join(name)).filter(|path| path.exists()).collect();
        let path = dir.join(BOOT);
        let boot = load_local::<Boot>(&path)?.unwrap_or_default();
        let owner = boot.owner.as_deref().map(ownership::parse_owner).transpose();
        let ownership = ownership::of(owner.map_err(|reason| ConfigError::Owner(path, reason))?, boot.umask.0);
        let path = dir.join(AGENT);
        let agent = load_local::<Agent>(&path)?.unwrap_or_default();
        let services = Services::from_document(&agent).map_err(|cause| ConfigError::Patterns(path, cause))?;
        Ok(Config { found, boot, ownership, services })
    }

    /// What is found gone without having been told so may be on its way back: editors, and people, move a file aside for a moment.
    pub(crate) fn lacks(&self, earlier: &Config) -> Option<PathBuf> {
        earlier.found.iter().find(|path| !self.found.contains(path)).cloned()
    }

    /// The servers to try: those of the options, else those of `boot.toml` in `dir`.
    pub(crate) fn servers(&self, options: &[String], dir: &Path) -> Result<Vec<ServerUrl>, ConfigError> {
        let named = if options.is_empty() { &self.boot.servers } else { options };
        if named.is_empty() {
            return Err(ConfigError::NoServer(dir.join(BOOT)));
        }
        named.iter().map(|server| server.parse().map_err(|_| ConfigError::BadServer(server.clone()))).collect()
    }
}
