//! What can be chosen about a journal, and what it tells whoever opened it.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::retention::{Dropped, Keep};

/// When an append is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// After the records, and the names of the files they are in, were synced.
    #[default]
    Safe,
    /// After the records were written: a power cut may take what was not synced yet. Readers see only what is.
    Fast,
}

/// What happens to writers when subscribers have let `max_backlog_bytes` pile up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AtLimit {
    /// The oldest segment goes, counted per subscriber and reported.
    #[default]
    DropOldest,
    /// Writers wait this long for a checkpoint, then fail.
    Block(Duration),
}

/// Whoever hears of events.
pub type Listener = Arc<dyn Fn(&Event) + Send + Sync>;

/// How a journal is written.
#[derive(Clone)]
pub struct Options {
    /// The program and node that the lock names.
    pub program: String,
    /// See `program`.
    pub node: String,
    /// How appends are answered.
    pub durability: Durability,
    /// The size at which the next segment begins. Smaller with a small `max_backlog_bytes`, of which it is at most an eighth.
    pub segment_bytes: u64,
    /// What may lie on the disk for subscribers that do not read.
    pub max_backlog_bytes: Option<u64>,
    /// What happens then.
    pub at_limit: AtLimit,
    /// How long records stay that nobody subscribes to.
    pub keep: Keep,
    /// With `Fast`: how long written records wait for a sync, which a thread of the journal does. `None`: nobody syncs but
    /// [`Journal::sync`](crate::Journal::sync), safe appends and a new segment.
    pub sync_delay: Option<Duration>,
    /// Told what deserves a line in a log or a metric. Called in the way of a writer, which holds locks: be quick, and call nothing of
    /// the journal.
    pub on_event: Option<Listener>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            program: "logd".into(),
            node: String::new(),
            durability: Durability::Safe,
            segment_bytes: 16 << 20,
            max_backlog_bytes: None,
            at_limit: AtLimit::default(),
            keep: Keep::default(),
            sync_delay: Some(Duration::from_millis(5)),
            on_event: None,
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("durability", &self.durability)
            .field("segment_bytes", &self.segment_bytes)
            .field("max_backlog_bytes", &self.max_backlog_bytes)
            .field("at_limit", &self.at_limit)
            .field("keep", &self.keep)
            .finish_non_exhaustive()
    }
}

impl Options {
    /// The size at which a segment ends: several fit into the backlog, so that dropping one drops little.
    pub(crate) fn roll_bytes(&self) -> u64 {
        let share = self.max_backlog_bytes.map_or(u64::MAX, |max| (max / 8).max(4096));
        self.segment_bytes.min(share)
    }
}

/// Something that whoever runs the journal should hear of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// At open: what an unclean end left was cut. Nothing acknowledged as safe was in it.
    TornTail {
        /// The segment.
        path: PathBuf,
        /// Where it ends now.
        offset: u64,
        /// How much was cut.
        bytes: u64,
        /// Whole records in that, none of them known to have been on the disk.
        records: u64,
    },
    /// At open: the newest segment had not been made completely, and held nothing.
    UnfinishedSegment {
        /// The segment.
        path: PathBuf,
    },
    /// At open: damage in the newest segment. Readers are told what is missing.
    Rot {
        /// The segment.
        path: PathBuf,
        /// Damaged bytes.
        bytes: u64,
    },
    /// At open: the segments of a journal are gone. It goes on under a new UUID.
    Wiped {
        /// The journal.
        path: PathBuf,
    },
    /// At open: a subscriber's position could not be read; it starts at the beginning.
    DamagedSubscriber {
        /// Its name.
        name: String,
    },
    /// `max_backlog` was reached and records went unread.
    Dropped(Dropped),
    /// `max_backlog` was reached and writers wait.
    Blocked {
        /// Who is furthest behind.
        subscriber: String,
    },
    /// Records could not be synced and were cut again; nobody was told that they are safe.
    NotSynced {
        /// The segment.
        path: PathBuf,
        /// Records.
        records: u64,
        /// The system's answer.
        reason: String,
    },
    /// Checkpointed segments could not be removed; tried again later.
    NotRemoved {
        /// Why.
        reason: String,
    },
}
