//! Walks over the records of one segment, around damage.
//!
//! What the reader, the check and the recovery at open share. A walker never gives back bytes whose checksum it has not taken.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{JournalError, Result};
use crate::fs::{FsFile, read_full_at};
use crate::layout::SEGMENT_HEADER_BYTES;
use crate::record::{self, Decoded, Kind};

/// What is read with one call. A longer record makes the buffer grow for as long as it is read.
const CHUNK_BYTES: usize = 256 << 10;

/// What a step came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// A record; its payload is [`Walker::payload`] until the next step.
    Record { kind: Kind, sequence: u64, time_us: u64 },
    /// This many bytes are no records; behind them is one, or the limit.
    Damage { bytes: u64 },
    /// The limit.
    End,
}

/// A place in a segment.
#[derive(Debug)]
pub(crate) struct Walker {
    file: Arc<dyn FsFile>,
    path: PathBuf,
    salt: u32,
    buffer: Vec<u8>,
    filled: usize,
    /// Where in the buffer the next record begins, and where in the file the buffer does.
    at: usize,
    buffer_offset: u64,
    /// Where in the file the last sound record ends.
    sound_offset: u64,
    /// The payload of the newest record, in the buffer.
    payload: (usize, usize),
    /// The number that the next record should have.
    pub(crate) expected: u64,
}

impl Walker {
    pub(crate) fn new(file: Arc<dyn FsFile>, path: &Path, first: u64, salt: u32) -> Self {
        Self {
            file,
            path: path.into(),
            salt,
            buffer: Vec::new(),
            filled: 0,
            at: 0,
            buffer_offset: SEGMENT_HEADER_BYTES as u64,
            sound_offset: SEGMENT_HEADER_BYTES as u64,
            payload: (0, 0),
            expected: first,
        }
    }

    /// Where in the file the next record begins.
    pub(crate) fn offset(&self) -> u64 {
        self.buffer_offset + self.at as u64
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn file(&self) -> &dyn FsFile {
        &*self.file
    }

    /// The payload of the record of the last step.
    pub(crate) fn payload(&self) -> &[u8] {
        &self.buffer[self.payload.0..self.payload.1]
    }

    #[cfg(test)]
    pub(crate) fn buffer_bytes(&self) -> usize {
        self.buffer.capacity()
    }

    /// Where in the file the record of the last step begins.
    pub(crate) fn record_offset(&self) -> u64 {
        let header = self.payload.0.saturating_sub(record::HEADER_BYTES);
        if self.payload.0 == 0 { self.offset() } else { self.buffer_offset + header as u64 }
    }

    /// Gives the record of the last step, whose number is given, once more.
    pub(crate) fn again(&mut self, sequence: u64) {
        self.at = self.payload.0 - record::HEADER_BYTES;
        self.sound_offset = self.offset();
        self.expected = sequence;
    }

    /// Takes the next record that begins and ends before `limit`, an offset in the file.
    pub(crate) fn step(&mut self, limit: u64) -> Result<Step> {
        if self.offset() >= limit {
            return Ok(Step::End);
        }
        match self.decode_here(limit)? {
            Decoded::Whole { kind, sequence, time_us, bytes } => {
                self.payload = (self.at + record::HEADER_BYTES, self.at + bytes);
                self.at += bytes;
                self.sound_offset = self.offset();
                self.expected = sequence + u64::from(kind == Kind::Data);
                Ok(Step::Record { kind, sequence, time_us })
            }
            Decoded::Short { .. } | Decoded::Bad => self.skip_damage(limit),
        }
    }

    /// Looks for a record at the current place, reading as much of the file as it takes.
    fn decode_here(&mut self, limit: u64) -> Result<Decoded> {
        // Every record that was skipped had at least a header, which bounds the numbers that can stand here.
        let farthest = self.expected + (self.offset() - self.sound_offset) / record::HEADER_BYTES as u64;
        loop {
            let visible = self.visible(limit);
            match record::decode(&self.buffer[self.at..self.at + visible], self.expected..=farthest, self.salt) {
                Decoded::Short { bytes } if self.offset() + bytes as u64 <= limit => {
                    self.fill(bytes, limit)?;
                    if self.visible(limit) < bytes {
                        // The file is shorter than the limit says: somebody cut it. What is missing cannot be a record.
                        return Ok(Decoded::Bad);
                    }
                }
                other => return Ok(other),
            }
        }
    }

    /// Bytes of the buffer from the current place on that lie before the limit.
    fn visible(&self, limit: u64) -> usize {
        let to_limit = usize::try_from(limit - self.offset()).unwrap_or(usize::MAX);
        (self.filled - self.at).min(to_limit)
    }

    /// Reads on, until at least `wanted` bytes from the current place on are there or the file ends.
    fn fill(&mut self, wanted: usize, limit: u64) -> Result<()> {
        self.buffer.copy_within(self.at..self.filled, 0);
        self.filled -= self.at;
        self.buffer_offset += self.at as u64;
        self.at = 0;
        self.payload = (0, 0);
        let size = wanted.max(CHUNK_BYTES);
        if size < self.buffer.len() {
            // Behind a long record: give its memory back.
            self.buffer.truncate(size.max(self.filled));
            self.buffer.shrink_to_fit();
        }
        self.buffer.resize(size.max(self.filled), 0);
        let offset = self.buffer_offset + self.filled as u64;
        let room = usize::try_from(limit.saturating_sub(offset)).unwrap_or(usize::MAX);
        let end = self.filled.saturating_add(room).min(self.buffer.len());
        let read = read_full_at(&*self.file, &mut self.buffer[self.filled..end], offset)
            .map_err(JournalError::io("read", &self.path))?;
        self.filled += read;
        Ok(())
    }

    /// Goes forward byte by byte to the next record. Only a place whose number fits costs a checksum.
    fn skip_damage(&mut self, limit: u64) -> Result<Step> {
        let start = self.offset();
        loop {
            self.at += 1;
            if self.offset() >= limit || self.filled < self.at {
                break;
            }
            if self.visible(limit) < record::HEADER_BYTES {
                self.fill(record::HEADER_BYTES, limit)?;
                if self.visible(limit) < record::HEADER_BYTES {
                    break;
                }
            }
            if matches!(self.decode_here(limit)?, Decoded::Whole { .. }) {
                return Ok(Step::Damage { bytes: self.offset() - start });
            }
        }
        self.jump_to(limit);
        Ok(Step::Damage { bytes: limit - start })
    }

    /// Goes to an offset, forgetting what was read.
    fn jump_to(&mut self, offset: u64) {
        self.filled = 0;
        self.at = 0;
        self.payload = (0, 0);
        self.buffer_offset = offset;
    }
}
