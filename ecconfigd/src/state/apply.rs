//! Applying log entries.
//!
//! What always holds: the outcome depends on the entry and the state before it, on nothing else; no clock, no randomness, no order of a hash
//! map. Failures that every replica shares become the operation's [`Outcome`]; failures of this node (its disk) end the batch with an error and
//! nothing of it is visible. Every write goes through [`Tables::put`] and [`Tables::remove`], which also feed the running hash.

mod subclusters;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use openraft::EntryPayload;
use redb::{ReadableTable, Table, WriteTransaction};
use repos::{Oid, RefName};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::brief::Unpacked;
use super::db::{Pending, State, StateError, TABLE, decode, encode, open_store, scan_table};
use super::keys;
use super::model::{CertificateRecord, Head, NodeRecord, RepoRecord, ReportRecord, RevisionRecord, TargetRecord};
use super::model::{MemberRecord, NodeTokenRecord, TokenRecord, UserRecord};
use super::names::{NodeName, RepoName};
use super::view::{RepoView, View};
use crate::raft::command::{ChangeSet, IdempotencyKey, Op, Outcome, PackSource, RepoUpdate, UploadId};
use crate::raft::{Applied, Entry, Proposal};
#[cfg(test)]
use crate::sim::mutants::{self, Mutant};
use crate::watch::{Event, TargetEvent};

/// Idempotency keys that are remembered; the oldest goes first. Part of the format: all replicas must forget alike.
pub const IDEMPOTENCY_KEYS: u64 = 10_000;
/// Uploads at a time, their size, and how long one may pause. Part of the format.
pub const MAX_UPLOADS: usize = 32;
/// The largest upload.
pub const MAX_UPLOAD_BYTES: u64 = 2 << 30;
const UPLOAD_PAUSE_MS: u64 = 10 * 60 * 1000;
/// Programs that may report per node. Part of the format.
const MAX_PROGRAMS: usize = 32;
/// Certificates that are kept per node. Part of the format.
const KEPT_CERTIFICATES: usize = 4;

/// A pack that is coming in chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upload {
    /// What has come so far.
    pub bytes: u64,
    /// The cluster clock of the newest chunk.
    pub clock_ms: u64,
}

/// An answer that is remembered under an idempotency key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// What the request was.
    pub fingerprint: [u8; 16],
    /// Where its repositories stood with it, and whether they moved.
    pub answer: BTreeMap<RepoName, (Head, bool)>,
}

/// What watchers are to be told.
#[derive(Default)]
pub struct Effects {
    /// New revisions in order.
    pub events: Vec<Arc<Event>>,
    /// New targets by subcluster.
    pub targets: BTreeMap<RepoName, Arc<TargetEvent>>,
    /// The running hash behind each entry.
    pub(super) hashes: Vec<(u64, super::Hash)>,
    /// Whether the whole table is to be hashed as it is now.
    pub(super) digest: bool,
}

/// The table with the running hash.
struct Tables<'t> {
    table: Table<'t, &'static [u8], &'static [u8]>,
    hash: Sha256,
}

impl Tables<'_> {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StateError> {
        self.note(1, key, value);
        self.table.insert(key, value)?;
        Ok(())
    }

    fn put_record<T: Serialize>(&mut self, key: &[u8], record: &T) -> Result<(), StateError> {
        self.put(key, &encode(record))
    }

    fn remove(&mut self, key: &[u8]) -> Result<bool, StateError> {
        self.note(0, key, &[]);
        Ok(self.table.remove(key)?.is_some())
    }

    fn note(&mut self, kind: u8, key: &[u8], value: &[u8]) {
        self.hash.update([kind]);
        self.hash.update((key.len() as u64).to_le_bytes());
        self.hash.update(key);
        self.hash.update((value.len() as u64).to_le_bytes());
        self.hash.update(value);
    }

    fn get<T: serde::de::DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>, StateError> {
        self.table.get(key)?.map(|value| decode(key, value.value())).transpose()
    }

    fn scan<T: serde::de::DeserializeOwned>(&self, prefix: &[u8]) -> Result<Vec<(Vec<u8>, T)>, StateError> {
        scan_table(&self.table, prefix, |key, value| Ok((key.to_vec(), decode(key, value)?)))
    }
}

