//! Building a batch: from requests to one proposal.
//!
//! Runs on a blocking thread, over one immutable picture of the state. Each repository has one draft, and a head that moves on with every
//! accepted request, so that later requests of the batch are merged with earlier ones.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use cluster::api::{ConflictPath, RevisionSpec};
use cluster::gate::GateLimits;
use repos::{
    ApplyError, Change, Conflict, ConflictKind, Content, Draft, MergeMode, NewCommit, Oid, RefName, Signature,
    TreeChange,
};
use serde::{Deserialize, Serialize};

use super::judge::{self, Proposed};
use super::proposer::store_of;
use super::types::{CommitAnswer, CommitRequest, Committed, RepoChange};
use crate::core::TemplateFile;
use crate::error::{Error, Result};
use crate::raft::command::{ChangeSet, IdempotencyKey, NewRevision, Op, PackSource, RefUpdate, RepoUpdate};
use crate::state::{Author, Head, RepoName, State, View};

/// A repository to be created with its first files.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct NewRepo {
    pub(crate) repo: RepoName,
    pub(crate) author: Author,
    pub(crate) files: Vec<TemplateFile>,
    /// The author's key under which it is created once. It travels beside, see [`crate::core::forward`].
    #[serde(skip)]
    pub(crate) key: Option<String>,
}

/// One repository during a batch.
pub(super) struct Work {
    pub(super) draft: Draft,
    /// Where `main` will stand after what was accepted so far.
    pub(super) head: Head,
    pub(super) tree: Oid,
    /// Commits that the pack has to bring.
    tips: Vec<Oid>,
}

/// What one request came to.
pub(crate) enum Verdict<T> {
    /// Answered without the log.
    Answered(Result<T>),
    /// Accepted: the answer is the outcome of this operation.
    Op(usize),
    /// Depends on something else in this batch: try again in the next.
    Later,
}

/// A batch under construction.
pub(crate) struct Builder {
    pub(super) state: Arc<State>,
    pub(super) view: Arc<View>,
    pub(super) limits: GateLimits,
    pub(crate) time_ms: u64,
    pub(super) work: BTreeMap<RepoName, Work>,
    /// Operations but for the drafts' packs, which are made at the end and go before the changes.
    creates: Vec<Op>,
    pub(super) packs: Vec<Op>,
    pub(super) changes: Vec<Op>,
    pub(super) attachments: Vec<Bytes>,
    keys: BTreeSet<(String, String)>,
    /// A push was accepted: its objects are in a quarantine that drafts do not see, so nothing else can be judged on top of it in this batch.
    pub(super) sealed: bool,
}

/// A finished batch.
pub(crate) struct Batch {
    pub(crate) ops: Vec<Op>,
    pub(crate) attachments: Vec<Bytes>,
    /// Drafts' packs that are too large for an entry; they go ahead as uploads.
    pub(crate) large: Vec<(RepoName, Bytes)>,
    pub(crate) time_ms: u64,
    /// What to add to a [`Verdict::Op`] to find its outcome.
    pub(crate) first_change: usize,
}

/// One repository's part of a commit, built and not accepted yet.
struct Candidate {
    head: Head,
    tree: Oid,
    changes: Vec<Change>,
    old: Oid,
}

impl Builder {
    pub(crate) fn new(state: Arc<State>, limits: GateLimits, time_ms: u64) -> Builder {
        let view = state.view();
        Builder {
            state,
            view,
            limits,
            time_ms,
            work: BTreeMap::new(),
            creates: Vec::new(),
            packs: Vec::new(),
            changes: Vec::new(),
            attachments: Vec::new(),
            keys: BTreeSet::new(),
            sealed: false,
        }
    }

    /// Adds operations that need no judging, ahead of everything else.
    pub(crate) fn prepend(&mut self, op: Op) {
        self.creates.push(op);
    }

    /// The commit request's verdict.
    pub(crate) fn commit(&mut self, request: &CommitRequest) -> Verdict<CommitAnswer> {
        match self.try_commit(request) {
            Ok(verdict) => verdict,
            Err(error) => Verdict::Answered(Err(error)),
        }
    }

