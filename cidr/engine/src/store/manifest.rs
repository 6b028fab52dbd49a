//! The list of the files that count.
//!
//! A file that is not in the list does not exist, whatever the directory shows: so a commit of several windows, or a day that takes the
//! place of ninety-six, is one appended record, and a crash leaves it whole or absent. When the list has grown to twice what it says, it
//! is written anew beside the old one and renamed.
//!
//! ```text
//! "ECCIDRMF" · u32 version · u32 CRC32C of the twelve bytes
//! records: u32 bytes of the edits · u32 CRC32C of the length and the edits · the edits
//! edit: u8 kind, then varints and texts as in the meta of a file
//! ```
//!
//! The first record that is not sound ends the list. With a sound record behind it, it is no torn write but damage, and the store is not
//! opened: `repair` makes a new list from what the files say about themselves.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use super::disk::{Disk, Output};
use crate::error::{Error, Result};
use crate::segment::bits::{read_varint, unzigzag, write_varint, zigzag};
use crate::segment::{Kind, read_text, u32_at, write_text};
use crate::time::{Day, Stamp};

/// Its name in the directory.
pub(crate) const MANIFEST: &str = "manifest";
const MAGIC: &[u8; 8] = b"ECCIDRMF";
/// Version 2 knows packed days, version 3 packed months. An older list is written anew when it is opened.
const VERSION: u32 = 3;
const HEAD: usize = 16;

/// Growth that is not worth a rewrite.
const SPARE_BYTES: u64 = 256 << 10;

/// A file that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileRecord {
    pub(crate) id: u64,
    pub(crate) kind: Kind,
    pub(crate) series: String,
    pub(crate) start: Stamp,
    pub(crate) end: Stamp,
    pub(crate) first_end: Stamp,
    pub(crate) last_end: Stamp,
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
    /// Relative to the directory.
    pub(crate) name: String,
    /// The nodes of a window's parts, in their order.
    pub(crate) nodes: Vec<String>,
    /// The days of a packed month, in the order of its parts.
    pub(crate) days: Vec<DayEnds>,
}

/// The ends of the first and the last window of a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DayEnds {
    pub(crate) first: Stamp,
    pub(crate) last: Stamp,
}

impl DayEnds {
    /// The day itself.
    pub(crate) fn day(self) -> Day {
        Day::of_end(self.first)
    }
}

/// One change of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Edit {
    /// A file counts from now on.
    Add(FileRecord),
    /// It no longer does.
    Remove { series: String, kind: Kind, start: Stamp, end: Stamp, id: u64 },
    /// A window's rows are in the node of its day.
    Cover { series: String, end: Stamp, id: u64 },
    /// Hand-ins of a node up to this one are merged.
    Taken { node: String, sequence: u64 },
    /// Ids below this one were given away.
    NextId(u64),
    /// Single windows of this day were given up for its node.
    Condensed { series: String, day: i64 },
}

