//! The JSON of ecconfigd's HTTP API, shared by the server and its clients so that the two cannot drift apart.
//!
//! What always holds: field names are the public contract (`docs/openapi.json` is generated from these types); requests refuse unknown
//! fields, because a misspelt `delete` must not become a commit; answers may grow fields, so clients ignore what they do not know.
//! Lists are plain JSON arrays; the revision an answer was read at travels in the header `X-Revision`. Times are RFC 3339 in UTC.
//! Left out on purpose: behaviour. Nothing here does I/O or knows how a value is stored.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

/// The header that names the revision (or the target's serial) an answer was read at.
pub const X_REVISION: &str = "x-revision";
/// The header that carries a request's id, taken from the request or made up, in every answer and log line.
pub const X_REQUEST_ID: &str = "x-request-id";
/// The header under which a client may repeat a write safely.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// Media type of a [`Problem`].
pub const PROBLEM_JSON: &str = "application/problem+json";

// ── revisions ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

/// Where a repository's `main` stands.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Head {
    /// How often `main` has moved.
    pub revision: u64,
    /// The commit id in hex.
    pub commit: String,
}

/// A revision as people name it: `47`, `r47`, or a commit id of at least seven hex digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum RevisionSpec {
    /// The repository's revision number.
    Number(u64),
    /// A commit id or an unambiguous prefix of one, lower case.
    Commit(String),
}

/// The text is neither a revision number nor a commit id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither a revision (47, r47) nor a commit id of 7 to 40 hex digits")]
pub struct BadRevision(pub String);

impl FromStr for RevisionSpec {
    type Err = BadRevision;

    /// All-digit text is a number unless it has the full length of a commit id.
    fn from_str(text: &str) -> Result<Self, BadRevision> {
        let bad = || BadRevision(text.chars().take(64).collect());
        let hex = text.len() <= 40 && !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit());
        if let Some(number) = text.strip_prefix('r') {
            return digits(number).map(Self::Number).ok_or_else(bad);
        }
        if text.len() != 40
            && let Some(number) = digits(text)
        {
            return Ok(Self::Number(number));
        }
        if hex && text.len() >= 7 { Ok(Self::Commit(text.to_ascii_lowercase())) } else { Err(bad()) }
    }
}

/// `u64::from_str` without its leniency towards signs.
fn digits(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

impl fmt::Display for RevisionSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Commit(id) => f.write_str(id),
        }
    }
}

impl From<u64> for RevisionSpec {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl Serialize for RevisionSpec {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Number(number) => serializer.serialize_u64(*number),
            Self::Commit(id) => serializer.serialize_str(id),
        }
    }
}

impl<'de> Deserialize<'de> for RevisionSpec {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Number(u64),
            Text(String),
        }
        match Raw::deserialize(deserializer)? {
            Raw::Number(number) => Ok(Self::Number(number)),
            Raw::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

#[cfg(feature = "schema")]
impl utoipa::PartialSchema for RevisionSpec {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Schema, Type};
        let number = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0));
        let text = ObjectBuilder::new().schema_type(Type::String).pattern(Some("^(r?[0-9]+|[0-9a-fA-F]{7,40})$"));
        let both = OneOfBuilder::new().item(number).item(text);
        Schema::OneOf(
            both.description(Some("A revision: 47, \"r47\", or a commit id of at least seven hex digits.")).build(),
        )
        .into()
    }
}

#[cfg(feature = "schema")]
impl utoipa::ToSchema for RevisionSpec {}

// ── repositories ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────

/// One repository of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct RepoInfo {
    /// Its name; also the subcluster's name, or `global`.
    pub name: String,
    /// How often `main` has moved.
    pub revision: u64,
    /// The commit `main` points to.
    pub commit: String,
    /// True while the repository is frozen by hand (no commits, no new revisions).
    #[serde(default)]
    pub frozen: bool,
}

/// Creates a repository from the packaged templates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CreateRepo {
    /// A single lower-case word.
    pub name: String,
}

