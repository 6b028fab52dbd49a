//! What the agent must still know after it was killed: `state.json` in its data directory.
//!
//! Three facts. `applied`: the revisions that went through every service, to which a failure returns. `underway`: an update
//! whose services have not all answered yet, written before the trees are exchanged, so that an agent that was killed
//! between the exchange and the last `verify` finishes the job at its next start instead of believing it done.
//! An update that has failed says so there too, so that the failed target is taken back and not tried once more.
//! `given_up`: the target that failed, which is not tried again until it changes. The file is replaced atomically and
//! synced; losing it costs a repeated reload, never a wrong tree.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use cluster::api::{Head, NodeReport, StepReport};
use serde::{Deserialize, Serialize};

/// Repository name → where it stands.
pub(crate) type Heads = BTreeMap<String, Head>;

/// The version of the file; another one is refused with words.
const VERSION: u32 = 1;

/// What is remembered over restarts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    /// The last revisions that every service accepted; empty before the first update.
    #[serde(default)]
    pub(crate) applied: Heads,
    /// The serial of the target that `applied` belongs to.
    #[serde(default)]
    pub(crate) applied_serial: u64,
    /// An update between the exchange and the end of its services.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) underway: Option<Underway>,
    /// The target that is not tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) given_up: Option<GivenUp>,
    /// The newest report, as it went (or will go) to a server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) report: Option<NodeReport>,
}

/// An update that was begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Underway {
    /// The target's serial.
    pub(crate) serial: u64,
    /// What the working copy moves to.
    pub(crate) to: Heads,
    /// What it moves back to when a service fails.
    pub(crate) from: Heads,
    /// The services that must reload and verify, in order.
    pub(crate) services: Vec<String>,
    /// Why it failed, once it has: from then on it is only taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) failure: Option<Failure>,
}

/// What made an update fail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Failure {
    /// In words.
    pub(crate) why: String,
    /// What was run until then.
    pub(crate) steps: Vec<StepReport>,
}

/// A target that failed on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GivenUp {
    /// What was tried.
    pub(crate) repos: Heads,
    /// True when local edits stand in the way: those may go, so it is tried again from time to time.
    pub(crate) local_edits: bool,
    /// Where the working copy was left. Somebody who brings it to the target by hand wants it tried again.
    pub(crate) left_at: Heads,
}

#[derive(Serialize, Deserialize)]
struct Versioned {
    version: u32,
    #[serde(flatten)]
    record: serde_json::Map<String, serde_json::Value>,
}

/// The record on disk.
#[derive(Debug)]
pub(crate) struct RecordFile {
    path: PathBuf,
    record: Record,
}

/// The record cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("cannot read {path}", path = .0.display())]
    Read(PathBuf, #[source] io::Error),
    #[error("cannot write {path}", path = .0.display())]
    Write(PathBuf, #[source] io::Error),
    #[error("{path} is not the agent's state", path = .0.display())]
    Parse(PathBuf, #[source] serde_json::Error),
    #[error("{path} has version {version}, and this agent knows version {VERSION}", path = .0.display(), version = .1)]
    Version(PathBuf, u32),
}

impl RecordFile {
    /// Reads the record of this data directory; an agent's first start has an empty one.
    pub(crate) fn open(data: &Path) -> Result<RecordFile, RecordError> {
        let path = data.join("state.json");
        let record = match std::fs::read(&path) {
            Ok(bytes) => parse(&path, &bytes)?,
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => Record::default(),
            Err(cause) => return Err(RecordError::Read(path, cause)),
        };
        Ok(RecordFile { path, record })
    }

    /// What is remembered.
    pub(crate) fn get(&self) -> &Record {
        &self.record
    }

    /// Changes what is remembered; returns when it is on disk.
    pub(crate) fn update(&mut self, change: impl FnOnce(&mut Record)) -> Result<(), RecordError> {
        let mut next = self.record.clone();
        change(&mut next);
        if next == self.record {
            return Ok(());
        }
        let write = |cause: io::Error| RecordError::Write(self.path.clone(), cause);
        let record = match serde_json::to_value(&next).map_err(io::Error::from).map_err(write)? {
            serde_json::Value::Object(record) => record,
            _ => unreachable!("a struct becomes an object"),
        };
        let bytes = serde_json::to_vec_pretty(&Versioned { version: VERSION, record })
            .map_err(io::Error::from)
            .map_err(write)?;
        cluster::files::write_atomic(&self.path, &bytes, 0o600).map_err(|cause| write(io::Error::other(cause)))?;
        self.record = next;
        Ok(())
    }
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Record, RecordError> {
    let bad = |cause| RecordError::Parse(path.to_owned(), cause);
    let Versioned { version, record } = serde_json::from_slice(bytes).map_err(bad)?;
    if version != VERSION {
        return Err(RecordError::Version(path.to_owned(), version));
    }
    serde_json::from_value(serde_json::Value::Object(record)).map_err(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = RecordFile::open(dir.path()).unwrap();
        let heads = Heads::from([("default".to_owned(), Head { revision: 3, commit: "ab".repeat(20) })]);
        let underway = Underway {
            serial: 7,
            to: heads.clone(),
            from: Heads::new(),
            services: vec!["nginx".into()],
            failure: None,
        };
        file.update(|record| {
            record.applied = heads;
            record.underway = Some(underway);
        })
        .unwrap();
        assert_eq!(RecordFile::open(dir.path()).unwrap().get(), file.get());
    }

    #[test]
    fn an_unknown_version_is_refused_with_words() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("state.json"), r#"{"version": 9, "anything": 1}"#).unwrap();
        let words = RecordFile::open(dir.path()).unwrap_err().to_string();
        assert!(words.contains("state.json has version 9"), "{words}");
    }
}