    fn try_commit(&mut self, request: &CommitRequest) -> Result<Verdict<CommitAnswer>> {
        if request.repos.is_empty() {
            return Err(Error::Invalid("a commit names at least one repository".into()));
        }
        let key = idempotency_key(request)?;
        if let Some(key) = &key
            && let Some(verdict) = self.repeated(key)?
        {
            return Ok(verdict);
        }
        if self.sealed {
            return Ok(Verdict::Later);
        }
        let mut candidates = BTreeMap::new();
        let mut conflicts = Vec::new();
        for (name, change) in &request.repos {
            match self.candidate(name, change, request) {
                Ok(candidate) => drop(candidates.insert(name.clone(), candidate)),
                Err(Error::Conflict { paths }) => conflicts.extend(paths),
                Err(error) => return Err(error),
            }
        }
        if !conflicts.is_empty() {
            return Err(Error::Conflict { paths: conflicts });
        }
        self.ask_gate(&candidates)?;
        Ok(self.accept(request, key, candidates))
    }

    /// What becomes of a request whose key was used before, or is used in this batch.
    fn repeated(&self, key: &IdempotencyKey) -> Result<Option<Verdict<CommitAnswer>>> {
        let known = self.state.idempotent(&key.user, &key.key).map_err(Error::internal)?;
        match known {
            None => Ok(self.keys.contains(&(key.user.clone(), key.key.clone())).then_some(Verdict::Later)),
            Some(known) if known.fingerprint == key.fingerprint => {
                Ok(Some(Verdict::Answered(Ok(answer(known.answer, true)))))
            }
            Some(_) => Err(reused_key()),
        }
    }

    /// The repository's place in this batch.
    pub(super) fn work(&mut self, name: &RepoName) -> Result<&mut Work> {
        if !self.work.contains_key(name) {
            let repo = self.view.repos.get(name).ok_or_else(|| Error::no_repo(name))?;
            if repo.record.frozen {
                let finding = judge::path_finding(
                    name,
                    String::new(),
                    format!("{name} is in CONFLICT: it takes no commits until `eccfg subcluster resolve {name}`"),
                );
                return Err(Error::Refused { findings: vec![finding] });
            }
            let draft = Draft::new(&repo.store).map_err(Error::internal)?;
            let head = repo.record.head;
            let tree = if head.commit.is_null() {
                Oid::EMPTY_TREE
            } else {
                draft.tree_of(head.commit).map_err(Error::internal)?
            };
            self.work.insert(name.clone(), Work { draft, head, tree, tips: Vec::new() });
        }
        Ok(self.work.get_mut(name).expect("it is there or was just put there"))
    }

    fn candidate(&mut self, name: &RepoName, change: &RepoChange, request: &CommitRequest) -> Result<Candidate> {
        let signature = self.signature(&request.author);
        let (base_commit, base_tree) = self.base(name, &change.base)?;
        let work = self.work(name)?;
        let theirs = work.draft.apply(base_tree, &change.changes).map_err(|error| apply_error(name, error))?;
        let tree = if base_tree == work.tree {
            theirs
        } else {
            let base = (!base_commit.is_null()).then_some(base_tree);
            let merge = work.draft.merge(base, work.tree, theirs, &MergeMode::Refuse).map_err(Error::internal)?;
            merge.tree.ok_or_else(|| Error::Conflict { paths: conflict_paths(name, &merge.conflicts) })?
        };
        let (head, old) = (work.head, work.head.commit);
        if tree == work.tree {
            return Ok(Candidate { head, tree, changes: Vec::new(), old });
        }
        let checked = work.draft.check_tree(Some(work.tree), tree, &judge::rules(name));
        checked.map_err(|error| judge::check_error(name, error))?;
        let changes = work.draft.changes(Some(work.tree), tree).map_err(Error::internal)?;
        let parents = if old.is_null() { vec![] } else { vec![old] };
        let author = signature.clone();
        let new = NewCommit { tree, parents, author, committer: signature, message: request.message.clone() };
        let commit = work.draft.commit(&new).map_err(Error::internal)?;
        Ok(Candidate { head: Head { revision: head.revision + 1, commit }, tree, changes, old })
    }