/// Applies entries to the transaction, up to one behind which the table is to be hashed; answers per entry, the picture after them, and what
/// to tell watchers.
pub(super) fn apply(
    state: &State,
    write: &WriteTransaction,
    pending: &mut Pending,
    entries: &[Entry],
    unpacked: &Unpacked,
) -> Result<(Vec<Applied>, View, Effects), StateError> {
    let mut view = state.view().as_ref().clone();
    let mut effects = Effects::default();
    let mut answers = Vec::with_capacity(entries.len());
    let mut tables = Tables { table: write.open_table(TABLE)?, hash: Sha256::new() };
    for entry in entries {
        // Openraft applies in order and once; a replay over a later state would be a bug that must not corrupt it.
        if view.applied.is_some_and(|applied| entry.log_id.index <= applied.index) {
            answers.push(Applied::default());
            continue;
        }
        answers.push(apply_entry(state, &mut tables, &mut view, pending, &mut effects, entry, unpacked)?);
        effects.hashes.push((entry.log_id.index, view.hash));
        if effects.digest {
            break;
        }
    }
    view.at = super::view::instant(state.outside());
    Ok((answers, view, effects))
}

fn apply_entry(
    state: &State,
    tables: &mut Tables<'_>,
    view: &mut View,
    pending: &mut Pending,
    effects: &mut Effects,
    entry: &Entry,
    unpacked: &Unpacked,
) -> Result<Applied, StateError> {
    tables.hash = Sha256::new();
    tables.hash.update(view.hash);
    tables.hash.update(entry.log_id.index.to_le_bytes());
    tables.hash.update(entry.log_id.leader_id.term.to_le_bytes());
    let answer = match &entry.payload {
        EntryPayload::Blank => Applied::default(),
        EntryPayload::Membership(membership) => {
            view.membership = crate::raft::StoredMembership::new(Some(entry.log_id), membership.clone());
            let json = serde_json::to_vec(&view.membership).expect("a membership of names and numbers is JSON");
            tables.put(keys::MEMBERS, &json)?;
            Applied::default()
        }
        EntryPayload::Normal(command) => {
            let proposal = command.decode()?;
            let mut entry = Applying {
                state,
                index: entry.log_id.index,
                unpacked,
                tables,
                view,
                pending,
                effects,
                proposal: &proposal,
                moved: BTreeSet::new(),
                bad_packs: BTreeMap::new(),
            };
            entry.run()?
        }
    };
    view.applied = Some(entry.log_id);
    view.hash = tables.hash.clone().finalize().into();
    tables.table.insert(keys::HASH, view.hash.as_slice())?;
    tables.table.insert(keys::APPLIED, encode(&view.applied).as_slice())?;
    Ok(answer)
}

/// One proposal being applied.
struct Applying<'a, 't> {
    state: &'a State,
    index: u64,
    unpacked: &'a Unpacked,
    tables: &'a mut Tables<'t>,
    view: &'a mut View,
    pending: &'a mut Pending,
    effects: &'a mut Effects,
    proposal: &'a Proposal,
    /// Repositories whose `main` this entry moved.
    moved: BTreeSet<RepoName>,
    /// Repositories whose pack could not be taken, and why.
    bad_packs: BTreeMap<RepoName, String>,
}

impl Applying<'_, '_> {
    fn run(&mut self) -> Result<Applied, StateError> {
        if self.proposal.clock_ms > self.view.clock_ms {
            self.view.clock_ms = self.proposal.clock_ms;
            let clock = encode(&self.view.clock_ms);
            self.tables.put(keys::CLOCK, &clock)?;
        }
        let proposal = self.proposal;
        let mut outcomes = Vec::with_capacity(proposal.ops.len());
        for op in &proposal.ops {
            outcomes.push(self.op(op)?);
        }
        self.move_targets()?;
        Ok(Applied(outcomes))
    }

