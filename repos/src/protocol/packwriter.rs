//! A list of objects, as a pack, written as it is made.
//!
//! Only one object is in memory at a time. A long list is written by copying what the store's packs have, compressed as
//! it is, deltas too if their base is in the list; a short one is compressed here, which costs less than opening
//! the packs. No new deltas are searched for: configuration files are small, and the search would cost more than
//! it saves. The module knows nothing of the protocol; a cache of whole packs would be asked before [`write`] is called.

use std::io::{self, Write};

use flate2::Compression;
use flate2::write::ZlibEncoder;
use gix_pack::data::entry::Header;

use super::objects::Objects;
use super::packet::writing;
use super::{Error, Result};
use crate::{ObjectKind, Oid};

/// From so many objects on, packs are opened to copy from.
const MIN_TO_COPY: usize = 500;

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Summary {
    pub(crate) objects: u64,
    /// Those of them that are deltas.
    pub(crate) deltas: u64,
    /// Those that were copied.
    pub(crate) copied: u64,
}

/// Writes a pack of `list`, which names each object once. With `ofs_delta` deltas may name their base by its distance.
pub(crate) fn write(objects: &Objects, list: Vec<Oid>, ofs_delta: bool, out: &mut dyn Write) -> Result<Summary> {
    let count = u32::try_from(list.len())
        .map_err(|_| Error::TooLarge { what: "objects in a pack", limit: u64::from(u32::MAX) })?;
    let out = gix::hash::io::Write::new(out, gix::hash::Kind::Sha1);
    let mut pack = PackWriter { out, at: 0, ofs_delta, deflated: Vec::new(), summary: Summary::default() };
    pack.put(&gix_pack::data::header::encode(gix_pack::data::Version::V2, count))?;
    if list.len() < MIN_TO_COPY {
        for id in list {
            pack.whole(objects, id)?;
        }
    } else {
        let packs = Packs::open(objects);
        pack.copy(objects, &packs, packs.locate(list))?;
    }
    pack.finish()
}

/// The store's packs, opened for copying.
struct Packs {
    open: Vec<OpenPack>,
}

struct OpenPack {
    index: gix_pack::index::File,
    data: gix_pack::data::File,
    /// Where entries begin, and where the last one ends.
    bounds: Vec<u64>,
}

/// An object to write and where it is: the pack's number and the offset in it. Sorted by that, bases come before their deltas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Located {
    /// `None`: not in any of the opened packs.
    place: Option<(u32, u64)>,
    id: Oid,
}

impl Packs {
    /// A pack that cannot be opened was merged into another one just now, and its objects are read in the ordinary way.
    fn open(objects: &Objects) -> Packs {
        let mut files = objects.packs();
        // The largest one first: it most likely has what is looked for.
        files.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        let open = |(path, _): &(std::path::PathBuf, u64)| {
            let index = gix_pack::index::File::at(path.with_extension("idx"), gix::hash::Kind::Sha1).ok()?;
            let data = gix_pack::data::File::at(path.with_extension("pack"), gix::hash::Kind::Sha1).ok()?;
            let mut bounds = index.sorted_offsets();
            bounds.push(data.pack_end() as u64);
            Some(OpenPack { index, data, bounds })
        };
        Packs { open: files.iter().filter_map(open).collect() }
    }

    fn locate(&self, list: Vec<Oid>) -> Vec<Located> {
        let mut located: Vec<_> = list.into_iter().map(|id| Located { place: self.place(id), id }).collect();
        located.sort_unstable();
        located
    }

    fn place(&self, id: Oid) -> Option<(u32, u64)> {
        (0u32..).zip(&self.open).find_map(|(number, pack)| {
            let at = pack.index.lookup(gix::ObjectId::from(id))?;
            Some((number, pack.index.pack_offset_at_index(at)))
        })
    }

