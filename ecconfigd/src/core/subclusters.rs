//! What operators do to whole repositories, and to the leadership.

use std::collections::BTreeMap;

use bytes::Bytes;
use cluster::api::RevisionSpec;
use repos::{Content, Entry, Mode, Reader, RepoPath, TreeChange};

use super::{Core, Once, done};
use crate::commit::{CommitRequest, Propose as _, RepoChange};
use crate::core::TemplateFile;
use crate::error::{Error, Result};
use crate::raft::command::{ChangeSet, IdempotencyKey, Op, Outcome, RefUpdate, RepoUpdate};
use crate::state::{Author, Head, NodeName, RepoName, RepoRecord};

impl Core {
    /// Freezes a repository (no commits, and nodes keep what they have of it) or thaws it. Again is harmless. Nothing is thawed while replicas
    /// differ, or cannot say whether they do.
    pub async fn set_frozen(&self, repo: &RepoName, frozen: bool) -> Result<Head> {
        if !frozen && self.repo(repo)?.frozen {
            self.replicas_agree().await?;
        }
        self.simple(Op::Freeze { repo: repo.clone(), frozen }, "repository", repo.as_str()).await?;
        self.head(repo)
    }

    /// Creates a repository that has the whole history of another one: refs, revisions, objects. Under a key once.
    pub async fn copy_with_history(
        &self,
        from: &RepoName,
        to: &RepoName,
        author: &Author,
        key: Option<Once>,
    ) -> Result<Head> {
        self.once(to, author, key, async |key| {
            let source = self.repo(from)?;
            let mut ops = vec![Op::CopyRepo { from: from.clone(), to: to.clone() }];
            ops.extend(key.map(|key| remember_copy(to, &source, author, key)));
            let mut outcomes = self.propose(ops, Vec::new()).await?.into_iter();
            let copied = outcomes.next().ok_or_else(|| Error::Internal("no outcome".into()))?;
            let exists = matches!(copied, Outcome::Exists);
            match done(copied, "repository", to.as_str()) {
                Ok(()) => self.head(to).map(Ok),
                // It was there before this entry, which has remembered the key because it is a copy all the same.
                Err(error) if exists && matches!(outcomes.next(), Some(Outcome::Changed(_))) => Ok(Err(error)),
                Err(error) => Err(error),
            }
        })
        .await
    }

    /// Makes the newest tree of one repository the newest tree of another, as one revision with the gate's consent; a repository that does
    /// not exist is created with it. Under a key once.
    pub async fn copy_tip(&self, from: &RepoName, to: &RepoName, author: &Author, key: Option<Once>) -> Result<Head> {
        self.once(to, author, key, async |key| self.try_copy_tip(from, to, author, key).await.map(Ok)).await
    }

    async fn try_copy_tip(&self, from: &RepoName, to: &RepoName, author: &Author, key: Option<String>) -> Result<Head> {
        let (source, target) = (self.head(from)?, self.repo(to).ok().map(|record| record.head));
        let (source_store, target_store) = (self.store(from)?, self.store(to).ok());
        let limit_bytes = self.inner.options.limits.max_commit_bytes;
        let read = tokio::task::spawn_blocking(move || {
            let source_reader = source_store.reader().map_err(Error::internal)?;
            let new = files_of(&source_reader, source)?;
            let old = match (&target, &target_store) {
                (Some(head), Some(store)) => files_of(&store.reader().map_err(Error::internal)?, *head)?,
                _ => BTreeMap::new(),
            };
            difference(&source_reader, &old, &new, limit_bytes)
        });
        let (deleted, files) = read.await.map_err(Error::internal)??;
        let Some(base) = target else { return self.create_under(to, author, files, key).await };
        let put = |file: TemplateFile| TreeChange::Put {
            path: file.path,
            mode: Some(file.mode),
            content: Content::Bytes(file.content),
        };
        let deletions = deleted.into_iter().map(|path| TreeChange::Delete { path });
        let change = RepoChange {
            base: RevisionSpec::Number(base.revision),
            changes: deletions.chain(files.into_iter().map(put)).collect(),
        };
        let answer = self.commit(CommitRequest {
            author: author.clone(),
            message: format!("Copy r{} of {from}", source.revision),
            idempotency_key: key,
            repos: [(to.clone(), change)].into(),
        });
        let committed = answer.await?.repos.get(to).copied();
        committed.map(|committed| committed.head).ok_or_else(|| Error::Internal(format!("the answer lacks {to}")))
    }

    /// Pins the leadership to a node for as long as that node is healthy. A pin to another node stays and is an error.
    pub async fn pin(&self, node: &NodeName) -> Result<()> {
        match self.one(Op::Pin { node: node.clone() }).await? {
            Outcome::Exists => {
                let name = self.view().pin.as_ref().map_or_else(String::new, ToString::to_string);
                Err(Error::Exists { kind: "an override to another node".into(), name })
            }
            outcome => done(outcome, "server node", node.as_str()),
        }
    }

    /// Unpins the leadership from the node.
    pub async fn unpin(&self, node: &NodeName) -> Result<()> {
        self.simple(Op::Unpin { node: node.clone() }, "override to", node.as_str()).await
    }
}

/// Remembers the key if the copy is what it shall be. Its refs name where `main` is already, so nothing moves; where they do not (`to` was
/// there before and is something else), nothing is remembered.
fn remember_copy(to: &RepoName, source: &RepoRecord, author: &Author, key: String) -> Op {
    let tip = source.head.commit;
    let refs = vec![RefUpdate { name: source.head_ref.clone(), old: tip, new: tip }];
    let update = RepoUpdate { repo: to.clone(), refs, revision: None };
    let idempotency = IdempotencyKey { user: author.user.clone(), key, fingerprint: [0; 16] };
    Op::Change(ChangeSet { updates: vec![update], unchanged: BTreeMap::new(), idempotency: Some(idempotency) })
}

/// Everything but directories.
fn files_of(reader: &Reader, head: Head) -> Result<BTreeMap<RepoPath, Entry>> {
    if head.commit.is_null() {
        return Ok(BTreeMap::new());
    }
    let tree = reader.tree_of(head.commit).map_err(Error::internal)?;
    let entries = reader.list(tree, None, true).map_err(Error::internal)?;
    let files = entries.into_iter().filter(|entry| entry.mode != Mode::Dir);
    Ok(files.map(|entry| (entry.path.clone(), entry)).collect())
}

/// What to delete and what to put so that `old` becomes `new`.
fn difference(
    reader: &Reader,
    old: &BTreeMap<RepoPath, Entry>,
    new: &BTreeMap<RepoPath, Entry>,
    limit_bytes: u64,
) -> Result<(Vec<RepoPath>, Vec<TemplateFile>)> {
    let deleted = old.keys().filter(|path| !new.contains_key(*path)).cloned().collect();
    let (mut files, mut total) = (Vec::new(), 0);
    for entry in new.values() {
        if old.get(&entry.path).is_some_and(|old| (old.id, old.mode) == (entry.id, entry.mode)) {
            continue;
        }
        let content: Bytes = reader.blob(entry.id, limit_bytes).map_err(Error::internal)?.into();
        total += content.len() as u64;
        if total > limit_bytes {
            return Err(Error::TooLarge { what: "the copy".into(), limit_bytes });
        }
        files.push(TemplateFile { path: entry.path.clone(), mode: entry.mode, content });
    }
    Ok((deleted, files))
}
