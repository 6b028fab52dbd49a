//! Aggregated files of many nodes as one stream in the order of time.
//!
//! The time of a line is that of its record, from the `.times` file beside the log; lines of one file stay in their order. Files are opened when the
//! merge reaches their first line, so a year of them costs what is read, not what is there.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use cluster::control::Failure;
use cluster::documents::schema::logd::PathPattern;

use crate::manager::janitor::{Found, find};
use crate::manager::times;

/// Which lines are wanted.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// The log.
    pub log: String,
    /// These nodes; none: all.
    pub nodes: Vec<String>,
    /// These subclusters; none: all.
    pub subclusters: Vec<String>,
    /// From this time on, microseconds since 1970.
    pub since_us: Option<u64>,
    /// Before this time.
    pub until_us: Option<u64>,
}

impl Wanted {
    /// Names that a path does not tell are not filtered by.
    fn takes(&self, found: &Found) -> bool {
        let one_of =
            |wanted: &[String], is: &str| wanted.is_empty() || is.is_empty() || wanted.iter().any(|one| one == is);
        one_of(std::slice::from_ref(&self.log), &found.names.log)
            && one_of(&self.nodes, &found.names.node)
            && one_of(&self.subclusters, &found.names.subcluster)
    }

    fn in_time(&self, time_us: u64) -> bool {
        self.since_us.is_none_or(|since| time_us >= since) && self.until_us.is_none_or(|until| time_us < until)
    }
}

/// A line with its origin.
#[derive(Debug, Clone, Copy)]
pub struct Line<'a> {
    /// When its record was written, microseconds since 1970.
    pub time_us: u64,
    /// The node, where the path tells.
    pub node: &'a str,
    /// Without its end.
    pub text: &'a [u8],
}

/// A line that was kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedLine {
    /// See [`Line`].
    pub time_us: u64,
    /// See [`Line`].
    pub node: String,
    /// See [`Line`].
    pub text: Vec<u8>,
}

/// The files that hold wanted lines.
pub fn files(pattern: &PathPattern, wanted: &Wanted) -> Vec<Found> {
    find(pattern).into_iter().filter(|found| wanted.takes(found)).collect()
}

/// A log that is neither among the `configured` nor has any file is a mistake, not a log without lines.
///
/// # Errors
/// The words for whoever asked for it.
pub fn refuse_unknown(pattern: &PathPattern, log: &str, configured: &[String]) -> Result<(), Failure> {
    let anywhere = Wanted { log: log.to_owned(), ..Wanted::default() };
    if configured.iter().any(|name| name == log) || !files(pattern, &anywhere).is_empty() {
        return Ok(());
    }
    let failure = Failure::new(format!("there is no log {log}")).code("not_found");
    Err(if configured.is_empty() { failure } else { failure.hint(format!("logd.toml has {}", configured.join(", "))) })
}

/// Opens a file, also one that was compressed.
pub fn open(path: &Path) -> io::Result<Box<dyn Read>> {
    let file = File::open(path)?;
    Ok(match path.extension().and_then(|ending| ending.to_str()) {
        Some("gz") => Box::new(flate2::read::GzDecoder::new(file)),
        Some("zst") => Box::new(zstd::stream::read::Decoder::new(file)?),
        _ => Box::new(file),
    })
}

struct Source {
    found: Found,
    /// `None` until it is this file's turn.
    reader: Option<BufReader<Box<dyn Read>>>,
    times: Vec<(u64, u64)>,
    /// Which of the times holds for the current line.
    at: usize,
    offset: u64,
    line: Vec<u8>,
    fallback_us: u64,
}

impl Source {
    fn new(found: Found) -> Self {
        let named = if found.compressed.is_some() { &found.plain } else { &found.path };
        let times = times::read(named);
        let modified = std::fs::metadata(&found.path).and_then(|file| file.modified()).ok();
        let age = modified.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        let fallback_us = u64::try_from(age.as_micros()).unwrap_or(0);
        Self { found, reader: None, times, at: 0, offset: 0, line: Vec::new(), fallback_us }
    }

    /// The time of the current line; before the first, the earliest that it can have.
    fn time_us(&self) -> u64 {
        self.times.get(self.at).map_or(self.fallback_us, |(_, time_us)| *time_us)
    }