    /// The commit and tree that the changes were made against.
    fn base(&mut self, name: &RepoName, spec: &RevisionSpec) -> Result<(Oid, Oid)> {
        let state = self.state.clone();
        let work = self.work(name)?;
        let missing = || Error::NotFound { kind: "revision".into(), name: format!("{spec} of {name}") };
        let commit = match spec {
            RevisionSpec::Number(0) => return Ok((Oid::NULL, Oid::EMPTY_TREE)),
            RevisionSpec::Number(number) if *number == work.head.revision => work.head.commit,
            RevisionSpec::Number(number) => {
                state.revision(name, *number).map_err(Error::internal)?.ok_or_else(missing)?.commit
            }
            RevisionSpec::Commit(hex) => {
                let commit = match hex.parse() {
                    Ok(id) if work.draft.contains(id) => id,
                    Ok(_) => return Err(missing()),
                    Err(_) => work.draft.commit_by_prefix(hex).map_err(Error::internal)?.ok_or_else(missing)?,
                };
                let on_main = work.head.commit == commit
                    || (!work.head.commit.is_null()
                        && work.draft.is_ancestor(commit, work.head.commit).map_err(Error::internal)?);
                if !on_main {
                    return Err(Error::Invalid(format!("the base {spec} is not in the history of main of {name}")));
                }
                commit
            }
        };
        Ok((commit, work.draft.tree_of(commit).map_err(Error::internal)?))
    }

    fn ask_gate(&self, candidates: &BTreeMap<RepoName, Candidate>) -> Result<()> {
        if candidates.values().all(|candidate| candidate.changes.is_empty()) {
            return Ok(());
        }
        let mut proposed = self.standing();
        for (name, candidate) in candidates {
            let work = &self.work[name];
            let part = Proposed { reader: &work.draft, tree: candidate.tree, changes: &candidate.changes };
            proposed.insert(name.clone(), part);
        }
        judge::refused(judge::judge(&self.view, &proposed, &self.limits)?)
    }

