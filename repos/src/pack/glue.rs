//! Many packs into one, without unpacking anything.
//!
//! Entries are copied as they are, the first copy of each object wins. Only the headers of deltas are rewritten: the base
//! of a delta is wherever that object has landed, which is always before the delta, because in its own pack it was.
//!
//! What a draft packed is whole; where it is known which older version an object replaced, it becomes a delta on that one.
//! A history of small changes shrinks to a fraction by it, on disk and for everyone who fetches it.

use std::collections::{HashMap, HashSet};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use flate2::{Compress, Compression};
use gix_pack::{data, index};

use crate::pack::{
    HEADER_BYTES, IndexEntry, OFS_DELTA, PackWriter, REF_DELTA, Staged, TRAILER_BYTES, base_distance, create_pack_file,
    delta, entry_header, kind_number, write, write_index,
};
use crate::reader::{ObjectKind, Reader};
use crate::{Error, Oid, Result};

/// A pack to be glued.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) pack: PathBuf,
    pub(crate) index: PathBuf,
}

/// Which older version each object replaced, and a reader that has them all.
pub(crate) struct Versions<'a> {
    pub(crate) older: HashMap<Oid, Oid>,
    pub(crate) reader: &'a Reader,
}

/// Where an object has landed, and how many deltas lie under it.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    /// 0 until it has landed.
    offset: u64,
    depth: u32,
}

/// As deep as git makes its own; reading an object unpacks all that lies under it.
const MAX_NEW_DEPTH: u32 = 50;
/// Smaller objects are not worth a delta, larger ones not the memory.
const DELTA_FROM_BYTES: u64 = 128;
const DELTA_TO_BYTES: u64 = 4 << 20;

struct Open {
    path: PathBuf,
    index: index::File<gix_pack::MMap>,
    data: data::File<gix_pack::MMap>,
}

/// Writes one pack with all objects of `sources` as `<stem>.pack` and `<stem>.idx`. Older sources should come first.
pub(crate) fn glue(sources: &[Source], stem: &Path, versions: &Versions<'_>) -> Result<Staged> {
    let opened = sources.iter().map(open).collect::<Result<Vec<_>>>()?;
    let mut placed: HashMap<Oid, Place> = HashMap::new();
    for source in &opened {
        placed.extend(source.index.iter().map(|entry| (Oid::from(entry.oid), Place::default())));
    }
    let pack_path = stem.with_extension("pack");
    let objects = placed.len() as u32;
    let io = |err| Error::io("write", &pack_path)(err);
    let file = create_pack_file(&pack_path).map_err(io)?;
    let writer = PackWriter::new(BufWriter::with_capacity(256 << 10, file), objects).map_err(io)?;
    let mut gluer = Gluer {
        placed,
        entries: Vec::new(),
        writer,
        versions,
        out_path: &pack_path,
        compress: Compress::new(Compression::fast(), true),
    };
    for source in &opened {
        gluer.copy(source)?;
    }
    let Gluer { writer, mut entries, .. } = gluer;
    let bytes = writer.offset() + TRAILER_BYTES as u64;
    let (id, _) = writer.finish().map_err(io)?;
    let index_path = stem.with_extension("idx");
    let mut out = create_pack_file(&index_path).map_err(Error::io("create", &index_path))?;
    write_index(&mut out, &mut entries, id).map_err(Error::io("write", &index_path))?;
    Ok(Staged { id, pack: pack_path, index: index_path, objects, bytes })
}

/// The names of all objects in `sources`.
pub(crate) fn ids(sources: &[Source]) -> Result<HashSet<Oid>> {
    let mut ids = HashSet::new();
    for source in sources {
        ids.extend(open(source)?.index.iter().map(|entry| Oid::from(entry.oid)));
    }
    Ok(ids)
}

fn open(source: &Source) -> Result<Open> {
    let failed = |path: &Path, err: gix::Error| Error::Io {
        action: "open",
        path: path.to_owned(),
        source: std::io::Error::other(err.to_string()),
    };
    let index = index::File::at(&source.index, gix::hash::Kind::Sha1).map_err(|err| failed(&source.index, err))?;
    let data = data::File::at(&source.pack, gix::hash::Kind::Sha1).map_err(|err| failed(&source.pack, err))?;
    Ok(Open { path: source.pack.clone(), index, data })
}

struct Gluer<'a, W: Write> {
    placed: HashMap<Oid, Place>,
    entries: Vec<IndexEntry>,
    writer: PackWriter<W>,
    versions: &'a Versions<'a>,
    out_path: &'a Path,
    compress: Compress,
}