    /// The entry at a place: its parsed header, and all its bytes.
    fn entry(&self, (number, offset): (u32, u64)) -> Option<(gix_pack::data::Entry, &[u8])> {
        let pack = self.open.get(number as usize)?;
        let at = pack.bounds.binary_search(&offset).ok()?;
        let bytes = pack.data.entry_slice(offset..*pack.bounds.get(at + 1)?)?;
        Some((pack.data.entry(offset).ok()?, bytes))
    }
}

struct PackWriter<'a> {
    out: gix::hash::io::Write<&'a mut dyn Write>,
    /// Bytes written.
    at: u64,
    ofs_delta: bool,
    /// Reused from object to object.
    deflated: Vec<u8>,
    summary: Summary,
}

impl PackWriter<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.at += bytes.len() as u64;
        self.out.write_all(bytes).map_err(writing)
    }

    fn put_header(&mut self, header: &Header, size: u64) -> Result<()> {
        let written = header.write_to(size, &mut self.out).map_err(writing)?;
        self.at += written as u64;
        Ok(())
    }

    fn copy(&mut self, objects: &Objects, packs: &Packs, list: Vec<Located>) -> Result<()> {
        let mut written_at = Vec::with_capacity(list.len());
        for item in &list {
            let begin = self.at;
            if !self.copy_one(packs, item, &list, &written_at)? {
                self.whole(objects, item.id)?;
            }
            written_at.push(begin);
        }
        Ok(())
    }

    /// Copies an entry if it can stand in the new pack.
    fn copy_one(&mut self, packs: &Packs, item: &Located, list: &[Located], written_at: &[u64]) -> Result<bool> {
        let Some(place) = item.place else { return Ok(false) };
        let Some((entry, bytes)) = packs.entry(place) else { return Ok(false) };
        let header = match entry.header {
            Header::OfsDelta { base_distance } => {
                let Some(base) = Header::verified_base_pack_offset(place.1, base_distance) else { return Ok(false) };
                let Ok(at) = list.binary_search_by_key(&Some((place.0, base)), |other| other.place) else {
                    return Ok(false);
                };
                if self.ofs_delta {
                    Header::OfsDelta { base_distance: self.at - written_at[at] }
                } else {
                    Header::RefDelta { base_id: list[at].id.into() }
                }
            }
            // Packs that we make or complete have none of these.
            Header::RefDelta { .. } => return Ok(false),
            whole => whole,
        };
        let Some(compressed) = bytes.get(entry.header_size()..) else { return Ok(false) };
        self.put_header(&header, entry.decompressed_size)?;
        self.put(compressed)?;
        self.summary.objects += 1;
        self.summary.copied += 1;
        self.summary.deltas += u64::from(header.is_delta());
        Ok(true)
    }

    /// An object that stands for itself.
    fn whole(&mut self, objects: &Objects, id: Oid) -> Result<()> {
        let object = objects.whole(id)?;
        let header = match object.kind {
            ObjectKind::Commit => Header::Commit,
            ObjectKind::Tree => Header::Tree,
            ObjectKind::Blob => Header::Blob,
            ObjectKind::Tag => Header::Tag,
        };
        let mut deflated = std::mem::take(&mut self.deflated);
        deflated.clear();
        let mut encoder = ZlibEncoder::new(deflated, Compression::fast());
        let deflated = encoder.write_all(&object.data).and_then(|()| encoder.finish()).map_err(compressing)?;
        self.put_header(&header, object.data.len() as u64)?;
        self.put(&deflated)?;
        self.deflated = deflated;
        self.summary.objects += 1;
        Ok(())
    }

    fn finish(self) -> Result<Summary> {
        let checksum = self.out.hash.try_finalize().map_err(Error::store)?;
        self.out.inner.write_all(checksum.as_slice()).map_err(writing)?;
        Ok(self.summary)
    }
}

fn compressing(source: io::Error) -> Error {
    Error::Io { attempt: "compressing an object", source }
}