impl Edit {
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Add(file) => {
                out.push(1);
                out.push(file.kind.number());
                for number in [file.id, file.rows, file.bytes] {
                    write_varint(out, number);
                }
                for stamp in [file.start, file.end, file.first_end, file.last_end] {
                    write_varint(out, zigzag(stamp));
                }
                write_text(out, &file.series);
                write_text(out, &file.name);
                write_varint(out, file.nodes.len() as u64);
                file.nodes.iter().for_each(|node| write_text(out, node));
                if file.kind == Kind::PackedMonth {
                    write_varint(out, file.days.len() as u64);
                    let ends = file.days.iter().flat_map(|day| [day.first, day.last]);
                    ends.for_each(|end| write_varint(out, zigzag(end)));
                }
            }
            Self::Remove { series, kind, start, end, id } => {
                out.push(2);
                out.push(kind.number());
                write_varint(out, *id);
                write_varint(out, zigzag(*start));
                write_varint(out, zigzag(*end));
                write_text(out, series);
            }
            Self::Cover { series, end, id } => {
                out.push(3);
                write_varint(out, *id);
                write_varint(out, zigzag(*end));
                write_text(out, series);
            }
            Self::Taken { node, sequence } => {
                out.push(4);
                write_varint(out, *sequence);
                write_text(out, node);
            }
            Self::NextId(id) => {
                out.push(5);
                write_varint(out, *id);
            }
            Self::Condensed { series, day } => {
                out.push(6);
                write_varint(out, zigzag(*day));
                write_text(out, series);
            }
        }
    }

    fn read(data: &[u8], at: &mut usize) -> Option<Self> {
        let tag = *data.get(*at)?;
        *at += 1;
        let kind = |at: &mut usize| {
            let number = *data.get(*at)?;
            *at += 1;
            Kind::from_number(u64::from(number))
        };
        let stamp = |at: &mut usize| read_varint(data, at).map(unzigzag);
        Some(match tag {
            1 => {
                let kind = kind(at)?;
                let (id, rows, bytes) = (read_varint(data, at)?, read_varint(data, at)?, read_varint(data, at)?);
                let (start, end, first_end, last_end) = (stamp(at)?, stamp(at)?, stamp(at)?, stamp(at)?);
                let (series, name) = (read_text(data, at)?, read_text(data, at)?);
                let mut nodes = Vec::new();
                for _ in 0..read_varint(data, at)? {
                    nodes.push(read_text(data, at)?);
                }
                let mut days = Vec::new();
                if kind == Kind::PackedMonth {
                    for _ in 0..read_varint(data, at)? {
                        days.push(DayEnds { first: stamp(at)?, last: stamp(at)? });
                    }
                }
                let record =
                    FileRecord { id, kind, series, start, end, first_end, last_end, rows, bytes, name, nodes, days };
                Self::Add(record)
            }
            2 => {
                let kind = kind(at)?;
                let (id, start, end) = (read_varint(data, at)?, stamp(at)?, stamp(at)?);
                Self::Remove { series: read_text(data, at)?, kind, start, end, id }
            }
            3 => {
                let (id, end) = (read_varint(data, at)?, stamp(at)?);
                Self::Cover { series: read_text(data, at)?, end, id }
            }
            4 => {
                let sequence = read_varint(data, at)?;
                Self::Taken { node: read_text(data, at)?, sequence }
            }
            5 => Self::NextId(read_varint(data, at)?),
            6 => {
                let day = unzigzag(read_varint(data, at)?);
                Self::Condensed { series: read_text(data, at)?, day }
            }
            _ => return None,
        })
    }
}

fn header(version: u32) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&version.to_le_bytes());
    out.extend_from_slice(&crc32c::crc32c(&out).to_le_bytes());
    out
}

fn record(edits: &[Edit]) -> Vec<u8> {
    let mut body = Vec::new();
    edits.iter().for_each(|edit| edit.write(&mut body));
    let length = (body.len() as u32).to_le_bytes();
    let crc = crc32c::crc32c_append(crc32c::crc32c(&length), &body);
    let mut out = Vec::with_capacity(body.len() + 8);
    out.extend_from_slice(&length);
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(&body);
    out
}

/// The edits of the record at `at`, and where it ends; none when it is not sound.
fn read_record(data: &[u8], at: usize) -> Option<(Vec<Edit>, usize)> {
    let length = u32_at(data, at)?;
    let end = at.checked_add(8)?.checked_add(length as usize)?;
    let body = data.get(at + 8..end)?;
    let crc = crc32c::crc32c_append(crc32c::crc32c(&length.to_le_bytes()), body);
    if length == 0 || crc != u32_at(data, at + 4)? {
        return None;
    }
    let mut edits = Vec::new();
    let mut position = 0;
    while position < body.len() {
        edits.push(Edit::read(body, &mut position)?);
    }
    Some((edits, end))
}

/// A list as it was read.
pub(crate) struct Loaded {
    pub(crate) edits: Vec<Edit>,
    /// Bytes that are sound.
    pub(crate) sound_bytes: u64,
    /// Bytes of a record that was being written.
    pub(crate) torn_bytes: u64,
    /// An older build wrote it.
    pub(crate) old: bool,
}

/// Reads the list; none when there is none.
pub(crate) fn load(dir: &Path) -> Result<Option<Loaded>> {
    let path = dir.join(MANIFEST);
    let data = match fs::read(&path) {
        Ok(data) => data,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read", &path)(error)),
    };
    if data.get(..8) != Some(MAGIC) {
        return Err(Error::damaged(&path, "its beginning is not that of a manifest"));
    }
    let version = match u32_at(&data, 8) {
        Some(version @ 1..=VERSION) => version,
        Some(found) => return Err(Error::Version { path, found, known: VERSION }),
        None => return Err(Error::damaged(&path, "it is too short")),
    };
    if data.get(..HEAD) != Some(&header(version)) {
        return Err(Error::damaged(&path, "its head does not fit its checksum"));
    }
    let (mut edits, mut at) = (Vec::new(), HEAD);
    while let Some((more, end)) = read_record(&data, at) {
        edits.extend(more);
        at = end;
    }
    if (at + 1..data.len()).any(|later| read_record(&data, later).is_some()) {
        return Err(Error::damaged(&path, format!("the record at {at} is wrong, and sound ones follow it")));
    }
    let torn_bytes = (data.len() - at) as u64;
    Ok(Some(Loaded { edits, sound_bytes: at as u64, torn_bytes, old: version < VERSION }))
}

