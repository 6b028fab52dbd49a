//! The last good configuration on disk.
//!
//! One file, `<data>/configuration.cache`, replaced atomically:
//!
//! ```text
//! eccluster configuration 1 <SHA-256 of everything after this line, hex>\n
//! {"node":…,"version":{…},"files":{"default/duravip.toml":"<base64>",…}}
//! ```
//! A damaged or foreign file is ignored with a warning: it is only a convenience, never the truth.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Content, Settings, Version};
use crate::documents::MemoryFiles;
use crate::files::{self, FileError};

const FILE: &str = "configuration.cache";
/// What all versions begin with.
const NAME: &str = "eccluster configuration ";
const HEADER: &str = "eccluster configuration 1 ";
/// More than the files of one subscription may be, in base64.
const LIMIT_BYTES: u64 = 512 << 20;

#[derive(Debug)]
pub(super) struct Cache {
    path: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    node: String,
    version: Version,
    files: BTreeMap<String, String>,
}

impl Cache {
    pub(super) fn new(data: &Path) -> Self {
        Self { path: data.join(FILE) }
    }

    pub(super) fn store(&self, content: &Content) -> Result<(), FileError> {
        if let Some(data) = self.path.parent() {
            files::create_dirs(data, 0o755)?;
        }
        // Configuration may hold secrets of the services it configures.
        files::write_atomic(&self.path, &encode(content), 0o600)
    }

    pub(super) fn load(&self, settings: &Settings) -> Option<Content> {
        let bytes = match files::read_limited(&self.path, LIMIT_BYTES) {
            Ok(bytes) => bytes?,
            Err(error) => {
                tracing::warn!(error = %crate::error::Chain(&error), "last good configuration not read");
                return None;
            }
        };
        let result = decode(&bytes, &settings.node)
            .and_then(|(files, version)| Content::new(settings, files, version).map_err(|error| error.to_string()));
        result
            .inspect_err(|why| tracing::warn!(path = %self.path.display(), why, "last good configuration not usable"))
            .ok()
    }
}

fn encode(content: &Content) -> Vec<u8> {
    let stored = Stored {
        node: content.conf().map(|conf| conf.node().to_owned()).unwrap_or_default(),
        version: content.version.clone(),
        files: content.files.0.iter().map(|(path, data)| (path.clone(), STANDARD.encode(data))).collect(),
    };
    let body = serde_json::to_string(&stored).expect("strings and numbers can be written as JSON");
    format!("{HEADER}{}\n{body}", hex::encode(Sha256::digest(&body))).into_bytes()
}

fn decode(bytes: &[u8], node: &str) -> Result<(MemoryFiles, Version), String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not text")?;
    let (sum, body) = text.strip_prefix(HEADER).and_then(|rest| rest.split_once('\n')).ok_or_else(|| {
        let version = text.strip_prefix(NAME).and_then(|rest| rest.split(' ').next());
        version.map_or_else(
            || "it is no configuration".to_owned(),
            |version| format!("it has version {version}, this build knows 1: a newer build wrote it"),
        )
    })?;
    if hex::encode(Sha256::digest(body)) != sum {
        return Err("its checksum is wrong".into());
    }
    let stored: Stored = serde_json::from_str(body).map_err(|error| error.to_string())?;
    if stored.node != node {
        return Err(format!("it belongs to the node {}", stored.node));
    }
    let decoded = stored.files.into_iter().map(|(path, data)| Ok((path, STANDARD.decode(data)?)));
    let files = decoded.collect::<Result<_, base64::DecodeError>>().map_err(|error| error.to_string())?;
    Ok((MemoryFiles(files), stored.version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_is_not_used_and_said() {
        let refused = |text: &str| decode(text.as_bytes(), "n1").map(|_| ()).expect_err("it is not ours");
        assert!(refused("eccluster configuration 2 abc\n{}").contains("version 2, this build knows 1"));
        assert!(refused("something else").contains("no configuration"));
    }
}
