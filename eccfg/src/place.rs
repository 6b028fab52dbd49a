//! Which working copy a command is about, and what that working copy knows about its cluster.
//!
//! Named by `--wc` or `ECCFG_WC`; else the one around the current directory; else the one of the user's configuration file; else
//! `/etc/eccluster/conf`. A working copy remembers its servers, its CA, its node and its subcluster beside the trees
//! (`client.toml`, `ca.pem` in its state directory), never a secret.

use std::path::{Path, PathBuf};

use repos::RepoPath;
use repos::worktree::{WorkingCopy, WorktreeError};
use serde::{Deserialize, Serialize};

use crate::environment::Environment;
use crate::error::CommandError;
use crate::settings::Settings;

/// What a working copy remembers about its cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyInfo {
    /// The servers it was made from, in the order to try.
    pub servers: Vec<String>,
    /// The repository at its root.
    pub subcluster: String,
    /// The node it belongs to, where it belongs to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Who made it; asked for a password when nobody else is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
}

const INFO_FILE: &str = "client.toml";
const CA_FILE: &str = "ca.pem";
/// Where `repos::worktree` puts the tree that is not in use.
const SPARE_TREE: &str = "spare";

impl CopyInfo {
    /// What `wc` remembers; the default for one that was made by other means.
    pub fn load(wc: &WorkingCopy) -> Result<CopyInfo, CommandError> {
        let path = wc.state_dir().join(INFO_FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(CopyInfo::default()),
            Err(error) => return Err(CommandError::io("read", &path, error)),
        };
        toml::from_str(&text).map_err(|error| CommandError::because(format!("{} is damaged", path.display()), error))
    }

    /// Remembers this, and the CA.
    pub fn store(&self, wc: &WorkingCopy, ca_pem: &[u8]) -> Result<(), CommandError> {
        let text = toml::to_string(self)
            .map_err(|error| CommandError::because("the working copy's metadata cannot be written", error))?;
        for (name, bytes) in [(CA_FILE, ca_pem), (INFO_FILE, text.as_bytes())] {
            let path = wc.state_dir().join(name);
            cluster::files::write_atomic(&path, bytes, 0o644)
                .map_err(|error| CommandError::because("the working copy's metadata cannot be written", error))?;
        }
        Ok(())
    }
}

/// Where `wc` keeps the CA it was made with.
pub fn ca_file(wc: &WorkingCopy) -> PathBuf {
    wc.state_dir().join(CA_FILE)
}

/// The directory that a new working copy would be made in.
pub fn root_for_new(settings: &Settings, environment: &Environment) -> PathBuf {
    let named = settings.wc.as_ref().or(settings.wc_default.as_ref());
    environment.absolute(named.map_or(environment.default_wc(), PathBuf::as_path))
}

/// The working copy that a command is about.
pub fn find(settings: &Settings, environment: &Environment) -> Result<WorkingCopy, WorktreeError> {
    if let Some(named) = &settings.wc {
        return WorkingCopy::open(&environment.absolute(named));
    }
    match WorkingCopy::discover(environment.current_dir()) {
        Err(WorktreeError::NotAWorkingCopy(here)) => {
            let fallback = settings.wc_default.as_deref().unwrap_or(environment.default_wc());
            match WorkingCopy::open(&environment.absolute(fallback)) {
                Err(WorktreeError::NotAWorkingCopy(_)) => Err(WorktreeError::NotAWorkingCopy(here)),
                other => other,
            }
        }
        other => other,
    }
}

/// Paths that the user typed, relative to the working copy's root. An empty list, or the root itself, means everything.
pub fn paths(wc: &WorkingCopy, environment: &Environment, typed: &[PathBuf]) -> Result<Vec<RepoPath>, CommandError> {
    let mut found = Vec::new();
    for path in typed {
        match wc.relative(environment.current_dir(), path)? {
            Some(path) => found.push(path),
            None => return Ok(Vec::new()),
        }
    }
    Ok(found)
}

/// The repository that `path` (relative to the root) belongs to, and the path inside it.
pub fn split(wc: &WorkingCopy, path: &RepoPath) -> Result<(String, RepoPath), CommandError> {
    let (mount, inside) = wc.split(path)?;
    Ok((mount.name.clone(), inside))
}

/// `path` of the repository `repo` as the working copy shows it.
pub fn shown(wc: &WorkingCopy, repo: &str, path: &str) -> String {
    match wc.mounts().iter().find(|mount| mount.name == repo) {
        Some(mount) if !mount.at.is_empty() => format!("{}/{path}", mount.at),
        Some(_) => path.to_owned(),
        None => format!("{repo}:{path}"),
    }
}

/// True if the directory the command was called in lies in a tree of `wc` that an earlier update has displaced.
pub fn is_displaced(wc: &WorkingCopy, environment: &Environment) -> bool {
    inside(environment.current_dir(), &wc.state_dir().join(SPARE_TREE))
}

/// True if the directory the command was called in lies in `wc`: after an exchange the caller's shell is in the displaced tree.
pub fn called_inside(wc: &WorkingCopy, environment: &Environment) -> bool {
    inside(environment.current_dir(), wc.root()) || inside(environment.current_dir(), wc.state_dir())
}

fn inside(path: &Path, dir: &Path) -> bool {
    path.starts_with(dir)
}
