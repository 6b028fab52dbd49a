//! What a command may see of its process: environment variables, the directory it was called in, the machine's name.
//!
//! Commands never read the process's environment themselves, so that tests run many of them side by side in one process and so
//! that one file shows everything that can influence a command from outside.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

/// The surroundings of one run.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    variables: BTreeMap<String, OsString>,
    current_dir: PathBuf,
    host_name: String,
    default_wc: PathBuf,
    identity: PathBuf,
}

/// Where a node's working copy lives unless told otherwise.
const DEFAULT_WC: &str = "/etc/eccluster/conf";
/// Where a node's key and certificate live unless told otherwise.
const DEFAULT_IDENTITY: &str = "/etc/eccluster/identity";

impl Environment {
    /// What the running process sees.
    pub fn of_process() -> Environment {
        let variables =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value))).collect();
        let current_dir = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
        let host_name = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Environment {
            variables,
            current_dir,
            host_name,
            default_wc: DEFAULT_WC.into(),
            identity: DEFAULT_IDENTITY.into(),
        }
    }

    /// An empty environment in `current_dir`, for tests: nothing of this machine's own configuration is seen.
    pub fn empty(current_dir: impl Into<PathBuf>) -> Environment {
        let current_dir = current_dir.into();
        let (default_wc, identity) = (current_dir.join("no-default-wc"), current_dir.join("no-identity"));
        Environment { variables: BTreeMap::new(), current_dir, host_name: "testhost".to_owned(), default_wc, identity }
    }

    /// The same with one variable set.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<OsString>) -> Environment {
        self.variables.insert(name.to_owned(), value.into());
        self
    }

    /// A variable that is set and not empty.
    pub fn variable(&self, name: &str) -> Option<&OsString> {
        self.variables.get(name).filter(|value| !value.is_empty())
    }

    /// A variable as text; one that is not UTF-8 counts as unset.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.variable(name).and_then(|value| value.to_str())
    }

    /// The directory the command was called in, as the kernel names it.
    pub fn current_dir(&self) -> &Path {
        &self.current_dir
    }

    /// `path` made absolute against the current directory, `.` and `..` taken out by name: links are not followed, since a
    /// path names a place in the working copy and not what a link there points to.
    pub fn absolute(&self, path: &Path) -> PathBuf {
        let mut out = PathBuf::new();
        for component in self.current_dir.join(path).components() {
            match component {
                Component::CurDir => {}
                Component::ParentDir => {
                    out.pop();
                }
                other => out.push(other),
            }
        }
        out
    }

    /// The user's configuration file, `~/.config/eccluster/eccfg.toml` (or under `XDG_CONFIG_HOME`).
    pub fn user_config(&self) -> Option<PathBuf> {
        let base = match self.variable("XDG_CONFIG_HOME") {
            Some(dir) => PathBuf::from(dir),
            None => PathBuf::from(self.variable("HOME")?).join(".config"),
        };
        Some(base.join("eccluster/eccfg.toml"))
    }

    /// The working copy of this machine, if it is a node.
    pub fn default_wc(&self) -> &Path {
        &self.default_wc
    }

    /// The directory with this node's key and certificate, if it is one (`ECCFG_IDENTITY`, else the machine's own).
    pub fn identity(&self) -> PathBuf {
        self.variable("ECCFG_IDENTITY").map_or_else(|| self.identity.clone(), PathBuf::from)
    }

    /// The name this machine goes by when nothing says otherwise: its short host name.
    pub fn short_host_name(&self) -> &str {
        self.host_name.split('.').next().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_by_name() {
        let env = Environment::empty("/etc/eccluster/conf/default");
        assert_eq!(env.absolute(Path::new("../global/./a")), Path::new("/etc/eccluster/conf/global/a"));
        assert_eq!(env.absolute(Path::new("/x/../y")), Path::new("/y"));
        assert_eq!(env.absolute(Path::new("../../../../../..")), Path::new("/"));
    }

    #[test]
    fn empty_variables_count_as_unset() {
        let env = Environment::empty("/").with("ECCFG_TOKEN", "").with("HOME", "/h");
        assert_eq!(env.text("ECCFG_TOKEN"), None);
        assert_eq!(env.user_config().unwrap(), Path::new("/h/.config/eccluster/eccfg.toml"));
    }
}
