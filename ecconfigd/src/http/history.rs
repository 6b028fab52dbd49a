//! History: log, differences, single commits.

use std::sync::Arc;

use axum::Json as JsonBody;
use axum::extract::State;
use axum::response::Response;
use cluster::api::{ChangeStatus, CommitDetail, Diff, DiffEntry, DiffSide, LogEntry, Problem, RevisionSpec};
use http::{HeaderMap, HeaderValue, header};
use repos::{Change, CommitInfo, LogOptions, Mode, Oid, PatchOptions, Reader, RepoPath, Signature};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::extract::{Path, Query, accepts, revision_number};
use super::files::repo_path;
use super::problem::ApiError;
use super::read::{At, stamped};
use super::repositories::Min;
use crate::accounts::Caller;
use crate::state::RepoName;

/// Entries of a log unless the request says otherwise.
const LOG_DEFAULT: usize = 50;
/// The most entries that one request gets; a longer log is read page by page.
const LOG_MAX: usize = 1000;
/// Where a patch is cut: enough for people, no way to make the server hold a gigabyte.
const PATCH_LIMIT_BYTES: usize = 8 << 20;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(log)).routes(routes!(diff)).routes(routes!(commit))
}

/// Which commits to list.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct LogQuery {
    /// Only commits that changed this file or directory.
    path: Option<String>,
    /// At most so many: 50 unless said otherwise, 1000 at most.
    limit: Option<usize>,
    /// Pass over so many first.
    #[serde(default)]
    skip: usize,
    /// Follow first parents only.
    #[serde(default)]
    first_parent: bool,
}

/// The commits that led to a revision, the newest first.
#[utoipa::path(get, path = "/api/v1/repos/{repo}/log", tag = "history", operation_id = "getLog", params(
    ("repo" = String, Path, description = "The repository"), At, LogQuery,
), responses(
    (status = 200, description = "The commits", body = Vec<LogEntry>,
        headers(("X-Revision" = u64, description = "The revision that the log begins at"))),
    (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
))]
async fn log(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(repo): Path<RepoName>,
    Query(at): Query<At>,
    Query(query): Query<LogQuery>,
) -> Result<Response, ApiError> {
    let options = LogOptions {
        path: query.path.as_deref().filter(|path| !path.is_empty()).map(repo_path).transpose()?,
        limit: query.limit.unwrap_or(LOG_DEFAULT).min(LOG_MAX),
        skip: query.skip,
        first_parent: query.first_parent,
        ..LogOptions::default()
    };
    let resolved = app.at(&caller, &repo, &at).await?;
    let (asked, name) = (app.clone(), repo.clone());
    let work = move |reader: &Reader| {
        let commits = reader.log(resolved.commit, &options)?;
        let entries = commits.into_iter().map(|commit| entry(&asked, &name, commit)).collect::<Vec<_>>();
        Ok(stamped(resolved, JsonBody(entries)))
    };
    app.read(&repo, work).await
}

fn entry(app: &App, repo: &RepoName, commit: CommitInfo) -> LogEntry {
    LogEntry {
        revision: app.number_of(repo, commit.id),
        commit: commit.id.to_string(),
        parents: commit.parents.iter().map(Oid::to_string).collect(),
        author: person(&commit.author),
        committer: person(&commit.committer),
        time: rfc3339(commit.committer.time_s),
        message: commit.message,
    }
}

fn person(signature: &Signature) -> String {
    format!("{} <{}>", signature.name, signature.email)
}

/// A commit's time; one before 1970 is shown as 1970.
fn rfc3339(time_s: i64) -> String {
    crate::state::rfc3339(u64::try_from(time_s).unwrap_or(0).saturating_mul(1000))
}

/// What to compare.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct DiffQuery {
    /// The older revision; default: the newer one's first parent.
    #[param(value_type = Option<String>)]
    from: Option<RevisionSpec>,
    /// The newer revision; default: the head.
    #[param(value_type = Option<String>)]
    to: Option<RevisionSpec>,
    /// Only this file or directory.
    path: Option<String>,
    /// Wait until this server has at least this revision; 503 when it takes too long.
    #[serde(default, deserialize_with = "revision_number")]
    min_revision: Option<u64>,
}

