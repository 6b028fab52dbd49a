//! What nodes and managers say to each other.
//!
//! ```text
//! frame   u32 length of the rest · u32 request · postcard of a Request or an Answer      little-endian
//! block   records after each other: u32 length · u64 time in microseconds · payload     zstd where that is smaller
//! ```
//! Answers carry the request's number and come in any order: a pull waits for records while others are served. The first request is `Hello`.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// The version of all this.
pub const VERSION: u16 = 2;
/// What a pull gets at most, before compression, unless one record is longer.
pub const BLOCK_BYTES: u32 = 512 << 10;
/// The largest frame: a block with one record of the largest size.
const MAX_FRAME_BYTES: usize = 48 << 20;

/// A place in a journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The journal.
    pub uuid: [u8; 16],
    /// The first record that is still wanted.
    pub next: u64,
    /// When the segment of the record before it was made; 0: not known. By it a journal is told from an older copy of itself that was written on.
    pub made_us: u64,
}

/// From the manager, or from a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Who connects.
    Hello {
        /// [`VERSION`].
        version: u16,
        /// The node's name.
        node: String,
    },
    /// The node's logs, once there is a change since `known`, or the time is up.
    List {
        /// The count of the list that is known; 0: none.
        known: u64,
        /// How long to wait.
        wait_ms: u32,
    },
    /// Opens a stream: this connection becomes the reader of that subscriber.
    Open {
        /// A number for the stream, chosen by the manager.
        stream: u32,
        /// The log.
        log: String,
        /// The subscriber.
        subscriber: String,
        /// Where the manager stands, if it was there before.
        from: Option<Place>,
    },
    /// The next records.
    Pull {
        /// The stream.
        stream: u32,
        /// See [`BLOCK_BYTES`].
        max_bytes: u32,
        /// How long to wait for some.
        wait_ms: u32,
    },
    /// Everything below is safe.
    Checkpoint {
        /// The stream.
        stream: u32,
        /// The first record that is still needed.
        next: u64,
    },
    /// Gives a stream back.
    Close {
        /// The stream.
        stream: u32,
    },
    /// What every journal holds and who is behind.
    Status,
    /// Adds a subscriber to logs (to all when none are named); those that have it are left alone.
    Subscribe {
        /// Its name.
        subscriber: String,
        /// The logs.
        logs: Vec<String>,
        /// It gets what comes from now on, instead of everything that is there.
        at_end: bool,
    },
    /// Removes a subscriber from logs (from all when none are named).
    Unsubscribe {
        /// Its name.
        subscriber: String,
        /// The logs.
        logs: Vec<String>,
    },
    /// Looks at a file of `check-mount` on a mount that both nodes have.
    Glimpse {
        /// Its path.
        path: String,
    },
}

/// From the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// To `Hello`.
    Welcome {
        /// [`VERSION`].
        version: u16,
        /// The node that answers.
        node: String,
        /// Its subcluster.
        subcluster: String,
    },
    /// To `List`.
    Logs {
        /// Counts changes.
        known: u64,
        /// The logs and their subscribers.
        logs: Vec<(String, Vec<String>)>,
    },
    /// To `Open`.
    Opened {
        /// Where reading begins.
        place: Place,
        /// Why that is not where the manager stood.
        moved: Option<String>,
    },
    /// To `Pull`; without records when there were none in time.
    Records(Block),
    /// To what only has to be done.
    Done {
        /// How many logs it changed.
        changed: u32,
    },
    /// To `Status`.
    Status(Vec<LogStatus>),
    /// To `Glimpse`.
    Glimpsed {
        /// Somebody holds its lock.
        held: bool,
        /// Its first bytes.
        content: Vec<u8>,
    },
    /// Anything that was refused.
    Refused {
        /// In words.
        message: String,
    },
}

/// Records of a pull.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// How many.
    pub records: u32,
    /// The number to go on from.
    pub next: u64,
    /// See [`Place::made_us`].
    pub made_us: u64,
    /// There is more already.
    pub more: bool,
    /// What is missing among them, in words.
    pub gaps: Vec<Gap>,
    /// Before compression.
    pub raw_bytes: u32,
    /// zstd, or as it is.
    pub compressed: bool,
    /// The records.
    pub data: Bytes,
}

/// Records that are missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// How many numbers.
    pub records: u64,
    /// Where and why.
    pub words: String,
}

