//! From a pack file that was scanned to one that can be read: its index.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use gix_pack::data::input::{BytesToEntriesIter, EntryDataMode, Mode};
use gix_pack::{bundle, data, index};

use crate::oid::PackId;
use crate::pack::scan::What;
use crate::pack::{IndexEntry, Scanned, ScannedEntry, create_pack_file, write_index};
use crate::reader::Reader;
use crate::{Oid, PackError};

const SHA1: gix::hash::Kind = gix::hash::Kind::Sha1;
/// Below this many objects threads cost more than they help.
const THREADS_FROM_OBJECTS: usize = 10_000;

/// A pack and its index, side by side in a directory from which nobody reads yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Staged {
    pub(crate) id: PackId,
    pub(crate) pack: PathBuf,
    pub(crate) index: PathBuf,
    pub(crate) objects: u32,
    pub(crate) bytes: u64,
}

/// Makes the index of the scanned pack file `pack` beside it. With `bases`, deltas may stand on objects that are only
/// there; these are then added, which makes another pack in the same directory.
pub(crate) fn index_staged(pack: &Path, scanned: Scanned, bases: Option<&Reader>) -> Result<Staged, PackError> {
    if !scanned.has_deltas() {
        return index_whole(pack, scanned);
    }
    // The scanner has bounded what this can cost, but the code that resolves deltas is not ours and reads what a
    // stranger wrote: should it panic, that is the pack's fault and must end no more than this call.
    let resolved = catch_unwind(AssertUnwindSafe(|| match outside_bases(&scanned) {
        outside if outside.is_empty() => index_deltas(pack, &scanned),
        outside => match bases {
            Some(reader) => complete(pack, &scanned, reader).map_err(|err| blame(err, &outside, reader)),
            None => index_deltas(pack, &scanned).map_err(|err| match outside.first() {
                Some(base) => PackError::MissingBase { base: *base },
                None => err,
            }),
        },
    }));
    resolved.unwrap_or_else(|_| Err(PackError::damaged("its deltas cannot be resolved")))
}

/// The bases that are not whole objects of the pack: outside of it, or deltas themselves.
fn outside_bases(scanned: &Scanned) -> Vec<Oid> {
    if !scanned.has_ref_deltas() {
        return Vec::new();
    }
    let whole: HashSet<Oid> = scanned.entries.iter().filter_map(ScannedEntry::whole_id).collect();
    let mut outside: Vec<Oid> = scanned
        .entries
        .iter()
        .filter_map(|entry| match entry.what {
            What::RefDelta(base) if !whole.contains(&base) => Some(base),
            _ => None,
        })
        .collect();
    outside.sort_unstable();
    outside.dedup();
    outside
}

/// Of all reasons why completing a pack can fail, a base that is nowhere is the one worth a name.
fn blame(err: PackError, outside: &[Oid], reader: &Reader) -> PackError {
    match outside.iter().find(|base| !reader.contains(**base)) {
        Some(base) => PackError::MissingBase { base: *base },
        None => err,
    }
}

fn index_whole(pack: &Path, scanned: Scanned) -> Result<Staged, PackError> {
    let mut entries: Vec<IndexEntry> = scanned
        .entries
        .iter()
        .filter_map(|entry| Some(IndexEntry { id: entry.whole_id()?, offset: entry.offset, crc32: entry.crc32 }))
        .collect();
    let index = pack.with_extension("idx");
    let objects = entries.len() as u32;
    let mut file = create(&index)?;
    write_index(&mut file, &mut entries, scanned.id).map_err(storing)?;
    Ok(Staged { id: scanned.id, pack: pack.to_owned(), index, objects, bytes: scanned.bytes })
}

fn index_deltas(pack: &Path, scanned: &Scanned) -> Result<Staged, PackError> {
    let file = File::open(pack).map_err(storing)?;
    let mut entries = BytesToEntriesIter::new_from_header(
        BufReader::with_capacity(64 << 10, file),
        Mode::AsIs,
        EntryDataMode::Crc32,
        SHA1,
    )
    .map_err(resolving)?;
    let index_path = pack.with_extension("idx");
    let mut out = BufWriter::new(create(&index_path)?);
    let resolver = || {
        let data = data::File::at(pack, SHA1).map_err(|err| std::io::Error::other(err.to_string()))?;
        Ok((entry_slice as fn(data::EntryRange, &data::File) -> Option<&[u8]>, data))
    };
    index::write_data_iter_to_stream(
        index::Version::default(),
        resolver,
        &mut entries,
        thread_limit(scanned),
        &mut gix::progress::Discard,
        &mut out,
        &AtomicBool::new(false),
        SHA1,
        None,
        data::Version::V2,
    )
    .map_err(resolving)?;
    out.flush().map_err(storing)?;
    Ok(Staged {
        id: scanned.id,
        pack: pack.to_owned(),
        index: index_path,
        objects: scanned.entries.len() as u32,
        bytes: scanned.bytes,
    })
}

fn entry_slice(range: data::EntryRange, data: &data::File) -> Option<&[u8]> {
    data.entry_slice(range)
}

fn complete(pack: &Path, scanned: &Scanned, bases: &Reader) -> Result<Staged, PackError> {
    let directory = pack.parent().ok_or_else(|| PackError::damaged("it is nowhere"))?;
    let mut input = BufReader::with_capacity(64 << 10, File::open(pack).map_err(storing)?);
    let options = bundle::write::Options {
        thread_limit: thread_limit(scanned),
        iteration_mode: Mode::AsIs,
        ..bundle::write::Options::default()
    };
    let outcome = gix_pack::Bundle::write_to_directory(
        &mut input,
        Some(directory),
        &mut gix::progress::Discard,
        &AtomicBool::new(false),
        Some(bases),
        SHA1,
        options,
    )
    .map_err(resolving)?;
    let (Some(data_path), Some(index_path)) = (outcome.data_path, outcome.index_path) else {
        return Err(PackError::damaged("nothing came of completing it"));
    };
    let bytes = std::fs::metadata(&data_path).map_err(storing)?.len();
    std::fs::remove_file(pack).map_err(storing)?;
    Ok(Staged {
        id: PackId(Oid::from(outcome.index.data_hash)),
        pack: data_path,
        index: index_path,
        objects: outcome.index.num_objects,
        bytes,
    })
}

fn thread_limit(scanned: &Scanned) -> Option<usize> {
    (scanned.entries.len() < THREADS_FROM_OBJECTS).then_some(1)
}

fn create(path: &Path) -> Result<File, PackError> {
    create_pack_file(path).map_err(storing)
}

fn storing(source: std::io::Error) -> PackError {
    PackError::Io { action: "store", source }
}

fn resolving(err: gix::Error) -> PackError {
    PackError::damaged(format!("its deltas cannot be resolved: {err}"))
}