/// Copies a repository onto the one that the request names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CopyRepo {
    /// The repository that is copied.
    pub from: String,
    /// True creates a new repository with the whole history; else the newest tree becomes one new revision of a new or existing one.
    #[serde(default)]
    pub with_history: bool,
}

/// Pins the leadership to a node, or unpins it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PinRequest {
    /// The node: one that runs ecconfigd.
    pub node: String,
}

/// One ref of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct RefInfo {
    /// The full name, such as `refs/heads/main`.
    pub name: String,
    /// The object it points to, in hex.
    pub id: String,
}

/// What a tree entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum EntryKind {
    /// A regular file, executable or not (see `mode`).
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// A commit of another repository; the gate refuses new ones.
    Submodule,
}

/// One entry of a directory listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct TreeEntry {
    /// The path from the repository's root.
    pub path: String,
    /// What it is.
    pub kind: EntryKind,
    /// git's mode in octal, such as `100644`.
    pub mode: String,
    /// The object id in hex.
    pub id: String,
    /// The size of a file or link target in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
}

/// One commit of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct LogEntry {
    /// The revision at which `main` moved to this commit; absent for commits that came along with a later one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// The commit id in hex.
    pub commit: String,
    /// The parents' ids.
    pub parents: Vec<String>,
    /// `Name <mail>` of who wrote it.
    pub author: String,
    /// `Name <mail>` of who committed it.
    pub committer: String,
    /// When it was committed.
    pub time: String,
    /// The whole message.
    pub message: String,
}

/// How a path differs between two trees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum ChangeStatus {
    /// Only in the newer tree.
    Added,
    /// In both, with another content or mode.
    Modified,
    /// Only in the older tree.
    Deleted,
}

/// One changed path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct DiffEntry {
    /// The path from the repository's root.
    pub path: String,
    /// What happened to it.
    pub status: ChangeStatus,
    /// Mode and object before, where it existed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old: Option<DiffSide>,
    /// Mode and object after, where it exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new: Option<DiffSide>,
}

/// One side of a changed path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct DiffSide {
    /// git's mode in octal.
    pub mode: String,
    /// The object id in hex.
    pub id: String,
}

/// The difference between two revisions. `Accept: text/x-diff` answers with the patch alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Diff {
    /// The older commit in hex; absent when comparing with nothing (the first commit).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The newer commit in hex.
    pub to: String,
    /// The changed paths in order.
    pub changes: Vec<DiffEntry>,
    /// The unified diff as git prints it.
    pub patch: String,
    /// True when the patch was cut at the server's limit.
    #[serde(default)]
    pub truncated: bool,
}

/// One commit with what it changed against its first parent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct CommitDetail {
    /// The commit.
    #[serde(flatten)]
    pub commit: LogEntry,
    /// What it changed.
    pub diff: Diff,
}

// ── commits ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

/// A commit to one repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CommitRequest {
    /// The revision the changes were made against.
    pub base: RevisionSpec,
    /// The commit message.
    pub message: String,
    /// What to change, applied in order.
    pub changes: Vec<ChangeRequest>,
}

/// One change of a commit: exactly one of `content`, `content_base64`, `delete`, `rename_to`, or a `mode` alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ChangeRequest {
    /// The path from the repository's root. One that is not UTF-8, or begins with a quotation mark, is written as git quotes it:
    /// `"caf\351"`, quotation marks included.
    pub path: String,
    /// The file's new text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// The file's new bytes in standard base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_base64: Option<String>,
    /// git's mode: `100644` (default), `100755` or `120000`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// True deletes the file, or the directory with all it holds.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub delete: bool,
    /// Renames the file or directory; written like `path`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rename_to: Option<String>,
}

impl ChangeRequest {
    /// Writes a file; text stays readable in the request, anything else becomes base64.
    pub fn put(path: impl Into<String>, data: Vec<u8>) -> Self {
        let mut change = Self { path: path.into(), ..Self::default() };
        match String::from_utf8(data) {
            Ok(text) => change.content = Some(text),
            Err(not_text) => change.content_base64 = Some(BASE64.encode(not_text.as_bytes())),
        }
        change
    }

