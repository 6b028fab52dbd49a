//! One update of this node: from a target to a working copy whose services have accepted it, or back.
//!
//! The order is fixed. Stage the tree; let every concerned service `check` it in place of the real one; exchange the trees;
//! then, service by service in declared order, `reload` and `verify`. A failed check leaves the node on the old revision. A
//! failed reload or verify brings the old tree back and reloads again, for the services that had been touched. What failed
//! is given up until the target changes. Whoever moved the working copy makes no difference: a revision that a person
//! pulled or committed here goes through the same services, because the agent compares with what it last brought to an end.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use cluster::api::{Head, NodeReport, ReportState, StepReport, Target};
use repos::worktree::{Exchanged, Settled, StageOptions, Staged, Targets, WorkingCopy, WorktreeError};
use repos::{Oid, RepoPath};

use super::command::{Step, StepKind};
use super::isolate;
use super::record::{GivenUp, Heads, RecordError, RecordFile, Underway};
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
        let mut heads = Heads::new();
        for mount in self.wc.mounts() {
            if let Some(base) = self.wc.base(&mount.name).map_err(|error| self.failed(error))? {
                heads.insert(mount.name.clone(), Head { revision: base.revision, commit: base.commit.to_string() });
            }
        }
        Ok(heads)
    }

    /// True when there is nothing to do about this target, or nothing that would help.
    pub(crate) fn is_done_with(&self, target: &Target) -> Result<bool, UpdateError> {
        let record = self.record.get();
        if record.given_up.as_ref().is_some_and(|given_up| given_up.repos == target.repos) {
            return Ok(true);
        }
        Ok(record.underway.is_none() && record.applied == target.repos && self.base()? == target.repos)
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
        if self.only_unchanged && !self.is_clean().await? {
            return self.give_up(
                target,
                true,
                "there are local edits, and autoupdate is \"ifunchanged\"".into(),
                Vec::new(),
            );
        }
        let staged = match self.stage(&target.repos, "update").await {
            Ok(staged) => staged,
            Err(UpdateError::Worktree(_, error)) if error.is_conflict() => {
                return self.give_up(target, true, with_paths(&error), Vec::new());
            }
            Err(error) => return Err(error),
        };
        let mut steps = Vec::new();
        if let Some(why) = self.check(&concerned, &staged, target, &mut steps).await {
            staged.discard().map_err(|error| self.failed(error))?;
            return self.give_up(target, false, why, steps);
        }
        self.report(target, ReportState::Checked, String::new(), steps.clone());
        self.remember_underway(target, &concerned)?;
        let settling = self.exchange(staged).await?;
        self.report(target, ReportState::Applied, String::new(), steps.clone());
        let failure = self.activate(&concerned, target, &mut steps).await;
        self.settled(settling).await?;
        match failure {
            None => self.finish(target, steps),
            Some(failure) => self.go_back(target, failure, steps).await,
        }
    }

    /// Finishes what an agent that was killed had begun.
    pub(crate) async fn resume(&mut self) -> Result<(), UpdateError> {
        let Some(underway) = self.record.get().underway.clone() else { return Ok(()) };
        let target = Target { serial: underway.serial, repos: underway.to.clone() };
        if self.base()? != underway.to {
            // Killed before the exchange, or after the old tree had come back: the services must see what is there now.
            let services = self.named(&underway);
            let mut steps = Vec::new();
            if !underway.from.is_empty() && self.base()? == underway.from {
                self.activate(&services, &target, &mut steps).await;
            }
            return Ok(self.record.update(|record| record.underway = None)?);
        }
        tracing::info!(serial = underway.serial, "finishing an update that was interrupted");
        let mut steps = Vec::new();
        match self.activate(&self.named(&underway), &target, &mut steps).await {
            None => self.finish(&target, steps)?,
            Some(failure) => self.go_back(&target, failure, steps).await?,
        };
        Ok(())
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
        let options = StageOptions { reason: reason.to_owned(), ..StageOptions::default() };
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
        let settled = settling.await?.map_err(|error| self.failed(error))?;
        for path in &settled.carried {
            tracing::info!(%path, "carried over an edit that was made during the update");
        }
        for edit in &settled.saved {
            tracing::warn!(path = %edit.path, kept = ?edit.file, reason = edit.reason, "put aside an edit that was made during the update");
        }
        Ok(())
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

    /// Reloads and verifies service by service; the first failure is the answer.
    async fn activate(&self, services: &[Service], target: &Target, steps: &mut Vec<StepReport>) -> Option<String> {
        if !self.reload {
            return None;
        }
        for service in services {
            for (kind, command) in [(StepKind::Reload, &service.reload), (StepKind::Verify, &service.verify)] {
                if command.is_empty() {
                    continue;
                }
                if let Some(why) = run(self.step(service, kind, command, target), steps).await {
                    return Some(why);
                }
            }
        }
        None
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

    fn remember_underway(&mut self, target: &Target, concerned: &[Service]) -> Result<(), UpdateError> {
        let services: Vec<String> =
            concerned.iter().filter(|service| service.is_active()).map(|service| service.name.clone()).collect();
        if services.is_empty() {
            return Ok(());
        }
        let from = match self.record.get().applied.clone() {
            applied if applied.is_empty() => self.base()?,
            applied => applied,
        };
        let underway = Underway { serial: target.serial, to: target.repos.clone(), from, services };
        Ok(self.record.update(|record| record.underway = Some(underway))?)
    }

    fn finish(&mut self, target: &Target, steps: Vec<StepReport>) -> Result<Outcome, UpdateError> {
        let report = self.report(target, ReportState::Healthy, String::new(), steps);
        self.record.update(|record| {
            record.applied = target.repos.clone();
            record.applied_serial = target.serial;
            record.underway = None;
            record.given_up = None;
            record.report = Some(report);
        })?;
        Ok(Outcome::Healthy)
    }

    /// The old tree comes back and the services that may have seen the new one reload again.
    async fn go_back(
        &mut self,
        target: &Target,
        failure: String,
        mut steps: Vec<StepReport>,
    ) -> Result<Outcome, UpdateError> {
        let Some(underway) = self.record.get().underway.clone() else {
            return self.finish(target, steps);
        };
        if underway.from.is_empty() || underway.from == underway.to {
            let why = format!("{failure}; there is no earlier revision to go back to");
            return self.fail(target, why, steps);
        }
        tracing::warn!(serial = target.serial, failure, "going back to the revision before");
        let staged = match self.stage(&underway.from, "going back").await {
            Ok(staged) => staged,
            Err(UpdateError::Worktree(_, error)) if error.is_conflict() => {
                return self.fail(target, format!("{failure}; cannot go back: {}", with_paths(&error)), steps);
            }
            Err(error) => return Err(error),
        };
        let settling = self.exchange(staged).await?;
        let touched = self.named(&underway);
        let again = self.activate(&touched, target, &mut steps).await;
        self.settled(settling).await?;
        let why = match again {
            None => format!("{failure}; the revision before is back"),
            Some(again) => format!("{failure}; the revision before is back, and {again}"),
        };
        self.fail(target, why, steps)
    }

    /// The target failed after the exchange.
    fn fail(&mut self, target: &Target, why: String, steps: Vec<StepReport>) -> Result<Outcome, UpdateError> {
        self.end(target, ReportState::Failed, false, why, steps)
    }

    /// The target failed before anything was changed.
    fn give_up(
        &mut self,
        target: &Target,
        local_edits: bool,
        why: String,
        steps: Vec<StepReport>,
    ) -> Result<Outcome, UpdateError> {
        self.end(target, ReportState::Refused, local_edits, why, steps)
    }

    fn end(
        &mut self,
        target: &Target,
        state: ReportState,
        local_edits: bool,
        why: String,
        steps: Vec<StepReport>,
    ) -> Result<Outcome, UpdateError> {
        tracing::warn!(serial = target.serial, why, "the target is given up until it changes");
        let report = self.report(target, state, why, steps);
        self.record.update(|record| {
            record.underway = None;
            record.given_up = Some(GivenUp { repos: target.repos.clone(), local_edits });
            record.report = Some(report);
        })?;
        Ok(Outcome::GivenUp)
    }

    fn report(&self, target: &Target, state: ReportState, detail: String, steps: Vec<StepReport>) -> NodeReport {
        let report = NodeReport {
            program: "agent".into(),
            serial: target.serial,
            repos: target.repos.clone(),
            state,
            detail,
            steps,
            search_path: None,
            version: env!("CARGO_PKG_VERSION").into(),
            time: None,
        };
        self.reporter.send(report.clone());
        report
    }

    fn failed(&self, error: WorktreeError) -> UpdateError {
        UpdateError::Worktree(self.wc.root().to_owned(), error)
    }
}

/// The rescan of a displaced tree, under way.
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
