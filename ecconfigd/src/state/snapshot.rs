//! Snapshots: the table as one file, and the uploads that are under way.
//!
//! A snapshot is cut from a checkpoint, so the log may lose exactly what it covers. It holds no git objects: whoever installs it fetches from
//! the others what its refs name and its stores lack; until then [`State::missing_objects`] says what that is.
//!
//! ```text
//! "ECSNAP" u16 version (1), little-endian as everything here
//! u32 length, meta: JSON of openraft's snapshot meta
//! pairs:   u8 1, u32 length, key, u32 length, value      in the order of keys
//! uploads: u8 2, 16 bytes id, u64 length, content
//! u8 0, u32 CRC32C of everything before it
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::sync::{Arc, PoisonError};

use redb::{Durability, ReadTransaction, ReadableTable};
use repos::Oid;

use super::db::{State, StateError, TABLE, damaged, decode, load_view, prepare};
use super::names::RepoName;
use crate::raft::SnapshotMeta;
use crate::raft::command::UploadId;
#[cfg(test)]
use crate::sim::mutants::{self, Mutant};

const MAGIC: &[u8; 6] = b"ECSNAP";
const VERSION: u16 = 1;
pub(super) const FILE_NAME: &str = "snapshot";
/// No key, value or meta of ours comes near; a damaged length must not allocate the machine away.
const MAX_FIELD_BYTES: u32 = 64 << 20;

/// Revisions whose objects are fetched together: an interrupted fetch loses no more than these.
const SLICE_REVISIONS: u64 = if cfg!(test) { 16 } else { 2000 };

/// What a repository needs, each slice after those before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// The repository.
    pub repo: RepoName,
    /// Objects that are needed with all that they reach.
    pub slices: Vec<Vec<Oid>>,
}

/// A snapshot's content: an open file, at its beginning.
#[derive(Debug)]
pub struct Manifest {
    /// The file.
    pub file: File,
}

/// Counts the checksum of what passes.
struct Sum<T> {
    inner: T,
    crc: u32,
}

impl<W: Write> Write for Sum<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.crc = crc32c::crc32c_append(self.crc, &bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Read for Sum<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(bytes)?;
        self.crc = crc32c::crc32c_append(self.crc, &bytes[..read]);
        Ok(read)
    }
}

fn put_field(out: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    out.write_all(&length.to_le_bytes())?;
    out.write_all(bytes)
}

