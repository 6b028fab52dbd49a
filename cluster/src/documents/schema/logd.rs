//! `logd.toml`: the logs of a node, the managers that collect them, and the sinks that they go to.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::values::FileMode;
use super::{Checker, Context, DocumentKind, Schema, names};
use crate::documents::place::KeyPath;
use crate::units::{HumanDuration, HumanSize};

pub use super::log_input::Input;
use super::log_sink::resolve_sinks;
pub use super::log_sink::{RawSink, Sink, SinkUrl, TooLarge};
pub use super::path_pattern::{PathPattern, PathPiece};

/// The subscriber that a manager reads when a journal has none of the manager's own.
pub const MASTER: &str = "master";

/// What may be written.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawLogd {
    /// The logs by name.
    pub log: Option<BTreeMap<String, RawLog>>,
    /// The managers by the name of their node.
    pub managers: Option<BTreeMap<String, RawManager>>,
    /// Where nodes send logs beside managers, by name.
    pub sinks: Option<BTreeMap<String, RawSink>>,
}

/// What may be written about a log.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawLog {
    /// Where its lines come from.
    pub input: Option<Input>,
    /// A plain local copy.
    pub text: Option<PathPattern>,
    /// Who reads the journal.
    pub subscribers: Option<Vec<String>>,
    /// The most that is kept for a subscriber that does not read.
    pub max_backlog: Option<HumanSize>,
    /// What happens then.
    pub at_limit: Option<AtLimit>,
    /// When a line is taken for written.
    pub mode: Option<JournalMode>,
    /// The longest line.
    pub max_line: Option<HumanSize>,
    /// How long records stay in a journal without subscribers.
    pub keep: Option<HumanDuration>,
}

/// What happens at `max_backlog`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AtLimit {
    /// The oldest records go, counted and said.
    #[default]
    DropOldest,
    /// Writers wait.
    Block,
}

/// When a line is taken for written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JournalMode {
    /// After fsync.
    #[default]
    Safe,
    /// After write.
    Fast,
}

/// What may be written about a manager.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawManager {
    /// The subscriber it reads as.
    pub subscriber: Option<String>,
    /// Where it writes.
    pub logfile: Option<PathPattern>,
    /// Permissions of files.
    pub file_mode: Option<FileMode>,
    /// Permissions of directories.
    pub dir_mode: Option<FileMode>,
    /// Files open at once.
    pub max_open: Option<u32>,
    /// How long a file without lines stays open.
    pub max_idle: Option<HumanDuration>,
    /// How finished files are compressed.
    pub compress: Option<Compression>,
    /// How long finished files are kept.
    pub retention: Option<HumanDuration>,
    /// What is different for single nodes.
    pub node: Option<BTreeMap<String, RawManagerNode>>,
}

/// How finished files are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// With gzip.
    Gzip,
    /// With zstd.
    Zstd,
}

/// What may be written about a manager and a node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawManagerNode {
    /// False: nothing is pulled from this node.
    pub pull: Option<bool>,
    /// The subscriber it reads as on this node.
    pub subscriber: Option<String>,
}

/// The logs and their managers.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Logd {
    /// The logs by name.
    pub logs: BTreeMap<String, Log>,
    /// The managers by the name of their node.
    pub managers: BTreeMap<String, Manager>,
    /// Where nodes send logs beside managers.
    pub sinks: BTreeMap<String, Sink>,
}

/// One log of a node.
#[derive(Debug, Clone, PartialEq)]
pub struct Log {
    /// Where its lines come from; none for lines that come only from `logd send`.
    pub input: Option<Input>,
    /// A plain local copy.
    pub text: Option<PathPattern>,
    /// Who reads the journal.
    pub subscribers: BTreeSet<String>,
    /// The most that is kept for a subscriber that does not read.
    pub max_backlog: HumanSize,
    /// What happens then.
    pub at_limit: AtLimit,
    /// When a line is taken for written.
    pub mode: JournalMode,
    /// The longest line.
    pub max_line: HumanSize,
    /// How long records stay in a journal without subscribers.
    pub keep: HumanDuration,
}

