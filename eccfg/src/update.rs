//! Moving a working copy to what the servers have: resolve the target, fetch what is missing, stage, exchange, settle.
//!
//! The commands and the node agent take the same steps; the agent puts its checks between staging and exchange. Every step is a
//! function of its own for that reason, and [`pull`] is all of them in a row. Fetching is one POST per repository whose commit is not
//! here yet: the commit is known, so nothing is negotiated. Steps that touch the disk run on the blocking pool.

use std::collections::BTreeMap;
use std::path::Path;

use cluster::api::Head;
use cluster::http_client::ClientError as ClientHttpError;
use repos::protocol::client::{ClientError, FetchRequest, fetch_request, read_fetch_response};
use repos::worktree::{
    Base, ConflictState, CreateOptions, Exchanged, Mount, Ownership, SavedEdit, Settled, StageOptions, Staged, Target,
    Targets, WorkingCopy, WorktreeError,
};
use repos::{Oid, PackLimits, RepoPath};
use serde::Serialize;

use crate::error::CommandError;
use crate::place::{self, CopyInfo};
use crate::server::Server;

/// Whose target is followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Follow {
    /// Every repository's `main`: what a person works on.
    Heads,
    /// What the cluster wants this node to have; behind `main` while a rollout runs.
    Node(String),
}

/// What a working copy shall become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Goal {
    /// The node target's serial, when a node's target is followed.
    pub serial: Option<u64>,
    /// Mount → revision and commit.
    pub targets: Targets,
    /// Frozen repositories of which the working copy keeps what it has, because there is something newer.
    pub held: Vec<String>,
}

