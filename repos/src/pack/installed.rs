//! Whether a pack that is to be installed is there already, to the last byte.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use crate::Oid;
use crate::oid::PackId;
use crate::pack::TRAILER_BYTES;

/// Packs and indexes are never written again, and their mode says so.
pub(crate) fn create_pack_file(path: &Path) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().write(true).create(true).truncate(true).mode(0o444).open(path)
}

pub(crate) fn claimed_id(pack: &[u8]) -> Option<PackId> {
    let trailer = pack.len().checked_sub(TRAILER_BYTES)?;
    Oid::from_slice(&pack[trailer..]).map(PackId)
}

pub(crate) fn claimed_id_of_file(file: &File) -> std::io::Result<(PackId, u64)> {
    use std::os::unix::fs::FileExt;
    let bytes = file.metadata()?.len();
    let mut trailer = [0; TRAILER_BYTES];
    if let Some(start) = bytes.checked_sub(TRAILER_BYTES as u64) {
        file.read_exact_at(&mut trailer, start)?;
    }
    Ok((PackId(Oid::from_bytes(trailer)), bytes))
}

pub(crate) fn same_bytes(a: &mut dyn Read, b: &mut dyn Read) -> std::io::Result<bool> {
    let (mut left, mut right) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        let count = a.read(&mut left)?;
        if count == 0 {
            return Ok(b.read(&mut right)? == 0);
        }
        match b.read_exact(&mut right[..count]) {
            Ok(()) if left[..count] == right[..count] => {}
            Ok(()) => return Ok(false),
            Err(err) if err.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(err) => return Err(err),
        }
    }
}

pub(crate) fn index_is_sound(path: &Path, id: PackId) -> bool {
    let Ok(bytes) = fs::read(path) else { return false };
    let Some(body) = bytes.len().checked_sub(20) else { return false };
    let mut hasher = gix::hash::hasher(gix::hash::Kind::Sha1);
    hasher.update(&bytes[..body]);
    let names_pack = body >= 20 && bytes[body - 20..body] == *id.0.as_bytes();
    names_pack && hasher.try_finalize().is_ok_and(|checksum| checksum.as_slice() == &bytes[body..])
}
