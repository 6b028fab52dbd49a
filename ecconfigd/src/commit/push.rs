//! Judging a git push.
//!
//! `main` only moves forward and is never deleted; the gate judges its new tree. Other branches, tags and notes are free. Every new object is
//! checked whatever ref it is for, because it could be checked out.

use std::collections::BTreeMap;

use bytes::Bytes;
use repos::{ObjectKind, Oid, Reader, RefName};

use super::build::{Builder, Verdict};
use super::judge::{self, Proposed};
use super::types::{PushCommand, PushOutcome, PushRequest};
use crate::error::{Error, Result};
use crate::raft::command::{ChangeSet, NewRevision, Op, PackSource, RefUpdate, RepoUpdate, UploadId};
use crate::state::RepoView;

/// Where refs may be.
const NAMESPACES: [&str; 3] = ["refs/heads/", "refs/tags/", "refs/notes/"];

/// How a push's pack gets into the log. The order of the variants is part of the peer protocol.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub(crate) enum PushPack {
    /// It has none.
    None,
    /// In the entry.
    Inline(Bytes),
    /// It is there, in chunks.
    Upload(UploadId),
}

/// Whether a pack has to go ahead in chunks.
pub(crate) fn large_pack(bytes: u64) -> bool {
    bytes > super::INLINE_PACK_BYTES
}

/// What judging found.
pub(crate) struct Judged {
    pub(crate) outcome: PushOutcome,
    refs: Vec<RefUpdate>,
    revision: Option<NewRevision>,
}

impl Judged {
    /// Whether a ref would move.
    pub(crate) fn moves(&self) -> bool {
        !self.refs.is_empty()
    }
}

/// One accepted command's part.
enum Accepted {
    Nothing,
    Ref(RefUpdate),
    Main(RefUpdate, NewRevision),
}

/// Why one command is refused: the reason in the `ng` line, and lines for the terminal.
struct Refused {
    reason: String,
    lines: Vec<String>,
}

impl From<&str> for Refused {
    fn from(reason: &str) -> Self {
        Refused { reason: reason.into(), lines: Vec::new() }
    }
}

type Judgement = Result<std::result::Result<Accepted, Refused>>;

impl Builder {
    /// The push's verdict, and its outcome as far as it is known before the log decides.
    pub(crate) fn push(
        &mut self,
        request: &PushRequest,
        pack: &PushPack,
    ) -> (Verdict<PushOutcome>, Option<PushOutcome>) {
        if self.sealed {
            return (Verdict::Later, None);
        }
        let judged = match self.judge_push(request) {
            Ok(judged) => judged,
            Err(error) => return (Verdict::Answered(Err(error)), None),
        };
        if !judged.moves() {
            return (Verdict::Answered(Ok(judged.outcome)), None);
        }
        let source = match pack {
            PushPack::None => None,
            PushPack::Inline(bytes) => {
                let number = u32::try_from(self.attachments.len()).expect("a batch has few packs");
                self.attachments.push(bytes.clone());
                Some(PackSource::Attachment(number))
            }
            PushPack::Upload(id) => Some(PackSource::Upload(*id)),
        };
        self.packs.extend(source.map(|source| Op::Pack { repo: request.repo.clone(), source }));
        let update = RepoUpdate { repo: request.repo.clone(), refs: judged.refs, revision: judged.revision };
        let set = ChangeSet { updates: vec![update], unchanged: BTreeMap::new(), idempotency: None };
        self.changes.push(Op::Change(set));
        self.sealed = true;
        (Verdict::Op(self.changes.len() - 1), Some(judged.outcome))
    }

    /// Judges every command; with `atomic`, one refusal refuses all.
    pub(crate) fn judge_push(&self, request: &PushRequest) -> Result<Judged> {
        let repo = self.view.repos.get(&request.repo).ok_or_else(|| Error::no_repo(&request.repo))?.clone();
        let own;
        let reader = match &request.quarantine {
            Some(quarantine) => quarantine.reader(),
            None => repo.store.reader(),
        };
        own = reader.map_err(Error::internal)?;
        let mut judged = Judged {
            outcome: PushOutcome { refs: Vec::new(), lines: Vec::new(), head: None },
            refs: Vec::new(),
            revision: None,
        };
        for command in &request.commands {
            let result = if repo.record.frozen {
                Err("the repository is in CONFLICT".into())
            } else if judged.refs.iter().any(|one| one.name == command.name) {
                Err("the push names it twice".into())
            } else {
                self.judge_command(request, &repo, &own, command)?
            };
            judged.note(&command.name, result);
        }
        if request.atomic && judged.outcome.refs.iter().any(|(_, result)| result.is_err()) {
            judged.refuse_all("atomic push failed");
        }
        Ok(judged)
    }

