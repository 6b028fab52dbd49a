//! The node-local files `boot.toml` and `agent.toml`, and what they come to together with the options.

use std::path::{Path, PathBuf};

use cluster::documents::schema::agent::Agent;
use cluster::documents::schema::boot::Boot;
use cluster::documents::{LocalError, load_local};
use cluster::http_client::ServerUrl;

use super::services::Services;

/// What the node-local files say.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// How this node keeps its working copy.
    pub(crate) boot: Boot,
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
    /// No server is named anywhere.
    #[error("no server is named")]
    NoServer,
    /// A server's name is no URL.
    #[error("{0:?} is not a server such as https://n1.example:2027")]
    BadServer(String),
}

impl Config {
    /// Reads both files; one that is missing says nothing.
    pub(crate) fn load(dir: &Path) -> Result<Config, ConfigError> {
        let boot = load_local::<Boot>(&dir.join("boot.toml"))?.unwrap_or_default();
        let path = dir.join("agent.toml");
        let agent = load_local::<Agent>(&path)?.unwrap_or_default();
        let services = Services::from_document(&agent).map_err(|cause| ConfigError::Patterns(path, cause))?;
        Ok(Config { boot, services })
    }

    /// The servers to try: those of the options, else those of `boot.toml`.
    pub(crate) fn servers(&self, options: &[String]) -> Result<Vec<ServerUrl>, ConfigError> {
        let named = if options.is_empty() { &self.boot.servers } else { options };
        if named.is_empty() {
            return Err(ConfigError::NoServer);
        }
        named.iter().map(|server| server.parse().map_err(|_| ConfigError::BadServer(server.clone()))).collect()
    }
}
