//! A configuration as it was read: the files, the version, and a digest of what they mean.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Settings;
use crate::api::Head;
use crate::documents::conf::canonical;
use crate::documents::{ConfError, EffectiveFile, MemoryFiles, NodeConf, SearchPath};

/// Which configuration this is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// The serial of the node's target; absent for a directory.
    pub serial: Option<u64>,
    /// The commits of the target; empty for a directory.
    pub repos: BTreeMap<String, Head>,
    /// The configuration commit: 40 hex digits. From a directory it is [`crate::documents::conf::hash`], a hash of the effective
    /// documents of all nodes; from a server a hash of the commits. Equal on two nodes means equal documents.
    pub commit: String,
}

impl Version {
    /// The version of a target.
    pub fn of_target(serial: u64, repos: BTreeMap<String, Head>) -> Self {
        let mut hash = Sha256::new();
        for (repo, head) in &repos {
            hash.update(format!("{repo} {}\n", head.commit));
        }
        Self { serial: Some(serial), repos, commit: hex::encode(&hash.finalize()[..20]) }
    }

    /// The version of a plain directory.
    pub fn of_directory(commit: String) -> Self {
        Self { serial: None, repos: BTreeMap::new(), commit }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.serial {
            Some(serial) => {
                write!(f, "#{serial}")?;
                self.repos.iter().try_for_each(|(repo, head)| write!(f, " {repo} r{}", head.revision))
            }
            None => f.write_str(self.commit.get(..12).unwrap_or(&self.commit)),
        }
    }
}

/// A whole configuration of one node, which does not change any more.
#[derive(Debug)]
pub struct Content {
    node: String,
    subcluster: Option<String>,
    search_path: Option<SearchPath>,
    pub(super) files: MemoryFiles,
    pub(super) version: Version,
    digest: [u8; 32],
}

impl Content {
    /// Reads every wanted document once: what cannot be parsed is no configuration.
    pub(super) fn new(settings: &Settings, files: MemoryFiles, version: Version) -> Result<Self, ConfError> {
        let mut content = Self {
            node: settings.node.clone(),
            subcluster: settings.subcluster.clone(),
            search_path: settings.search_path.clone(),
            files,
            version,
            digest: [0; 32],
        };
        content.digest = content.digest_of(settings)?;
        Ok(content)
    }

    /// Which configuration this is.
    pub fn version(&self) -> &Version {
        &self.version
    }

    /// Equal digests mean the same for the daemon, whatever was committed in between.
    pub(super) fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// The node's view of the files.
    pub fn conf(&self) -> Result<NodeConf<'_>, ConfError> {
        let conf = NodeConf::read(&self.files, &self.node, self.subcluster.as_deref())?;
        Ok(match &self.search_path {
            Some(search_path) => conf.with_search_path(search_path.clone()),
            None => conf,
        })
    }

    fn digest_of(&self, settings: &Settings) -> Result<[u8; 32], ConfError> {
        let conf = self.conf()?;
        let mut hash = Sha256::new();
        let mut add = |kind: u8, name: &str, data: &[u8]| {
            hash.update([kind]);
            hash.update((name.len() as u64).to_be_bytes());
            hash.update(name);
            hash.update((data.len() as u64).to_be_bytes());
            hash.update(data);
        };
        for name in settings.wanted.document_names() {
            match conf.file(name)? {
                EffectiveFile::Missing => add(b'-', name, b""),
                EffectiveFile::Whole { data, .. } => add(b'w', name, &data),
                EffectiveFile::Document(document) => {
                    add(b'd', name, canonical(document.to_json()).to_string().as_bytes());
                }
            }
        }
        // Nodes with the same layers have the same documents. A mistake in another's must not stop this one.
        let others = settings.wanted.others(&conf);
        for name in settings.wanted.document_names() {
            let mut read = BTreeSet::from([conf.layers(name)?]);
            for theirs in &others {
                if read.insert(theirs.layers(name)?)
                    && let Ok(EffectiveFile::Document(document)) = theirs.file(name)
                {
                    let name = format!("{}/{name}", theirs.node());
                    add(b'o', &name, canonical(document.to_json()).to_string().as_bytes());
                }
            }
        }
        for (path, data) in &self.files.0 {
            if settings.wanted.matches(path) {
                add(b'f', path, data);
            }
        }
        Ok(hash.finalize().into())
    }
}
