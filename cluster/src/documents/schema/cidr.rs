//! `cidr.toml`: series of counts per address, who keeps them, and for how long.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::values::{Pattern, ValueError, string_value, wrong};
use super::{Checker, Context, DocumentKind, Schema, names};
use crate::documents::place::{KeyPath, shortened};
use crate::units::HumanDuration;

/// What may be written.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawCidr {
    /// Who keeps and answers.
    pub servers: Option<RawServers>,
    /// The writing of windows.
    pub as_logger: Option<RawAsLogger>,
    /// The care of what was written.
    pub maintain: Option<RawMaintain>,
    /// Series made from logs.
    pub series: Option<BTreeMap<String, RawSeries>>,
}

/// What may be written about servers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawServers {
    /// The nodes that keep and answer.
    pub nodes: Option<Vec<String>>,
}

/// What may be written about the writing of windows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawAsLogger {
    /// Length of a window.
    pub log_interval: Option<HumanDuration>,
    /// Where windows are written.
    pub base_dir: Option<PathBuf>,
    /// Whether a series is written when no rule names it.
    pub series_include_default: Option<IncludeDefault>,
    /// Series that are written.
    pub series_include: Option<Vec<Pattern>>,
    /// Series that are not written.
    pub series_exclude: Option<Vec<Pattern>>,
}

/// Whether a series is written when no rule names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IncludeDefault {
    /// Yes.
    All,
    /// No.
    #[default]
    None,
}

/// What may be written about the care of windows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawMaintain {
    /// Days that are kept.
    pub retention: Option<HumanDuration>,
    /// Age at which windows become days.
    pub condense: Option<HumanDuration>,
    /// What is different for single series.
    pub series: Option<BTreeMap<String, RawMaintainSeries>>,
}

/// What may be written about the care of one series.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawMaintainSeries {
    /// Days that are kept.
    pub retention: Option<HumanDuration>,
    /// Age at which windows become days.
    pub condense: Option<HumanDuration>,
}

/// What may be written about a series.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawSeries {
    /// The log whose lines are counted.
    pub log: Option<String>,
    /// What a line looks like, with the group `ip`.
    pub pattern: Option<Pattern>,
    /// The windows in memory.
    pub monitor: Option<Monitor>,
    /// Keep the windows in memory over restarts.
    pub persist: Option<bool>,
}

/// Series and their care.
#[derive(Debug, Clone, PartialEq)]
pub struct Cidr {
    /// The nodes that keep and answer; empty: each node for itself.
    pub servers: Vec<String>,
    /// The writing of windows.
    pub as_logger: AsLogger,
    /// The care of windows, where a series has none of its own.
    pub maintain: Maintain,
    /// The care of single series.
    pub maintain_series: BTreeMap<String, Maintain>,
    /// Series with settings.
    pub series: BTreeMap<String, Series>,
}

/// The writing of windows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AsLogger {
    /// Length of a window.
    pub log_interval: HumanDuration,
    /// Where windows are written; none: below the daemon's data directory.
    pub base_dir: Option<PathBuf>,
    /// Whether a series is written when no rule names it.
    pub include_default: IncludeDefault,
    /// Series that are written.
    pub include: Vec<Pattern>,
    /// Series that are not written.
    pub exclude: Vec<Pattern>,
}

impl AsLogger {
    /// True when the windows of a series are written. Exclusion beats inclusion.
    pub fn includes(&self, series: &str) -> bool {
        let matches = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.regex().is_match(series));
        !matches(&self.exclude) && (self.include_default == IncludeDefault::All || matches(&self.include))
    }
}

/// How long windows are kept, and when they become days.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Maintain {
    /// Days that are kept; none: for ever.
    pub retention: Option<HumanDuration>,
    /// Age at which windows become days; none: never.
    pub condense: Option<HumanDuration>,
}

/// One series.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// The log whose lines are counted, and what they look like.
    pub source: Option<LogSource>,
    /// The windows in memory.
    pub monitor: Monitor,
    /// Keep the windows in memory over restarts.
    pub persist: bool,
}

/// A series made from a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSource {
    /// The log.
    pub log: String,
    /// What a line looks like; the group `ip` is counted.
    pub pattern: Pattern,
}

impl Cidr {
    /// The care of a series.
    pub fn maintain_of(&self, series: &str) -> Maintain {
        self.maintain_series.get(series).copied().unwrap_or(self.maintain)
    }
}

/// Windows in memory: `300,6` keeps six of 300 seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Monitor {
    /// The length of a window in seconds.
    pub window_s: u32,
    /// How many windows.
    pub windows: u32,
}

impl Default for Monitor {
    fn default() -> Self {
        Self { window_s: 300, windows: 6 }
    }
}

/// No more windows than this: each holds every address that was seen in it.
const MAX_WINDOWS: u32 = 1_440;

impl FromStr for Monitor {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let expected = || wrong(format!("\"{}\" is not SECONDS,WINDOWS such as \"300,6\"", shortened(text)));
        let (seconds, windows) = text.split_once(',').ok_or_else(expected)?;
        let number = |text: &str| text.trim().parse::<u32>().map_err(|_| expected());
        let (window_s, windows) = (number(seconds)?, number(windows)?);
        if !(1..=86_400).contains(&window_s) || !(1..=MAX_WINDOWS).contains(&windows) {
            return Err(wrong(format!("a window has 1 to 86400 seconds, and there are 1 to {MAX_WINDOWS} of them")));
        }
        Ok(Self { window_s, windows })
    }
}