/// A journal, for `logd logs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogStatus {
    /// Its name.
    pub log: String,
    /// In the configuration; else only what is left of it is served.
    pub configured: bool,
    /// Bytes on disk.
    pub bytes: u64,
    /// The first record that is there, and the number after the last.
    pub first: u64,
    /// See `first`.
    pub next: u64,
    /// Lines that were longer than the limit, since the daemon started.
    pub cut_lines: u64,
    /// The disk is full.
    pub full: bool,
    /// Writers wait at `max_backlog`.
    pub blocked: bool,
    /// What is kept at most for a subscriber that does not read, in bytes; 0 when the log is no longer configured.
    pub max_backlog: u64,
    /// Who reads.
    pub subscribers: Vec<SubscriberStatus>,
}

/// A subscriber of a journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubscriberStatus {
    /// Its name.
    pub name: String,
    /// The first record that it still needs.
    pub next: u64,
    /// How far it is behind.
    pub records: u64,
    /// The same on disk.
    pub bytes: u64,
    /// The same as time: the age of the oldest record that it has not read.
    pub seconds: u64,
    /// Records that it will never read, over its life.
    pub dropped: u64,
    /// The node that reads as it now.
    pub reader: Option<String>,
}

/// A frame that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The connection.
    #[error("the connection broke")]
    Io(#[from] std::io::Error),
    /// The other side says something else.
    #[error("a frame cannot be understood: {0}")]
    Malformed(String),
}

/// What is said to a version that is not ours.
pub(super) fn other_version(theirs: u16) -> String {
    format!(
        "this end speaks version {VERSION} of the log protocol, the other end speaks {theirs}: run the same logd, or a newer one, on both"
    )
}

/// A frame, ready to send.
pub fn encode<T: Serialize>(request: u32, message: &T) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; 8];
    frame[4..8].copy_from_slice(&request.to_le_bytes());
    let mut frame = postcard::to_extend(message, frame).map_err(|error| FrameError::Malformed(error.to_string()))?;
    let length = u32::try_from(frame.len() - 4).unwrap_or(u32::MAX);
    frame[..4].copy_from_slice(&length.to_le_bytes());
    Ok(frame)
}

/// The next frame; `None` at the end of the connection.
pub async fn read<T: for<'a> Deserialize<'a>>(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<Option<(u32, T)>, FrameError> {
    let mut head = [0; 8];
    match stream.read_exact(&mut head).await {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let number = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let length = number(0) as usize;
    if !(4..=MAX_FRAME_BYTES).contains(&length) {
        return Err(FrameError::Malformed(format!("{length} bytes")));
    }
    let mut body = Vec::new();
    // Grows with what really comes, not with what was announced.
    let read = stream.take(length as u64 - 4).read_to_end(&mut body).await?;
    if read != length - 4 {
        return Err(FrameError::Io(std::io::ErrorKind::UnexpectedEof.into()));
    }
    let message = postcard::from_bytes(&body).map_err(|error| FrameError::Malformed(error.to_string()))?;
    Ok(Some((number(4), message)))
}

/// Fills blocks, one after the other: its buffers are kept, and make up most of what a node needs beside its lines.
#[derive(Default)]
pub struct BlockBuilder {
    raw: Vec<u8>,
    records: u32,
    gaps: Vec<Gap>,
    /// Made with the first block that is worth it.
    compressor: Option<zstd::bulk::Compressor<'static>>,
    packed: Vec<u8>,
}

impl std::fmt::Debug for BlockBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlockBuilder").field("records", &self.records).finish_non_exhaustive()
    }
}

impl BlockBuilder {
    /// Adds a record.
    pub fn push(&mut self, time_us: u64, payload: &[u8]) {
        let length = u32::try_from(payload.len()).expect("the journal's records are shorter");
        self.raw.extend_from_slice(&length.to_le_bytes());
        self.raw.extend_from_slice(&time_us.to_le_bytes());
        self.raw.extend_from_slice(payload);
        self.records += 1;
    }

    /// Adds what is missing.
    pub fn push_gap(&mut self, records: u64, words: String) {
        self.gaps.push(Gap { records, words });
    }

    /// Bytes so far.
    pub fn bytes(&self) -> usize {
        self.raw.len()
    }

