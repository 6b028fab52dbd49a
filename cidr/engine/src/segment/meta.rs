//! What a file says about itself, so that a lost manifest can be rebuilt from the files alone.
//!
//! Varints but for the strings, which are a length and UTF-8: kind · id · series · start · end · first end · last end · number of
//! consumed ids, ascending, as distances · number of parts, and for each its node, the highest hand-in merged into it (plus one; 0:
//! none), and in a packed day its start and its end; in a packed month, where the parts are days, the ends of their first and last window.

use super::bits::{read_varint, unzigzag, write_varint, zigzag};
use crate::time::Stamp;

/// What a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// One window as it was counted, with a part per node.
    Window,
    /// Sums over a day.
    Day,
    /// Sums over eight days, aligned to multiples of eight since 1970.
    Span8,
    /// Sums over a calendar month.
    Month,
    /// Sums over a day, and in the same file the windows that they are the sums of.
    Packed,
    /// Sums over condensed days of a calendar month, and in the same file those days.
    PackedMonth,
}

impl Kind {
    pub(crate) const fn number(self) -> u8 {
        match self {
            Self::Window => 0,
            Self::Day => 1,
            Self::Span8 => 2,
            Self::Month => 3,
            Self::Packed => 4,
            Self::PackedMonth => 5,
        }
    }

    pub(crate) const fn from_number(number: u64) -> Option<Self> {
        Some(match number {
            0 => Self::Window,
            1 => Self::Day,
            2 => Self::Span8,
            3 => Self::Month,
            4 => Self::Packed,
            5 => Self::PackedMonth,
            _ => return None,
        })
    }

    /// True for a file whose first part is the sum of the others, which name addresses by their places in it.
    pub(crate) const fn is_packed(self) -> bool {
        matches!(self, Self::Packed | Self::PackedMonth)
    }
}

/// One node's share of a window; in a packed file the first part is the sum.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Part {
    /// The node that counted; empty for sums over all nodes.
    pub(crate) node: String,
    /// The highest hand-in of that node in this file.
    pub(crate) sequence: Option<u64>,
    /// The window's time; of a day in a packed month, the ends of its first and its last window.
    pub(crate) start: Stamp,
    pub(crate) end: Stamp,
}

/// What a file says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) kind: Kind,
    /// Unique in its directory and ascending.
    pub(crate) id: u64,
    pub(crate) series: String,
    /// The covered time, without its start and with its end.
    pub(crate) start: Stamp,
    pub(crate) end: Stamp,
    /// The ends of the first and last window inside.
    pub(crate) first_end: Stamp,
    pub(crate) last_end: Stamp,
    /// The files whose rows are in this one.
    pub(crate) consumed: Vec<u64>,
    pub(crate) parts: Vec<Part>,
}

impl Meta {
    /// The nodes of the parts, each once.
    pub(crate) fn nodes(&self) -> Vec<String> {
        let mut nodes: Vec<String> = self.parts.iter().map(|part| part.node.clone()).collect();
        if self.kind.is_packed() {
            nodes.sort_unstable();
            nodes.dedup();
        }
        nodes
    }

    /// The windows of a packed day: their places among the parts, and what is said of them.
    pub(crate) fn windows(&self) -> impl Iterator<Item = (u16, &Part)> {
        self.parts_behind_sum(Kind::Packed)
    }

    /// The same for the days of a packed month.
    pub(crate) fn days(&self) -> impl Iterator<Item = (u16, &Part)> {
        self.parts_behind_sum(Kind::PackedMonth)
    }

    fn parts_behind_sum(&self, kind: Kind) -> impl Iterator<Item = (u16, &Part)> {
        let parts = if self.kind == kind { &self.parts[..] } else { &[] };
        parts.iter().enumerate().skip(1).map(|(index, part)| (index as u16, part))
    }

    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        write_varint(out, u64::from(self.kind.number()));
        write_varint(out, self.id);
        write_text(out, &self.series);
        for stamp in [self.start, self.end, self.first_end, self.last_end] {
            write_varint(out, zigzag(stamp));
        }
        write_ids(out, &self.consumed);
        write_varint(out, self.parts.len() as u64);
        for part in &self.parts {
            write_text(out, &part.node);
            write_varint(out, part.sequence.map_or(0, |sequence| sequence.saturating_add(1)));
            if self.kind.is_packed() {
                write_varint(out, zigzag(part.start));
                write_varint(out, zigzag(part.end));
            }
        }
    }

    /// Reads what was written, from `at` on; none for anything else.
    pub(crate) fn read(data: &[u8], at: &mut usize) -> Option<Self> {
        let kind = Kind::from_number(read_varint(data, at)?)?;
        let id = read_varint(data, at)?;
        let series = read_text(data, at)?;
        let mut stamps = [0; 4];
        for stamp in &mut stamps {
            *stamp = unzigzag(read_varint(data, at)?);
        }
        let [start, end, first_end, last_end] = stamps;
        let consumed = read_ids(data, at)?;
        let mut parts = Vec::new();
        for _ in 0..read_varint(data, at)? {
            let node = read_text(data, at)?;
            let sequence = read_varint(data, at)?.checked_sub(1);
            let (mut from, mut until) = (start, end);
            if kind.is_packed() {
                (from, until) = (unzigzag(read_varint(data, at)?), unzigzag(read_varint(data, at)?));
            }
            parts.push(Part { node, sequence, start: from, end: until });
        }
        Some(Self { kind, id, series, start, end, first_end, last_end, consumed, parts })
    }
}

pub(crate) fn write_text(out: &mut Vec<u8>, text: &str) {
    write_varint(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

pub(crate) fn read_text(data: &[u8], at: &mut usize) -> Option<String> {
    let length = usize::try_from(read_varint(data, at)?).ok()?;
    let bytes = data.get(*at..at.checked_add(length)?)?;
    *at += length;
    String::from_utf8(bytes.to_vec()).ok()
}

pub(crate) fn write_ids(out: &mut Vec<u8>, ids: &[u64]) {
    write_varint(out, ids.len() as u64);
    let mut before = 0;
    for id in ids {
        write_varint(out, id.wrapping_sub(before));
        before = *id;
    }
}

pub(crate) fn read_ids(data: &[u8], at: &mut usize) -> Option<Vec<u64>> {
    let count = read_varint(data, at)?;
    // Each id takes a byte at least: a damaged number cannot make us reserve more than the data has.
    if count > data.len() as u64 {
        return None;
    }
    let mut before = 0_u64;
    let mut ids = Vec::with_capacity(count as usize);
    for _ in 0..count {
        before = before.wrapping_add(read_varint(data, at)?);
        ids.push(before);
    }
    Some(ids)
}
