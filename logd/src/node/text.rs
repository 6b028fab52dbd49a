//! The plain local copy of a log (`text`): for people and for tools that read files.
//!
//! It is a copy: the journal is what counts. It is written after the journal, never synced, and what goes wrong with it is said and counted but
//! holds nothing up. When somebody renames or removes the file (logrotate), the next second's lines go to a new one.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cluster::documents::schema::logd::PathPattern;

use crate::path::{Names, render};

/// How often to look whether the file is still the one of that name, and whether its name is still right.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The copy that is being written.
#[derive(Debug)]
pub struct TextCopy {
    pattern: PathPattern,
    names: Names,
    open: Option<(PathBuf, File)>,
    looked: Instant,
    buffer: Vec<u8>,
    failing: bool,
}

impl TextCopy {
    /// A copy under a name made of a pattern.
    pub fn new(pattern: PathPattern, names: Names) -> Self {
        Self { pattern, names, open: None, looked: Instant::now(), buffer: Vec::new(), failing: false }
    }

    /// Adds lines, written with the next [`TextCopy::flush`].
    pub fn add<'a>(&mut self, lines: impl Iterator<Item = &'a [u8]>) {
        for line in lines {
            self.buffer.extend_from_slice(line);
            self.buffer.push(b'\n');
        }
    }

    /// Writes what was added. A copy that cannot be written is given up until the next lines, and said once.
    pub fn flush(&mut self, now_us: u64) {
        if self.buffer.is_empty() {
            return;
        }
        let result = self.write(now_us);
        self.buffer.clear();
        self.buffer.shrink_to(1 << 20);
        match result {
            Ok(()) => self.failing = false,
            Err((path, error)) => {
                self.open = None;
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::error!(path = %path.display(), %error, log = self.names.log, "lines are missing in the local copy");
                }
            }
        }
    }

    fn write(&mut self, now_us: u64) -> Result<(), (PathBuf, std::io::Error)> {
        if self.open.is_none() || self.looked.elapsed() >= LOOK_EVERY {
            self.looked = Instant::now();
            let path = render(&self.pattern, &self.names, now_us);
            let same = self.open.as_ref().is_some_and(|(open, file)| *open == path && is_same(&path, file));
            if !same {
                let file = open(&path).map_err(|error| (path.clone(), error))?;
                self.open = Some((path, file));
            }
        }
        let Some((path, file)) = &mut self.open else { return Ok(()) };
        file.write_all(&self.buffer).map_err(|error| (path.clone(), error))
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

fn is_same(path: &Path, file: &File) -> bool {
    match (std::fs::metadata(path), file.metadata()) {
        (Ok(named), Ok(open)) => named.dev() == open.dev() && named.ino() == open.ino(),
        _ => false,
    }
}
