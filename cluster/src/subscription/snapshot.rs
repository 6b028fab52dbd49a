//! One configuration offered to the daemon, and the state that verdicts change.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::cache::Cache;
use super::report::Reports;
use super::wanted::is_below;
use super::{Content, Settings, Version};
use crate::api::ReportState;
use crate::documents::schema::Schema;
use crate::documents::{ConfError, EffectiveFile, NodeConf};
use crate::http_client::ApiClient;

/// A configuration to apply or refuse. Dropping it without a verdict counts as a refusal.
#[derive(Debug)]
pub struct Snapshot {
    content: Arc<Content>,
    shared: Arc<Shared>,
    settled: bool,
}

impl Snapshot {
    pub(super) fn new(content: Arc<Content>, shared: Arc<Shared>) -> Self {
        Self { content, shared, settled: false }
    }

    /// Which configuration this is.
    pub fn version(&self) -> &Version {
        self.content.version()
    }

    /// The configuration itself, to keep beyond the verdict.
    pub fn content(&self) -> &Arc<Content> {
        &self.content
    }

    /// The node's view: effective documents, search path, the cluster's nodes.
    pub fn conf(&self) -> Result<NodeConf<'_>, ConfError> {
        self.content.conf()
    }

    /// One of our own documents in its real form, checked whole.
    pub fn load<S: Schema>(&self) -> Result<S, ConfError> {
        self.conf()?.load()
    }

    /// The effective file of a name: a merged document with its origins, or the most specific other file.
    pub fn effective(&self, name: &str) -> Result<EffectiveFile, ConfError> {
        self.conf()?.file(name)
    }

    /// The wanted files at and below a path, in order.
    pub fn files(&self, prefix: &str) -> impl Iterator<Item = (&str, &[u8])> {
        let prefix = prefix.trim_end_matches('/').to_owned();
        let wanted = &self.shared.settings.wanted;
        let files = self.content.files.0.iter().map(|(path, data)| (path.as_str(), data.as_slice()));
        files.filter(move |(path, _)| wanted.matches(path) && is_below(path, &prefix))
    }

    /// It is in use now: kept on disk for the next start, and reported.
    pub async fn applied(mut self) {
        self.settled = true;
        let (content, shared) = (self.content.clone(), self.shared.clone());
        self.shared.run(content.clone());
        // An fsync may take long, and a daemon has heartbeats to send.
        let stored = tokio::task::spawn_blocking(move || shared.cache.store(&content)).await;
        if let Ok(Err(error)) = stored {
            let error = crate::error::Chain(&error);
            tracing::warn!(%error, "the configuration is in use but not kept for the next start");
        }
    }

    /// It cannot be used; the one in use stays. Reported with the reason, and not offered again until it changes.
    pub async fn refused(mut self, reason: impl ToString) {
        self.settled = true;
        self.shared.refuse(&self.content, reason.to_string());
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        if !self.settled {
            self.shared.refuse(&self.content, "the program gave no verdict".into());
        }
    }
}

/// What the subscription, its snapshots and its reporters share.
#[derive(Debug)]
pub(super) struct Shared {
    settings: Settings,
    cache: Cache,
    state: Mutex<State>,
    versions: watch::Sender<Option<Version>>,
    reports: Reports,
}

#[derive(Debug, Default)]
struct State {
    running: Option<Arc<Content>>,
    refused: Option<Refused>,
}

#[derive(Debug)]
struct Refused {
    /// None for a configuration that could not even be read.
    digest: Option<[u8; 32]>,
    reason: String,
}

impl Shared {
    pub(super) fn new(settings: Settings, cache: Cache, client: Option<ApiClient>) -> Self {
        let reports = Reports::start(client, &settings);
        Self { settings, cache, state: Mutex::default(), versions: watch::Sender::new(None), reports }
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(super) fn versions(&self) -> watch::Receiver<Option<Version>> {
        self.versions.subscribe()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_running(&self) -> bool {
        self.state().running.is_some()
    }

    pub(super) fn has_refused(&self) -> bool {
        self.state().refused.is_some()
    }

    pub(super) fn running_version(&self) -> Option<Version> {
        self.state().running.as_ref().map(|content| content.version().clone())
    }

    pub(super) fn is_same_as_running(&self, content: &Content) -> bool {
        self.state().running.as_ref().is_some_and(|running| running.digest() == content.digest())
    }

    /// Why exactly this was refused before.
    pub(super) fn refused_reason(&self, content: &Content) -> Option<String> {
        let state = self.state();
        state
            .refused
            .as_ref()
            .filter(|refused| refused.digest == Some(content.digest()))
            .map(|refused| refused.reason.clone())
    }

    pub(super) fn forget_refusal(&self) {
        self.state().refused = None;
    }

    /// The version moved on and means the same for this daemon.
    pub(super) fn advance(&self, content: Content) {
        self.state().refused = None;
        if self.running_version().as_ref() != Some(content.version()) {
            tracing::debug!(version = %content.version(), "configuration unchanged for this program");
            self.run(Arc::new(content));
        } else {
            self.report(content.version(), ReportState::Applied, String::new());
        }
    }

    fn run(&self, content: Arc<Content>) {
        let version = content.version().clone();
        *self.state() = State { running: Some(content), refused: None };
        tracing::info!(%version, "configuration applied");
        self.report(&version, ReportState::Applied, String::new());
        self.versions.send_replace(Some(version));
    }

    fn refuse(&self, content: &Content, reason: String) {
        let stays = if self.is_running() { "; the one in use stays" } else { "" };
        tracing::warn!(version = %content.version(), reason, "configuration refused{stays}");
        self.state().refused = Some(Refused { digest: Some(content.digest()), reason: reason.clone() });
        self.report(content.version(), ReportState::Refused, reason);
    }

    pub(super) fn refuse_unread(&self, version: Version, reason: String) {
        self.state().refused = Some(Refused { digest: None, reason: reason.clone() });
        self.report(&version, ReportState::Refused, reason);
    }

    pub(super) fn report(&self, version: &Version, state: ReportState, detail: String) {
        self.reports.send(&self.settings, version, state, detail);
    }
}
