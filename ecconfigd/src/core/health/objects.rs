//! Reading all objects now and then, and fetching again what is not as it should be.
//!
//! Reasons to look: a start that found a damaged pack, an object that was read and was not what its name says, somebody who asks, and time.
//! Three things are compared: the state's database with its checksums; the packs with theirs, which notices every changed bit; and everything
//! that refs reach with its name, which notices what is missing. The last two are held to a rate.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use repos::{Oid, Problem, ProblemKind, Verified};

use super::{Core, FIRST_PAUSE, LONGEST_PAUSE, Part, locked};
use crate::core::catchup;
use crate::state::{RepoName, RepoView, State};

/// How often the stores are asked whether they have read something damaged.
const LOOK: Duration = Duration::from_millis(500);
/// How long a node that starts waits for the log before it fetches.
const REPLAY: Duration = Duration::from_secs(5);
/// Rounds of fetching until a repository is whole. What is fetched comes with all that it reaches, so few are needed.
const ROUNDS: usize = 6;

/// What came of reading everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::core) struct Scrubbed {
    pub(in crate::core) objects: u64,
    pub(in crate::core) bytes: u64,
    /// What is wrong with the state's database.
    state: Option<String>,
    /// In words, the first few.
    pub(in crate::core) problems: Vec<String>,
    pub(in crate::core) took: Duration,
}

/// Problems that are named.
const MAX_NAMED: usize = 20;

/// Holds reading to a rate, and ends it when the core stops.
pub(in crate::core) struct Pace {
    began: Instant,
    bytes: u64,
    bytes_per_s: u64,
}

impl Pace {
    pub(in crate::core) fn new(bytes_per_s: u64) -> Pace {
        Pace { began: Instant::now(), bytes: 0, bytes_per_s }
    }

    /// Counts, and sleeps where that was too fast. Blocks.
    pub(in crate::core) fn spend(&mut self, bytes: u64) {
        self.bytes += bytes;
        let due = Duration::from_secs_f64(self.bytes as f64 / self.bytes_per_s.max(1) as f64);
        // Short waits would cost more than they hold up.
        if let Some(early) = due.checked_sub(self.began.elapsed()).filter(|early| early.as_millis() >= 5) {
            std::thread::sleep(early);
        }
    }
}

fn words(repo: &RepoName, problem: &Problem) -> String {
    let what = match &problem.kind {
        ProblemKind::Missing => "is missing".to_owned(),
        ProblemKind::Damaged(why) => format!("is damaged: {why}"),
    };
    format!("{repo}: object {} {what}", problem.id)
}

impl Core {
    /// Reads every pack and every object that refs reach. `tell` hears how far it is and may end it.
    pub(in crate::core) async fn scrub(
        &self,
        tell: impl FnMut(&RepoName, Verified) -> bool + Send + 'static,
    ) -> Result<Scrubbed, String> {
        let (state, stopping) = (self.inner.proposer.state.clone(), self.inner.stopping.clone());
        let mut pace = Pace::new(self.inner.options.limits.scrub_bytes_per_s.get());
        let mut tell = tell;
        let work = tokio::task::spawn_blocking(move || {
            let (began, mut found) = (Instant::now(), Scrubbed::default());
            match state.check_database() {
                Err(error) if error.is_damage() => found.state = Some(error.to_string()),
                other => other.map_err(|error| error.to_string())?,
            }
            found.state.clone().into_iter().for_each(|why| found.note(why));
            // Packs that come later belong to refs that come later.
            let view = state.view();
            for (name, repo) in view.repos.iter() {
                let before = (found.objects, found.bytes);
                let mut go_on = |bytes: u64| {
                    pace.spend(bytes);
                    !stopping.is_cancelled()
                };
                let bad = repo.store.check_packs(&mut go_on).map_err(|error| format!("{name}: {error}"))?;
                for pack in &bad {
                    let file = pack.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    found.note(format!("{name}: {file}: {}", pack.reason));
                }
                let tips = tips_of(repo);
                let (mut last, mut ended) = (0, false);
                let problems = repo.store.verify_while(&tips, &mut |verified: Verified| {
                    pace.spend(verified.bytes - last);
                    last = verified.bytes;
                    (found.objects, found.bytes) = (before.0 + verified.objects, before.1 + verified.bytes);
                    let all = Verified { objects: found.objects, bytes: found.bytes };
                    ended = stopping.is_cancelled() || !tell(name, all);
                    !ended
                });
                for problem in problems.map_err(|error| format!("{name}: {error}"))? {
                    found.note(words(name, &problem));
                }
                if ended || stopping.is_cancelled() {
                    return Err("it was ended".to_owned());
                }
            }
            found.took = began.elapsed();
            Ok(found)
        });
        let found = work.await.map_err(|error| error.to_string())??;
        *locked(&self.health().scrubbed) = Some(found.clone());
        if let Some(why) = &found.state {
            self.go_out(Part::State, why.clone()).await;
        } else if let Some(first) = found.problems.first() {
            self.go_out(Part::Objects, format!("its objects are damaged: {first}")).await;
            self.health().doubt_objects();
        }
        Ok(found)
    }
}

impl Scrubbed {
    fn note(&mut self, what: String) {
        if self.problems.len() < MAX_NAMED {
            self.problems.push(what);
        }
    }
}