    /// The same change with git's mode (`100755`, `120000`).
    pub fn with_mode(mut self, mode: impl Into<String>) -> Self {
        self.mode = Some(mode.into());
        self
    }

    /// Deletes a file or directory.
    pub fn delete(path: impl Into<String>) -> Self {
        Self { path: path.into(), delete: true, ..Self::default() }
    }

    /// Renames a file or directory.
    pub fn rename(from: impl Into<String>, to: impl Into<String>) -> Self {
        Self { path: from.into(), rename_to: Some(to.into()), ..Self::default() }
    }
}

/// A commit to several repositories at once: all or nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct MultiCommitRequest {
    /// The commit message, the same in every repository.
    pub message: String,
    /// Repository name → base and changes.
    pub repos: BTreeMap<String, RepoChanges>,
}

/// One repository's part of a [`MultiCommitRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct RepoChanges {
    /// The revision the changes were made against.
    pub base: RevisionSpec,
    /// What to change, applied in order.
    pub changes: Vec<ChangeRequest>,
}

/// The answer to a [`CommitRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct CommitResponse {
    /// The revision the repository stands at with this commit.
    pub revision: u64,
    /// The commit id in hex.
    pub commit: String,
    /// True when the changes made no difference: nothing was committed, this is the current head.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unchanged: bool,
}

/// The answer to a [`MultiCommitRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct MultiCommitResponse {
    /// Repository name → where it stands now.
    pub repos: BTreeMap<String, CommitResponse>,
}

// ── watch and target ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

/// `main` of a repository moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct WatchEvent {
    /// The repository.
    pub repo: String,
    /// The revision it moved to.
    pub revision: u64,
    /// The commit it moved to, in hex.
    pub commit: String,
    /// `Name <mail>` of who moved it: for a push, whoever pushed; the commits keep their own authors.
    pub author: String,
    /// The newest commit's message.
    pub message: String,
    /// When it moved.
    pub time: String,
    /// The changed paths.
    pub paths: Vec<String>,
    /// True when there were more changed paths than an event carries.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paths_truncated: bool,
}

/// What a node shall have, numbered by its own serial.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Target {
    /// Goes up by one whenever the target changes.
    pub serial: u64,
    /// Repository name → revision and commit: the node's subcluster and `global`.
    pub repos: BTreeMap<String, Head>,
    /// Those of the repositories that are frozen: nodes keep the revision of them that they have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub frozen: Vec<String>,
}

impl Target {
    /// Keeps what a node has of the frozen repositories. Those that it has nothing of yet come as they are.
    pub fn hold(&mut self, has: &BTreeMap<String, Head>) {
        for name in &self.frozen {
            if let (Some(head), Some(has)) = (self.repos.get_mut(name), has.get(name)) {
                *head = has.clone();
            }
        }
    }
}

// ── effective documents ──────────────────────────────────────────────────────────────────────────────────────────────────────────

/// A document as one node sees it: every layer along its search path merged, the most specific last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct EffectiveDocument {
    /// The node's subcluster.
    pub subcluster: String,
    /// The node.
    pub node: String,
    /// The file, relative to each directory of the search path.
    pub file: String,
    /// The directories that were searched, most specific first.
    pub search_path: Vec<String>,
    /// The merged document.
    #[cfg_attr(feature = "schema", schema(value_type = Object))]
    pub value: serde_json::Value,
    /// Dotted key → where its value comes from.
    pub origins: BTreeMap<String, Origin>,
    /// Repository name → the revision that was read.
    pub repos: BTreeMap<String, Head>,
}

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Origin {
    /// The repository.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub repo: String,
    /// The path in a working copy, such as `global/cluster.toml`.
    pub file: String,
    /// The line, from 1.
    pub line: u32,
}

// ── nodes ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

