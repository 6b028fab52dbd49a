//! What happened here, for `duravip history`: the newest entries in memory, and on disk for the runs to come. Who notes
//! something never waits for the disk, and the log waits for nobody either ([`cluster::telemetry`]): the loop with its
//! heartbeats does. What a crash of the machine loses of it is no harm.
//!
//! ```text
//! history: a JSON object per line, oldest first                          (`history.old`: the same, before these)
//! ```

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cluster::files;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Entries that are kept in memory, and in each of the two files: days of a quiet cluster, and all of a bad hour.
const KEPT: usize = 4096;
/// Entries on their way to the disk. A disk that is this far behind has them in memory only.
const WAITING: usize = 1024;
/// The most that is read of a file: what was written is about a tenth.
const FILE_BYTES: u64 = 8 << 20;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When, in UTC.
    pub time: String,
    /// What kind of thing.
    pub what: String,
    /// The rest, in words.
    pub detail: String,
}

/// The list. Cheap to clone.
#[derive(Debug, Clone)]
pub struct History {
    // Bounded by KEPT; the oldest goes first.
    entries: Arc<Mutex<VecDeque<Entry>>>,
    // Bounded by WAITING.
    disk: SyncSender<Told>,
}

#[derive(Debug)]
enum Told {
    Entry(Entry),
    /// Answered when everything before it is written.
    Done(SyncSender<()>),
}

impl History {
    /// With what earlier runs left in this directory.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let path = dir.join("history");
        let mut entries: VecDeque<Entry> = [old(&path), path.clone()].iter().flat_map(|path| load(path)).collect();
        entries.drain(..entries.len().saturating_sub(KEPT));
        let (disk, receiver) = sync_channel(WAITING);
        let writer = Writer { lines: load(&path).len(), path, begun: false };
        std::thread::Builder::new().name("vip-history".into()).spawn(move || writer.run(&receiver))?;
        Ok(Self { entries: Arc::new(Mutex::new(entries)), disk })
    }

    /// Notes something, here and in the log.
    pub fn note(&self, what: &'static str, detail: impl Into<String>) {
        let detail = detail.into();
        tracing::info!(what, "{detail}");
        let time = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
        let entry = Entry { time, what: what.into(), detail };
        let _ = self.disk.try_send(Told::Entry(entry.clone()));
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() == KEPT {
            entries.pop_front();
        }
        entries.push_back(entry);
    }

    /// Waits until what was noted is written, at most this long: at the end of the process.
    pub fn flush(&self, patience: Duration) {
        let (done, written) = sync_channel(1);
        if self.disk.try_send(Told::Done(done)).is_ok() {
            let _ = written.recv_timeout(patience);
        }
    }

    /// The newest ones, the oldest of them first.
    pub fn newest(&self, count: usize) -> Vec<Entry> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.iter().skip(entries.len().saturating_sub(count)).cloned().collect()
    }
}

fn old(path: &Path) -> PathBuf {
    path.with_extension("old")
}

/// What a file has; a line that a crash cut off is left out.
fn load(path: &Path) -> Vec<Entry> {
    match files::read_limited(path, FILE_BYTES) {
        Ok(bytes) => {
            let bytes = bytes.unwrap_or_default();
            bytes.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
        }
        Err(error) => {
            tracing::warn!(error = %cluster::error::Chain(&error), "what happened in earlier runs cannot be read");
            Vec::new()
        }
    }
}

struct Writer {
    path: PathBuf,
    lines: usize,
    /// Something was written in this run.
    begun: bool,
}

impl Writer {
    /// Until nobody can note anything any more.
    fn run(mut self, receiver: &Receiver<Told>) {
        let mut complained = false;
        while let Ok(first) = receiver.recv() {
            let (mut some, mut waiting) = (Vec::new(), Vec::new());
            for told in std::iter::once(first).chain(receiver.try_iter().take(WAITING)) {
                match told {
                    Told::Entry(entry) => some.push(entry),
                    Told::Done(done) => waiting.push(done),
                }
            }
            if !some.is_empty()
                && let Err(error) = self.write(&some)
                && !std::mem::replace(&mut complained, true)
            {
                tracing::warn!(%error, path = %self.path.display(), "what happens here is not kept on disk");
            }
            for done in waiting {
                let _ = done.try_send(());
            }
        }
    }

    fn write(&mut self, entries: &[Entry]) -> io::Result<()> {
        if self.lines >= KEPT {
            std::fs::rename(&self.path, old(&self.path))?;
            self.lines = 0;
        }
        // A line that the last run did not finish ends here.
        let mut text = if std::mem::replace(&mut self.begun, true) { Vec::new() } else { vec![b'\n'] };
        for entry in entries {
            serde_json::to_writer(&mut text, entry)?;
            text.push(b'\n');
        }
        File::options().create(true).append(true).open(&self.path)?.write_all(&text)?;
        self.lines += entries.len();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::time::Instant;

    /// Notes so many, and waits until the disk has the last.
    fn note(history: &History, dir: &Path, from: usize, to: usize) {
        for number in from..to {
            history.note("test", number.to_string());
            // No faster than the disk: what is too much for the queue is left out on purpose.
            if number % (WAITING / 2) == 0 || number + 1 == to {
                let begun = Instant::now();
                while load(&dir.join("history")).last().map(|entry| entry.detail.clone()) != Some(number.to_string()) {
                    assert!(begun.elapsed() < Duration::from_secs(30), "entry {number} is not on disk");
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
    }

    fn details(history: &History, count: usize) -> Vec<String> {
        history.newest(count).into_iter().map(|entry| entry.detail).collect()
    }

    #[test]
    fn what_happened_is_known_to_the_next_run_and_does_not_grow_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let history = History::open(dir.path()).unwrap();
        note(&history, dir.path(), 0, 3);
        history.note("test", "last");
        history.flush(Duration::from_secs(30));
        assert_eq!(load(&dir.path().join("history")).last().unwrap().detail, "last");
        drop(history);
        // A crash in the middle of a line.
        File::options().append(true).open(dir.path().join("history")).unwrap().write_all(b"{\"time\":\"2").unwrap();
        let history = History::open(dir.path()).unwrap();
        assert_eq!(details(&history, 9), ["0", "1", "2", "last"]);
        note(&history, dir.path(), 3, 3 * KEPT);
        let history = History::open(dir.path()).unwrap();
        assert_eq!(details(&history, 2), [(3 * KEPT - 2).to_string(), (3 * KEPT - 1).to_string()]);
        assert_eq!(history.newest(usize::MAX).len(), KEPT);
        let files = std::fs::read_dir(dir.path()).unwrap().count();
        let bytes: u64 =
            ["history", "history.old"].iter().map(|name| dir.path().join(name).metadata().unwrap().len()).sum();
        assert!(files == 2 && bytes < 2 * (KEPT as u64 + WAITING as u64) * 120, "{files} files, {bytes} bytes");
    }
}
