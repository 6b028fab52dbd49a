//! One update of this node: from a target to a working copy whose services have accepted it, or back.
//!
//! The order is fixed. Stage the tree; let every concerned service `check` it in place of the real one; exchange the trees;
//! then, service by service in declared order, `reload` and `verify`. A failed check leaves the node on the old revision. A
//! failed reload or verify brings the old tree back and reloads again, for the services that had been touched. What failed
//! is given up until the target changes, or somebody brings the working copy to it by hand. Whoever moved the working copy makes no difference: a revision that a person
//! pulled or committed here goes through the same services, because the agent compares with what it last brought to an end.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use cluster::api::{Head, NodeReport, ReportState, StepReport, Target};
use repos::worktree::{Exchanged, Scan, Settled, StageOptions, Staged, Targets, WorkingCopy, WorktreeError};
use repos::{Oid, RepoPath};

use super::command::{Step, StepKind};
use super::fault;
use super::isolate;
use super::record::{Failure, GivenUp, Heads, RecordError, RecordFile, Underway};
use super::report::Reporter;
use super::services::{Service, Services};

/// What becomes of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The node is where it shall be.
    Healthy,
    /// It failed here and is given up until it changes.
    GivenUp,
}

/// How a target that is given up leaves the working copy.
struct Left {
    at: Heads,
    local_edits: bool,
}

/// Left at `at`, because local edits stand in the way.
fn blocked(at: Heads) -> Left {
    Left { at, local_edits: true }
}

/// Left at `at`, because a command failed.
fn failed(at: Heads) -> Left {
    Left { at, local_edits: false }
}

/// What the services after a failing one do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failing {
    /// Nothing: the way leads back.
    Stops,
    /// They are told all the same: there is no other way to lead them back.
    GoesOn,
}