    /// The repositories as they will be after what was accepted so far.
    pub(super) fn standing(&self) -> BTreeMap<RepoName, Proposed<'_>> {
        self.work
            .iter()
            .map(|(name, work)| (name.clone(), Proposed { reader: &work.draft, tree: work.tree, changes: &[] }))
            .collect()
    }

    fn accept(
        &mut self,
        request: &CommitRequest,
        key: Option<IdempotencyKey>,
        candidates: BTreeMap<RepoName, Candidate>,
    ) -> Verdict<CommitAnswer> {
        let mut updates = Vec::new();
        let mut unchanged = BTreeMap::new();
        for (name, candidate) in candidates {
            if candidate.changes.is_empty() && candidate.head.commit == candidate.old {
                unchanged.insert(name, candidate.head);
                continue;
            }
            let work = self.work.get_mut(&name).expect("the candidate was built in it");
            (work.head, work.tree) = (candidate.head, candidate.tree);
            work.tips.push(candidate.head.commit);
            let main = self.main_of(&name);
            updates.push(update(name, main, &candidate, &request.author, &request.message));
        }
        if updates.is_empty() {
            let same = unchanged.into_iter().map(|(name, head)| (name, (head, false))).collect();
            return Verdict::Answered(Ok(answer(same, false)));
        }
        if let Some(key) = &key {
            self.keys.insert((key.user.clone(), key.key.clone()));
        }
        self.changes.push(Op::Change(ChangeSet { updates, unchanged, idempotency: key }));
        Verdict::Op(self.changes.len() - 1)
    }

    pub(super) fn main_of(&self, name: &RepoName) -> RefName {
        self.view.repos.get(name).map_or_else(RefName::main, |repo| repo.record.head_ref.clone())
    }

    /// The new repository's verdict. With `judged` the gate is asked, too.
    pub(crate) fn create(&mut self, new: &NewRepo, judged: bool) -> Verdict<CommitAnswer> {
        match self.try_create(new, judged) {
            Ok(verdict) => verdict,
            Err(error) => Verdict::Answered(Err(error)),
        }
    }

    fn try_create(&mut self, new: &NewRepo, judged: bool) -> Result<Verdict<CommitAnswer>> {
        let name = &new.repo;
        let key = creation_key(new)?;
        if let Some(key) = &key
            && let Some(verdict) = self.repeated(key)?
        {
            return Ok(verdict);
        }
        if self.sealed {
            return Ok(Verdict::Later);
        }
        if self.view.repos.contains_key(name) || self.work.contains_key(name) {
            return Err(Error::Exists { kind: "repository".into(), name: name.to_string() });
        }
        let draft = Draft::new(&store_of(&self.state, name)?).map_err(Error::internal)?;
        let head = Head { revision: 0, commit: Oid::NULL };
        let work = Work { draft, head, tree: Oid::EMPTY_TREE, tips: Vec::new() };
        self.work.insert(name.clone(), work);
        let built = self.first_commit(new).and_then(|(request, candidates)| {
            if judged {
                self.ask_gate(&candidates)?;
            }
            Ok((request, candidates))
        });
        let (request, candidates) = match built {
            Ok(built) => built,
            Err(error) => {
                self.work.remove(name);
                return Err(error);
            }
        };
        self.creates.push(Op::CreateRepo { repo: name.clone(), head_ref: RefName::main() });
        Ok(self.accept(&request, key, candidates))
    }

    fn first_commit(&mut self, new: &NewRepo) -> Result<(CommitRequest, BTreeMap<RepoName, Candidate>)> {
        let put = |file: &TemplateFile| TreeChange::Put {
            path: file.path.clone(),
            mode: Some(file.mode),
            content: Content::Bytes(file.content.clone()),
        };
        let change = RepoChange { base: RevisionSpec::Number(0), changes: new.files.iter().map(put).collect() };
        let request = CommitRequest {
            author: new.author.clone(),
            message: format!("Create {}", new.repo),
            idempotency_key: None,
            repos: [(new.repo.clone(), change.clone())].into(),
        };
        let mut candidate = self.candidate(&new.repo, &change, &request)?;
        if candidate.head.commit.is_null() {
            // No files at all: still a commit, so that the repository begins at revision 1 and can be cloned.
            let signature = self.signature(&new.author);
            let (author, message) = (signature.clone(), request.message.clone());
            let commit = NewCommit { tree: Oid::EMPTY_TREE, parents: vec![], author, committer: signature, message };
            let commit = self.work(&new.repo)?.draft.commit(&commit).map_err(Error::internal)?;
            candidate.head = Head { revision: 1, commit };
        }
        Ok((request, [(new.repo.clone(), candidate)].into()))
    }

    fn signature(&self, author: &Author) -> Signature {
        let time_s = i64::try_from(self.time_ms / 1000).unwrap_or(i64::MAX);
        Signature { name: author.name.clone(), email: author.email.clone(), time_s, offset_min: 0 }
    }

    /// Makes the packs and puts everything in order.
    pub(crate) fn finish(mut self) -> Result<Batch> {
        let mut large = Vec::new();
        for (name, work) in &self.work {
            if work.tips.is_empty() {
                continue;
            }
            let Some(pack) = work.draft.pack_of(&work.tips).map_err(Error::internal)? else { continue };
            let pack = Bytes::from(pack);
            if pack.len() as u64 > super::INLINE_PACK_BYTES {
                large.push((name.clone(), pack));
                continue;
            }
            let number = u32::try_from(self.attachments.len()).expect("a batch has few packs");
            self.attachments.push(pack);
            self.packs.push(Op::Pack { repo: name.clone(), source: PackSource::Attachment(number) });
        }
        let first_change = self.creates.len() + self.packs.len() + large.len();
        let mut ops = self.creates;
        ops.append(&mut self.packs);
        ops.append(&mut self.changes);
        Ok(Batch { ops, attachments: self.attachments, large, time_ms: self.time_ms, first_change })
    }
}

impl Batch {
    /// Whether there is nothing to propose.
    pub(crate) fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Puts the operation for a large pack in its place, which [`Batch::first_change`] already counts.
    pub(crate) fn insert_pack(&mut self, op: Op) {
        let at = self.ops.iter().position(|op| matches!(op, Op::Change(_))).unwrap_or(self.ops.len());
        self.ops.insert(at, op);
    }
}