    fn op(&mut self, op: &Op) -> Result<Outcome, StateError> {
        match op {
            Op::Found { cluster } => self.found(cluster),
            Op::CreateRepo { repo, head_ref } => self.create_repo(repo, head_ref),
            Op::Pack { repo, source } => self.pack(repo, source),
            Op::Change(change) => self.change(change),
            Op::Chunk { upload, offset, attachment } => self.chunk(*upload, *offset, *attachment),
            Op::DropUpload { upload } => self.drop_upload(*upload),
            Op::PutUser(user) => self.put_user(user),
            Op::DeleteUser { name } => self.delete_user(name),
            Op::PutToken(token) => self.put_token(token),
            Op::DeleteToken { id } => self.delete_token(id),
            Op::PutNodeToken(token) => self.put_node_token(token),
            Op::RegisterNode { record, token } => self.register_node(record, token.as_deref()),
            Op::Certificate { node, certificate } => self.certificate(node, certificate),
            Op::Report(report) => self.report(report),
            Op::Tick => self.tick(),
            Op::Freeze { repo, frozen } => self.freeze(repo, *frozen),
            Op::CopyRepo { from, to } => self.copy_repo(from, to),
            Op::Pin { node } => self.pin(node),
            Op::Unpin { node } => self.unpin(node),
            Op::PutMember(member) => self.put_member(member.clone()),
            Op::Join { record, voter, key_sha256, token } => self.join(record, *voter, *key_sha256, token),
            Op::SetVoter { node, voter } => self.set_voter(node, *voter),
            Op::RemoveNode { node } => self.remove_node(node),
            Op::AllowReplace { node, token } => self.allow_replace(node, token),
            Op::Readdress { node, raft_id, address } => self.readdress(node, *raft_id, address),
        }
    }

    fn found(&mut self, cluster: &str) -> Result<Outcome, StateError> {
        if !self.view.cluster.is_empty() {
            return Ok(Outcome::Exists);
        }
        self.view.cluster = cluster.to_owned();
        self.tables.put_record(keys::CLUSTER, &self.view.cluster)?;
        Ok(Outcome::Done)
    }

    // ── repositories ────────────────────────────────────────────────────────────────────────────────────────────────────────────

    fn create_repo(&mut self, name: &RepoName, head_ref: &RefName) -> Result<Outcome, StateError> {
        if self.view.repos.contains_key(name) {
            return Ok(Outcome::Exists);
        }
        let record = RepoRecord {
            head: Head { revision: 0, commit: Oid::NULL },
            head_ref: head_ref.clone(),
            created_time_ms: self.proposal.time_ms,
            frozen: false,
        };
        self.tables.put_record(&keys::repo(name), &record)?;
        let store = open_store(&self.state.data, name)?;
        let repo = RepoView { record: Arc::new(record), refs: Arc::default(), store };
        Arc::make_mut(&mut self.view.repos).insert(name.clone(), repo);
        self.pending.refs.insert(name.clone());
        self.pending.packs.insert(name.clone());
        if !name.is_global() {
            self.set_target(name, TargetRecord { serial: 0, repos: BTreeMap::new() })?;
        }
        Ok(Outcome::Done)
    }

    fn pack(&mut self, name: &RepoName, source: &PackSource) -> Result<Outcome, StateError> {
        let Some(repo) = self.view.repos.get(name).cloned() else { return Ok(Outcome::NotFound) };
        let installed = match source {
            PackSource::Attachment(number) => match self.proposal.attachments.get(*number as usize) {
                Some(bytes) => match self.unpacked.get(self.index, *number) {
                    Some(pack) => repo.store.hold(pack).map(|_| ()),
                    None => repo.store.hold_pack(bytes).map(|_| ()),
                },
                None => return self.bad_pack(name, "the entry does not hold the pack it names".into()),
            },
            PackSource::Upload(id) => match self.take_upload(*id)? {
                Some(path) => repo.store.install_pack_file(&path).map(|_| ()),
                None => return self.bad_pack(name, "the upload of the pack has expired".into()),
            },
        };
        self.pending.packs.insert(name.clone());
        match installed {
            Ok(()) => Ok(Outcome::Done),
            // The same bytes are refused by everybody; a failing disk is this node's own affair.
            Err(repos::Error::Pack(error)) if !matches!(error, repos::PackError::Io { .. }) => {
                self.bad_pack(name, error.to_string())
            }
            Err(source) => Err(StateError::Repo { repo: name.clone(), source }),
        }
    }