/// What a node is to the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum NodeRole {
    /// Runs ecconfigd and votes.
    Voter,
    /// Runs ecconfigd with the same repositories and does not vote.
    Learner,
    /// Holds a working copy only.
    Client,
}

impl fmt::Display for NodeRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Voter => "voter",
            Self::Learner => "learner",
            Self::Client => "client",
        })
    }
}

/// One node, as the replicated state and `global/cluster.toml` know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct NodeInfo {
    /// The node's name.
    pub name: String,
    /// The subcluster it belongs to.
    pub subcluster: String,
    /// Absent for a node that is named in `cluster.toml` and has not joined or enrolled yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<NodeRole>,
    /// Where the other nodes reach it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Labels of `cluster.toml`.
    #[serde(default)]
    pub labels: Vec<String>,
    /// Peer groups of `cluster.toml`.
    #[serde(default)]
    pub groups: Vec<String>,
    /// True for a node that votes in duravip and never owns an address.
    #[serde(default)]
    pub witness: bool,
    /// The directories its documents are looked up in, most specific first.
    #[serde(default)]
    pub search_path: Vec<String>,
    /// What the node shall have, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// The newest report of each program on the node.
    #[serde(default)]
    pub reports: Vec<NodeReport>,
}

/// How far a program got with a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum ReportState {
    /// The files are here.
    Fetched,
    /// The checks passed.
    Checked,
    /// The configuration is in use.
    Applied,
    /// In use and verified.
    Healthy,
    /// A check failed or the program could not apply it: the old configuration stays.
    Refused,
    /// Applying or verifying failed and the old configuration was put back.
    Failed,
}

/// What one program on a node did with its target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NodeReport {
    /// `agent`, `duravip`, `logd`, …
    pub program: String,
    /// The serial of the target that this is about.
    pub serial: u64,
    /// Repository name → what the program has or tried.
    #[serde(default)]
    pub repos: BTreeMap<String, Head>,
    /// How far it got.
    pub state: ReportState,
    /// Why not, or what was noticed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// What each service of `agent.toml` said.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<StepReport>,
    /// A local override of the search path, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search_path: Option<Vec<String>>,
    /// The program's version.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// When it was reported; the server fills it in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
}

/// The outcome of one command on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct StepReport {
    /// The service of `agent.toml`.
    pub service: String,
    /// `check`, `reload` or `verify`.
    pub step: String,
    /// Whether it succeeded.
    pub ok: bool,
    /// The exit status, where the command ended by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<i32>,
    /// How long it took.
    #[serde(default)]
    pub duration_ms: u64,
    /// The end of what it printed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub output: String,
}

/// How a member is, as the server that was asked finds it at that moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct MemberState {
    /// The node's name.
    pub node: String,
    /// Whether it leads.
    pub leads: bool,
    /// What is wrong with it: it does not answer, is read-only, is catching up. Absent when nothing is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// The cluster as this server sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ClusterInfo {
    /// The cluster's name.
    pub cluster: String,
    /// The node that answers.
    pub node: String,
    /// The leader, where one is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// The Raft term.
    pub term: u64,
    /// The node that the leadership is pinned to, where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pinned: Option<String>,
    /// The last log index applied here.
    pub applied: u64,
    /// The members of the Raft group.
    pub members: Vec<ClusterMember>,
    /// Why the node that answers writes nothing: its disk is full.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_only: Option<String>,
    /// The server's version.
    pub version: String,
}

/// One member of the Raft group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ClusterMember {
    /// The member's number in the Raft group.
    pub id: u64,
    /// The node's name.
    pub node: String,
    /// Where others reach it.
    pub address: String,
    /// Voter or learner.
    pub role: NodeRole,
    /// The log index it is known to have, where this server is the leader.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matched: Option<u64>,
    /// Why the member has taken itself out: what it holds is damaged or differs from the others. It serves nothing and rebuilds itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out: Option<String>,
}

// ── trust ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