impl fmt::Display for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{}", self.window_s, self.windows)
    }
}

string_value!(Monitor, "SECONDS,WINDOWS such as \"300,6\"");

impl Schema for Cidr {
    const KIND: DocumentKind = DocumentKind::Cidr;
    type Raw = RawCidr;

    fn resolve(raw: RawCidr, context: &Context<'_>, check: &mut Checker<'_>) -> Self {
        let servers = raw.servers.unwrap_or_default().nodes.unwrap_or_default();
        check_servers(&servers, context, check);
        let raw_maintain = raw.maintain.unwrap_or_default();
        let path = KeyPath::keys(["maintain"]);
        let maintain = resolve_maintain(raw_maintain.retention, raw_maintain.condense, &path, check);
        let mut maintain_series = BTreeMap::new();
        for (name, raw) in raw_maintain.series.unwrap_or_default() {
            let path = path.key("series").key(&name);
            check_series_name(&name, &path, check);
            let retention = raw.retention.or(maintain.retention);
            let condense = raw.condense.or(maintain.condense);
            maintain_series.insert(name, resolve_maintain(retention, condense, &path, check));
        }
        let mut series = BTreeMap::new();
        for (name, raw) in raw.series.unwrap_or_default() {
            let path = KeyPath::keys(["series", &name]);
            check_series_name(&name, &path, check);
            let one = resolve_series(raw, &path, check);
            series.insert(name, one);
        }
        Self {
            servers,
            as_logger: resolve_logger(raw.as_logger.unwrap_or_default(), check),
            maintain,
            maintain_series,
            series,
        }
    }
}

fn check_servers(servers: &[String], context: &Context<'_>, check: &mut Checker<'_>) {
    let path = KeyPath::keys(["servers", "nodes"]);
    for (index, node) in servers.iter().enumerate() {
        if !context.knows(node) {
            check.unknown_node(&path.index(index), node, context);
        } else if servers[..index].contains(node) {
            check.refuse(&path.index(index), format!("the node {node} is named twice"));
        }
    }
}

/// Words of the query language cannot name a series, nor can what does not fit into a file name.
fn check_series_name(name: &str, path: &KeyPath, check: &mut Checker<'_>) {
    if let Some(reason) = names::refuse_item_name(name) {
        check.refuse(path, reason);
    } else if name.eq_ignore_ascii_case("union") {
        check.refuse(path, format!("\"{name}\" is a word of the query language"));
    }
}

fn resolve_maintain(
    retention: Option<HumanDuration>,
    condense: Option<HumanDuration>,
    path: &KeyPath,
    check: &mut Checker<'_>,
) -> Maintain {
    let day = HumanDuration::from_days(1);
    for (key, written) in [("retention", retention), ("condense", condense)] {
        if let Some(written) = written
            && (written < day || written.as_millis() % day.as_millis() != 0)
        {
            check.refuse_with_hint(
                &path.key(key),
                format!("{key} counts whole days, not \"{written}\""),
                "such as \"30d\"",
            );
        }
    }
    if let (Some(retention), Some(condense)) = (retention, condense)
        && condense > retention
    {
        let message = format!("condense = \"{condense}\" never happens: windows go after retention = \"{retention}\"");
        check.refuse(&path.key("condense"), message);
    }
    Maintain { retention, condense }
}

fn resolve_logger(raw: RawAsLogger, check: &mut Checker<'_>) -> AsLogger {
    let path = KeyPath::keys(["as_logger"]);
    let log_interval = raw.log_interval.unwrap_or(HumanDuration::from_secs(60));
    let (ms, day_ms) = (log_interval.as_millis(), HumanDuration::from_days(1).as_millis());
    if ms == 0 || ms % 1_000 != 0 || ms > day_ms {
        check.refuse(
            &path.key("log_interval"),
            "log_interval is whole seconds, up to a day: files are named by the second",
        );
    }
    if raw.base_dir.as_ref().is_some_and(|dir| !dir.is_absolute()) {
        check.refuse(&path.key("base_dir"), "base_dir is an absolute path");
    }
    AsLogger {
        log_interval,
        base_dir: raw.base_dir,
        include_default: raw.series_include_default.unwrap_or_default(),
        include: raw.series_include.unwrap_or_default(),
        exclude: raw.series_exclude.unwrap_or_default(),
    }
}

fn resolve_series(raw: RawSeries, path: &KeyPath, check: &mut Checker<'_>) -> Series {
    if let Some(reason) = raw.log.as_deref().and_then(names::refuse_item_name) {
        check.refuse(&path.key("log"), reason);
    }
    if let Some(pattern) = &raw.pattern
        && !pattern.regex().capture_names().flatten().any(|name| name == "ip")
    {
        let hint = r"mark the address: (?P<ip>\S+)";
        check.refuse_with_hint(&path.key("pattern"), "the pattern has no group named \"ip\"", hint);
    }
    let source = match (raw.log, raw.pattern) {
        (Some(log), Some(pattern)) => Some(LogSource { log, pattern }),
        (Some(_), None) => {
            check.missing(path, "pattern");
            None
        }
        (None, Some(_)) => {
            check.missing(path, "log");
            None
        }
        (None, None) => None,
    };
    Series { source, monitor: raw.monitor.unwrap_or_default(), persist: raw.persist.unwrap_or(false) }
}
