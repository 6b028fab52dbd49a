//! A list of objects, as a pack, written as it is made.
//!
//! Only one object is in memory at a time. A long list is written by copying what the store's packs have, compressed as
//! it is, deltas too if their base is in the list; a list that is all of one pack, by sending that pack. A short
//! one is compressed here, which costs less than opening the packs. No new deltas are searched for: configuration files are small, and the search would cost more than
//! it saves. The module knows nothing of the protocol; a cache of whole packs would be asked before [`write`] is called.

use std::io::Write;

use gix_pack::data::entry::Header;

use super::objects::Objects;
use super::packet::writing;
use super::{Error, Result};
use crate::Oid;
use crate::pack::{OFS_DELTA, PackWriter, REF_DELTA, base_distance, crc_of, entry_header};

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
    if list.len() < MIN_TO_COPY {
        let mut copier = Copier::new(out, count, ofs_delta)?;
        for id in list {
            copier.whole(objects, id)?;
        }
        return copier.finish();
    }
    let packs = Packs::open(objects);
    let list = packs.locate(list);
    if let Some(pack) = packs.exactly(&list).filter(|_| ofs_delta) {
        // Its deltas are not counted: that would cost more than sending it.
        out.write_all(pack).map_err(writing)?;
        return Ok(Summary { objects: u64::from(count), deltas: 0, copied: u64::from(count) });
    }
    let mut copier = Copier::new(out, count, ofs_delta)?;
    copier.copy(objects, &packs, &list)?;
    copier.finish()
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

    /// The bytes of the pack that has what the list has and nothing else, if there is one. Most often it is the one that
    /// merging packs has made, and the list a clone's.
    fn exactly(&self, list: &[Located]) -> Option<&[u8]> {
        let (number, _) = list.first()?.place?;
        let pack = self.open.get(number as usize)?;
        let is_all = pack.index.num_objects() as usize == list.len();
        let is_only = || list.iter().all(|item| item.place.is_some_and(|(other, _)| other == number));
        // The checksum follows the entries.
        (is_all && is_only()).then(|| pack.data.entry_slice(0..pack.bounds.last()? + 20))?
    }

    fn place(&self, id: Oid) -> Option<(u32, u64)> {
        (0u32..).zip(&self.open).find_map(|(number, pack)| {
            let at = pack.index.lookup(gix::ObjectId::from(id))?;
            Some((number, pack.index.pack_offset_at_index(at)))
        })
    }

    /// The entry at a place: its parsed header, and all its bytes.
    fn entry(&self, (number, offset): (u32, u64), id: Oid) -> Option<(gix_pack::data::Entry, &[u8])> {
        let pack = self.open.get(number as usize)?;
        let at = pack.bounds.binary_search(&offset).ok()?;
        let bytes = pack.data.entry_slice(offset..*pack.bounds.get(at + 1)?)?;
        // A spoiled entry is not passed on: reading it in the ordinary way says what is wrong with it.
        let in_index = pack.index.lookup(gix::ObjectId::from(id))?;
        if pack.index.crc32_at_index(in_index).is_some_and(|crc32| crc32 != crc_of(bytes)) {
            return None;
        }
        Some((pack.data.entry(offset).ok()?, bytes))
    }
}

struct Copier<'a> {
    pack: PackWriter<&'a mut dyn Write>,
    ofs_delta: bool,
    /// The entry that is being copied, with its new header.
    entry: Vec<u8>,
    summary: Summary,
}

impl<'a> Copier<'a> {
    fn new(out: &'a mut dyn Write, count: u32, ofs_delta: bool) -> Result<Self> {
        let pack = PackWriter::new(out, count).map_err(writing)?;
        Ok(Copier { pack, ofs_delta, entry: Vec::new(), summary: Summary::default() })
    }

    fn finish(self) -> Result<Summary> {
        self.pack.finish().map_err(writing)?;
        Ok(self.summary)
    }

    fn copy(&mut self, objects: &Objects, packs: &Packs, list: &[Located]) -> Result<()> {
        let mut written_at = Vec::with_capacity(list.len());
        for item in list {
            written_at.push(self.pack.offset());
            if !self.copy_one(packs, item, list, &written_at)? {
                self.whole(objects, item.id)?;
            }
        }
        Ok(())
    }

    /// Copies an entry if it can stand in the new pack.
    fn copy_one(&mut self, packs: &Packs, item: &Located, list: &[Located], written_at: &[u64]) -> Result<bool> {
        let Some(place) = item.place else { return Ok(false) };
        let Some((found, bytes)) = packs.entry(place, item.id) else { return Ok(false) };
        let Some(compressed) = bytes.get(found.header_size()..) else { return Ok(false) };
        self.entry.clear();
        let base = match found.header {
            Header::OfsDelta { base_distance } => match Header::verified_base_pack_offset(place.1, base_distance) {
                Some(base) => Some((place.0, base)),
                None => return Ok(false),
            },
            Header::RefDelta { base_id } => match packs.place(base_id.into()) {
                Some(base) => Some(base),
                None => return Ok(false),
            },
            _ => None,
        };
        match base.map(|base| list.binary_search_by_key(&Some(base), |other| other.place)) {
            None => entry_header(found.header.as_type_id(), found.decompressed_size, &mut self.entry),
            Some(Err(_)) => return Ok(false),
            // A base that is yet to come can only be named.
            Some(Ok(base)) if !self.ofs_delta || base + 1 >= written_at.len() => {
                entry_header(REF_DELTA, found.decompressed_size, &mut self.entry);
                self.entry.extend_from_slice(list[base].id.as_bytes());
            }
            Some(Ok(base)) => {
                entry_header(OFS_DELTA, found.decompressed_size, &mut self.entry);
                base_distance(self.pack.offset() - written_at[base], &mut self.entry);
            }
        }
        self.summary.deltas += u64::from(base.is_some());
        self.entry.extend_from_slice(compressed);
        self.pack.entry(&self.entry).map_err(writing)?;
        self.summary.objects += 1;
        self.summary.copied += 1;
        Ok(true)
    }

    /// An object that stands for itself.
    fn whole(&mut self, objects: &Objects, id: Oid) -> Result<()> {
        let object = objects.whole(id)?;
        self.pack.object(object.kind, &object.data).map_err(writing)?;
        self.summary.objects += 1;
        Ok(())
    }
}