    /// Reads the next line; false at the end.
    fn advance(&mut self) -> io::Result<bool> {
        if self.reader.is_none() {
            self.reader = Some(BufReader::with_capacity(64 << 10, open(&self.found.path)?));
        } else {
            self.offset += self.line.len() as u64;
        }
        self.line.clear();
        let Some(reader) = &mut self.reader else { return Ok(false) };
        if reader.read_until(b'\n', &mut self.line)? == 0 {
            return Ok(false);
        }
        while self.times.get(self.at + 1).is_some_and(|(offset, _)| *offset <= self.offset) {
            self.at += 1;
        }
        Ok(true)
    }

    fn text(&self) -> &[u8] {
        self.line.strip_suffix(b"\n").unwrap_or(&self.line)
    }
}

/// Hands out every wanted line in the order of time, until `each` says that it is enough. Files that cannot be read are told to `trouble` and left out.
pub fn merge(
    files: Vec<Found>,
    wanted: &Wanted,
    mut each: impl FnMut(Line<'_>) -> io::Result<bool>,
    mut trouble: impl FnMut(&Path, io::Error),
) -> io::Result<()> {
    let mut sources: Vec<Source> = files.into_iter().map(Source::new).collect();
    let mut turns: BinaryHeap<Reverse<(u64, usize)>> =
        sources.iter().enumerate().map(|(place, source)| Reverse((source.time_us(), place))).collect();
    while let Some(Reverse((_, place))) = turns.pop() {
        let source = &mut sources[place];
        if source.reader.is_some() {
            let line = Line { time_us: source.time_us(), node: &source.found.names.node, text: source.text() };
            if wanted.until_us.is_some_and(|until| line.time_us >= until) {
                // In one file time may go back a little, between files of one merge it does not.
                source.reader = None;
                continue;
            }
            if wanted.in_time(line.time_us) && !each(line)? {
                return Ok(());
            }
        }
        match source.advance() {
            Ok(true) => turns.push(Reverse((source.time_us(), place))),
            Ok(false) => source.reader = None,
            Err(error) => trouble(&source.found.path, error),
        }
    }
    Ok(())
}

/// The newest lines of every origin's newest file, in the order of time, and where each file ends: to begin a `tail` with.
pub fn newest(files: Vec<Found>, lines: usize) -> io::Result<(Vec<OwnedLine>, Follow)> {
    let mut newest: BTreeMap<(String, String, String), Found> = BTreeMap::new();
    let mut follow = Follow::default();
    for found in files {
        if found.compressed.is_some() {
            continue;
        }
        let length = std::fs::metadata(&found.path).map_or(0, |file| file.len());
        follow.ends.insert(found.path.clone(), length);
        let key = (found.names.log.clone(), found.names.node.clone(), found.names.subcluster.clone());
        newest.insert(key, found);
    }
    let mut out = Vec::new();
    for found in newest.into_values() {
        let end = follow.ends.get(&found.path).copied().unwrap_or(0);
        let (begin, bytes) = last_lines(&found.path, end, lines)?;
        let times = times::read(&found.path);
        let mut offset = begin;
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let text = line.strip_suffix(b"\n").unwrap_or(line).to_vec();
            out.push(OwnedLine { time_us: time_at(&times, offset), node: found.names.node.clone(), text });
            offset += line.len() as u64;
        }
    }
    out.sort_by_key(|line| line.time_us);
    let surplus = out.len().saturating_sub(lines);
    out.drain(..surplus);
    Ok((out, follow))
}

fn time_at(times: &[(u64, u64)], offset: u64) -> u64 {
    let behind = times.partition_point(|(begins, _)| *begins <= offset);
    times.get(behind.saturating_sub(1)).map_or(0, |(_, time_us)| *time_us)
}

/// The last lines of a file that ends at `end`, and where they begin.
fn last_lines(path: &Path, end: u64, lines: usize) -> io::Result<(u64, Vec<u8>)> {
    let mut file = File::open(path)?;
    let mut size = 16 << 10;
    loop {
        let begin = end.saturating_sub(size);
        file.seek(SeekFrom::Start(begin))?;
        let mut bytes = Vec::new();
        (&mut file).take(end - begin).read_to_end(&mut bytes)?;
        let ends: Vec<usize> = memchr::memchr_iter(b'\n', &bytes).collect();
        // The break before the first wanted line.
        if let Some(place) = ends.len().checked_sub(lines + 1) {
            let first = ends[place] + 1;
            return Ok((begin + first as u64, bytes.split_off(first)));
        }
        if begin == 0 {
            return Ok((0, bytes));
        }
        size *= 4;
    }
}