fn update(name: RepoName, main: RefName, candidate: &Candidate, author: &Author, message: &str) -> RepoUpdate {
    let (paths, paths_truncated) = judge::record_paths(&candidate.changes);
    let refs = vec![RefUpdate { name: main, old: candidate.old, new: candidate.head.commit }];
    let revision = NewRevision { author: author.to_string(), message: message.to_owned(), paths, paths_truncated };
    RepoUpdate { repo: name, refs, revision: Some(revision) }
}

/// The answer from the outcome of a change set.
pub(super) fn answer(heads: BTreeMap<RepoName, (Head, bool)>, replayed: bool) -> CommitAnswer {
    let repos = heads.into_iter().map(|(name, (head, changed))| (name, Committed { head, changed })).collect();
    CommitAnswer { repos, replayed }
}

pub(super) fn reused_key() -> Error {
    Error::Invalid("this idempotency key was used for another request".into())
}

fn apply_error(repo: &RepoName, error: ApplyError) -> Error {
    match error {
        ApplyError::Change { path, problem } => {
            let finding = judge::path_finding(repo, path.to_string(), problem.to_string());
            Error::Refused { findings: vec![finding] }
        }
        ApplyError::Store(error) => Error::internal(error),
    }
}

fn conflict_paths(repo: &RepoName, conflicts: &[Conflict]) -> Vec<ConflictPath> {
    let reason = |kind| match kind {
        ConflictKind::Content => "both changed the same lines",
        ConflictKind::Binary => "both changed it, and it cannot be merged by lines",
        ConflictKind::AddAdd => "both added it, with different content",
        ConflictKind::ModifyDelete => "it was changed upstream and is deleted here",
        ConflictKind::DeleteModify => "it was deleted upstream and is changed here",
        ConflictKind::Mode => "both changed its mode",
        ConflictKind::DirectoryFile => "a directory on one side, a file on the other",
        ConflictKind::Type => "a file on one side, a symbolic link on the other",
    };
    let path = |conflict: &Conflict| ConflictPath {
        repo: repo.to_string(),
        path: conflict.path.to_string(),
        reason: reason(conflict.kind).into(),
    };
    conflicts.iter().map(path).collect()
}

/// Keys longer than this are refused; a UUID has 36.
const MAX_KEY_BYTES: usize = 256;

/// The files are no part of it: another build brings other templates, and the source of a copy moves.
fn creation_key(new: &NewRepo) -> Result<Option<IdempotencyKey>> {
    idempotency_key(&CommitRequest {
        author: new.author.clone(),
        message: "create".into(),
        idempotency_key: new.key.clone(),
        repos: [(new.repo.clone(), RepoChange { base: RevisionSpec::Number(0), changes: Vec::new() })].into(),
    })
}

fn idempotency_key(request: &CommitRequest) -> Result<Option<IdempotencyKey>> {
    let Some(key) = &request.idempotency_key else { return Ok(None) };
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        return Err(Error::Invalid(format!("an idempotency key has 1 to {MAX_KEY_BYTES} bytes")));
    }
    let user = request.author.user.clone();
    Ok(Some(IdempotencyKey { user, key: key.clone(), fingerprint: fingerprint(request) }))
}

/// A digest of everything that makes two requests the same.
fn fingerprint(request: &CommitRequest) -> [u8; 16] {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    let mut add = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    add(request.message.as_bytes());
    for (name, change) in &request.repos {
        add(name.as_str().as_bytes());
        add(change.base.to_string().as_bytes());
        for change in &change.changes {
            match change {
                TreeChange::Put { path, mode, content } => {
                    add(b"put");
                    add(path.as_bytes());
                    add(format!("{mode:?}").as_bytes());
                    match content {
                        Content::Bytes(bytes) => add(bytes),
                        Content::Blob(id) => add(id.as_bytes()),
                    }
                }
                other => add(format!("{other:?}").as_bytes()),
            }
        }
    }
    let digest = hash.finalize();
    digest[..16].try_into().expect("SHA-256 has 32 bytes")
}
