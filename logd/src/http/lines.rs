//! A page of lines: `cat` and `grep`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::{Path, RawQuery, State};
use axum::response::{IntoResponse as _, Response};
use cluster::control::Failure;
use cluster::documents::schema::logd::PathPattern;
use http::StatusCode;
use serde::Serialize;

use super::{App, Refusal};
use crate::commands::read::parse_time;
use crate::path::rfc3339_local;
use crate::read::{Line, Wanted, files, merge, refuse_unknown};

/// Lines of a page, when nothing is said and at most.
const LINES: (usize, usize) = (1_000, 10_000);
/// Bytes of a page's lines; one more line than fits.
const PAGE_BYTES: usize = 4 << 20;
/// How long files are read for a page.
const READING: Duration = Duration::from_secs(10);
/// The longest expression, and what it may grow to.
const REGEX_BYTES: usize = 1 << 20;

/// What is asked for.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) wanted: Wanted,
    limit: usize,
    regex: Option<(regex::bytes::Regex, bool)>,
}

/// A line.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    time: String,
    node: String,
    line: String,
}

impl Row {
    pub(super) fn of(time_us: u64, node: &str, text: &[u8]) -> Self {
        Self { time: rfc3339_local(time_us), node: node.into(), line: String::from_utf8_lossy(text).into_owned() }
    }
}

/// A page.
#[derive(Debug, Serialize)]
pub(super) struct Page {
    lines: Vec<Row>,
    /// There is more: ask again with `since` this time, which repeats the lines of that instant.
    more: Option<String>,
    /// Files that could not be read.
    unread: Vec<String>,
}

impl Asked {
    /// As [`Self::parse`] does it, on a thread that has the time to make an automaton of an expression.
    pub(super) async fn of(log: String, query: Option<String>) -> Result<Self, Refusal> {
        let asked = tokio::task::spawn_blocking(move || Self::parse(log, query.as_deref())).await;
        asked.unwrap_or_else(|_| Err(unable("an error inside logd")))
    }

    /// From the path and the query: `node`, `subcluster` (both repeatable), `since`, `until`, `limit`, `grep`, `ignore_case`, `invert`.
    fn parse(log: String, query: Option<&str>) -> Result<Self, Refusal> {
        let mut wanted = Wanted { log, ..Wanted::default() };
        let mut limit = LINES.0;
        let mut of_regex = BTreeMap::new();
        for part in query.unwrap_or_default().split('&').filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            let value = decoded(value).ok_or_else(|| Refusal::wrong(format!("{key} is not URL-encoded text")))?;
            let time = |value: &str| parse_time(value).map_err(Refusal::wrong);
            match key {
                "node" => wanted.nodes.push(value),
                "subcluster" => wanted.subclusters.push(value),
                "since" => wanted.since_us = Some(time(&value)?),
                "until" => wanted.until_us = Some(time(&value)?),
                "limit" => {
                    let asked = value.parse().ok().filter(|limit| (1..=LINES.1).contains(limit));
                    limit = asked.ok_or_else(|| Refusal::wrong(format!("limit is between 1 and {}", LINES.1)))?;
                }
                "grep" | "ignore_case" | "invert" => drop(of_regex.insert(key, value)),
                _ => return Err(Refusal::wrong(format!("there is no parameter {key}"))),
            }
        }
        let is = |key: &str| of_regex.get(key).is_some_and(|value| value != "false");
        let regex = of_regex.get("grep").map(|text| {
            let mut builder = regex::bytes::RegexBuilder::new(text);
            builder.case_insensitive(is("ignore_case")).size_limit(REGEX_BYTES).build()
        });
        let regex = regex.transpose().map_err(|error| Refusal::wrong(error.to_string()))?;
        Ok(Self { wanted, limit, regex: regex.map(|regex| (regex, is("invert"))) })
    }

    pub(super) fn takes(&self, text: &[u8]) -> bool {
        self.regex.as_ref().is_none_or(|(regex, invert)| regex.is_match(text) != *invert)
    }
}

/// Percent and plus signs undone; `None` for what is no text then.
fn decoded(value: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

pub(super) async fn lines(
    State(app): State<App>,
    Path(log): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, Refusal> {
    let asked = Asked::of(log, query).await?;
    let pattern = pattern(&app)?;
    let configured = app.console.log_names();
    let _place = app.scans.acquire().await.map_err(|_| unable("the daemon stops"))?;
    let page = tokio::task::spawn_blocking(move || {
        known(&pattern, &asked, &configured)?;
        let page = page(&pattern, &asked).map_err(|error| unable(&error.to_string()))?;
        // Here, too: it has megabytes.
        Ok(Json(page).into_response())
    });
    page.await.unwrap_or_else(|_| Err(unable("an error inside logd")))
}

fn unable(what: &str) -> Refusal {
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, Failure::new(what))
}

/// Where this node's manager writes.
pub(super) fn pattern(app: &App) -> Result<PathPattern, Refusal> {
    app.console.pattern().ok_or_else(|| Refusal::not_found("aggregated files are on managers; this node is none"))
}

/// Refuses a log that is not there.
pub(super) fn known(pattern: &PathPattern, asked: &Asked, configured: &[String]) -> Result<(), Refusal> {
    let known = refuse_unknown(pattern, &asked.wanted.log, configured);
    known.map_err(|failure| Refusal::new(StatusCode::NOT_FOUND, failure))
}

fn page(pattern: &PathPattern, asked: &Asked) -> std::io::Result<Page> {
    let (begun, mut bytes) = (Instant::now(), 0);
    let mut page = Page { lines: Vec::new(), more: None, unread: Vec::new() };
    let (lines, more, unread) = (&mut page.lines, &mut page.more, &mut page.unread);
    let each = |line: Line<'_>| {
        if lines.len() >= asked.limit || bytes >= PAGE_BYTES || begun.elapsed() >= READING {
            *more = Some(rfc3339_local(line.time_us));
            return Ok(false);
        }
        if asked.takes(line.text) {
            bytes += line.text.len();
            lines.push(Row::of(line.time_us, line.node, line.text));
        }
        Ok(true)
    };
    merge(files(pattern, &asked.wanted), &asked.wanted, each, |path, error| {
        tracing::error!(path = %path.display(), %error, "left out");
        unread.push(path.display().to_string());
    })?;
    Ok(page)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn queries_are_understood_or_refused() {
        let of = |query: &str| Asked::parse("mainlog".into(), Some(query));
        let asked =
            of("node=n1&node=n2&since=2026-01-01T00:00:00Z&limit=5&grep=a%2Bb+c&ignore_case&invert=false").unwrap();
        assert_eq!((asked.wanted.nodes.len(), asked.limit), (2, 5));
        assert!(asked.takes(b"xAAB C") && !asked.takes(b"ab"));
        assert!(of("").unwrap().takes(b"anything"));
        for wrong in ["limit=0", "limit=10001", "since=yesterday", "grep=(", "grep=%zz", "grep=%f", "nodes=n1"] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }
}