/// Where a `tail -f` stands in each file.
#[derive(Debug, Default)]
pub struct Follow {
    ends: BTreeMap<PathBuf, u64>,
}

impl Follow {
    /// Whole lines that came since, in the order of time: time, node, text.
    pub fn fresh(&mut self, files: &[Found]) -> io::Result<Vec<OwnedLine>> {
        const AT_ONCE: u64 = 4 << 20;
        let mut out = Vec::new();
        for found in files.iter().filter(|found| found.compressed.is_none()) {
            let end = self.ends.entry(found.path.clone()).or_insert(0);
            let Ok(length) = std::fs::metadata(&found.path).map(|file| file.len()) else { continue };
            if length < *end {
                // Cut after a crash of the manager: what is written again was shown already.
                continue;
            }
            if length == *end {
                continue;
            }
            let mut file = File::open(&found.path)?;
            file.seek(SeekFrom::Start(*end))?;
            let mut bytes = Vec::new();
            file.take((length - *end).min(AT_ONCE)).read_to_end(&mut bytes)?;
            let Some(whole) = memchr::memrchr(b'\n', &bytes) else { continue };
            let times = times::read(&found.path);
            let mut offset = *end;
            for line in bytes[..=whole].split_inclusive(|byte| *byte == b'\n') {
                let text = line.strip_suffix(b"\n").unwrap_or(line).to_vec();
                out.push(OwnedLine { time_us: time_at(&times, offset), node: found.names.node.clone(), text });
                offset += line.len() as u64;
            }
            *end = offset;
        }
        out.sort_by_key(|line| line.time_us);
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::manager::times::Times;

    fn write(path: &Path, lines: &[(u64, &str)]) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut times = Times::open(path, 0, 0o640).unwrap();
        let mut text = String::new();
        for (second, line) in lines {
            times.note(text.len() as u64, second * 1_000_000);
            text.push_str(line);
            text.push('\n');
        }
        times.flush().unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn many_nodes_in_the_order_of_time() {
        let dir = tempfile::tempdir().unwrap();
        let pattern: PathPattern = format!("{}/%Y/%{{l}}/%{{n}}", dir.path().display()).parse().unwrap();
        write(&dir.path().join("2026/main/a"), &[(1, "a1"), (1, "a1 again"), (5, "a5")]);
        write(&dir.path().join("2026/main/b"), &[(2, "b2"), (6, "b6")]);
        write(&dir.path().join("2025/main/a"), &[(0, "old")]);
        write(&dir.path().join("2026/other/a"), &[(3, "other")]);
        let read = |wanted: &Wanted| {
            let mut out = Vec::new();
            let each = |line: Line<'_>| {
                out.push(String::from_utf8_lossy(line.text).into_owned());
                Ok(true)
            };
            merge(files(&pattern, wanted), wanted, each, |path, error| panic!("{path:?}: {error}")).unwrap();
            out
        };
        let all = Wanted { log: "main".into(), ..Wanted::default() };
        assert_eq!(read(&all), ["old", "a1", "a1 again", "b2", "a5", "b6"]);
        let part = Wanted { since_us: Some(2_000_000), until_us: Some(6_000_000), ..all.clone() };
        assert_eq!(read(&part), ["b2", "a5"]);
        assert_eq!(read(&Wanted { nodes: vec!["b".into()], ..all.clone() }), ["b2", "b6"]);

        let (last, mut follow) = newest(files(&pattern, &all), 2).unwrap();
        assert_eq!(last.iter().map(|line| &line.text[..]).collect::<Vec<_>>(), [b"a5", b"b6"]);
        write(&dir.path().join("2026/main/b"), &[(2, "b2"), (6, "b6"), (7, "b7")]);
        write(&dir.path().join("2026/main/c"), &[(6, "c6")]);
        let fresh = follow.fresh(&files(&pattern, &all)).unwrap();
        assert_eq!(fresh.iter().map(|line| &line.text[..]).collect::<Vec<_>>(), [b"c6", b"b7"]);
    }
}