/// A node that collects logs.
#[derive(Debug, Clone, PartialEq)]
pub struct Manager {
    /// The subscriber it reads as.
    pub subscriber: String,
    /// Where it writes.
    pub logfile: PathPattern,
    /// Permissions of files.
    pub file_mode: FileMode,
    /// Permissions of directories.
    pub dir_mode: FileMode,
    /// Files open at once.
    pub max_open: u32,
    /// How long a file without lines stays open.
    pub max_idle: HumanDuration,
    /// How finished files are compressed.
    pub compress: Compression,
    /// How long finished files are kept; none for ever.
    pub retention: Option<HumanDuration>,
    /// What is different for single nodes.
    pub nodes: BTreeMap<String, ManagerNode>,
}

/// What a manager does differently for a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManagerNode {
    /// False: nothing is pulled from this node.
    pub pull: bool,
    /// The subscriber it reads as on this node, when not the manager's usual one.
    pub subscriber: Option<String>,
}

impl Manager {
    /// Every name that it reads journals under but `master`.
    pub(super) fn subscribers(&self) -> impl Iterator<Item = &str> {
        let special = self.nodes.values().filter_map(|node| node.subscriber.as_deref());
        special.chain([self.subscriber.as_str()])
    }

    /// The name it reads a journal of a node under: its own if the journal has it, else `master` if the journal has
    /// that; none when it reads nothing there.
    pub fn reads_as<'a>(&'a self, node: &str, log: &'a Log) -> Option<&'a str> {
        let special = self.nodes.get(node);
        if special.is_some_and(|special| !special.pull) {
            return None;
        }
        let own = special.and_then(|special| special.subscriber.as_deref()).unwrap_or(&self.subscriber);
        [own, MASTER].into_iter().find(|name| log.subscribers.contains(*name))
    }
}

impl Schema for Logd {
    const KIND: DocumentKind = DocumentKind::Logd;
    type Raw = RawLogd;

    fn resolve(raw: RawLogd, context: &Context<'_>, check: &mut Checker<'_>) -> Self {
        let logs = resolve_logs(raw.log.unwrap_or_default(), check);
        let mut managers = BTreeMap::new();
        for (name, raw) in raw.managers.unwrap_or_default() {
            let path = KeyPath::keys(["managers", &name]);
            if !context.knows(&name) {
                check.unknown_node(&path, &name, context);
            }
            let manager = resolve_manager(&name, raw, &path, context, check);
            managers.insert(name, manager);
        }
        check_readers(&logs, &managers, check);
        let sinks = resolve_sinks(raw.sinks.unwrap_or_default(), &logs, &managers, check);
        Self { logs, managers, sinks }
    }
}

fn resolve_logs(raw: BTreeMap<String, RawLog>, check: &mut Checker<'_>) -> BTreeMap<String, Log> {
    let mut inputs: BTreeMap<String, String> = BTreeMap::new();
    let mut logs = BTreeMap::new();
    for (name, raw) in raw {
        let path = KeyPath::keys(["log", &name]);
        if let Some(reason) = names::refuse_item_name(&name) {
            check.refuse(&path, reason);
        }
        if let Some(input) = raw.input.as_ref().filter(|input| input.is_exclusive())
            && let Some(other) = inputs.insert(input.to_string(), name.clone())
        {
            check.refuse(&path.key("input"), format!("the log \"{other}\" has the same input"));
        }
        let subscribers = resolve_subscribers(raw.subscribers, &path.key("subscribers"), check);
        let max_backlog = raw.max_backlog.unwrap_or(HumanSize::from_gib(10));
        if max_backlog < HumanSize::from_mib(1) {
            check.refuse(&path.key("max_backlog"), "max_backlog is at least 1MiB");
        }
        let max_line = raw.max_line.unwrap_or(HumanSize::from_kib(64));
        if max_line < HumanSize::from_bytes(128) || max_line > HumanSize::from_mib(16) {
            check.refuse(&path.key("max_line"), "max_line is between 128B and 16MiB");
        }
        logs.insert(
            name,
            Log {
                input: raw.input,
                text: raw.text,
                subscribers,
                max_backlog,
                at_limit: raw.at_limit.unwrap_or_default(),
                mode: raw.mode.unwrap_or_default(),
                max_line,
                keep: raw.keep.unwrap_or(HumanDuration::from_days(1)),
            },
        );
    }
    logs
}

