//! Who reads, and how far each has come.
//!
//! The files are the truth, not memory: whoever changes them (the daemon, `jlogctl` beside it) holds `subscribers.lock` for that moment, and whoever
//! decides about segments reads them under the same lock. A position is the number of the first record that is still needed. A file that is damaged,
//! or that belongs to another journal, counts as a subscriber that needs everything: it may read twice, but misses nothing.

use std::path::PathBuf;
use std::sync::Arc;

use crate::error::{JournalError, Result};
use crate::fs::{Fs, Held};
use crate::layout::{self, SUBSCRIBER_SUFFIX, SUBSCRIBERS_LOCK, SubscriberFile, Uuid};

/// Names as long as a file name can be with every byte escaped.
pub const MAX_NAME_BYTES: usize = 80;

/// A subscriber as its file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscriber {
    /// Its name.
    pub name: String,
    /// The first number that it still needs.
    pub next: u64,
    /// Records that were dropped before it read them, over its life.
    pub dropped_records: u64,
    /// When its position changed, microseconds since 1970.
    pub changed_us: u64,
    /// False: the file was damaged or of another journal, and the position is a guess that loses nothing.
    pub sound: bool,
    pub(crate) counted_to: u64,
}

/// Where subscribers and segments of one journal are changed.
#[derive(Debug, Clone)]
pub(crate) struct Registry {
    pub(crate) fs: Arc<dyn Fs>,
    pub(crate) dir: PathBuf,
    pub(crate) uuid: Uuid,
}

/// The registry while nobody else changes it.
pub(crate) struct Locked<'a> {
    pub(crate) registry: &'a Registry,
    _lock: Box<dyn Held>,
}

impl Registry {
    pub(crate) fn lock(&self) -> Result<Locked<'_>> {
        let path = self.dir.join(SUBSCRIBERS_LOCK);
        let lock = self.fs.lock_file(&path).map_err(JournalError::io("lock", &path))?;
        Ok(Locked { registry: self, _lock: lock })
    }

    /// All subscribers, by name.
    pub(crate) fn load(&self) -> Result<Vec<Subscriber>> {
        let names = self.fs.list(&self.dir).map_err(JournalError::io("list", &self.dir))?;
        let mut found = Vec::new();
        for file in names {
            let Some(name) = file.strip_suffix(SUBSCRIBER_SUFFIX).and_then(unescape) else { continue };
            // Removed meanwhile, when nothing is there.
            if let Some(subscriber) = self.read(&name)? {
                found.push(subscriber);
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    pub(crate) fn read(&self, name: &str) -> Result<Option<Subscriber>> {
        let path = self.path(name);
        let Some(bytes) = layout::read_small(&*self.fs, &path)? else { return Ok(None) };
        let everything =
            Subscriber { name: name.into(), next: 0, dropped_records: 0, changed_us: 0, sound: false, counted_to: 0 };
        match SubscriberFile::parse(&bytes) {
            Ok((uuid, file)) if uuid == self.uuid => Ok(Some(Subscriber {
                name: name.into(),
                next: file.next,
                dropped_records: file.dropped_records,
                changed_us: file.changed_us,
                sound: true,
                counted_to: file.counted_to,
            })),
            Ok(_) | Err(layout::BadHeader::Damaged) => Ok(Some(everything)),
            Err(layout::BadHeader::Unknown(what)) => Err(JournalError::Format { path, what }),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(escape(name) + SUBSCRIBER_SUFFIX)
    }

    pub(crate) fn no_subscriber(&self, name: &str) -> JournalError {
        JournalError::NoSubscriber { path: self.dir.clone(), name: name.into() }
    }
}

impl Locked<'_> {
    /// Adds a subscriber that needs everything from `next` on; one that is there already is an error.
    pub(crate) fn add(&self, name: &str, next: u64) -> Result<()> {
        check_name(name)?;
        if self.registry.read(name)?.is_some() {
            return Err(JournalError::SubscriberExists { path: self.registry.dir.clone(), name: name.into() });
        }
        let file = SubscriberFile { next, dropped_records: 0, counted_to: next, changed_us: 0 };
        self.write(name, file)
    }

    /// Moves a subscriber. Backwards only where asked for, because what it goes back to may be gone.
    pub(crate) fn set(&self, name: &str, next: u64, backwards: bool) -> Result<()> {
        let old = self.registry.read(name)?.ok_or_else(|| self.registry.no_subscriber(name))?;
        if old.sound && next <= old.next && !(backwards && next < old.next) {
            return Ok(());
        }
        let counted_to = old.counted_to.max(next);
        self.write(name, SubscriberFile { next, dropped_records: old.dropped_records, counted_to, changed_us: 0 })
    }

    /// Notes that the records of `from..to` go before the subscriber read them; counts each once, however often it is said.
    pub(crate) fn count_dropped(&self, subscriber: &Subscriber, from: u64, to: u64) -> Result<u64> {
        let from = from.max(subscriber.next).max(subscriber.counted_to);
        if from >= to {
            return Ok(0);
        }
        let file = SubscriberFile {
            next: subscriber.next,
            dropped_records: subscriber.dropped_records + (to - from),
            counted_to: to,
            changed_us: subscriber.changed_us,
        };
        self.write_as(&subscriber.name, file)?;
        Ok(to - from)
    }

    /// Removes a subscriber, durably.
    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        let path = self.registry.path(name);
        match self.registry.fs.remove(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(self.registry.no_subscriber(name));
            }
            Err(error) => return Err(JournalError::io("remove", &path)(error)),
        }
        self.sync_dir()
    }

    pub(crate) fn sync_dir(&self) -> Result<()> {
        self.registry.fs.sync_dir(&self.registry.dir).map_err(JournalError::io("fsync", &self.registry.dir))
    }

    fn write(&self, name: &str, file: SubscriberFile) -> Result<()> {
        self.write_as(name, SubscriberFile { changed_us: self.registry.fs.now_us(), ..file })
    }

    fn write_as(&self, name: &str, file: SubscriberFile) -> Result<()> {
        let Registry { fs, dir, uuid } = self.registry;
        layout::write_small(&**fs, dir, &(escape(name) + SUBSCRIBER_SUFFIX), &file.encode(*uuid))
    }
}

fn check_name(name: &str) -> Result<()> {
    let reason = match name {
        "" => "it is empty",
        _ if name.len() > MAX_NAME_BYTES => "it is longer than 80 bytes",
        _ if name.chars().any(char::is_control) => "it has control characters",
        _ => return Ok(()),
    };
    Err(JournalError::Name { name: name.into(), reason })
}

/// A name as part of a file name: letters, digits, `-` and `_` as they are, every other byte as `%XX`.
fn escape(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn unescape(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digits = [bytes.next()?, bytes.next()?];
        out.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
    }
    let name = String::from_utf8(out).ok()?;
    // Temporary files (`.name.sub.tmp`) and whatever else people put there.
    (escape(&name) == text && !name.is_empty()).then_some(name)
}

/// True for the names of files that a killed process may have left half-written.
pub(crate) fn is_temporary(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(layout::TEMPORARY_SUFFIX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_name_survives_as_a_file_name(name in "\\PC{1,20}") {
            let escaped = escape(&name);
            prop_assert!(!escaped.contains(['/', '.']) && escaped.len() <= 3 * name.len());
            prop_assert_eq!(unescape(&escaped), Some(name));
        }
    }

    #[test]
    fn names_that_cannot_be() {
        for name in ["", "a\nb", &"x".repeat(81)] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        assert_eq!(unescape("%4"), None);
        assert_eq!(unescape("%6D"), None, "only one spelling is a name");
    }
}