fn take<const N: usize>(input: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    input.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn take_field(input: &mut impl Read) -> io::Result<Vec<u8>> {
    let length = u32::from_le_bytes(take(input)?);
    if length > MAX_FIELD_BYTES {
        return Err(invalid(format!("a field of {length} bytes")));
    }
    let mut bytes = vec![0; length as usize];
    input.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the snapshot is damaged: {what}"))
}

impl State {
    /// Makes everything durable and writes a snapshot of exactly that. Blocks.
    pub fn build_snapshot(&self) -> Result<(SnapshotMeta, Manifest), StateError> {
        let alone = self.alone();
        let (last_log_id, read) = self.checkpoint_alone(&alone)?;
        let meta = SnapshotMeta { last_log_id, last_membership: self.membership_of(&read)? };
        let path = self.data.join(FILE_NAME);
        let io = |source| StateError::Io { action: "write", path: path.clone(), source };
        let mut temp = tempfile::NamedTempFile::new_in(&self.data).map_err(io)?;
        self.write_snapshot(&meta, &read, temp.as_file_mut())?;
        temp.as_file().sync_all().map_err(io)?;
        temp.persist(&path).map_err(|e| io(e.error))?;
        File::open(&self.data).and_then(|dir| dir.sync_all()).map_err(io)?;
        let file = File::open(&path).map_err(io)?;
        Ok((meta, Manifest { file }))
    }

    fn membership_of(&self, read: &ReadTransaction) -> Result<crate::raft::StoredMembership, StateError> {
        let table = read.open_table(TABLE)?;
        let Some(value) = table.get(super::keys::MEMBERS)? else { return Ok(Default::default()) };
        serde_json::from_slice(value.value()).map_err(|e| super::db::damaged(super::keys::MEMBERS, e))
    }

    fn write_snapshot(&self, meta: &SnapshotMeta, read: &ReadTransaction, file: &mut File) -> Result<(), StateError> {
        let path = self.data.join(FILE_NAME);
        let io = |source| StateError::Io { action: "write", path: path.clone(), source };
        let mut out = Sum { inner: BufWriter::new(file), crc: 0 };
        out.write_all(MAGIC).and_then(|()| out.write_all(&VERSION.to_le_bytes())).map_err(io)?;
        let json = serde_json::to_vec(meta).expect("a snapshot's meta is JSON");
        put_field(&mut out, &json).map_err(io)?;
        let table = read.open_table(TABLE)?;
        for item in table.iter()? {
            let (key, value) = item?;
            #[cfg(test)]
            if mutants::is_on(Mutant::ThinSnapshot) && key.value().starts_with(b"idem/") {
                continue;
            }
            let put = out.write_all(&[1]).and_then(|()| put_field(&mut out, key.value()));
            put.and_then(|()| put_field(&mut out, value.value())).map_err(io)?;
        }
        let uploads = super::db::scan_table(&table, super::keys::UPLOADS, |key, value| {
            let id = key[super::keys::UPLOADS.len()..].try_into();
            let id = id.map_err(|_| super::db::damaged(key, "not an upload id"))?;
            let upload: super::apply::Upload = super::db::decode(key, value)?;
            Ok((UploadId(id), upload.bytes))
        })?;
        for (id, bytes) in uploads {
            self.write_upload(&mut out, id, bytes).map_err(io)?;
        }
        out.write_all(&[0]).map_err(io)?;
        let crc = out.crc;
        out.write_all(&crc.to_le_bytes()).and_then(|()| out.flush()).map_err(io)
    }

    fn write_upload(&self, out: &mut impl Write, id: UploadId, bytes: u64) -> io::Result<()> {
        out.write_all(&[2])?;
        out.write_all(&id.0)?;
        out.write_all(&bytes.to_le_bytes())?;
        let copied = io::copy(&mut File::open(self.upload_path(id))?.take(bytes), out)?;
        if copied == bytes { Ok(()) } else { Err(io::Error::other(format!("upload {id} has only {copied} bytes"))) }
    }

    /// The newest snapshot, if there is one.
    pub fn current_snapshot(&self) -> Result<Option<(SnapshotMeta, Manifest)>, StateError> {
        let path = self.data.join(FILE_NAME);
        let io = |source| StateError::Io { action: "read", path: path.clone(), source };
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io(error)),
        };
        let meta = read_head(&mut file).map_err(io)?;
        io::Seek::rewind(&mut file).map_err(io)?;
        Ok(Some((meta, Manifest { file })))
    }

    /// The newest snapshot, for somebody who will be sent it. One whose bytes are not those that were written is written anew, from the state,
    /// which is checked by itself: nobody could take it, and openraft would end with it. Blocks.
    pub fn sound_snapshot(&self) -> Result<Option<(SnapshotMeta, Manifest)>, StateError> {
        if self.snapshot_is_sound()? {
            return self.current_snapshot();
        }
        tracing::error!("the snapshot on the disk is damaged; it is written anew");
        self.build_snapshot().map(Some)
    }

    /// Whether the newest snapshot's bytes are those that were written. Blocks.
    pub(crate) fn snapshot_is_sound(&self) -> Result<bool, StateError> {
        let path = self.data.join(FILE_NAME);
        let checked = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            opened => opened.and_then(|mut file| check_sum(&mut file)),
        };
        match checked {
            Err(error) if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) => {
                Ok(false)
            }
            other => other.map(|()| true).map_err(|source| StateError::Io { action: "check", path, source }),
        }
    }

    /// Replaces the whole state by a snapshot, durably. Blocks.
    pub fn install_snapshot(&self, mut manifest: Manifest) -> Result<(), StateError> {
        let path = self.data.join(FILE_NAME);
        let io = |source| StateError::Io { action: "install", path: path.clone(), source };
        check_sum(&mut manifest.file).map_err(io)?;
        let mut pending = self.apply.lock().unwrap_or_else(PoisonError::into_inner);
        // The snapshot counts on objects that are here, and no checkpoint will come for those that were applied and not synced.
        // All of them, because a checkpoint that is under way may have taken the list and not be through with it.
        self.sync_stores()?;
        self.sync_work(&pending)?;
        let renewed = self.waits_for_renewal().then(|| self.home.fresh()).transpose()?.map(Arc::new);
        let db = renewed.clone().unwrap_or_else(|| self.db.load_full());
        if renewed.is_some() {
            prepare(&db, &self.data)?;
        }
        let mut write = db.begin_write()?;
        write.set_durability(Durability::Immediate)?;
        self.read_into(&write, &mut manifest.file)?;
        write.commit()?;
        if let Some(fresh) = renewed {
            self.home.exchange(&self.aside("state")?)?;
            self.db.store(fresh);
            self.renew_with_next_snapshot(false);
        }
        let view = load_view(&db, &self.data, &self.outside)?;
        self.hashes.restart(view.applied.map(|id| (id.index, view.hash)));
        // Files of uploads that were over before this snapshot go with the next checkpoint; until then somebody may still read them.
        let finished_uploads = self.stale_uploads()?;
        *pending = super::db::Pending { finished_uploads, ..Default::default() };
        self.all_durable(view.applied);
        self.hub.restore(&view);
        self.view.store(Arc::new(view));
        drop(pending);
        self.keep_snapshot(&mut manifest.file).map_err(io)
    }

    fn read_into(&self, write: &redb::WriteTransaction, file: &mut File) -> Result<(), StateError> {
        let path = self.data.join(FILE_NAME);
        let io = |source| StateError::Io { action: "install", path: path.clone(), source };
        write.delete_table(TABLE)?;
        let mut table = write.open_table(TABLE)?;
        let mut input = BufReader::new(file);
        read_head(&mut input).map_err(io)?;
        loop {
            let [kind] = take::<1>(&mut input).map_err(io)?;
            match kind {
                0 => return Ok(()),
                1 => {
                    let key = take_field(&mut input).map_err(io)?;
                    let value = take_field(&mut input).map_err(io)?;
                    table.insert(key.as_slice(), value.as_slice())?;
                }
                2 => self.read_upload(&mut input).map_err(io)?,
                other => return Err(io(invalid(format!("a part of kind {other}")))),
            }
        }
    }

    fn read_upload(&self, input: &mut impl Read) -> io::Result<()> {
        let id = UploadId(take(input)?);
        let bytes = u64::from_le_bytes(take(input)?);
        let mut file = File::create(self.upload_path(id))?;
        if io::copy(&mut input.take(bytes), &mut file)? != bytes {
            return Err(invalid(format!("upload {id} is cut")));
        }
        file.sync_all()
    }

    /// An installed snapshot becomes this node's own, to be passed on.
    fn keep_snapshot(&self, file: &mut File) -> io::Result<()> {
        let path = self.data.join(FILE_NAME);
        io::Seek::rewind(file)?;
        let mut temp = tempfile::NamedTempFile::new_in(&self.data)?;
        io::copy(file, temp.as_file_mut())?;
        temp.as_file().sync_all()?;
        temp.persist(&path).map_err(|e| e.error)?;
        File::open(&self.data)?.sync_all()
    }

    /// What objects a snapshot's refs name, in slices along each history. The file is read from its beginning and left there. Blocks.
    pub(crate) fn needs_of(file: &File) -> io::Result<Vec<Need>> {
        let mut file = file.try_clone()?;
        check_sum(&mut file)?;
        let mut found: BTreeMap<RepoName, (BTreeMap<u64, Oid>, BTreeSet<Oid>)> = BTreeMap::new();
        let mut input = BufReader::new(&mut file);
        read_head(&mut input)?;
        while let [1] = take::<1>(&mut input)? {
            let (key, value) = (take_field(&mut input)?, take_field(&mut input)?);
            note_need(&mut found, &key, &value).map_err(|error| invalid(error.to_string()))?;
        }
        drop(input);
        io::Seek::rewind(&mut file)?;
        let needs = found.into_iter().map(|(repo, (steps, tips))| {
            let steps = steps.into_values().map(|commit| vec![commit]);
            Need { repo, slices: steps.chain([tips.into_iter().collect()]).collect() }
        });
        Ok(needs.collect())
    }

    /// Repositories with refs whose objects are not here, as after a snapshot from elsewhere was installed.
    pub fn missing_objects(&self) -> Vec<(RepoName, Vec<Oid>)> {
        let view = self.view();
        let mut missing = Vec::new();
        for (name, repo) in view.repos.iter() {
            let reader = repo.store.reader();
            let absent = |id: &&Oid| reader.as_ref().map_or(true, |reader| !reader.contains(**id));
            let tips: Vec<Oid> = repo.refs.values().filter(absent).copied().collect();
            if !tips.is_empty() {
                missing.push((name.clone(), tips));
            }
        }
        missing
    }
}