    fn bad_pack(&mut self, name: &RepoName, why: String) -> Result<Outcome, StateError> {
        self.bad_packs.insert(name.clone(), why.clone());
        Ok(Outcome::Refused(why))
    }

    fn change(&mut self, change: &ChangeSet) -> Result<Outcome, StateError> {
        if let Some(key) = &change.idempotency
            && let Some(known) = self.tables.get::<Remembered>(&keys::idempotency(&key.user, &key.key))?
        {
            return Ok(if known.fingerprint == key.fingerprint {
                Outcome::Replayed(known.answer)
            } else {
                Outcome::Refused("this idempotency key was used for another request".into())
            });
        }
        if let Some(refused) = self.check_change(change) {
            return Ok(refused);
        }
        let mut answer: BTreeMap<_, _> =
            change.unchanged.iter().map(|(name, head)| (name.clone(), (*head, false))).collect();
        for update in &change.updates {
            let head = self.update(update)?;
            answer.insert(update.repo.clone(), (head, update.revision.is_some()));
        }
        #[cfg(test)]
        if mutants::is_on(Mutant::NoKeys) {
            return Ok(Outcome::Changed(answer));
        }
        if let Some(key) = &change.idempotency {
            self.remember(key, &answer)?;
        }
        Ok(Outcome::Changed(answer))
    }

    /// Looks at every ref of every repository before anything is touched.
    fn check_change(&self, change: &ChangeSet) -> Option<Outcome> {
        for update in &change.updates {
            let Some(repo) = self.view.repos.get(&update.repo) else { return Some(Outcome::NotFound) };
            if repo.record.frozen {
                return Some(Outcome::Refused(format!("{} is frozen", update.repo)));
            }
            if let Some(why) = self.bad_packs.get(&update.repo) {
                return Some(Outcome::Refused(why.clone()));
            }
            #[cfg(test)]
            if mutants::is_on(Mutant::NoStaleCheck) {
                continue;
            }
            let stale = update.refs.iter().find(|r| repo.refs.get(&r.name).copied().unwrap_or(Oid::NULL) != r.old);
            if let Some(stale) = stale {
                return Some(Outcome::Stale { repo: update.repo.clone(), name: stale.name.clone() });
            }
        }
        None
    }

    fn update(&mut self, update: &RepoUpdate) -> Result<Head, StateError> {
        let repos = Arc::make_mut(&mut self.view.repos);
        let repo = repos.get_mut(&update.repo).expect("check_change found it");
        for one in &update.refs {
            let key = keys::reference(&update.repo, &one.name);
            if one.new.is_null() {
                self.tables.remove(&key)?;
                Arc::make_mut(&mut repo.refs).remove(&one.name);
            } else {
                self.tables.put_record(&key, &one.new)?;
                Arc::make_mut(&mut repo.refs).insert(one.name.clone(), one.new);
            }
        }
        self.pending.refs.insert(update.repo.clone());
        let Some(new) = &update.revision else { return Ok(repo.record.head) };
        let main = update.refs.iter().find(|r| r.name == repo.record.head_ref).map_or(Oid::NULL, |r| r.new);
        let head = Head { revision: repo.record.head.revision + 1, commit: main };
        let record = RevisionRecord {
            repo: update.repo.clone(),
            revision: head.revision,
            commit: head.commit,
            author: new.author.clone(),
            message: new.message.clone(),
            #[cfg(not(test))]
            time_ms: self.proposal.time_ms,
            #[cfg(test)]
            time_ms: if mutants::is_on(Mutant::LocalClock) {
                self.state.outside().wall_ms()
            } else {
                self.proposal.time_ms
            },
            paths: new.paths.clone(),
            paths_truncated: new.paths_truncated,
        };
        let repo_record = Arc::make_mut(&mut repo.record);
        repo_record.head = head;
        self.tables.put_record(&keys::repo(&update.repo), repo_record)?;
        self.tables.put_record(&keys::revision(&update.repo, head.revision), &record)?;
        self.tables.put_record(&keys::commit(&update.repo, head.commit), &head.revision)?;
        self.effects.events.push(Event::new(record));
        self.moved.insert(update.repo.clone());
        Ok(head)
    }