/// Turns a one-time token and a key into a certificate.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct EnrollRequest {
    /// The one-time token.
    pub token: String,
    /// The name the node asks for: a single lower-case word.
    pub node: String,
    /// The certificate signing request.
    pub csr_pem: String,
}

impl fmt::Debug for EnrollRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnrollRequest").field("node", &self.node).finish_non_exhaustive()
    }
}

/// The answer to an [`EnrollRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct EnrollResponse {
    /// The node's certificate chain.
    pub certificate_pem: String,
    /// The cluster's CA.
    pub ca_pem: String,
    /// The subcluster the token named.
    pub subcluster: String,
    /// The cluster's name.
    pub cluster: String,
}

/// A server asks to become a member of the cluster: a one-time token, a key, and where it will be reached.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    /// The one-time token.
    pub token: String,
    /// The name the node asks for: a single lower-case word.
    pub node: String,
    /// The certificate signing request.
    pub csr_pem: String,
    /// Where the other nodes reach it, `HOST:PORT`.
    pub address: String,
    /// Further host names and addresses that its certificate shall cover.
    #[serde(default)]
    pub names: Vec<String>,
    /// True for a node that holds everything and never votes.
    #[serde(default)]
    pub learner: bool,
}

impl fmt::Debug for JoinRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinRequest").field("node", &self.node).field("address", &self.address).finish_non_exhaustive()
    }
}

/// The answer to a [`JoinRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct JoinResponse {
    /// The node's certificate chain.
    pub certificate_pem: String,
    /// The cluster's CA.
    pub ca_pem: String,
    /// The subcluster the token named.
    pub subcluster: String,
    /// The cluster's name.
    pub cluster: String,
    /// The node's number in the Raft group.
    pub raft_id: u64,
}

/// A node asks for a fresh certificate, authenticated by the one it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct RenewRequest {
    /// The certificate signing request.
    pub csr_pem: String,
}

/// The answer to a [`RenewRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct RenewResponse {
    /// The node's certificate chain.
    pub certificate_pem: String,
    /// The cluster's CA.
    pub ca_pem: String,
}

/// Asks for a one-time token for a new node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NodeTokenRequest {
    /// The subcluster the node will belong to.
    #[serde(default = "default_subcluster")]
    pub subcluster: String,
    /// How long the token is good for, such as `1h`; the server has a default and a maximum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<String>,
}

fn default_subcluster() -> String {
    "default".into()
}

impl Default for NodeTokenRequest {
    fn default() -> Self {
        Self { subcluster: default_subcluster(), ttl: None }
    }
}

/// A one-time token, shown once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct NodeTokenResponse {
    /// The token, with the CA's fingerprint inside.
    pub token: String,
    /// The subcluster it is good for.
    pub subcluster: String,
    /// When it ends.
    pub expires: String,
}

impl fmt::Debug for NodeTokenResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeTokenResponse")
            .field("subcluster", &self.subcluster)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

/// Asks for an API token of the caller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// What it is for, in the owner's words.
    pub name: String,
    /// How long it is good for, such as `30d`; the server has a default and a maximum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<String>,
}

/// A new API token, shown once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct TokenCreated {
    /// What it is listed and revoked by.
    pub id: String,
    /// What it is for.
    pub name: String,
    /// The token itself.
    pub token: String,
    /// When it ends.
    pub expires: String,
}

impl fmt::Debug for TokenCreated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenCreated").field("id", &self.id).field("name", &self.name).finish_non_exhaustive()
    }
}

/// An API token without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct TokenInfo {
    /// What it is revoked by.
    pub id: String,
    /// What it is for.
    pub name: String,
    /// Whose it is.
    pub user: String,
    /// When it was made.
    pub created: String,
    /// When it ends.
    pub expires: String,
}

/// Changes the caller's own password.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PasswordRequest {
    /// The new password.
    pub password: String,
}

impl fmt::Debug for PasswordRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PasswordRequest").finish_non_exhaustive()
    }
}

/// What kind of caller the server took somebody for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum CallerKind {
    /// A user, by password or token.
    User,
    /// A node, by its certificate.
    Node,
}