/// An update that was not made. The working copy is as it was.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// No server gave an answer that could be used.
    #[error(transparent)]
    Server(#[from] ClientHttpError),
    /// A server's answer makes no sense.
    #[error("the server's answer about {repo} cannot be used: {reason}")]
    Answer {
        /// The repository.
        repo: String,
        /// What is wrong.
        reason: String,
    },
    /// The objects could not be fetched.
    #[error("{repo} cannot be fetched")]
    Fetch {
        /// The repository.
        repo: String,
        /// Why not.
        #[source]
        source: ClientError,
    },
    /// The working copy cannot be moved.
    #[error(transparent)]
    Worktree(#[from] WorktreeError),
    /// The object store failed.
    #[error(transparent)]
    Store(#[from] repos::Error),
}

/// Where each mount of `wc` shall go.
pub async fn resolve(server: &Server, wc: &WorkingCopy, follow: &Follow) -> Result<Goal, UpdateError> {
    let (serial, target) = match follow {
        Follow::Node(node) => {
            let target = server.target(node).await?;
            (Some(target.serial), target)
        }
        Follow::Heads => (None, heads(server, wc).await?),
    };
    let mut kept = target.clone();
    kept.hold(&bases(wc)?);
    let held = target.frozen.iter().filter(|name| kept.repos.get(*name) != target.repos.get(*name)).cloned().collect();
    Ok(Goal { serial, targets: targets_of(wc, &kept.repos)?, held })
}

/// Where `main` of each mounted repository stands.
async fn heads(server: &Server, wc: &WorkingCopy) -> Result<cluster::api::Target, UpdateError> {
    let mut heads = cluster::api::Target { serial: 0, repos: BTreeMap::new(), frozen: Vec::new() };
    let mut repos: BTreeMap<_, _> = server.repos().await?.into_iter().map(|repo| (repo.name.clone(), repo)).collect();
    for mount in wc.mounts() {
        match repos.remove(&mount.name) {
            Some(repo) => {
                heads.repos.insert(repo.name.clone(), Head { revision: repo.revision, commit: repo.commit });
                heads.frozen.extend(repo.frozen.then_some(repo.name));
            }
            // The server's own words say why it is not to be had.
            None => drop(heads.repos.insert(mount.name.clone(), server.head(&mount.name).await?)),
        }
    }
    Ok(heads)
}

/// Where each mount of the working copy stands.
pub fn bases(wc: &WorkingCopy) -> Result<BTreeMap<String, Head>, WorktreeError> {
    let mut heads = BTreeMap::new();
    for mount in wc.mounts() {
        if let Some(base) = wc.base(&mount.name)? {
            heads.insert(mount.name.clone(), Head { revision: base.revision, commit: base.commit.to_string() });
        }
    }
    Ok(heads)
}

/// The part of `heads` that `wc` has mounts for, as targets.
pub fn targets_of(wc: &WorkingCopy, heads: &BTreeMap<String, Head>) -> Result<Targets, UpdateError> {
    let mounted = heads.iter().filter(|(repo, _)| wc.mounts().iter().any(|mount| &mount.name == *repo));
    mounted.map(|(repo, head)| Ok((repo.clone(), target_of(repo, head)?))).collect()
}

fn target_of(repo: &str, head: &Head) -> Result<Target, UpdateError> {
    let commit: Oid = head.commit.parse().map_err(|_| UpdateError::Answer {
        repo: repo.to_owned(),
        reason: format!("{:?} is not a commit id", head.commit),
    })?;
    Ok(Target { revision: head.revision, commit })
}

/// Makes an empty working copy at `root` for the subcluster that `info` names; the first update fills it. One that an interrupted
/// run left is taken up.
pub async fn create(
    root: &Path,
    info: &CopyInfo,
    ca_pem: &str,
    ownership: Ownership,
) -> Result<WorkingCopy, CommandError> {
    let first = info.servers.first().map(String::as_str).unwrap_or_default().trim_end_matches('/').to_owned();
    let mount = |name: &str, at: &str| Mount {
        name: name.to_owned(),
        at: at.to_owned(),
        remote_url: format!("{first}/{name}.git"),
        ca: None,
    };
    let options = CreateOptions { mounts: vec![mount(&info.subcluster, ""), mount("global", "global")], ownership };
    let (root, info, ca_pem) = (root.to_owned(), info.clone(), ca_pem.to_owned());
    blocking(move || {
        if let Some(parent) = root.parent() {
            std::fs::create_dir_all(parent).map_err(|source| CommandError::io("create", parent, source))?;
        }
        let wc = match WorkingCopy::create(&root, options.clone()) {
            Err(WorktreeError::AlreadyExists(_)) => WorkingCopy::open(&root)?,
            other => other?,
        };
        info.store(&wc, ca_pem.as_bytes())?;
        // Plain git in the working copy trusts what eccfg trusts.
        let ca = place::ca_file(&wc);
        for mount in &options.mounts {
            wc.set_remote(&mount.name, &mount.remote_url, Some(&ca))?;
        }
        Ok(wc)
    })
    .await
}

/// Brings the commits of `targets` into the working copy's object stores. Returns how many objects came.
pub async fn fetch(server: &Server, wc: &WorkingCopy, targets: &Targets) -> Result<u64, UpdateError> {
    let mut objects = 0;
    for (repo, target) in targets {
        objects += fetch_commit(server, wc, repo, target.commit).await?;
    }
    Ok(objects)
}

/// One repository's commit with all that it reaches, in one request, unless it is here already.
async fn fetch_commit(server: &Server, wc: &WorkingCopy, repo: &str, commit: Oid) -> Result<u64, UpdateError> {
    let store = wc.objects(repo)?;
    let base: Option<Base> = wc.base(repo)?;
    if store.reader()?.contains(commit) {
        return Ok(0);
    }
    let haves: Vec<Oid> = base.map(|base| base.commit).into_iter().collect();
    let body = fetch_request(&FetchRequest { wants: &[commit], haves: &haves, ..FetchRequest::default() });
    let answer = server.upload_pack(repo, body).await?;
    let mut stream = answer.into_blocking_reader();
    let received = blocking(move || {
        read_fetch_response(&mut stream, &store, &PackLimits::default(), &mut |text| {
            tracing::debug!("remote: {}", text.trim_end())
        })
    });
    let fetched = received.await.map_err(|source| UpdateError::Fetch { repo: repo.to_owned(), source })?;
    tracing::debug!(repo, %commit, objects = fetched.objects, "fetched");
    Ok(u64::from(fetched.objects))
}

/// Prepares the tree as it shall be, beside the live one.
pub async fn stage(wc: &WorkingCopy, targets: &Targets, options: &StageOptions) -> Result<Staged, WorktreeError> {
    let (wc, targets, options) = (wc.clone(), targets.clone(), options.clone());
    blocking(move || wc.stage(&targets, &options)).await
}

/// Puts the staged tree in place, in one instant.
pub async fn exchange(staged: Staged) -> Result<Exchanged, WorktreeError> {
    blocking(move || staged.exchange()).await
}

/// Carries over what was edited in the last moment, and makes the displaced tree the next spare.
pub async fn settle(exchanged: Exchanged) -> Result<Settled, WorktreeError> {
    blocking(move || exchanged.settle()).await
}

/// How a path changed, as `pull` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Letter {
    /// New in the working copy.
    Added,
    /// Another content or mode.
    Updated,
    /// Gone from the working copy.
    Deleted,
    /// Both sides changed it; the file holds conflict markers.
    Conflict,
}

impl Letter {
    /// The one letter that stands for it.
    pub fn as_char(self) -> char {
        match self {
            Letter::Added => 'A',
            Letter::Updated => 'U',
            Letter::Deleted => 'D',
            Letter::Conflict => 'C',
        }
    }
}

/// A path that an update touched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PathChange {
    /// Relative to the working copy's root.
    pub path: String,
    /// What happened to it.
    pub change: Letter,
}

/// What an update did.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Pulled {
    /// Mount → where it stands now.
    pub repos: BTreeMap<String, Step>,
    /// The files that changed.
    pub changes: Vec<PathChange>,
    /// Files with conflict markers (`--manual` only).
    pub conflicts: Vec<ConflictState>,
    /// Local edits that were put aside.
    pub saved: Vec<SavedEdit>,
    /// Edits made during the update that were carried over.
    pub carried: Vec<RepoPath>,
    /// True when the directory was exchanged, so that shells inside it see the old one.
    pub directory_replaced: bool,
    /// Frozen repositories that stayed where they were although there is something newer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub held: Vec<String>,
    /// Repositories that stayed where they were because the server that answered is behind them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub ahead: BTreeMap<String, Step>,
}

