//! The table on disk, the picture in memory, and what is durable.
//!
//! Every batch of entries is one redb transaction that is visible at once and durable later. A checkpoint syncs the stores and uploads that
//! were touched, writes git's refs, and commits durably; only then may the log lose what it covers. After a crash redb is back at the last
//! checkpoint, the log brings the rest again, and applying that again gives the same state. The database itself is exchanged for a fresh one
//! where it cannot be trusted any more ([`super::home`]).

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use redb::{Database, Durability, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use repos::{RefMap, Store};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::brief::{self, Unpacked};
use super::hashes::Hashes;
use super::home::{self, Home};
use super::keys;
use super::model::{MemberRecord, RepoRecord, RevisionRecord, TargetRecord, TokenRecord, UserRecord};
use super::names::{NodeName, RepoName};
use super::view::{RepoView, View};
use super::{NodeRecord, NodeTokenRecord, ReportRecord};
use crate::outside::{self, Outside};
use crate::raft::command::UploadId;
use crate::raft::{Entry, LogId};
#[cfg(test)]
use crate::sim::mutants::{self, Mutant};
use crate::watch::{Hub, TargetEvent};

/// The replicated table. One table, so that the hash, snapshots and installs treat all kinds alike.
pub(super) const TABLE: TableDefinition<'static, &'static [u8], &'static [u8]> = TableDefinition::new("state");
/// What is this node's own and is neither hashed nor in snapshots.
const LOCAL: TableDefinition<'static, &'static str, u64> = TableDefinition::new("local");
/// The version of the state's format.
pub(super) const FORMAT: u32 = 1;
/// What this node alone can fail at. It stops the node.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A file could not be read or written.
    #[error("could not {action} {}: {source}", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The database failed.
    #[error("the state database failed: {0}")]
    Db(#[source] Box<redb::Error>),
    /// A repository failed.
    #[error("repository {repo}: {source}")]
    Repo {
        /// The repository.
        repo: RepoName,
        /// Why.
        source: repos::Error,
    },
    /// The state was written by another version.
    #[error("{} has format {version}, this build knows {FORMAT}: it was written by a newer ecconfigd, run that", path.display())]
    Format {
        /// The database's file.
        path: PathBuf,
        /// The version found.
        version: u32,
    },
    /// A log entry cannot be applied by this build.
    #[error(transparent)]
    Command(#[from] crate::raft::CommandError),
    /// A record does not decode.
    #[error("the state is damaged at key {key:?}: {reason}")]
    Damaged {
        /// The key.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// The database's file is not what was written.
    #[error("{} is damaged: {reason}", path.display())]
    Database {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A sync failed earlier; nobody knows what is on the disk.
    #[error("an earlier failure of this node's disk stopped it: {0}")]
    Poisoned(String),
}

impl<E: Into<redb::Error>> From<E> for StateError {
    fn from(error: E) -> Self {
        StateError::Db(Box::new(error.into()))
    }
}

impl StateError {
    /// Whether the data is bad, and not the disk or this build.
    pub(crate) fn is_damage(&self) -> bool {
        matches!(self, StateError::Database { .. } | StateError::Damaged { .. })
            || matches!(self, StateError::Db(error) if matches!(**error, redb::Error::Corrupted(_)))
    }
}

/// The replicated state on this node.
pub struct State {
    pub(super) db: ArcSwap<Database>,
    pub(super) home: Arc<dyn Home>,
    /// The next snapshot goes into a fresh database.
    pub(super) renew: AtomicBool,
    pub(super) hashes: Hashes,
    /// Repositories that lost a pack when they were opened, because it was damaged.
    pub(super) suspects: Mutex<BTreeSet<RepoName>>,
    /// The data directory.
    pub(super) data: PathBuf,
    pub(super) view: ArcSwap<View>,
    pub(super) hub: Arc<Hub>,
    pub(super) outside: Arc<dyn Outside>,
    /// Held while entries are applied and while a checkpoint is cut.
    pub(super) apply: Mutex<Pending>,
    /// How much of that is durable. Behind a lock of its own, which nobody keeps: whoever asks must not wait for a batch or a sync.
    pub(super) progress: Mutex<Progress>,
    /// See [`State::alone`].
    checkpoint: Mutex<()>,
    /// Entries applied since the start and the nanoseconds that took.
    applied: (AtomicU64, AtomicU64),
}

/// What was applied and is not durable.
#[derive(Default)]
pub(super) struct Pending {
    /// Repositories with packs that are not synced.
    pub(super) packs: BTreeSet<RepoName>,
    /// Repositories whose refs are not projected.
    pub(super) refs: BTreeSet<RepoName>,
    /// Uploads with chunks that are not synced.
    pub(super) uploads: BTreeSet<UploadId>,
    /// Files of uploads that are over. They are needed again if this node crashes before the next checkpoint.
    pub(super) finished_uploads: Vec<PathBuf>,
    /// Why nothing more may be written.
    pub(super) poisoned: Option<String>,
}

/// How far the disk is.
#[derive(Default, Clone, Copy)]
pub(super) struct Progress {
    /// What the last checkpoint covers.
    pub(super) durable: Option<LogId>,
    /// Entries since.
    pub(super) entries: u64,
}

pub(super) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_allocvec(value).expect("plain records always encode")
}

pub(super) fn decode<T: DeserializeOwned>(key: &[u8], bytes: &[u8]) -> Result<T, StateError> {
    postcard::from_bytes(bytes).map_err(|e| damaged(key, e))
}

pub(super) fn damaged(key: &[u8], reason: impl std::fmt::Display) -> StateError {
    StateError::Damaged { key: key.escape_ascii().to_string(), reason: reason.to_string() }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for State {
    /// redb makes everything durable when it is closed, so the objects that it speaks of have to be on the disk before. If they cannot be, it is
    /// left as a kill would leave it, and the log brings the rest again.
    fn drop(&mut self) {
        if !self.outside.is_up() {
            return;
        }
        if let Err(error) = self.sync_stores() {
            tracing::error!("{error}; the next start reads more of the log");
            std::mem::forget(self.db.load_full());
        }
    }
}

/// Directories that nobody else looks into; the log's is laid out by the log, inside.
const PRIVATE: [&str; 3] = ["raft", "repos", "uploads"];

fn private(dir: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))
}

impl State {
    /// Opens (or makes) the state in a data directory.
    pub fn open(data: &Path, max_watchers: usize) -> Result<Arc<State>, StateError> {
        std::fs::create_dir_all(data).map_err(|source| StateError::Io {
            action: "create",
            path: data.to_owned(),
            source,
        })?;
        // The data directory is open to everybody for the CA; what follows holds password hashes and all of the configuration.
        for dir in PRIVATE {
            private(&data.join(dir)).map_err(|source| StateError::Io {
                action: "make private",
                path: data.join(dir),
                source,
            })?;
        }
        let home = Arc::new(home::FileHome { data: data.to_owned() });
        home::open(home, data, max_watchers, outside::Machine::shared())
    }

    /// The same with a database that is open already, and with other clocks and threads than this machine's.
    pub(super) fn open_on(
        db: Database,
        home: Arc<dyn Home>,
        data: &Path,
        max_watchers: usize,
        outside: Arc<dyn Outside>,
    ) -> Result<Arc<State>, StateError> {
        for dir in ["repos", "uploads"] {
            let path = data.join(dir);
            std::fs::create_dir_all(&path).map_err(|source| StateError::Io { action: "create", path, source })?;
        }
        prepare(&db, data)?;
        let suspects = set_bad_packs_aside(data)?;
        let view = load_view(&db, data, &outside)?;
        let hub = Hub::new(max_watchers);
        hub.restore(&view);
        let progress = Progress { durable: view.applied, entries: 0 };
        let hashes = Hashes::default();
        hashes.restart(view.applied.map(|id| (id.index, view.hash)));
        let state = State {
            db: ArcSwap::from_pointee(db),
            home,
            renew: AtomicBool::new(false),
            hashes,
            suspects: Mutex::new(suspects),
            data: data.to_owned(),
            view: ArcSwap::from_pointee(view),
            hub,
            outside,
            apply: Mutex::default(),
            progress: Mutex::new(progress),
            checkpoint: Mutex::new(()),
            applied: Default::default(),
        };
        state.remove_stale_uploads()?;
        Ok(Arc::new(state))
    }

    /// The picture.
    pub fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// Who waits for changes.
    pub fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// Clocks, randomness and threads.
    pub(crate) fn outside(&self) -> &dyn Outside {
        self.outside.as_ref()
    }

    /// Entries applied since the start, and how long that took.
    pub fn apply_figures(&self) -> (u64, Duration) {
        let (entries, ns) = &self.applied;
        (entries.load(Ordering::Relaxed), Duration::from_nanos(ns.load(Ordering::Relaxed)))
    }

    /// What the last checkpoint covers, and how many entries came since. Waits for nothing.
    pub fn durable(&self) -> (Option<LogId>, u64) {
        let progress = *locked(&self.progress);
        (progress.durable, progress.entries)
    }

    /// Opens (or makes) the objects of a repository that may not exist in the state yet.
    pub(crate) fn make_store(&self, repo: &RepoName) -> Result<Store, StateError> {
        open_store(&self.data, repo)
    }

    pub(super) fn upload_path(&self, id: UploadId) -> PathBuf {
        self.data.join("uploads").join(format!("{id}.pack"))
    }

    /// What has come of an upload so far, to be read.
    pub(crate) fn open_upload(&self, id: UploadId) -> Result<std::fs::File, StateError> {
        let path = self.upload_path(id);
        std::fs::File::open(&path).map_err(|source| StateError::Io { action: "open", path, source })
    }

    /// Nothing is applied while this is held.
    #[cfg(test)]
    pub(crate) fn hold(&self) -> impl Sized + use<'_> {
        locked(&self.apply)
    }

    /// Applies entries in order, in one transaction, and shows them to readers and watchers. Blocks.
    pub fn apply(&self, entries: &[Entry]) -> Result<Vec<crate::raft::Applied>, StateError> {
        let pending = locked(&self.apply);
        self.apply_under(pending, Instant::now(), entries, &Unpacked::default())
    }

    /// The same where nothing may block: unless it would have to wait for somebody first (a checkpoint holds it up for as long as its last sync
    /// takes), or touch files, or take long.
    pub(crate) fn try_apply(&self, entries: &[Entry]) -> Option<Result<Vec<crate::raft::Applied>, StateError>> {
        let pending = match self.apply.try_lock() {
            Ok(pending) => pending,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        let begin = Instant::now();
        let unpacked = brief::unpack(&self.view.load(), &self.hub, entries)?;
        Some(self.apply_under(pending, begin, entries, &unpacked))
    }

    fn apply_under(
        &self,
        mut pending: MutexGuard<'_, Pending>,
        begin: Instant,
        entries: &[Entry],
        unpacked: &Unpacked,
    ) -> Result<Vec<crate::raft::Applied>, StateError> {
        refuse_poisoned(&pending)?;
        let mut answers = Vec::with_capacity(entries.len());
        // In one go, but for entries behind which the whole table is to be hashed.
        while answers.len() < entries.len() {
            self.apply_some(&mut pending, &entries[answers.len()..], unpacked, &mut answers)?;
        }
        let took = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.applied.0.fetch_add(entries.len() as u64, Ordering::Relaxed);
        self.applied.1.fetch_add(took, Ordering::Relaxed);
        Ok(answers)
    }

    fn apply_some(
        &self,
        pending: &mut Pending,
        entries: &[Entry],
        unpacked: &Unpacked,
        answers: &mut Vec<crate::raft::Applied>,
    ) -> Result<(), StateError> {
        let db = self.db.load();
        let mut write = db.begin_write()?;
        write.set_durability(Durability::None)?;
        let (answered, view, effects) = super::apply::apply(self, &write, pending, entries, unpacked)?;
        write.commit()?;
        locked(&self.progress).entries += answered.len() as u64;
        let index = view.applied_index();
        self.view.store(Arc::new(view));
        self.hashes.note(effects.hashes.iter().copied());
        if effects.digest {
            self.hashes.digest_later(index, db.begin_read()?);
        }
        // Still under the lock: watchers get events in the order of the log.
        self.hub.publish(effects);
        answers.extend(answered);
        Ok(())
    }

    /// The next snapshot that is installed goes into a fresh database, and the present one is set aside.
    pub(crate) fn renew_with_next_snapshot(&self, renew: bool) {
        self.renew.store(renew, Ordering::SeqCst);
    }

    /// Whether that snapshot has not come yet.
    pub(crate) fn waits_for_renewal(&self) -> bool {
        self.renew.load(Ordering::SeqCst)
    }

    /// Repositories that lost a pack when they were opened, because it was damaged. What the log brings again may be all that they lack.
    pub(crate) fn suspects(&self) -> BTreeSet<RepoName> {
        locked(&self.suspects).clone()
    }

    /// A suspect was looked at, and is whole.
    pub(crate) fn is_whole(&self, repo: &RepoName) {
        locked(&self.suspects).remove(repo);
    }

    /// Compares the database's file with its checksums, while it is in use. Blocks; entries are applied meanwhile.
    pub(crate) fn check_database(&self) -> Result<(), StateError> {
        let _no_checkpoint = self.alone();
        let before = self.durable().0;
        match self.home.check() {
            Err(error) if error.is_damage() => {}
            other => return other,
        }
        // Once more, because a snapshot may have been installed while it was read, which is waited for here.
        let again = self.home.check();
        if self.durable().0 == before { again } else { Ok(()) }
    }

    /// A new directory for bad data.
    pub(crate) fn aside(&self, what: &str) -> Result<PathBuf, StateError> {
        let failed = |source| StateError::Io { action: "set data aside in", path: self.data.clone(), source };
        super::aside::place(&self.data, what).map_err(failed)
    }

    /// Makes everything applied so far durable, and answers a transaction that reads exactly that. Blocks, applying mostly goes on meanwhile.
    pub fn checkpoint(&self) -> Result<(Option<LogId>, ReadTransaction), StateError> {
        let alone = self.alone();
        self.checkpoint_alone(&alone)
    }

    /// Keeps other checkpoints away: two at once would steal each other's list of what to sync, and the second would remove files that a
    /// snapshot of the first still reads.
    pub(super) fn alone(&self) -> MutexGuard<'_, ()> {
        locked(&self.checkpoint)
    }

    pub(super) fn checkpoint_alone(
        &self,
        _alone: &MutexGuard<'_, ()>,
    ) -> Result<(Option<LogId>, ReadTransaction), StateError> {
        // Most of the work, while entries are applied. What comes in between is left to the second round.
        let work = self.take_work();
        let first = self.sync_work(&work);
        let mut pending = locked(&self.apply);
        refuse_poisoned(&pending)?;
        let rest = take(&mut pending);
        if let Err(error) = first.and_then(|()| self.sync_work(&rest)).and_then(|()| self.commit_durably()) {
            pending.poisoned = Some(error.to_string());
            return Err(error);
        }
        let durable = self.view.load().applied;
        self.all_durable(durable);
        let read = self.db.load().begin_read()?;
        drop(pending);
        for path in work.finished_uploads.into_iter().chain(rest.finished_uploads) {
            remove_if_there(&path)?;
        }
        Ok((durable, read))
    }

    /// Called while nothing is applied.
    pub(super) fn all_durable(&self, upto: Option<LogId>) {
        *locked(&self.progress) = Progress { durable: upto, entries: 0 };
    }

    fn take_work(&self) -> Pending {
        take(&mut locked(&self.apply))
    }

    /// Syncs packs and uploads and writes git's refs.
    pub(super) fn sync_work(&self, work: &Pending) -> Result<(), StateError> {
        let view = self.view();
        for name in &work.packs {
            if let Some(repo) = view.repos.get(name) {
                repo.store.sync().map_err(|source| StateError::Repo { repo: name.clone(), source })?;
            }
        }
        for id in &work.uploads {
            let path = self.upload_path(*id);
            match std::fs::File::open(&path).and_then(|file| file.sync_data()) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                other => other.map_err(|source| StateError::Io { action: "sync", path, source })?,
            }
        }
        for name in &work.refs {
            if let Some(repo) = view.repos.get(name) {
                let projected = repo.store.project_refs(&repo.refs, &repo.record.head_ref);
                projected.map_err(|source| StateError::Repo { repo: name.clone(), source })?;
            }
        }
        Ok(())
    }

    /// Syncs the packs of all repositories, and waits for whoever does so already.
    pub(super) fn sync_stores(&self) -> Result<(), StateError> {
        for (name, repo) in self.view().repos.iter() {
            repo.store.sync().map_err(|source| StateError::Repo { repo: name.clone(), source })?;
        }
        Ok(())
    }

    fn commit_durably(&self) -> Result<(), StateError> {
        let mut write = self.db.load().begin_write()?;
        write.set_durability(Durability::Immediate)?;
        // Recovery after a crash then needs no walk through the whole file.
        write.set_quick_repair(true);
        {
            let mut local = write.open_table(LOCAL)?;
            let count = local.get("checkpoints")?.map_or(0, |count| count.value());
            local.insert("checkpoints", count + 1)?;
        }
        write.commit()?;
        Ok(())
    }

    fn remove_stale_uploads(&self) -> Result<(), StateError> {
        self.stale_uploads()?.iter().try_for_each(|path| remove_if_there(path))
    }

    /// Files of uploads that the state does not know belong to entries that will be applied again, or to none.
    pub(super) fn stale_uploads(&self) -> Result<Vec<PathBuf>, StateError> {
        let dir = self.data.join("uploads");
        let io = |source| StateError::Io { action: "list", path: dir.clone(), source };
        let known: BTreeSet<String> = self.upload_ids()?.into_iter().map(|(id, _)| format!("{id}.pack")).collect();
        let files = std::fs::read_dir(&dir).map_err(io)?.collect::<Result<Vec<_>, _>>().map_err(io)?;
        let stale = files.into_iter().filter(|file| !known.contains(file.file_name().to_string_lossy().as_ref()));
        Ok(stale.map(|file| file.path()).collect())
    }

    // ── reads that are not in the picture ───────────────────────────────────────────────────────────────────────────────────────

    fn get<T: DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>, StateError> {
        let table = self.db.load().begin_read()?.open_table(TABLE)?;
        table.get(key)?.map(|value| decode(key, value.value())).transpose()
    }

    fn scan<T: DeserializeOwned>(&self, prefix: &[u8]) -> Result<Vec<T>, StateError> {
        let table = self.db.load().begin_read()?.open_table(TABLE)?;
        scan_table(&table, prefix, |key, value| decode(key, value))
    }

    pub(super) fn upload_ids(&self) -> Result<Vec<(UploadId, super::apply::Upload)>, StateError> {
        let table = self.db.load().begin_read()?.open_table(TABLE)?;
        scan_table(&table, keys::UPLOADS, |key, value| {
            let id = key[keys::UPLOADS.len()..].try_into().map_err(|_| damaged(key, "not an upload id"))?;
            Ok((UploadId(id), decode(key, value)?))
        })
    }

    /// The highest number that a member has or ever had; 0 where nobody has one.
    pub(crate) fn raft_ids_given(&self) -> Result<u64, StateError> {
        Ok(self.get(keys::RAFT_IDS)?.unwrap_or(0))
    }

    /// What has come of an upload.
    pub(crate) fn upload_bytes(&self, id: UploadId) -> Result<u64, StateError> {
        Ok(self.get::<super::apply::Upload>(&keys::upload(id))?.map_or(0, |upload| upload.bytes))
    }

    /// One revision.
    pub fn revision(&self, repo: &RepoName, number: u64) -> Result<Option<RevisionRecord>, StateError> {
        self.get(&keys::revision(repo, number))
    }

    /// The revisions `from..=to` that exist.
    pub fn revisions(&self, repo: &RepoName, from: u64, to: u64) -> Result<Vec<RevisionRecord>, StateError> {
        let table = self.db.load().begin_read()?.open_table(TABLE)?;
        let (start, end) = (keys::revision(repo, from), keys::revision(repo, to));
        let mut found = Vec::new();
        for item in table.range(start.as_slice()..=end.as_slice())? {
            let (key, value) = item?;
            found.push(decode(key.value(), value.value())?);
        }
        Ok(found)
    }

    /// The revision at which `main` stood at a commit.
    pub fn revision_of(&self, repo: &RepoName, commit: repos::Oid) -> Result<Option<u64>, StateError> {
        self.get(&keys::commit(repo, commit))
    }

    /// What was answered under an idempotency key.
    pub fn idempotent(&self, user: &str, key: &str) -> Result<Option<super::apply::Remembered>, StateError> {
        self.get(&keys::idempotency(user, key))
    }

    /// An account.
    pub fn user(&self, name: &str) -> Result<Option<UserRecord>, StateError> {
        self.get(&keys::user(name))
    }

    /// All accounts.
    pub fn users(&self) -> Result<Vec<UserRecord>, StateError> {
        self.scan(keys::USERS)
    }

    /// A token.
    pub fn token(&self, id: &str) -> Result<Option<TokenRecord>, StateError> {
        self.get(&keys::token(id))
    }

    /// All tokens.
    pub fn tokens(&self) -> Result<Vec<TokenRecord>, StateError> {
        self.scan(keys::TOKENS)
    }

    /// A one-time token.
    pub fn node_token(&self, id: &str) -> Result<Option<NodeTokenRecord>, StateError> {
        self.get(&keys::node_token(id))
    }

    /// The newest report of each program on a node.
    pub fn reports(&self, node: &NodeName) -> Result<Vec<ReportRecord>, StateError> {
        self.scan(&keys::reports(node))
    }

    /// The whole table, for tests and snapshots.
    #[cfg(test)]
    pub(crate) fn dump(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let table = self.db.load().begin_read().unwrap().open_table(TABLE).unwrap();
        table.iter().unwrap().map(|item| item.unwrap()).map(|(k, v)| (k.value().to_vec(), v.value().to_vec())).collect()
    }
}

