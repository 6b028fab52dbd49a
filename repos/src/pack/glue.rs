//! Many packs into one, without unpacking anything.
//!
//! Entries are copied as they are, the first copy of each object wins. Only the headers of deltas are rewritten: the base
//! of a delta is wherever that object has landed, which is always before the delta, because in its own pack it was.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use gix_pack::{data, index};

use crate::pack::{
    HEADER_BYTES, IndexEntry, OFS_DELTA, PackWriter, REF_DELTA, Staged, TRAILER_BYTES, base_distance, entry_header,
    kind_number, write_index,
};
use crate::reader::ObjectKind;
use crate::{Error, Oid, Result};

/// A pack to be glued.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) pack: PathBuf,
    pub(crate) index: PathBuf,
}

struct Open {
    path: PathBuf,
    index: index::File<gix_pack::MMap>,
    data: data::File<gix_pack::MMap>,
}

/// Writes one pack with all objects of `sources` as `<stem>.pack` and `<stem>.idx`.
pub(crate) fn glue(sources: &[Source], stem: &Path) -> Result<Staged> {
    let opened = sources.iter().map(open).collect::<Result<Vec<_>>>()?;
    // Where each object has landed; 0 until it has.
    let mut placed: HashMap<Oid, u64> = HashMap::new();
    for source in &opened {
        placed.extend(source.index.iter().map(|entry| (Oid::from(entry.oid), 0)));
    }
    let pack_path = stem.with_extension("pack");
    let io = |err| Error::Io { action: "write", path: stem.with_extension("pack"), source: err };
    let file = File::create(&pack_path).map_err(io)?;
    let objects = placed.len() as u32;
    let mut writer = PackWriter::new(BufWriter::with_capacity(256 << 10, file), objects).map_err(io)?;
    let mut entries = Vec::with_capacity(placed.len());
    for source in &opened {
        copy(source, &mut placed, &mut entries, &mut writer, &pack_path)?;
    }
    let bytes = writer.offset() + TRAILER_BYTES as u64;
    let (id, _) = writer.finish().map_err(io)?;
    let index_path = stem.with_extension("idx");
    let mut out = File::create(&index_path).map_err(Error::io("create", &index_path))?;
    write_index(&mut out, &mut entries, id).map_err(Error::io("write", &index_path))?;
    Ok(Staged { id, pack: pack_path, index: index_path, objects, bytes })
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

fn copy<W: Write>(
    source: &Open,
    placed: &mut HashMap<Oid, u64>,
    entries: &mut Vec<IndexEntry>,
    writer: &mut PackWriter<W>,
    out_path: &Path,
) -> Result<()> {
    let mut order: Vec<(u64, Oid, Option<u32>)> =
        source.index.iter().map(|entry| (entry.pack_offset, Oid::from(entry.oid), entry.crc32)).collect();
    order.sort_unstable();
    let data_end = source.data.data_len() as u64 - TRAILER_BYTES as u64;
    let mut buffer = Vec::new();
    for (at, (offset, id, crc32)) in order.iter().enumerate() {
        if placed.get(id).is_some_and(|offset| *offset != 0) {
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
        let here = writer.offset();
        let entry = relocated(raw, *offset, here, placed, base_of, &mut buffer)
            .ok_or_else(|| damaged(source, *id, "its entry cannot be understood"))?;
        let crc32 = writer.entry(entry).map_err(Error::io("write", out_path))?;
        placed.insert(*id, here);
        entries.push(IndexEntry { id: *id, offset: here, crc32 });
    }
    Ok(())
}

fn crc_of(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

fn damaged(source: &Open, id: Oid, what: &str) -> Error {
    Error::Damaged { id, reason: format!("{what} ({})", source.path.display()) }
}

/// The entry as it must look at offset `here`. Whole objects stay as they are.
fn relocated<'a>(
    raw: &'a [u8],
    offset: u64,
    here: u64,
    placed: &HashMap<Oid, u64>,
    id_at: impl Fn(u64) -> Option<Oid>,
    buffer: &'a mut Vec<u8>,
) -> Option<&'a [u8]> {
    let first = *raw.first()?;
    let type_number = (first >> 4) & 7;
    if (kind_number(ObjectKind::Commit)..=kind_number(ObjectKind::Tag)).contains(&type_number) {
        return Some(raw);
    }
    let size_len = raw.iter().position(|byte| byte & 0x80 == 0)? + 1;
    let size = unpacked_size(&raw[..size_len]);
    let (base, body) = match type_number {
        OFS_DELTA => {
            let (distance, len) = read_distance(&raw[size_len..])?;
            (id_at(offset.checked_sub(distance)?)?, &raw[size_len + len..])
        }
        REF_DELTA => (Oid::from_slice(raw.get(size_len..size_len + 20)?)?, &raw[size_len + 20..]),
        _ => return None,
    };
    buffer.clear();
    match placed.get(&base).copied() {
        Some(base_offset) if base_offset >= HEADER_BYTES as u64 => {
            entry_header(OFS_DELTA, size, buffer);
            base_distance(here - base_offset, buffer);
        }
        // The base of a reference by id may come later in the pack; it must come, though.
        Some(_) => {
            entry_header(REF_DELTA, size, buffer);
            buffer.extend_from_slice(base.as_bytes());
        }
        None => return None,
    }
    buffer.extend_from_slice(body);
    Some(buffer)
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