/// Who the server takes the caller for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Whoami {
    /// User or node.
    pub kind: CallerKind,
    /// The user's or node's name.
    pub name: String,
    /// How the caller proved it: `password`, `token` or `certificate`.
    pub by: String,
    /// The node's subcluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subcluster: Option<String>,
    /// The node's role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<NodeRole>,
}

/// Liveness or readiness.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Health {
    /// `ok`, or why not.
    pub status: String,
}

// ── problems ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

/// An error, as RFC 9457 wants it. `code` is stable; `title` and `detail` are for people.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Problem {
    /// `urn:eccluster:problem:<code>`.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// What the status means, the same for every problem of this code.
    #[serde(default)]
    pub title: String,
    /// The HTTP status.
    #[serde(default)]
    pub status: u16,
    /// What was wrong with this request.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// The stable name of the error, such as `conflict` or `refused`.
    #[serde(default)]
    pub code: String,
    /// What may help.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// What the gate found (status 422).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
    /// The paths in conflict (status 409).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<ConflictPath>,
    /// The request's id, for the server's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// A path that somebody else changed since the base.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ConflictPath {
    /// The repository.
    pub repo: String,
    /// The path from the repository's root.
    pub path: String,
    /// How the two changes collide.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// One thing the gate refuses, with the place to look at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Finding {
    /// The repository.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub repo: String,
    /// The path from the repository's root.
    pub file: String,
    /// The line, from 1; 0 when the whole file is meant.
    pub line: u32,
    /// The column, from 1; 0 when unknown.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub column: u32,
    /// What is wrong.
    pub message: String,
    /// What may help.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl fmt::Display for Finding {
    /// `repo:file:line: message`, without the parts that are not known.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.repo.is_empty() {
            write!(f, "{}:", self.repo)?;
        }
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        write!(f, ": {}", self.message)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_revision_is_a_number_or_a_commit() {
        assert_eq!("47".parse(), Ok(RevisionSpec::Number(47)));
        assert_eq!("r47".parse(), Ok(RevisionSpec::Number(47)));
        assert_eq!("12345678".parse(), Ok(RevisionSpec::Number(12_345_678)));
        assert_eq!("ABCDEF0".parse(), Ok(RevisionSpec::Commit("abcdef0".into())));
        let full = "1".repeat(40);
        assert_eq!(full.parse(), Ok(RevisionSpec::Commit(full.clone())));
        for bad in ["", "r", "rr1", "-1", "+1", "abc", "main", "r1x", &"a".repeat(41), "é"] {
            assert_eq!(bad.parse::<RevisionSpec>(), Err(BadRevision(bad.into())), "{bad:?}");
        }
    }

    #[test]
    fn a_base_may_be_number_or_text() {
        let number: CommitRequest = serde_json::from_str(r#"{"base":47,"message":"m","changes":[]}"#).unwrap();
        let text: CommitRequest = serde_json::from_str(r#"{"base":"r47","message":"m","changes":[]}"#).unwrap();
        assert_eq!(number, text);
        assert_eq!(serde_json::to_value(&number).unwrap()["base"], 47);
    }

    #[test]
    fn a_misspelt_change_is_refused() {
        let error = serde_json::from_str::<ChangeRequest>(r#"{"path":"a","deleted":true}"#).unwrap_err().to_string();
        assert!(error.contains("deleted"), "{error}");
    }

    #[test]
    fn bytes_that_are_not_text_travel_as_base64() {
        assert_eq!(ChangeRequest::put("a", b"x".to_vec()).content.as_deref(), Some("x"));
        let change = ChangeRequest::put("a", vec![0xff]);
        assert_eq!((change.content, change.content_base64.as_deref()), (None, Some("/w==")));
    }

    #[test]
    fn secrets_stay_out_of_debug() {
        let created = TokenCreated { id: "1".into(), name: "n".into(), token: "hush".into(), expires: String::new() };
        assert!(!format!("{created:?}").contains("hush"));
    }
}