    fn remember(&mut self, key: &IdempotencyKey, answer: &BTreeMap<RepoName, (Head, bool)>) -> Result<(), StateError> {
        let remembered = Remembered { fingerprint: key.fingerprint, answer: answer.clone() };
        let table_key = keys::idempotency(&key.user, &key.key);
        self.tables.put_record(&table_key, &remembered)?;
        let (mut first, next): (u64, u64) = self.tables.get(keys::IDEMPOTENCY)?.unwrap_or_default();
        self.tables.put(&keys::idempotency_queue(next), &table_key)?;
        if next + 1 - first > IDEMPOTENCY_KEYS {
            let queued = keys::idempotency_queue(first);
            let oldest = self.tables.table.get(queued.as_slice())?.map(|value| value.value().to_vec());
            if let Some(oldest) = oldest {
                self.tables.remove(&oldest)?;
            }
            self.tables.remove(&queued)?;
            first += 1;
        }
        self.tables.put_record(keys::IDEMPOTENCY, &(first, next + 1))
    }

    // ── targets ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    /// A target changes once per entry, whatever number of its repositories moved: nobody can see between.
    fn move_targets(&mut self) -> Result<(), StateError> {
        if self.moved.is_empty() {
            return Ok(());
        }
        let global = RepoName::global();
        let all = self.moved.contains(&global);
        let affected: Vec<RepoName> =
            self.view.targets.keys().filter(|name| all || self.moved.contains(*name)).cloned().collect();
        for name in affected {
            let serial = self.view.targets.get(&name).map_or(0, |target| target.record.serial) + 1;
            let repos = [&name, &global]
                .into_iter()
                .filter_map(|repo| {
                    self.view.head(repo).filter(|head| head.revision > 0).map(|head| (repo.clone(), head))
                })
                .collect();
            self.set_target(&name, TargetRecord { serial, repos })?;
        }
        Ok(())
    }

    fn set_target(&mut self, name: &RepoName, record: TargetRecord) -> Result<(), StateError> {
        self.tables.put_record(&keys::target(name), &record)?;
        let event = TargetEvent::new(record, self.view.frozen(name));
        Arc::make_mut(&mut self.view.targets).insert(name.clone(), event.clone());
        self.effects.targets.insert(name.clone(), event);
        Ok(())
    }