fn refuse_poisoned(pending: &Pending) -> Result<(), StateError> {
    match &pending.poisoned {
        Some(why) => Err(StateError::Poisoned(why.clone())),
        None => Ok(()),
    }
}

/// Takes what is to be synced and leaves the rest.
fn take(pending: &mut Pending) -> Pending {
    Pending {
        packs: std::mem::take(&mut pending.packs),
        refs: std::mem::take(&mut pending.refs),
        uploads: std::mem::take(&mut pending.uploads),
        finished_uploads: std::mem::take(&mut pending.finished_uploads),
        ..Pending::default()
    }
}

fn remove_if_there(path: &Path) -> Result<(), StateError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(StateError::Io { action: "remove", path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

pub(super) fn scan_table<T>(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
    prefix: &[u8],
    mut read: impl FnMut(&[u8], &[u8]) -> Result<T, StateError>,
) -> Result<Vec<T>, StateError> {
    let range = keys::prefix(prefix);
    let mut found = Vec::new();
    for item in table.range(range.start.as_slice()..range.end.as_slice())? {
        let (key, value) = item?;
        found.push(read(key.value(), value.value())?);
    }
    Ok(found)
}

/// Makes the tables of a new database; refuses one of another format.
pub(super) fn prepare(db: &Database, data: &Path) -> Result<(), StateError> {
    let write: WriteTransaction = db.begin_write()?;
    {
        write.open_table(LOCAL)?;
        let mut table = write.open_table(TABLE)?;
        let found = table.get(keys::FORMAT)?.map(|value| decode::<u32>(keys::FORMAT, value.value())).transpose()?;
        match found {
            Some(FORMAT) => {}
            Some(version) => return Err(StateError::Format { path: data.join(home::FILE), version }),
            None => {
                table.insert(keys::FORMAT, encode(&FORMAT).as_slice())?;
            }
        }
    }
    write.commit()?;
    Ok(())
}

/// Opens (or makes) the objects of a repository.
pub(super) fn open_store(data: &Path, repo: &RepoName) -> Result<Store, StateError> {
    let path = data.join("repos").join(format!("{repo}.git"));
    Store::init(&path).map_err(|source| StateError::Repo { repo: repo.clone(), source })
}

/// Takes damaged packs out of all stores before anything maps them. Answers which stores had some.
fn set_bad_packs_aside(data: &Path) -> Result<BTreeSet<RepoName>, StateError> {
    let dir = data.join("repos");
    let io = |source| StateError::Io { action: "list", path: dir.clone(), source };
    let mut suspects = BTreeSet::new();
    for entry in std::fs::read_dir(&dir).map_err(io)? {
        let file_name = entry.map_err(io)?.file_name();
        let name = file_name.to_str().and_then(|name| name.strip_suffix(".git")?.parse::<RepoName>().ok());
        let Some(name) = name else { continue };
        let failed = |source| StateError::Repo { repo: name.clone(), source };
        let store = open_store(data, &name)?;
        #[cfg(test)]
        if mutants::is_on(Mutant::TrustsPacks) {
            continue;
        }
        let bad = store.check_packs(&mut |_| true).map_err(failed)?;
        if bad.is_empty() {
            continue;
        }
        for pack in &bad {
            tracing::error!(repo = %name, pack = %pack.path.display(), "a pack is set aside: {}", pack.reason);
        }
        let kept = super::aside::place(data, &format!("packs-{name}")).map_err(io)?;
        store.set_aside(&bad, &kept).map_err(failed)?;
        suspects.insert(name);
    }
    Ok(suspects)
}

/// Builds the picture from the table.
pub(super) fn load_view(db: &Database, data: &Path, outside: &Arc<dyn Outside>) -> Result<View, StateError> {
    let table = db.begin_read()?.open_table(TABLE)?;
    let mut view = View::empty(outside.clone());
    let get = |key: &'static [u8]| table.get(key).map(|value| value.map(|value| value.value().to_vec()));
    if let Some(value) = get(keys::APPLIED)? {
        view.applied = decode(keys::APPLIED, &value)?;
    }
    if let Some(value) = get(keys::MEMBERS)? {
        view.membership = serde_json::from_slice(&value).map_err(|e| damaged(keys::MEMBERS, e))?;
    }
    if let Some(value) = get(keys::HASH)? {
        view.hash = value.as_slice().try_into().map_err(|_| damaged(keys::HASH, "not 32 bytes"))?;
    }
    if let Some(value) = get(keys::CLOCK)? {
        view.clock_ms = decode(keys::CLOCK, &value)?;
    }
    if let Some(value) = get(keys::CLUSTER)? {
        view.cluster = decode(keys::CLUSTER, &value)?;
    }
    if let Some(value) = get(keys::ACCOUNTS)? {
        view.accounts = decode(keys::ACCOUNTS, &value)?;
    }
    if let Some(value) = get(keys::PIN)? {
        view.pin = Some(decode(keys::PIN, &value)?);
    }
    view.repos = Arc::new(load_repos(&table, data)?);
    let nodes: Vec<NodeRecord> = scan_table(&table, keys::NODES, decode)?;
    view.nodes = Arc::new(nodes.into_iter().map(|node| (node.name.clone(), Arc::new(node))).collect());
    let members: Vec<MemberRecord> = scan_table(&table, keys::MEMBERS_WANTED, decode)?;
    view.members = Arc::new(members.into_iter().map(|member| (member.node.clone(), Arc::new(member))).collect());
    let targets: Vec<(RepoName, TargetRecord)> =
        scan_table(&table, keys::TARGETS, |key, value| Ok((repo_name(key, keys::TARGETS)?, decode(key, value)?)))?;
    let event = |(name, record)| {
        let event = TargetEvent::new(record, view.frozen(&name));
        (name, event)
    };
    view.targets = Arc::new(targets.into_iter().map(event).collect());
    Ok(view)
}

fn repo_name(key: &[u8], prefix: &[u8]) -> Result<RepoName, StateError> {
    let name = std::str::from_utf8(&key[prefix.len()..]).map_err(|e| damaged(key, e))?;
    name.parse().map_err(|e| damaged(key, e))
}

fn load_repos(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
    data: &Path,
) -> Result<std::collections::BTreeMap<RepoName, RepoView>, StateError> {
    let records: Vec<(RepoName, RepoRecord)> =
        scan_table(table, keys::REPOS, |key, value| Ok((repo_name(key, keys::REPOS)?, decode(key, value)?)))?;
    let mut found = std::collections::BTreeMap::new();
    for (name, record) in records {
        let prefix = [keys::REFS, name.as_str().as_bytes(), b"/"].concat();
        let refs: Vec<_> = scan_table(table, &prefix, |key, value| {
            let name = repos::RefName::try_from(&key[prefix.len()..]).map_err(|e| damaged(key, e))?;
            Ok((name, decode(key, value)?))
        })?;
        let refs: RefMap = refs.into_iter().collect();
        let store = open_store(data, &name)?;
        found.insert(name, RepoView { record: Arc::new(record), refs: Arc::new(refs), store });
    }
    Ok(found)
}