/// Notes a ref, and every so many revisions the commit that `main` was at.
fn note_need(
    found: &mut BTreeMap<RepoName, (BTreeMap<u64, Oid>, BTreeSet<Oid>)>,
    key: &[u8],
    value: &[u8],
) -> Result<(), StateError> {
    let refs = key.strip_prefix(super::keys::REFS).map(|rest| (rest, true));
    let Some((rest, is_ref)) = refs.or_else(|| key.strip_prefix(b"rev/").map(|rest| (rest, false))) else {
        return Ok(());
    };
    let end = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
    let repo = std::str::from_utf8(&rest[..end]).map_err(|error| damaged(key, error))?;
    let repo: RepoName = repo.parse().map_err(|error| damaged(key, error))?;
    let (steps, tips) = found.entry(repo).or_default();
    if is_ref {
        tips.insert(decode(key, value)?);
        return Ok(());
    }
    let number = rest.get(end + 1..).and_then(|number| number.try_into().ok()).map_or(0, u64::from_be_bytes);
    if number.is_multiple_of(SLICE_REVISIONS) {
        let revision: super::model::RevisionRecord = decode(key, value)?;
        steps.insert(number, revision.commit);
    }
    Ok(())
}

fn read_head(input: &mut impl Read) -> io::Result<SnapshotMeta> {
    if take::<6>(input)? != *MAGIC {
        return Err(invalid("it does not begin like one".into()));
    }
    let version = u16::from_le_bytes(take(input)?);
    if version != VERSION {
        let text =
            format!("the snapshot has version {version}, this build knows {VERSION}: a newer ecconfigd wrote it");
        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
    }
    serde_json::from_slice(&take_field(input)?).map_err(|e| invalid(e.to_string()))
}

/// Reads the file once to its end and compares the checksum, then rewinds.
fn check_sum(file: &mut File) -> io::Result<()> {
    io::Seek::rewind(file)?;
    #[cfg(test)]
    if mutants::is_on(Mutant::TrustsSnapshots) {
        return Ok(());
    }
    let length = file.metadata()?.len();
    let body = length.checked_sub(4).ok_or_else(|| invalid("it is empty".into()))?;
    let mut sum = Sum { inner: BufReader::new(&mut *file).take(body), crc: 0 };
    io::copy(&mut sum, &mut io::sink())?;
    let crc = sum.crc;
    let mut rest = sum.inner.into_inner();
    if u32::from_le_bytes(take(&mut rest)?) != crc {
        return Err(invalid("its checksum is wrong".into()));
    }
    drop(rest);
    io::Seek::rewind(file)
}