/// The agent itself cannot go on with this update now; it is tried again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpdateError {
    #[error("the working copy {path}", path = .0.display())]
    Worktree(PathBuf, #[source] WorktreeError),
    #[error("the objects of the working copy")]
    Objects(#[from] repos::Error),
    #[error("the target names {0:?}, which is no commit id")]
    BadCommit(String),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("a step of the update died")]
    Died(#[from] tokio::task::JoinError),
}

/// Takes the working copy from target to target.
pub(crate) struct Updater {
    pub(crate) wc: WorkingCopy,
    pub(crate) node: String,
    pub(crate) services: Services,
    pub(crate) record: RecordFile,
    pub(crate) reporter: Reporter,
    /// True when nothing may be changed while there are local edits (`autoupdate = "ifunchanged"`).
    pub(crate) only_unchanged: bool,
    /// False when files are updated and checked and no service is told (`reload_config_on_update = false`).
    pub(crate) reload: bool,
}

impl Updater {
    /// Where the working copy stands.
    pub(crate) fn base(&self) -> Result<Heads, UpdateError> {
        crate::update::bases(&self.wc).map_err(|error| self.failed(error))
    }

    /// True when there is nothing to do about this target, or nothing that would help.
    pub(crate) fn is_done_with(&self, target: &Target) -> Result<bool, UpdateError> {
        let record = self.record.get();
        let there = self.base()? == target.repos;
        if let Some(given_up) = record.given_up.as_ref().filter(|given_up| given_up.repos == target.repos) {
            let brought_by_hand = there && given_up.left_at != target.repos;
            return Ok(!brought_by_hand);
        }
        Ok(record.underway.is_none() && record.applied == target.repos && there)
    }

    /// A newer target that wants what is here already, as after a thaw, is reported as the one before was.
    pub(crate) fn acknowledge(&mut self, target: &Target) -> Result<(), UpdateError> {
        let record = self.record.get();
        let fits = |report: &&NodeReport| report.state == ReportState::Healthy && report.serial < target.serial;
        let report = record.report.as_ref().filter(fits).filter(|_| record.applied == target.repos).cloned();
        let Some(report) = report.map(|report| NodeReport { serial: target.serial, ..report }) else { return Ok(()) };
        self.record.update(|record| {
            record.applied_serial = target.serial;
            record.report = Some(report.clone());
        })?;
        self.reporter.send(report);
        Ok(())
    }

    /// Local edits that stood in the way may have gone.
    pub(crate) fn look_again(&mut self) {
        let forgiven = self
            .record
            .update(|record| record.given_up = record.given_up.take().filter(|given_up| !given_up.local_edits));
        if let Err(error) = forgiven {
            tracing::warn!(%error, "cannot forget a target that was given up");
        }
    }

    /// The services that a target concerns, against what was last brought to an end. Its objects must be here.
    pub(crate) fn concerned(&self, target: &Target) -> Result<Vec<Service>, UpdateError> {
        let changed = self.changed(&self.record.get().applied, &target.repos)?;
        Ok(self.services.concerned(&changed).into_iter().cloned().collect())
    }

    /// Brings the node to a target whose objects are here.
    pub(crate) async fn pursue(&mut self, target: &Target) -> Result<Outcome, UpdateError> {
        self.resume().await?;
        if self.is_done_with(target)? {
            return Ok(self.outcome_of(target));
        }
        let concerned = self.concerned(target)?;
        let base = self.base()?;
        if self.only_unchanged && base != target.repos && !self.is_clean().await? {
            let why = "there are local edits, and autoupdate is \"ifunchanged\"".to_owned();
            return self.end(target, ReportState::Refused, blocked(base), why, Vec::new());
        }
        let staged = match self.stage(&target.repos, "update").await {
            Ok(staged) => staged,
            Err(UpdateError::Worktree(_, error)) if error.is_conflict() => {
                return self.end(target, ReportState::Refused, blocked(base), with_paths(&error), Vec::new());
            }
            Err(error) => return Err(error),
        };
        // What is staged holds the lock: from here on nobody else moves the working copy.
        let base = self.base()?;
        let moved_by_hand = base == target.repos;
        tracing::debug!(serial = target.serial, "staged");
        fault::point("agent.staged");
        if concerned.iter().any(|service| !service.check.is_empty()) {
            // Checks may take long, and whoever watches wants to know what the node is about.
            self.report(target, ReportState::Fetched, String::new(), Vec::new());
        }
        let mut steps = Vec::new();
        if let Some(why) = self.check(&concerned, &staged, target, &mut steps).await {
            staged.discard().map_err(|error| self.failed(error))?;
            if !moved_by_hand {
                return self.end(target, ReportState::Refused, failed(base), why, steps);
            }
            // The files are there already, and no service has seen them.
            self.begin(target, Vec::new(), Some(Failure { why, steps }))?;
            return self.go_back().await;
        }
        fault::point("agent.checked");
        self.report(target, ReportState::Checked, String::new(), steps.clone());
        let active = concerned.iter().filter(|service| service.is_active());
        let active: Vec<String> = active.map(|service| service.name.clone()).collect();
        if !active.is_empty() {
            self.begin(target, active, None)?;
        }
        fault::point("agent.begun");
        let settling = match self.exchange(staged).await {
            Ok(settling) => settling,
            Err(error) => {
                // Either the services have nothing new to see, or the next attempt finds the tree moved and tells them.
                self.record.update(|record| record.underway = None)?;
                return Err(error);
            }
        };
        tracing::debug!(serial = target.serial, "exchanged");
        fault::point("agent.exchanged");
        self.report(target, ReportState::Applied, String::new(), steps.clone());
        let failure = self.activate(&concerned, target, Failing::Stops, &mut steps).await;
        self.settled(settling).await?;
        fault::point("agent.activated");
        match failure {
            None => self.finish(target, steps),
            Some(why) => self.turn_back(target, why, steps).await,
        }
    }

    /// Finishes what an agent that was killed had begun.
    pub(crate) async fn resume(&mut self) -> Result<(), UpdateError> {
        let Some(underway) = self.record.get().underway.clone() else { return Ok(()) };
        if underway.failure.is_some() {
            return self.go_back().await.map(drop);
        }
        let (base, services) = (self.base()?, self.named(&underway));
        let mut steps = Vec::new();
        if base == underway.to {
            tracing::info!(serial = underway.serial, "finishing an update that was interrupted");
            let target = Target { serial: underway.serial, repos: underway.to, frozen: Vec::new() };
            match self.activate(&services, &target, Failing::Stops, &mut steps).await {
                None => self.finish(&target, steps)?,
                Some(why) => self.turn_back(&target, why, steps).await?,
            };
            return Ok(());
        }
        if base != underway.from {
            // Somebody has moved the working copy since: the services must see what is there now.
            let target = Target { serial: underway.serial, repos: base, frozen: Vec::new() };
            self.activate(&services, &target, Failing::GoesOn, &mut steps).await;
        }
        // Otherwise it ended before the exchange, and no service has seen anything.
        Ok(self.record.update(|record| record.underway = None)?)
    }

    /// The services that an interrupted update has begun to tell.
    pub(crate) fn interrupted(&self) -> Vec<Service> {
        self.record.get().underway.as_ref().map(|underway| self.named(underway)).unwrap_or_default()
    }

    fn named(&self, underway: &Underway) -> Vec<Service> {
        self.services.named(&underway.services).into_iter().cloned().collect()
    }

    fn outcome_of(&self, target: &Target) -> Outcome {
        let given_up = self.record.get().given_up.as_ref().is_some_and(|given_up| given_up.repos == target.repos);
        if given_up { Outcome::GivenUp } else { Outcome::Healthy }
    }

    async fn is_clean(&self) -> Result<bool, UpdateError> {
        let wc = self.wc.clone();
        let status = tokio::task::spawn_blocking(move || wc.status()).await?;
        Ok(status.map_err(|error| self.failed(error))?.is_clean())
    }

    /// Every path that differs between two sets of revisions, as it is named in the working copy.
    fn changed(&self, from: &Heads, to: &Heads) -> Result<Vec<RepoPath>, UpdateError> {
        let mut changed = Vec::new();
        for mount in self.wc.mounts() {
            let Some(new) = to.get(&mount.name) else { continue };
            let reader = self.wc.objects(&mount.name).map_err(|error| self.failed(error))?.reader()?;
            let tree = |head: &Head| -> Result<Oid, UpdateError> { Ok(reader.tree_of(commit_of(head)?)?) };
            // What was applied may have been lost with an older store; then everything counts as changed.
            let old = match from.get(&mount.name) {
                Some(head) if reader.contains(commit_of(head)?) => Some(tree(head)?),
                _ => None,
            };
            for change in reader.changes(old, tree(new)?)? {
                changed.push(below(&mount.at, change.path));
            }
        }
        Ok(changed)
    }

    async fn stage(&self, heads: &Heads, reason: &str) -> Result<Staged, UpdateError> {
        let mut targets = Targets::new();
        for (repo, head) in heads {
            let target = repos::worktree::Target { revision: head.revision, commit: commit_of(head)? };
            targets.insert(repo.clone(), target);
        }
        let options = StageOptions { reason: reason.to_owned(), scan: Scan::Watched, ..StageOptions::default() };
        let wc = self.wc.clone();
        let staged = tokio::task::spawn_blocking(move || wc.stage(&targets, &options)).await?;
        staged.map_err(|error| self.failed(error))
    }

    /// Puts the staged tree in place; the rescan of the displaced one goes on beside what follows.
    async fn exchange(&self, staged: Staged) -> Result<Settling, UpdateError> {
        let exchanged =
            tokio::task::spawn_blocking(move || staged.exchange()).await?.map_err(|error| self.failed(error))?;
        Ok(tokio::task::spawn_blocking(move || Exchanged::settle(exchanged)))
    }

    async fn settled(&self, settling: Settling) -> Result<(), UpdateError> {
        note(&settling.await?.map_err(|error| self.failed(error))?);
        Ok(())
    }

    /// From now on the kernel tells what is touched in the working copy.
    pub(crate) fn watch(&self) {
        if let Err(error) = self.wc.watch() {
            tracing::warn!(%error, "the working copy cannot be watched; every update looks at every file");
        }
    }

    /// Does beside the waiting for the next target what need not be done then.
    pub(crate) fn tend(&self, scan: Scan) -> Settling {
        let wc = self.wc.clone();
        tokio::task::spawn_blocking(move || wc.tend(scan))
    }

    /// Waits for [`tend`](Self::tend), which has the working copy's lock.
    pub(crate) async fn tended(&self, tending: Settling) {
        match tending.await {
            Ok(Ok(settled)) => note(&settled),
            Ok(Err(error)) => tracing::debug!(%error, "the working copy is looked at later"),
            Err(error) => tracing::warn!(%error, "the look at the working copy died"),
        }
    }

    /// Runs every check on the staged tree; the first failure is the answer.
    async fn check(
        &self,
        services: &[Service],
        staged: &Staged,
        target: &Target,
        steps: &mut Vec<StepReport>,
    ) -> Option<String> {
        for service in services.iter().filter(|service| !service.check.is_empty()) {
            let mut step = self.step(service, StepKind::Check, &service.check, target);
            step.argv = isolated(staged.path(), self.wc.root(), &service.check);
            step.arg0 = Some("eccfg".into());
            // The working copy itself is entered only after the staged tree has been bound over it.
            step.cwd = PathBuf::from("/");
            if let Some(why) = run(step, steps).await {
                return Some(why);
            }
        }
        None
    }

    /// Reloads and verifies service by service. What failed is the answer.
    async fn activate(
        &self,
        services: &[Service],
        target: &Target,
        failing: Failing,
        steps: &mut Vec<StepReport>,
    ) -> Option<String> {
        let mut failures: Vec<String> = Vec::new();
        for service in services.iter().filter(|_| self.reload) {
            for (kind, command) in [(StepKind::Reload, &service.reload), (StepKind::Verify, &service.verify)] {
                if command.is_empty() {
                    continue;
                }
                let failure = run(self.step(service, kind, command, target), steps).await;
                fault::point(if kind == StepKind::Reload { "agent.reloaded" } else { "agent.verified" });
                if failure.is_some() {
                    failures.extend(failure);
                    break;
                }
            }
            if !failures.is_empty() && failing == Failing::Stops {
                break;
            }
        }
        (!failures.is_empty()).then(|| failures.join("; "))
    }

    fn step(&self, service: &Service, kind: StepKind, command: &[String], target: &Target) -> Step {
        let mut env: Vec<(String, OsString)> = vec![
            ("EC_NODE".into(), self.node.clone().into()),
            ("EC_SERVICE".into(), service.name.clone().into()),
            ("EC_STEP".into(), kind.name().into()),
            ("EC_WC".into(), self.wc.root().into()),
            ("EC_SERIAL".into(), target.serial.to_string().into()),
        ];
        if let Some(outer) = self.wc.mounts().first()
            && let Some(head) = target.repos.get(&outer.name)
        {
            env.push(("EC_REPO".into(), outer.name.clone().into()));
            env.push(("EC_REVISION".into(), head.revision.to_string().into()));
            env.push(("EC_COMMIT".into(), head.commit.clone().into()));
        }
        Step {
            service: service.name.clone(),
            kind,
            argv: command.iter().map(OsString::from).collect(),
            arg0: None,
            env,
            cwd: self.wc.root().to_owned(),
            timeout: service.timeout,
        }
    }

    /// Remembers that an update of these services begins.
    fn begin(&mut self, target: &Target, services: Vec<String>, failure: Option<Failure>) -> Result<(), UpdateError> {
        let from = match self.record.get().applied.clone() {
            applied if applied.is_empty() => self.base()?,
            applied => applied,
        };
        let underway = Underway { serial: target.serial, to: target.repos.clone(), from, services, failure };
        Ok(self.record.update(|record| record.underway = Some(underway))?)
    }

    fn finish(&mut self, target: &Target, steps: Vec<StepReport>) -> Result<Outcome, UpdateError> {
        let report = self.new_report(target, ReportState::Healthy, String::new(), steps);
        self.record.update(|record| {
            record.applied = target.repos.clone();
            record.applied_serial = target.serial;
            record.underway = None;
            record.given_up = None;
            record.report = Some(report.clone());
        })?;
        fault::point("agent.recorded");
        // Only now: whoever takes "healthy" as leave to go on meets an agent that is at rest.
        self.reporter.send(report);
        Ok(Outcome::Healthy)
    }

    /// A service did not accept the target. That is remembered first, so that whoever goes on does not try it again.
    async fn turn_back(
        &mut self,
        target: &Target,
        why: String,
        steps: Vec<StepReport>,
    ) -> Result<Outcome, UpdateError> {
        if self.record.get().underway.is_none() {
            self.begin(target, Vec::new(), None)?;
        }
        let failure = Failure { why, steps };
        self.record.update(|record| {
            if let Some(underway) = &mut record.underway {
                underway.failure = Some(failure);
            }
        })?;
        fault::point("agent.failed");
        self.go_back().await
    }

    /// The old tree comes back, unless it is back already, and the services that may have seen the new one reload again.
    async fn go_back(&mut self) -> Result<Outcome, UpdateError> {
        let Some(Underway { serial, to, from, services, failure: Some(failure) }) = self.record.get().underway.clone()
        else {
            unreachable!("only an update that has failed is taken back");
        };
        let Failure { why, mut steps } = failure;
        let target = Target { serial, repos: to, frozen: Vec::new() };
        // What no service has seen was refused; what one has seen has failed.
        let state = if services.is_empty() { ReportState::Refused } else { ReportState::Failed };
        if from.is_empty() || from == target.repos {
            let why = format!("{why}; there is no earlier revision to go back to");
            return self.end(&target, state, failed(target.repos.clone()), why, steps);
        }
        let mut settling = None;
        if self.base()? == target.repos {
            tracing::warn!(serial, why, "going back to the revision before");
            let staged = match self.stage(&from, "going back").await {
                Ok(staged) => staged,
                Err(UpdateError::Worktree(_, error)) if error.is_conflict() => {
                    let why = format!("{why}; cannot go back: {}", with_paths(&error));
                    return self.end(&target, ReportState::Failed, failed(target.repos.clone()), why, steps);
                }
                Err(error) => return Err(error),
            };
            fault::point("agent.back-staged");
            settling = Some(self.exchange(staged).await?);
            fault::point("agent.back-exchanged");
        }
        let services = self.services.named(&services).into_iter().cloned().collect::<Vec<_>>();
        let before = Target { serial: self.record.get().applied_serial, repos: from.clone(), frozen: Vec::new() };
        let again = self.activate(&services, &before, Failing::GoesOn, &mut steps).await;
        if let Some(settling) = settling {
            self.settled(settling).await?;
        }
        fault::point("agent.back-activated");
        let why = match again {
            None => format!("{why}; the revision before is back"),
            Some(again) => format!("{why}; the revision before is back, and {again}"),
        };
        self.end(&target, state, failed(from), why, steps)
    }

    /// The target is given up.
    fn end(
        &mut self,
        target: &Target,
        state: ReportState,
        left: Left,
        why: String,
        steps: Vec<StepReport>,
    ) -> Result<Outcome, UpdateError> {
        tracing::warn!(serial = target.serial, why, "the target is given up until it changes");
        let report = self.new_report(target, state, why, steps);
        let given_up = GivenUp { repos: target.repos.clone(), local_edits: left.local_edits, left_at: left.at };
        self.record.update(|record| {
            record.underway = None;
            record.given_up = Some(given_up);
            record.report = Some(report.clone());
        })?;
        fault::point("agent.given-up");
        self.reporter.send(report);
        Ok(Outcome::GivenUp)
    }

    /// Tells how far it got on the way.
    fn report(&self, target: &Target, state: ReportState, detail: String, steps: Vec<StepReport>) {
        self.reporter.send(self.new_report(target, state, detail, steps));
    }

    fn new_report(&self, target: &Target, state: ReportState, detail: String, steps: Vec<StepReport>) -> NodeReport {
        NodeReport {
            program: "agent".into(),
            serial: target.serial,
            repos: target.repos.clone(),
            state,
            detail,
            steps,
            search_path: None,
            version: env!("CARGO_PKG_VERSION").into(),
            time: None,
        }
    }

    fn failed(&self, error: WorktreeError) -> UpdateError {
        UpdateError::Worktree(self.wc.root().to_owned(), error)
    }
}

/// Says what became of edits that were made during an update, or through old handles after it.
fn note(settled: &Settled) {
    for path in &settled.carried {
        tracing::info!(%path, "carried over an edit that was made during the update");
    }
    for edit in &settled.saved {
        tracing::warn!(path = %edit.path, kept = ?edit.file, reason = edit.reason, "put aside an edit that was made during the update");
    }
}

/// The look at a tree, under way.
type Settling = tokio::task::JoinHandle<Result<Settled, WorktreeError>>;

/// Runs a step and keeps its report; the answer is why it failed.
async fn run(step: Step, steps: &mut Vec<StepReport>) -> Option<String> {
    let report = step.run().await;
    let why = (!report.ok).then(|| {
        let status = report.exit.map(|exit| format!("exit status {exit}"));
        let last = report.output.lines().next_back().map(str::to_owned).or(status).unwrap_or_default();
        format!("{} of {} failed: {last}", report.step, report.service)
    });
    tracing::info!(
        service = report.service,
        step = report.step,
        ok = report.ok,
        duration_ms = report.duration_ms,
        "ran"
    );
    steps.push(report);
    why
}

/// The command line that runs a check in a namespace where the staged tree lies over the working copy.
fn isolated(staged: &Path, over: &Path, command: &[String]) -> Vec<OsString> {
    let mut argv = vec![OsString::from("/proc/self/exe")];
    argv.extend(isolate::arguments(staged, over, command));
    argv
}

fn with_paths(error: &WorktreeError) -> String {
    let mut text = error.to_string();
    if let Some(hint) = error.hint() {
        text.push_str("; ");
        text.push_str(&hint);
    }
    text
}

fn commit_of(head: &Head) -> Result<Oid, UpdateError> {
    head.commit.parse().map_err(|_| UpdateError::BadCommit(head.commit.clone()))
}

/// A path of a mount's repository as it is named in the working copy.
fn below(at: &str, path: RepoPath) -> RepoPath {
    match RepoPath::new(at) {
        Ok(at) => at.join(&path),
        // The outer repository is mounted at "", which is no path.
        Err(_) => path,
    }
}