    fn judge_command(
        &self,
        request: &PushRequest,
        repo: &RepoView,
        reader: &Reader,
        command: &PushCommand,
    ) -> Judgement {
        let main = repo.record.head_ref == command.name;
        // A commit earlier in this batch moves main before this push is applied.
        let standing = self.work.get(&request.repo).map(|work| work.head.commit).filter(|_| main);
        let now = standing.or_else(|| repo.refs.get(&command.name).copied()).unwrap_or(Oid::NULL);
        if let Err(refused) = check_ref(repo, command, main) {
            return Ok(Err(refused));
        }
        if now != command.old {
            let at =
                if now.is_null() { "it does not exist".to_owned() } else { format!("it is at {} by now", now.short()) };
            return Ok(Err(Refused { reason: format!("fetch first: {at}"), lines: Vec::new() }));
        }
        if now == command.new {
            return Ok(Ok(Accepted::Nothing));
        }
        let update = RefUpdate { name: command.name.clone(), old: command.old, new: command.new };
        if command.new.is_null() {
            return Ok(Ok(Accepted::Ref(update)));
        }
        if let Some(refused) = check_object(reader, command)? {
            return Ok(Err(refused));
        }
        let tips: Vec<Oid> = repo.refs.values().copied().collect();
        match reader.check_new(&tips, &[command.new], &judge::rules(&request.repo)) {
            Ok(()) => {}
            Err(repos::CheckError::Refused(refusals)) => {
                let lines = refusals.iter().map(|r| format!("{}: {}", r.path, r.reason)).collect();
                return Ok(Err(Refused { reason: "refused: a path breaks the rules".into(), lines }));
            }
            Err(repos::CheckError::Failed(repos::Error::Missing { id })) => {
                let lines = vec![format!("object {id} is missing")];
                return Ok(Err(Refused { reason: "missing necessary objects".into(), lines }));
            }
            Err(repos::CheckError::Failed(error)) => return Err(Error::internal(error)),
        }
        if main { self.judge_main(request, reader, update) } else { Ok(Ok(Accepted::Ref(update))) }
    }

    /// `main`: forward only, and the gate.
    fn judge_main(&self, request: &PushRequest, reader: &Reader, update: RefUpdate) -> Judgement {
        if !update.old.is_null() && !reader.is_ancestor(update.old, update.new).map_err(Error::internal)? {
            let lines = vec![
                "main only moves forward: a forced push to it is refused.".to_owned(),
                "To undo a change, commit its reverse (git revert).".to_owned(),
            ];
            return Ok(Err(Refused { reason: "non-fast-forward".into(), lines }));
        }
        let commit = reader.commit(update.new).map_err(Error::internal)?;
        let old_tree =
            if update.old.is_null() { None } else { Some(reader.tree_of(update.old).map_err(Error::internal)?) };
        let changes = reader.changes(old_tree, commit.tree).map_err(Error::internal)?;
        let mut proposed = self.standing();
        proposed.insert(request.repo.clone(), Proposed { reader, tree: commit.tree, changes: &changes });
        let report = judge::judge(&self.view, &proposed, &self.limits)?;
        if !report.is_pass() {
            return Ok(Err(Refused { reason: "refused by the gate".into(), lines: report.lines() }));
        }
        let (paths, paths_truncated) = judge::record_paths(&changes);
        let author = request.author.to_string();
        Ok(Ok(Accepted::Main(update, NewRevision { author, message: commit.message, paths, paths_truncated })))
    }
}

/// What needs no objects.
fn check_ref(repo: &RepoView, command: &PushCommand, main: bool) -> std::result::Result<(), Refused> {
    let name = command.name.as_str();
    if !NAMESPACES.iter().any(|prefix| name.starts_with(prefix)) {
        return Err("refs are branches, tags or notes here".into());
    }
    if main && command.new.is_null() {
        return Err("deletion of main is refused".into());
    }
    let clashes = |other: &RefName| {
        let (long, short) =
            if other.as_str().len() > name.len() { (other.as_str(), name) } else { (name, other.as_str()) };
        long.strip_prefix(short).is_some_and(|rest| rest.starts_with('/'))
    };
    match repo.refs.keys().find(|other| clashes(other)) {
        Some(other) if !command.new.is_null() => {
            Err(Refused { reason: format!("{other} is in the way"), lines: Vec::new() })
        }
        _ => Ok(()),
    }
}

/// A branch is a commit; whatever is named must be here.
fn check_object(reader: &Reader, command: &PushCommand) -> Result<Option<Refused>> {
    let kind = reader.header(command.new).map_err(Error::internal)?.map(|(kind, _)| kind);
    Ok(match kind {
        None => Some("missing necessary objects".into()),
        Some(ObjectKind::Commit) => None,
        Some(_) if command.name.is_branch() => Some("a branch has to be a commit".into()),
        Some(_) => None,
    })
}

impl Judged {
    fn note(&mut self, name: &RefName, result: std::result::Result<Accepted, Refused>) {
        let result = match result {
            Ok(accepted) => {
                match accepted {
                    Accepted::Nothing => {}
                    Accepted::Ref(update) => self.refs.push(update),
                    Accepted::Main(update, revision) => {
                        self.refs.push(update);
                        self.revision = Some(revision);
                    }
                }
                Ok(())
            }
            Err(refused) => {
                self.outcome.lines.extend(refused.lines);
                Err(refused.reason)
            }
        };
        self.outcome.refs.push((name.clone(), result));
    }

    fn refuse_all(&mut self, reason: &str) {
        self.refs.clear();
        self.revision = None;
        refuse_accepted(&mut self.outcome, reason);
    }
}

/// Turns what was accepted into refusals.
pub(super) fn refuse_accepted(outcome: &mut PushOutcome, reason: &str) {
    for (_, result) in &mut outcome.refs {
        if result.is_ok() {
            *result = Err(reason.to_owned());
        }
    }
}