/// The difference between two revisions. With `Accept: text/x-diff` the patch alone.
#[utoipa::path(get, path = "/api/v1/repos/{repo}/diff", tag = "history", operation_id = "getDiff", params(
    ("repo" = String, Path, description = "The repository"), DiffQuery,
), responses(
    (status = 200, description = "The difference", content(
        (Diff = "application/json"), (String = "text/x-diff"),
    ), headers(("X-Revision" = u64, description = "The newer revision"))),
    (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
))]
async fn diff(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(repo): Path<RepoName>,
    Query(query): Query<DiffQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let path = query.path.as_deref().filter(|path| !path.is_empty()).map(repo_path).transpose()?;
    let at = At { revision: query.to, min_revision: query.min_revision };
    let to = app.at(&caller, &repo, &at).await?;
    let from = match &query.from {
        Some(spec) => Some(app.core.resolve(&repo, spec).await?.commit),
        None => None,
    };
    let as_text = accepts(&headers, "text/x-diff") || accepts(&headers, "text/plain");
    let work = move |reader: &Reader| {
        let from = match from {
            Some(from) => Some(from),
            None => reader.commit(to.commit)?.parents.first().copied(),
        };
        let diff = compare(reader, from, to.commit, path)?;
        if as_text {
            let plain = [(header::CONTENT_TYPE, HeaderValue::from_static("text/x-diff; charset=utf-8"))];
            return Ok(stamped(to, (plain, diff.patch)));
        }
        Ok(stamped(to, JsonBody(diff)))
    };
    app.read(&repo, work).await
}

fn compare(reader: &Reader, from: Option<Oid>, to: Oid, path: Option<RepoPath>) -> Result<Diff, ApiError> {
    let old_tree = from.map(|from| reader.tree_of(from)).transpose()?;
    let new_tree = reader.tree_of(to)?;
    let mut changes = reader.changes(old_tree, new_tree)?;
    if let Some(path) = &path {
        changes.retain(|change| change.path.starts_with(path));
    }
    let options = PatchOptions { limit_bytes: PATCH_LIMIT_BYTES, path, ..PatchOptions::default() };
    let patch = reader.patch(old_tree, new_tree, &options)?;
    Ok(Diff {
        from: from.map(|from| from.to_string()),
        to: to.to_string(),
        changes: changes.iter().map(changed).collect(),
        patch: String::from_utf8_lossy(&patch.text).into_owned(),
        truncated: patch.truncated,
    })
}

fn changed(change: &Change) -> DiffEntry {
    let side =
        |side: Option<(Mode, Oid)>| side.map(|(mode, id)| DiffSide { mode: mode.to_string(), id: id.to_string() });
    let status = match (change.old, change.new) {
        (None, _) => ChangeStatus::Added,
        (_, None) => ChangeStatus::Deleted,
        _ => ChangeStatus::Modified,
    };
    DiffEntry { path: change.path.to_string(), status, old: side(change.old), new: side(change.new) }
}

/// One commit with its patch.
#[utoipa::path(get, path = "/api/v1/repos/{repo}/commits/{revision}", tag = "history", operation_id = "getCommit", params(
    ("repo" = String, Path, description = "The repository"),
    ("revision" = String, Path, description = "`47`, `r47` or a commit id of at least seven hex digits"),
    Min,
), responses(
    (status = 200, description = "The commit", body = CommitDetail,
        headers(("X-Revision" = u64, description = "The commit's revision"))),
    (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
))]
async fn commit(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((repo, revision)): Path<(RepoName, String)>,
    Query(min): Query<Min>,
) -> Result<Response, ApiError> {
    let revision: RevisionSpec =
        revision.parse().map_err(|error: cluster::api::BadRevision| ApiError::not_found(error.to_string()))?;
    let resolved = app.at(&caller, &repo, &At { revision: Some(revision), min_revision: min.min_revision }).await?;
    let (asked, name) = (app.clone(), repo.clone());
    let work = move |reader: &Reader| {
        let commit = reader.commit(resolved.commit)?;
        let diff = compare(reader, commit.parents.first().copied(), commit.id, None)?;
        Ok(stamped(resolved, JsonBody(CommitDetail { commit: entry(&asked, &name, commit), diff })))
    };
    app.read(&repo, work).await
}
