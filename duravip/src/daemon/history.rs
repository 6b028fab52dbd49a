//! The last things that happened here, for `duravip history`.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Entries that are kept: days of a quiet cluster, and all of a bad hour.
const KEPT: usize = 4096;

/// Something that happened.
#[derive(Debug, Clone, Serialize)]
pub struct Entry {
    /// When, in UTC.
    pub time: String,
    /// What kind of thing.
    pub what: &'static str,
    /// The rest, in words.
    pub detail: String,
}

/// The list. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct History {
    // Bounded by KEPT; the oldest goes first.
    entries: Arc<Mutex<VecDeque<Entry>>>,
}

impl History {
    /// Notes something, here and in the log.
    pub fn note(&self, what: &'static str, detail: impl Into<String>) {
        let detail = detail.into();
        tracing::info!(what, "{detail}");
        let time = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() == KEPT {
            entries.pop_front();
        }
        entries.push_back(Entry { time, what, detail });
    }

    /// The newest ones, the oldest of them first.
    pub fn newest(&self, count: usize) -> Vec<Entry> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.iter().skip(entries.len().saturating_sub(count)).cloned().collect()
    }
}
