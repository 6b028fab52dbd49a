//! What `eccfg doctor` gets: how every member is, and what an examination of its objects found.

use serde::{Deserialize, Serialize};

// ── doctor ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Worth a look.
    Warn,
    /// Something does not work, or soon will not.
    Bad,
}

/// A line of an examination of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum DoctorLine {
    /// How far a server is with reading what it holds.
    Progress {
        /// The server.
        node: String,
        /// The repository it is at.
        repo: String,
        /// Objects so far.
        objects: u64,
        /// Their contents together.
        bytes: u64,
    },
    /// What was found.
    Finding {
        /// The node it is about.
        node: String,
        /// What was looked at.
        check: String,
        /// How much it matters.
        level: Level,
        /// In words.
        words: String,
    },
    /// Everything was looked at.
    End {
        /// Findings that are bad.
        bad: u32,
        /// Findings that are worth a look.
        warned: u32,
    },
}

/// How a server is, in its own words; between servers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkup {
    /// Its version.
    pub version: String,
    /// Its wall clock.
    pub wall_ms: u64,
    /// Who leads, as far as it knows.
    pub leader: Option<String>,
    /// The last log index it has applied.
    pub applied: u64,
    /// Why it is not ready.
    pub not_ready: Option<String>,
    /// Why it has taken itself out.
    pub out: Option<String>,
    /// Why it cannot say which replica is right.
    pub disputed: Option<String>,
    /// The room on its disk, if it is known.
    pub free_bytes: Option<u64>,
    /// The room below which it is read-only.
    pub reserve_bytes: u64,
}

/// What a server tells while it examines itself; between servers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum CheckupEvent {
    /// How it is.
    Checkup(Checkup),
    /// How far it is.
    Progress {
        /// The repository it is at.
        repo: String,
        /// Objects so far.
        objects: u64,
        /// Their contents together.
        bytes: u64,
    },
    /// All objects were read.
    Objects {
        /// So many.
        objects: u64,
        /// Their contents together.
        bytes: u64,
        /// What is wrong with some, the first few.
        problems: Vec<String>,
    },
    /// It could not be asked, or could not read something.
    Failed {
        /// Why.
        why: String,
    },
}