    // ── uploads ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    fn chunk(&mut self, id: UploadId, offset: u64, attachment: u32) -> Result<Outcome, StateError> {
        let Some(bytes) = self.proposal.attachments.get(attachment as usize) else {
            return Ok(Outcome::Refused("the entry does not hold the chunk it names".into()));
        };
        let key = keys::upload(id);
        let known: Option<Upload> = self.tables.get(&key)?;
        if known.map_or(0, |upload| upload.bytes) != offset {
            return Ok(Outcome::Refused(format!("a chunk for offset {offset} does not continue its upload")));
        }
        let end = offset + bytes.len() as u64;
        if end > MAX_UPLOAD_BYTES {
            return Ok(Outcome::Refused(format!("the upload is larger than {MAX_UPLOAD_BYTES} bytes")));
        }
        if known.is_none() && self.tables.scan::<Upload>(keys::UPLOADS)?.len() >= MAX_UPLOADS {
            return Ok(Outcome::Refused("too many uploads are under way".into()));
        }
        let path = self.state.upload_path(id);
        std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .and_then(|file| file.write_all_at(bytes, offset))
            .map_err(|source| StateError::Io { action: "write", path, source })?;
        self.pending.uploads.insert(id);
        self.tables.note(2, &key, &crc32c::crc32c(bytes).to_le_bytes());
        self.tables.put_record(&key, &Upload { bytes: end, clock_ms: self.view.clock_ms })?;
        Ok(Outcome::Done)
    }

    /// Ends an upload and answers its file, which stays until the next checkpoint: until then a crash brings the upload back.
    fn take_upload(&mut self, id: UploadId) -> Result<Option<std::path::PathBuf>, StateError> {
        let Some(upload) = self.tables.get::<Upload>(&keys::upload(id))? else { return Ok(None) };
        let path = self.state.upload_path(id);
        std::fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|file| file.set_len(upload.bytes))
            .map_err(|source| StateError::Io { action: "open", path: path.clone(), source })?;
        self.drop_upload(id)?;
        Ok(Some(path))
    }

    fn drop_upload(&mut self, id: UploadId) -> Result<Outcome, StateError> {
        if !self.tables.remove(&keys::upload(id))? {
            return Ok(Outcome::NotFound);
        }
        self.pending.uploads.remove(&id);
        self.pending.finished_uploads.push(self.state.upload_path(id));
        Ok(Outcome::Done)
    }

    // ── accounts ────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    fn accounts_changed(&mut self) -> Result<(), StateError> {
        self.view.accounts += 1;
        self.tables.put_record(keys::ACCOUNTS, &self.view.accounts)
    }

    fn put_user(&mut self, user: &UserRecord) -> Result<Outcome, StateError> {
        let key = keys::user(&user.name);
        let before: Option<UserRecord> = self.tables.get(&key)?;
        let generation = before.map_or(0, |before| before.generation + 1);
        self.tables.put_record(&key, &UserRecord { generation, ..user.clone() })?;
        self.accounts_changed()?;
        Ok(Outcome::Done)
    }

    fn delete_user(&mut self, name: &str) -> Result<Outcome, StateError> {
        if !self.tables.remove(&keys::user(name))? {
            return Ok(Outcome::NotFound);
        }
        for (key, token) in self.tables.scan::<TokenRecord>(keys::TOKENS)? {
            if token.user == name {
                self.tables.remove(&key)?;
            }
        }
        self.accounts_changed()?;
        Ok(Outcome::Done)
    }

    fn put_token(&mut self, token: &TokenRecord) -> Result<Outcome, StateError> {
        if self.tables.get::<UserRecord>(&keys::user(&token.user))?.is_none() {
            return Ok(Outcome::NotFound);
        }
        self.tables.put_record(&keys::token(&token.id), token)?;
        self.accounts_changed()?;
        Ok(Outcome::Done)
    }

    fn delete_token(&mut self, id: &str) -> Result<Outcome, StateError> {
        if !self.tables.remove(&keys::token(id))? {
            return Ok(Outcome::NotFound);
        }
        self.accounts_changed()?;
        Ok(Outcome::Done)
    }

    // ── nodes ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    fn put_node_token(&mut self, token: &NodeTokenRecord) -> Result<Outcome, StateError> {
        if !self.view.targets.contains_key(&token.subcluster) {
            return Ok(Outcome::NotFound);
        }
        self.tables.put_record(&keys::node_token(&token.id), token)?;
        Ok(Outcome::Done)
    }

    fn register_node(&mut self, record: &NodeRecord, token: Option<&str>) -> Result<Outcome, StateError> {
        if !self.view.targets.contains_key(&record.subcluster) {
            return Ok(Outcome::Refused(format!("there is no subcluster {}", record.subcluster)));
        }
        let before = self.view.nodes.get(&record.name).cloned();
        if let Some(before) = &before
            && before.subcluster != record.subcluster
        {
            return Ok(Outcome::Refused(format!("node {} belongs to subcluster {}", record.name, before.subcluster)));
        }
        if let Some(id) = token
            && let Err(why) = self.use_up(id, &record.subcluster)?
        {
            return Ok(Outcome::Refused(why));
        }
        let mut record = record.clone();
        if let Some(before) = before {
            record.certificates = before.certificates.iter().cloned().chain(record.certificates).collect();
        }
        self.put_node(record)
    }

    /// Takes a one-time token away and answers it, or why it is not good for this.
    fn use_up(&mut self, id: &str, subcluster: &RepoName) -> Result<Result<NodeTokenRecord, String>, StateError> {
        let key = keys::node_token(id);
        Ok(match self.tables.get::<NodeTokenRecord>(&key)? {
            Some(token) if token.expires_clock_ms <= self.view.clock_ms => Err("the token has expired".into()),
            Some(token) if token.subcluster != *subcluster => {
                Err(format!("the token is for subcluster {}", token.subcluster))
            }
            Some(token) => {
                self.tables.remove(&key)?;
                Ok(token)
            }
            None => Err("the token is not known: it was used, or has expired".into()),
        })
    }

    fn put_node(&mut self, mut record: NodeRecord) -> Result<Outcome, StateError> {
        let surplus = record.certificates.len().saturating_sub(KEPT_CERTIFICATES);
        record.certificates.drain(..surplus);
        self.tables.put_record(&keys::node(&record.name), &record)?;
        Arc::make_mut(&mut self.view.nodes).insert(record.name.clone(), Arc::new(record));
        Ok(Outcome::Done)
    }

    fn certificate(&mut self, node: &NodeName, certificate: &CertificateRecord) -> Result<Outcome, StateError> {
        let Some(record) = self.view.nodes.get(node) else { return Ok(Outcome::NotFound) };
        let mut record = record.as_ref().clone();
        record.certificates.push(certificate.clone());
        self.put_node(record)
    }

    fn report(&mut self, report: &ReportRecord) -> Result<Outcome, StateError> {
        if !self.view.nodes.contains_key(&report.node) {
            return Ok(Outcome::NotFound);
        }
        let key = keys::report(&report.node, &report.program);
        let others = self.tables.scan::<ReportRecord>(&keys::reports(&report.node))?;
        if others.len() >= MAX_PROGRAMS && !others.iter().any(|(other, _)| *other == key) {
            return Ok(Outcome::Refused(format!("node {} reports for too many programs", report.node)));
        }
        self.tables.put_record(&key, report)?;
        Ok(Outcome::Done)
    }

    // ── members ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    fn put_member(&mut self, member: MemberRecord) -> Result<Outcome, StateError> {
        let highest: u64 = self.tables.get(keys::RAFT_IDS)?.unwrap_or(0);
        if member.raft_id > highest {
            self.tables.put_record(keys::RAFT_IDS, &member.raft_id)?;
        }
        self.tables.put_record(&keys::member(&member.node), &member)?;
        Arc::make_mut(&mut self.view.members).insert(member.node.clone(), Arc::new(member));
        Ok(Outcome::Done)
    }

    /// Higher than any number that a member has or ever had.
    fn next_raft_id(&self) -> Result<u64, StateError> {
        let given: u64 = self.tables.get(keys::RAFT_IDS)?.unwrap_or(0);
        let present = self.view.membership.membership().nodes().map(|(id, _)| *id).max().unwrap_or(0);
        Ok(given.max(present) + 1)
    }

    fn join(
        &mut self,
        record: &NodeRecord,
        voter: bool,
        key_sha256: [u8; 32],
        token: &str,
    ) -> Result<Outcome, StateError> {
        let name = &record.name;
        let before = self.view.nodes.get(name).cloned();
        if let Some(before) = &before
            && before.subcluster != record.subcluster
        {
            return Ok(Outcome::Refused(format!("node {name} belongs to subcluster {}", before.subcluster)));
        }
        let address = record.address.clone().unwrap_or_default();
        let known = self.view.members.get(name).map(|member| member.as_ref().clone());
        // A new machine under an old name: what the old one was given is worth nothing any more.
        let succeeds = known.as_ref().is_some_and(|member| member.key_sha256 != key_sha256);
        let member = match known {
            Some(member) if member.key_sha256 == key_sha256 => MemberRecord { address, voter, ..member },
            Some(member) if member.replaced_by.as_deref() != Some(token) => {
                return Ok(Outcome::Refused(format!("node {name} is a member already")));
            }
            _ => {
                let used = match self.use_up(token, &record.subcluster)? {
                    Ok(used) => used,
                    Err(why) => return Ok(Outcome::Refused(why)),
                };
                MemberRecord {
                    node: name.clone(),
                    raft_id: self.next_raft_id()?,
                    address,
                    voter,
                    key_sha256,
                    token: used.id,
                    token_sha256: used.secret_sha256,
                    replaced_by: None,
                }
            }
        };
        let mut record = NodeRecord { raft_id: Some(member.raft_id), ..record.clone() };
        if let Some(before) = before.filter(|_| !succeeds) {
            record.certificates = before.certificates.iter().cloned().chain(record.certificates).collect();
        }
        self.put_member(member)?;
        self.put_node(record)
    }

    fn set_voter(&mut self, node: &NodeName, voter: bool) -> Result<Outcome, StateError> {
        let Some(member) = self.view.members.get(node).cloned() else { return Ok(Outcome::NotFound) };
        let others = self.view.members.values().any(|member| member.voter && member.node != *node);
        if !voter && !others {
            return Ok(Outcome::Refused(format!("{node} is the last voter: without it there is no cluster")));
        }
        self.put_member(MemberRecord { voter, ..member.as_ref().clone() })
    }

    fn remove_node(&mut self, node: &NodeName) -> Result<Outcome, StateError> {
        if !self.view.nodes.contains_key(node) {
            return Ok(Outcome::NotFound);
        }
        let others = self.view.members.values().any(|member| member.voter && member.node != *node);
        if self.view.members.contains_key(node) && !others {
            return Ok(Outcome::Refused(format!("{node} is the last voter: without it there is no cluster")));
        }
        if self.tables.remove(&keys::member(node))? {
            Arc::make_mut(&mut self.view.members).remove(node);
        }
        for (key, _) in self.tables.scan::<ReportRecord>(&keys::reports(node))? {
            self.tables.remove(&key)?;
        }
        self.tables.remove(&keys::node(node))?;
        Arc::make_mut(&mut self.view.nodes).remove(node);
        Ok(Outcome::Done)
    }

    fn allow_replace(&mut self, node: &NodeName, token: &NodeTokenRecord) -> Result<Outcome, StateError> {
        let Some(member) = self.view.members.get(node).cloned() else { return Ok(Outcome::NotFound) };
        self.tables.put_record(&keys::node_token(&token.id), token)?;
        self.put_member(MemberRecord { replaced_by: Some(token.id.clone()), ..member.as_ref().clone() })
    }

    fn readdress(&mut self, node: &NodeName, raft_id: u64, address: &str) -> Result<Outcome, StateError> {
        let member = self.view.members.get(node).filter(|member| member.raft_id == raft_id).cloned();
        let Some(member) = member else { return Ok(Outcome::NotFound) };
        if let Some(record) = self.view.nodes.get(node).cloned() {
            let record = NodeRecord { address: Some(address.to_owned()), ..record.as_ref().clone() };
            self.tables.put_record(&keys::node(node), &record)?;
            Arc::make_mut(&mut self.view.nodes).insert(node.clone(), Arc::new(record));
        }
        self.put_member(MemberRecord { address: address.to_owned(), ..member.as_ref().clone() })
    }

    // ── time ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    fn tick(&mut self) -> Result<Outcome, StateError> {
        self.effects.digest = true;
        let now = self.view.clock_ms;
        let mut accounts = false;
        for (key, token) in self.tables.scan::<TokenRecord>(keys::TOKENS)? {
            if token.expires_clock_ms <= now {
                self.tables.remove(&key)?;
                accounts = true;
            }
        }
        if accounts {
            self.accounts_changed()?;
        }
        for (key, token) in self.tables.scan::<NodeTokenRecord>(keys::NODE_TOKENS)? {
            if token.expires_clock_ms <= now {
                self.tables.remove(&key)?;
            }
        }
        for (key, upload) in self.tables.scan::<Upload>(keys::UPLOADS)? {
            if upload.clock_ms.saturating_add(UPLOAD_PAUSE_MS) <= now
                && let Ok(id) = key[keys::UPLOADS.len()..].try_into()
            {
                self.drop_upload(UploadId(id))?;
            }
        }
        Ok(Outcome::Done)
    }
}
