//! Reading a repository at a revision: the part that every read endpoint shares.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use cluster::api::{RevisionSpec, X_REVISION};
use http::{HeaderName, HeaderValue, header};
use repos::{Oid, Reader};
use serde::Deserialize;
use utoipa::IntoParams;

use super::App;
use super::extract::revision_number;
use super::problem::{ApiError, Code};
use crate::accounts::{Action, Caller, authorize};
use crate::core::Resolved;
use crate::state::{Head, RepoName};

/// How long a read waits for its `min_revision` unless it says otherwise.
pub(super) const MIN_REVISION_WAIT: Duration = Duration::from_secs(10);

/// The commit behind an answer, next to `X-Revision`.
const X_COMMIT: HeaderName = HeaderName::from_static("x-commit");

/// Which revision to read, and how new it must be.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct At {
    /// The revision to read: `47`, `r47` or a commit id of at least seven hex digits. Default: the head.
    #[param(value_type = Option<String>)]
    pub revision: Option<RevisionSpec>,
    /// Wait until this server has at least this revision; 503 when it takes too long.
    #[serde(default, deserialize_with = "revision_number")]
    pub min_revision: Option<u64>,
}

impl App {
    /// Checks the right to read and waits for `min_revision`.
    pub(super) async fn may_read(&self, caller: &Caller, repo: &RepoName, min: Option<u64>) -> Result<(), ApiError> {
        authorize(caller, Action::Read(repo))?;
        self.core.repo(repo)?;
        self.reached(repo, min).await
    }

    /// Waits for `min_revision`.
    pub(super) async fn reached(&self, repo: &RepoName, min: Option<u64>) -> Result<(), ApiError> {
        let Some(min) = min else { return Ok(()) };
        let waited = self.core.wait_revision(repo, min, MIN_REVISION_WAIT).await;
        waited.map_err(|error| match error {
            crate::error::Error::Unavailable(_) => {
                ApiError::new(Code::NotYet, format!("{repo} is not at revision {min} here yet"))
            }
            other => other.into(),
        })
    }

    /// What a read request names.
    pub(super) async fn at(&self, caller: &Caller, repo: &RepoName, at: &At) -> Result<Resolved, ApiError> {
        self.may_read(caller, repo, at.min_revision).await?;
        match &at.revision {
            Some(spec) => Ok(self.core.resolve(repo, spec).await?),
            None => Ok(self.core.head(repo)?.into()),
        }
    }

    /// Runs git reads on a thread that may block.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        repo: &RepoName,
        work: impl FnOnce(&Reader) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let store = self.core.store(repo)?;
        self.blocking(move || work(&store.reader()?)).await
    }

    /// Runs work on a thread that may block. The thread's place is its own: a request whose time is over is answered, but the thread that
    /// it leaves behind is not free yet.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let place = self.places.readers.take().await?;
        let task = tokio::task::spawn_blocking(move || {
            let _place = place;
            work()
        });
        task.await.map_err(|error| ApiError::internal(&error))?
    }

    /// The number of the revision that a commit is, where it is one.
    pub(super) fn number_of(&self, repo: &RepoName, commit: Oid) -> Option<u64> {
        self.core.revision_of(repo, commit).ok().flatten()
    }
}

impl From<Head> for Resolved {
    fn from(head: Head) -> Self {
        Self { commit: head.commit, revision: Some(head.revision) }
    }
}

/// An answer that depends on a revision says which.
pub fn stamped(resolved: impl Into<Resolved>, body: impl IntoResponse) -> Response {
    let (resolved, mut response) = (resolved.into(), body.into_response());
    let headers = response.headers_mut();
    if let Some(revision) = resolved.revision {
        headers.insert(X_REVISION, HeaderValue::from(revision));
    }
    if let Ok(commit) = HeaderValue::from_str(&resolved.commit.to_string()) {
        headers.insert(X_COMMIT, commit);
    }
    // What was read may be read again only after asking whether it is still so.
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("private, no-cache"));
    response
}