/// Writes the list.
pub(crate) struct ManifestWriter {
    dir: PathBuf,
    output: Box<dyn Output>,
    bytes: u64,
    /// Length when it was last written anew.
    base_bytes: u64,
}

impl ManifestWriter {
    /// Writes a list that says `edits` in the place of whatever is there, and goes on at its end.
    pub(crate) fn replace(disk: &dyn Disk, dir: &Path, edits: &[Edit]) -> Result<Self> {
        let (path, temporary) = (dir.join(MANIFEST), dir.join(".tmp-manifest"));
        let mut content = header(VERSION);
        if !edits.is_empty() {
            content.extend(record(edits));
        }
        let write = || -> io::Result<()> {
            let mut output = disk.create(&temporary)?;
            output.write_all(&content)?;
            output.sync()?;
            disk.rename(&temporary, &path)?;
            disk.sync_dir(dir)
        };
        write().map_err(Error::io("write", &path))?;
        Self::resume(disk, dir, content.len() as u64)
    }

    /// Goes on at the end of a list of this length.
    pub(crate) fn resume(disk: &dyn Disk, dir: &Path, bytes: u64) -> Result<Self> {
        let path = dir.join(MANIFEST);
        let output = disk.append(&path).map_err(Error::io("open", &path))?;
        Ok(Self { dir: dir.into(), output, bytes, base_bytes: bytes })
    }

    /// Appends one record, durably.
    pub(crate) fn append(&mut self, edits: &[Edit]) -> Result<()> {
        let content = record(edits);
        let write = self.output.write_all(&content).and_then(|()| self.output.sync());
        write.map_err(Error::io("append to", &self.dir.join(MANIFEST)))?;
        self.bytes += content.len() as u64;
        Ok(())
    }

    /// True when a rewrite would save half.
    pub(crate) fn is_grown(&self) -> bool {
        self.bytes > 2 * self.base_bytes + SPARE_BYTES
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::disk::RealDisk;
    use super::*;

    fn sample(id: u64) -> Vec<Edit> {
        let file = FileRecord {
            id,
            kind: Kind::Window,
            series: "spam".into(),
            start: 0,
            end: 900,
            first_end: 900,
            last_end: 900,
            rows: 5,
            bytes: 100,
            name: format!("spam.{id}"),
            nodes: vec!["n1".into()],
            days: Vec::new(),
        };
        let days = vec![DayEnds { first: 900, last: 86_400 }, DayEnds { first: 90_000, last: 90_000 }];
        let month = FileRecord { id: id + 100, kind: Kind::PackedMonth, nodes: Vec::new(), days, ..file.clone() };
        vec![
            Edit::Add(file),
            Edit::Add(month),
            Edit::Cover { series: "spam".into(), end: 900, id },
            Edit::Remove { series: "spam".into(), kind: Kind::Day, start: -1, end: 5, id },
            Edit::Taken { node: "n1".into(), sequence: u64::MAX },
            Edit::NextId(9),
        ]
    }

    #[test]
    fn a_torn_tail_is_dropped_and_damage_before_sound_records_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = ManifestWriter::replace(&RealDisk, dir.path(), &[Edit::NextId(1)]).unwrap();
        writer.append(&sample(1)).unwrap();
        let before = fs::metadata(dir.path().join(MANIFEST)).unwrap().len() as usize;
        writer.append(&sample(2)).unwrap();
        let whole = fs::read(dir.path().join(MANIFEST)).unwrap();
        let edits = load(dir.path()).unwrap().unwrap().edits;
        assert_eq!(edits[1..], [sample(1), sample(2)].concat());
        for cut in before..whole.len() {
            fs::write(dir.path().join(MANIFEST), &whole[..cut]).unwrap();
            let loaded = load(dir.path()).unwrap().unwrap();
            assert_eq!(loaded.edits[1..], sample(1), "cut at {cut}");
            assert_eq!((loaded.sound_bytes + loaded.torn_bytes) as usize, cut);
        }
        for byte in 0..before {
            let mut damaged = whole.clone();
            damaged[byte] ^= 0x10;
            fs::write(dir.path().join(MANIFEST), &damaged).unwrap();
            assert!(load(dir.path()).err().is_some_and(|e| e.is_damage()), "byte {byte}");
        }
    }
}