    /// The block; what is added next is another one.
    pub fn finish(&mut self, next: u64, made_us: u64, more: bool) -> Block {
        let raw_bytes = u32::try_from(self.raw.len()).expect("a block is bounded far below");
        let compressed = self.pack();
        let data = Bytes::copy_from_slice(if compressed { &self.packed } else { &self.raw });
        let (records, gaps) = (std::mem::take(&mut self.records), std::mem::take(&mut self.gaps));
        for buffer in [&mut self.raw, &mut self.packed] {
            buffer.clear();
            // A long record must not hold its memory for ever.
            buffer.shrink_to(2 * BLOCK_BYTES as usize);
        }
        Block { records, next, made_us, more, gaps, raw_bytes, compressed, data }
    }

    /// False where compression does not pay.
    fn pack(&mut self) -> bool {
        const WORTH_BYTES: usize = 512;
        if self.raw.len() < WORTH_BYTES {
            return false;
        }
        if self.compressor.is_none() {
            self.compressor = zstd::bulk::Compressor::new(1).ok();
        }
        let Some(compressor) = &mut self.compressor else { return false };
        self.packed.reserve(zstd::zstd_safe::compress_bound(self.raw.len()));
        let packed = compressor.compress_to_buffer(&self.raw, &mut self.packed);
        packed.is_ok_and(|bytes| bytes < self.raw.len() - self.raw.len() / 10)
    }
}

impl Block {
    /// The records' bytes as they were before compression.
    pub fn unpack(&self) -> Result<Bytes, FrameError> {
        let raw_bytes = self.raw_bytes as usize;
        if !self.compressed {
            return Ok(self.data.clone());
        }
        if raw_bytes > MAX_FRAME_BYTES {
            return Err(FrameError::Malformed(format!("a block of {raw_bytes} bytes")));
        }
        let raw = zstd::bulk::decompress(&self.data, raw_bytes)?;
        Ok(raw.into())
    }
}

/// Walks over the records of an unpacked block: time and payload.
pub fn records(raw: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    let mut rest = raw;
    std::iter::from_fn(move || {
        let (head, after) = rest.split_at_checked(12)?;
        let length = u32::from_le_bytes(head[..4].try_into().ok()?) as usize;
        let (payload, after) = after.split_at_checked(length)?;
        rest = after;
        Some((u64::from_le_bytes(head[4..].try_into().ok()?), payload))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    /// The protocol is a promise between builds: these bytes are version 2.
    #[test]
    fn version_2_is_these_bytes() {
        let place = Place { uuid: [7; 16], next: 300, made_us: 1 };
        let open = Request::Open { stream: 2, log: "mail".into(), subscriber: "m1".into(), from: Some(place) };
        let welcome = Answer::Welcome { version: 2, node: "n1".into(), subcluster: "default".into() };
        let bytes = |frame: Result<Vec<u8>, FrameError>| hex::encode(frame.unwrap());
        assert_eq!(bytes(encode(7, &Request::Hello { version: 2, node: "n1".into() })), HELLO);
        assert_eq!(bytes(encode(8, &open)), OPEN);
        assert_eq!(bytes(encode(9, &Request::Status)), STATUS);
        assert_eq!(bytes(encode(7, &welcome)), WELCOME);
        assert_eq!(bytes(encode(8, &Answer::Refused { message: "no".into() })), REFUSED);
    }

    const HELLO: &str = "09000000070000000002026e31";
    const OPEN: &str = "22000000080000000202046d61696c026d310107070707070707070707070707070707ac0201";
    const STATUS: &str = "050000000900000006";
    const WELCOME: &str = "11000000070000000002026e310764656661756c74";
    const REFUSED: &str = "080000000800000007026e6f";

    proptest! {
        #[test]
        fn blocks_survive(payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..20), times: u64) {
            let mut builder = BlockBuilder::default();
            payloads.iter().for_each(|payload| builder.push(times, payload));
            let block = builder.finish(7, 5, false);
            let frame = encode(3, &Answer::Records(block.clone())).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let (request, answer) = runtime.block_on(read::<Answer>(&mut &frame[..])).unwrap().unwrap();
            prop_assert_eq!((request, answer), (3, Answer::Records(block.clone())));
            let raw = block.unpack().unwrap();
            let read: Vec<_> = records(&raw).map(|(time_us, payload)| (time_us, payload.to_vec())).collect();
            prop_assert_eq!(read, payloads.into_iter().map(|payload| (times, payload)).collect::<Vec<_>>());
        }

        #[test]
        fn hostile_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let _ = runtime.block_on(read::<Request>(&mut &bytes[..]));
            records(&bytes).count();
        }
    }
}
