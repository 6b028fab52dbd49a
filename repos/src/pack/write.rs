//! Writing packs.

use std::io::{self, Write};

use flate2::{Compress, Compression, Crc, FlushCompress, Status};

use crate::Oid;
use crate::oid::PackId;
use crate::pack::{entry_header, kind_number, pack_header};
use crate::reader::ObjectKind;

/// Writes a pack to anything, one entry at a time.
pub(crate) struct PackWriter<W: Write> {
    out: W,
    hasher: gix::hash::Hasher,
    compress: Compress,
    scratch: Vec<u8>,
    offset: u64,
}

impl<W: Write> PackWriter<W> {
    /// Begins a pack of exactly `objects` entries. Entries are compressed for speed: most of what is written here is
    /// trees, whose ids do not compress, and small files.
    pub(crate) fn new(out: W, objects: u32) -> io::Result<Self> {
        let mut writer = PackWriter {
            out,
            hasher: gix::hash::hasher(gix::hash::Kind::Sha1),
            compress: Compress::new(Compression::fast(), true),
            scratch: Vec::new(),
            offset: 0,
        };
        writer.put(&pack_header(objects))?;
        Ok(writer)
    }

    /// Where the next entry will begin.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Adds a whole object; answers the CRC-32 of its entry.
    pub(crate) fn object(&mut self, kind: ObjectKind, data: &[u8]) -> io::Result<u32> {
        let mut entry = std::mem::take(&mut self.scratch);
        entry.clear();
        entry_header(kind_number(kind), data.len() as u64, &mut entry);
        deflate(&mut self.compress, data, &mut entry)?;
        let result = self.entry(&entry);
        self.scratch = entry;
        result
    }

    /// Adds an entry that is complete already; answers its CRC-32.
    pub(crate) fn entry(&mut self, entry: &[u8]) -> io::Result<u32> {
        let mut crc = Crc::new();
        crc.update(entry);
        self.put(entry)?;
        Ok(crc.sum())
    }

    /// Ends the pack with its checksum, which names it.
    pub(crate) fn finish(mut self) -> io::Result<(PackId, W)> {
        let checksum = self.hasher.try_finalize().map_err(|err| io::Error::other(err.to_string()))?;
        self.out.write_all(checksum.as_slice())?;
        self.out.flush()?;
        Ok((PackId(Oid::from(checksum)), self.out))
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.offset += bytes.len() as u64;
        self.out.write_all(bytes)
    }
}

/// Appends `data` as a zlib stream to `out`.
pub(crate) fn deflate(compress: &mut Compress, data: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    compress.reset();
    loop {
        let consumed = compress.total_in() as usize;
        // zlib's bound on growth for what is left, so that one round nearly always suffices.
        out.reserve((data.len() - consumed) + (data.len() - consumed) / 1000 + 64);
        match compress.compress_vec(&data[consumed..], out, FlushCompress::Finish).map_err(io::Error::other)? {
            Status::StreamEnd => return Ok(()),
            Status::Ok | Status::BufError => {}
        }
    }
}