/// Looks until the core stops, and brings objects back while some are bad.
pub(in crate::core) async fn keep(core: Core) {
    let (health, state) = (core.health(), core.inner.proposer.state.clone());
    let stopping = core.inner.stopping.clone();
    let mut reads: BTreeMap<RepoName, u64> = BTreeMap::new();
    let interval = || Duration::from_millis(core.inner.options.limits.scrub_interval_ms.get());
    let mut scrubbed = tokio::time::Instant::now();
    let mut pause = FIRST_PAUSE;
    let mut wait = Duration::ZERO;
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK.max(wait)) => {}
            () = health.look_at_objects.notified() => {}
            () = stopping.cancelled() => return,
        }
        wait = Duration::ZERO;
        if health.is_out_for(Part::State) {
            continue;
        }
        if !health.is_out_for(Part::Objects) {
            let doubted = damaged_reads(&core, &mut reads);
            if !doubted && scrubbed.elapsed() < interval() {
                continue;
            }
            scrubbed = tokio::time::Instant::now();
            match core.scrub(|_, _| true).await {
                Ok(found) => tracing::debug!(?found, "read all objects"),
                Err(error) => tracing::warn!("not all objects could be read: {error}"),
            }
            refresh_snapshot(&core).await;
        }
        if health.is_out_for(Part::Objects) {
            // The log may bring what is missing.
            let _ = tokio::time::timeout(REPLAY, core.linearize()).await;
            match heal(&core).await {
                Ok(()) => {
                    damaged_reads(&core, &mut reads);
                    state.suspects().iter().for_each(|repo| state.is_whole(repo));
                    core.come_back().await;
                    pause = FIRST_PAUSE;
                }
                Err(error) => {
                    tracing::error!("this node stays out: {error}");
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    wait = pause;
                }
            }
        }
    }
}

/// Whether a store has read something damaged since the last time.
fn damaged_reads(core: &Core, known: &mut BTreeMap<RepoName, u64>) -> bool {
    let mut more = false;
    for (name, repo) in core.view().repos.iter() {
        let now = repo.store.damaged_reads();
        more |= known.insert(name.clone(), now).unwrap_or(0) != now;
    }
    more
}

/// A snapshot whose checksum is wrong is written anew while the state that it is of is still good.
async fn refresh_snapshot(core: &Core) {
    let state = core.inner.proposer.state.clone();
    let done = tokio::task::spawn_blocking(move || {
        if state.snapshot_is_sound()? {
            return Ok(false);
        }
        state.build_snapshot().map(|_| true)
    });
    match done.await {
        Ok(Ok(true)) => tracing::error!("the snapshot on the disk was damaged; it is written anew"),
        Ok(Ok(false)) | Err(_) => {}
        Ok(Err(error)) => tracing::error!("the snapshot on the disk could not be checked: {error}"),
    }
}

/// Sets bad packs aside and fetches what is missing until all repositories are whole.
pub(in crate::core) async fn heal(core: &Core) -> Result<(), String> {
    let names: Vec<RepoName> = core.view().repos.keys().cloned().collect();
    for name in names {
        heal_one(core, &name).await?;
    }
    Ok(())
}

async fn heal_one(core: &Core, name: &RepoName) -> Result<(), String> {
    for _ in 0..ROUNDS {
        let (wants, reason) = examine(core, name).await?;
        if wants.is_empty() {
            return Ok(());
        }
        let from = core.other_members();
        let (Some(client), false) = (&core.inner.client, from.is_empty()) else {
            return Err(format!(
                "{reason}, and there is no other member to fetch it from. Stop this node and restore repos/{name}.git/objects from a backup or \
                 a clone: files in objects/pack of any clone of {name} will do"
            ));
        };
        tracing::info!(repo = %name, objects = wants.len(), "fetching objects again: {reason}");
        catchup::bring_again(&core.inner.proposer.state, client, &from, name, &wants).await?;
    }
    Err(format!("{name} is not whole after {ROUNDS} rounds of fetching"))
}

/// Sets aside what is bad, and answers what is missing then.
async fn examine(core: &Core, name: &RepoName) -> Result<(Vec<Oid>, String), String> {
    let (state, name) = (core.inner.proposer.state.clone(), name.clone());
    let work = tokio::task::spawn_blocking(move || {
        let view = state.view();
        let Some(repo) = view.repos.get(&name) else { return Ok((Vec::new(), String::new())) };
        let problems = set_bad_aside(&state, &name, repo)?;
        let reason = problems.first().map(|problem| words(&name, problem)).unwrap_or_default();
        Ok((problems.into_iter().map(|problem| problem.id).collect(), reason))
    });
    work.await.map_err(|error| error.to_string())?
}

/// Sets aside what is bad in a repository, syncs the rest, and answers what is missing then. Blocks.
pub(crate) fn set_bad_aside(state: &State, name: &RepoName, repo: &RepoView) -> Result<Vec<Problem>, String> {
    let text = |error: repos::Error| format!("{name}: {}", cluster::error::Chain(&error));
    let aside = || state.aside(&format!("packs-{name}")).map_err(|error| error.to_string());
    let bad = repo.store.check_packs(&mut |_| true).map_err(text)?;
    if !bad.is_empty() {
        repo.store.set_aside(&bad, &aside()?).map_err(text)?;
    }
    let tips = tips_of(repo);
    let mut problems = repo.store.verify(&tips).map_err(text)?;
    if problems.iter().any(|problem| matches!(problem.kind, ProblemKind::Damaged(_))) {
        // Checksums are right and objects are not: none of these packs is to be trusted.
        repo.store.set_all_aside(&aside()?).map_err(text)?;
        problems = repo.store.verify(&tips).map_err(text)?;
    }
    // What was fetched is the only copy here.
    repo.store.sync().map_err(text)?;
    Ok(problems)
}

/// What refs point at, each once.
fn tips_of(repo: &RepoView) -> Vec<Oid> {
    let tips: BTreeSet<Oid> = repo.refs.values().copied().collect();
    tips.into_iter().collect()
}