/// One mount's way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// The revision it had; none before the first update.
    pub from: Option<u64>,
    /// The revision it has.
    pub to: u64,
    /// Its commit.
    pub commit: Oid,
}

/// All steps in a row. Backwards only where the cluster wants this node to go there: an agent that follows the same working copy may be
/// faster than this, and a server that answers may be behind it.
pub async fn pull(
    server: &Server,
    wc: &WorkingCopy,
    follow: &Follow,
    options: &StageOptions,
) -> Result<Pulled, UpdateError> {
    loop {
        let before = bases(wc)?;
        let Goal { mut targets, held, .. } = resolve(server, wc, follow).await?;
        let mut ahead = steps(wc, &targets)?;
        if *follow == Follow::Heads {
            targets = not_behind(wc, &targets)?;
        }
        ahead.retain(|repo, _| !targets.contains_key(repo));
        fetch(server, wc, &targets).await?;
        let repos = steps(wc, &targets)?;
        let staged = stage(wc, &targets, options).await?;
        // From here on the lock keeps others away. Whoever has moved the working copy since may know of something newer.
        if bases(wc)? == before {
            return Ok(Pulled { held, ahead, ..finish(wc, staged, repos).await? });
        }
        blocking(move || staged.discard()).await?;
    }
}

/// The same after a commit from this working copy, of which the targets are known: an agent may be further already.
pub async fn advance_to(
    server: &Server,
    wc: &WorkingCopy,
    targets: &Targets,
    options: &StageOptions,
) -> Result<Pulled, UpdateError> {
    fetch(server, wc, targets).await?;
    let mut targets = not_behind(wc, targets)?;
    loop {
        let repos = steps(wc, &targets)?;
        let staged = stage(wc, &targets, options).await?;
        // From here on the lock keeps others away, so what holds now goes on holding.
        let still = not_behind(wc, &targets)?;
        if still == targets {
            return Ok(finish(wc, staged, repos).await?);
        }
        blocking(move || staged.discard()).await?;
        targets = still;
    }
}

/// Those of `targets` that the working copy has not passed yet.
fn not_behind(wc: &WorkingCopy, targets: &Targets) -> Result<Targets, WorktreeError> {
    let mut kept = Targets::new();
    for (repo, target) in targets {
        if wc.base(repo)?.is_none_or(|base| base.revision <= target.revision) {
            kept.insert(repo.clone(), *target);
        }
    }
    Ok(kept)
}

/// Exchanges and settles what was staged.
async fn finish(wc: &WorkingCopy, staged: Staged, repos: BTreeMap<String, Step>) -> Result<Pulled, WorktreeError> {
    if staged.is_noop() {
        return Ok(Pulled { repos, ..Pulled::default() });
    }
    let changes = letters(wc, &staged);
    let exchanged = exchange(staged).await?;
    let mut pulled = Pulled {
        repos,
        changes,
        conflicts: exchanged.conflicts().to_vec(),
        saved: exchanged.saved().to_vec(),
        carried: Vec::new(),
        directory_replaced: exchanged.directory_replaced(),
        held: Vec::new(),
        ahead: BTreeMap::new(),
    };
    let settled = settle(exchanged).await?;
    pulled.saved.extend(settled.saved);
    pulled.carried = settled.carried;
    Ok(pulled)
}

/// From where to where each mount goes.
pub fn steps(wc: &WorkingCopy, targets: &Targets) -> Result<BTreeMap<String, Step>, WorktreeError> {
    let step = |(repo, target): (&String, &Target)| {
        let from = wc.base(repo)?.map(|base| base.revision);
        Ok((repo.clone(), Step { from, to: target.revision, commit: target.commit }))
    };
    targets.iter().map(step).collect()
}

/// What happens to each changed path, told by which of the two trees has it.
fn letters(wc: &WorkingCopy, staged: &Staged) -> Vec<PathChange> {
    let conflicts: std::collections::BTreeSet<_> =
        staged.conflicts().iter().map(|conflict| conflict.path.clone()).collect();
    let letter = |path: &RepoPath| {
        let place = path.as_path();
        let exists = |tree: &std::path::Path| tree.join(place).symlink_metadata().is_ok();
        let change = match (exists(wc.root()), exists(staged.path())) {
            _ if conflicts.contains(path) => Letter::Conflict,
            (false, true) => Letter::Added,
            (true, false) => Letter::Deleted,
            _ => Letter::Updated,
        };
        PathChange { path: path.to_string(), change }
    };
    staged.changed().iter().map(letter).collect()
}

/// Runs `work` on the blocking pool; a panic there goes on here.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => unreachable!("blocking work is never cancelled"),
        },
    }
}