impl<W: Write> Gluer<'_, W> {
    fn copy(&mut self, source: &Open) -> Result<()> {
        let mut order: Vec<(u64, Oid, Option<u32>)> =
            source.index.iter().map(|entry| (entry.pack_offset, Oid::from(entry.oid), entry.crc32)).collect();
        order.sort_unstable();
        let data_end = source.data.data_len() as u64 - TRAILER_BYTES as u64;
        let mut buffer = Vec::new();
        for (at, (offset, id, crc32)) in order.iter().enumerate() {
            if self.placed.get(id).is_some_and(|place| place.offset != 0) {
                continue;
            }
            let end = order.get(at + 1).map_or(data_end, |next| next.0);
            let raw = source
                .data
                .entry_slice(*offset..end)
                .ok_or_else(|| damaged(source, *id, "its entry lies outside of the pack"))?;
            if crc32.is_some_and(|crc32| crc_of(raw) != crc32) {
                return Err(damaged(source, *id, "its checksum in the index is another"));
            }
            let base_of =
                |base_offset: u64| order.binary_search_by_key(&base_offset, |entry| entry.0).ok().map(|at| order[at].1);
            let here = self.writer.offset();
            let (entry, depth) = match self.as_delta(*id, raw, here, &mut buffer)? {
                Some(depth) => (&buffer[..], depth),
                None => relocated(raw, *offset, here, &self.placed, base_of, &mut buffer)
                    .ok_or_else(|| damaged(source, *id, "its entry cannot be understood"))?,
            };
            let crc32 = self.writer.entry(entry).map_err(Error::io("write", self.out_path))?;
            self.placed.insert(*id, Place { offset: here, depth });
            self.entries.push(IndexEntry { id: *id, offset: here, crc32 });
        }
        Ok(())
    }

    /// Puts an entry into `buffer` that builds the object on its older version, and answers its depth, if that is possible and pays.
    fn as_delta(&mut self, id: Oid, raw: &[u8], here: u64, buffer: &mut Vec<u8>) -> Result<Option<u32>> {
        let Some(base) = self.versions.older.get(&id) else { return Ok(None) };
        let Some(place) = self.placed.get(base).filter(|place| place.offset != 0 && place.depth < MAX_NEW_DEPTH) else {
            return Ok(None);
        };
        let is_worth_it =
            is_whole(raw) && (DELTA_FROM_BYTES..=DELTA_TO_BYTES).contains(&head_of(raw).map_or(0, |(_, size, _)| size));
        if !is_worth_it {
            return Ok(None);
        }
        let (mut old, mut new) = (Vec::new(), Vec::new());
        let kinds = (self.versions.reader.find(*base, &mut old)?, self.versions.reader.find(id, &mut new)?);
        if kinds.0 != kinds.1 {
            return Ok(None);
        }
        let Some(delta) = delta::make(&old, &new) else { return Ok(None) };
        buffer.clear();
        entry_header(OFS_DELTA, delta.len() as u64, buffer);
        base_distance(here - place.offset, buffer);
        write::deflate(&mut self.compress, &delta, buffer).map_err(Error::io("write", self.out_path))?;
        Ok((buffer.len() < raw.len()).then_some(place.depth + 1))
    }
}

pub(crate) fn crc_of(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

fn damaged(source: &Open, id: Oid, what: &str) -> Error {
    Error::Damaged { id, reason: format!("{what} ({})", source.path.display()) }
}

/// The entry as it must look at offset `here`, and its depth. Whole objects stay as they are.
fn relocated<'a>(
    raw: &'a [u8],
    offset: u64,
    here: u64,
    placed: &HashMap<Oid, Place>,
    id_at: impl Fn(u64) -> Option<Oid>,
    buffer: &'a mut Vec<u8>,
) -> Option<(&'a [u8], u32)> {
    if is_whole(raw) {
        return Some((raw, 0));
    }
    let (type_number, size, head_len) = head_of(raw)?;
    let (base, body) = match type_number {
        OFS_DELTA => {
            let (distance, len) = read_distance(&raw[head_len..])?;
            (id_at(offset.checked_sub(distance)?)?, &raw[head_len + len..])
        }
        REF_DELTA => (Oid::from_slice(raw.get(head_len..head_len + 20)?)?, &raw[head_len + 20..]),
        _ => return None,
    };
    buffer.clear();
    let place = placed.get(&base)?;
    let depth = if place.offset >= HEADER_BYTES as u64 {
        entry_header(OFS_DELTA, size, buffer);
        base_distance(here - place.offset, buffer);
        place.depth.saturating_add(1)
    } else {
        // The base of a reference by id may come later in the pack; it must come, though, and it does: it is in `placed`.
        entry_header(REF_DELTA, size, buffer);
        buffer.extend_from_slice(base.as_bytes());
        // No new delta may stand on this: its base, still to come, might become one on it.
        u32::MAX
    };
    buffer.extend_from_slice(body);
    Some((buffer, depth))
}

fn is_whole(raw: &[u8]) -> bool {
    let type_number = raw.first().map_or(0, |first| (first >> 4) & 7);
    (kind_number(ObjectKind::Commit)..=kind_number(ObjectKind::Tag)).contains(&type_number)
}

/// Type, unpacked size, and how long the header is.
fn head_of(raw: &[u8]) -> Option<(u8, u64, usize)> {
    let len = raw.iter().take(10).position(|byte| byte & 0x80 == 0)? + 1;
    Some(((raw[0] >> 4) & 7, unpacked_size(&raw[..len]), len))
}

fn unpacked_size(head: &[u8]) -> u64 {
    let low = u64::from(head[0] & 15);
    head[1..].iter().enumerate().take(8).fold(low, |size, (at, byte)| size | u64::from(byte & 0x7f) << (4 + 7 * at))
}

fn read_distance(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = u64::from(bytes.first()? & 0x7f);
    let mut at = 0;
    while bytes[at] & 0x80 != 0 {
        at += 1;
        value = value.checked_add(1)?.checked_mul(128)? | u64::from(bytes.get(at)? & 0x7f);
    }
    Some((value, at + 1))
}