fn resolve_subscribers(raw: Option<Vec<String>>, path: &KeyPath, check: &mut Checker<'_>) -> BTreeSet<String> {
    let Some(written) = raw else { return [MASTER.to_owned()].into() };
    let mut subscribers = BTreeSet::new();
    for (index, name) in written.into_iter().enumerate() {
        let path = path.index(index);
        if let Some(reason) = names::refuse_item_name(&name) {
            check.refuse(&path, reason);
        } else if subscribers.contains(&name) {
            check.refuse(&path, format!("the subscriber \"{name}\" is named twice"));
        }
        subscribers.insert(name);
    }
    subscribers
}

fn resolve_manager(
    name: &str,
    raw: RawManager,
    path: &KeyPath,
    context: &Context<'_>,
    check: &mut Checker<'_>,
) -> Manager {
    if let Some(reason) = raw.subscriber.as_deref().and_then(names::refuse_item_name) {
        check.refuse(&path.key("subscriber"), reason);
    }
    if raw.max_open == Some(0) {
        check.refuse(&path.key("max_open"), "max_open is at least 1");
    }
    if raw.retention.is_some_and(|retention| retention < HumanDuration::from_secs(3_600)) {
        check.refuse(&path.key("retention"), "retention is at least 1h");
    }
    let mut nodes = BTreeMap::new();
    for (node, raw) in raw.node.unwrap_or_default() {
        let path = path.key("node").key(&node);
        if !context.knows(&node) {
            check.unknown_node(&path, &node, context);
        }
        if let Some(reason) = raw.subscriber.as_deref().and_then(names::refuse_item_name) {
            check.refuse(&path.key("subscriber"), reason);
        }
        if raw.pull == Some(false) && raw.subscriber.is_some() {
            check.refuse(&path.key("subscriber"), "pull = false reads nothing, so a subscriber makes no sense");
        }
        nodes.insert(node, ManagerNode { pull: raw.pull.unwrap_or(true), subscriber: raw.subscriber });
    }
    Manager {
        subscriber: raw.subscriber.unwrap_or_else(|| name.to_owned()),
        logfile: raw.logfile.unwrap_or_else(PathPattern::usual_logfile),
        file_mode: raw.file_mode.unwrap_or(FileMode(0o640)),
        dir_mode: raw.dir_mode.unwrap_or(FileMode(0o755)),
        max_open: raw.max_open.unwrap_or(1_024),
        max_idle: raw.max_idle.unwrap_or(HumanDuration::from_secs(60)),
        compress: raw.compress.unwrap_or_default(),
        retention: raw.retention,
        nodes,
    }
}

/// One journal subscriber has one reader: two managers under one name would each get a part of the records. Looked at
/// for every node that some manager treats specially, and for all the others at once.
fn check_readers(logs: &BTreeMap<String, Log>, managers: &BTreeMap<String, Manager>, check: &mut Checker<'_>) {
    let special: BTreeSet<&str> =
        managers.values().flat_map(|manager| manager.nodes.keys().map(String::as_str)).collect();
    let mut blamed = BTreeSet::new();
    for (log_name, log) in logs {
        for node in special.iter().copied().chain([""]) {
            let mut readers: BTreeMap<&str, &str> = BTreeMap::new();
            for (name, manager) in managers {
                let Some(subscriber) = manager.reads_as(node, log) else { continue };
                let Some(other) = readers.insert(subscriber, name) else { continue };
                if !blamed.insert((name, other)) {
                    continue;
                }
                let message = format!(
                    "the managers {other} and {name} both read the log {log_name} as \"{subscriber}\"; one subscriber has one reader"
                );
                let hint = format!(
                    "name {other} and {name} in log.{log_name}.subscribers, so that each reads under its own name"
                );
                check.refuse_with_hint(&KeyPath::keys(["managers", name]), message, hint);
            }
        }
    }
}
