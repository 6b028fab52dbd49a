//! Commits over JSON: one repository, or several at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json as JsonBody;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cluster::api::{
    ChangeRequest, CommitRequest, CommitResponse, MultiCommitRequest, MultiCommitResponse, Problem, RevisionSpec,
};
use http::{HeaderMap, StatusCode};
use repos::{Content, Mode, RepoPath, TreeChange};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::extract::{Json, Path, Payload, work_on};
use super::problem::{ApiError, Code};
use super::read::stamped;
use crate::accounts::{Action, Caller, authorize};
use crate::commit::{self, CommitAnswer, Committed, RepoChange};
use crate::limits::Limits;
use crate::state::RepoName;

/// Longer messages are somebody's mistake.
const MESSAGE_MAX_BYTES: usize = 64 << 10;
/// Repositories in one commit.
const REPOS_MAX: usize = 64;

impl Payload for CommitRequest {
    fn limit_bytes(limits: &Limits) -> usize {
        limits.commit_bytes
    }
}

impl Payload for MultiCommitRequest {
    fn limit_bytes(limits: &Limits) -> usize {
        limits.commit_bytes
    }
}

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(one)).routes(routes!(several))
}

/// Commits to one repository. Changes since the base that do not overlap are merged.
#[utoipa::path(post, path = "/api/v1/repos/{repo}/commits", tag = "commits", operation_id = "commit", params(
    ("repo" = String, Path, description = "The repository"),
    ("Idempotency-Key" = Option<String>, Header, description = "Repeating a request under its key commits once"),
), request_body = CommitRequest, responses(
    (status = 201, description = "Committed", body = CommitResponse, headers(("X-Revision" = u64, description = "The new revision"))),
    (status = 200, description = "The changes made no difference: nothing was committed, this is the head", body = CommitResponse),
    (status = 409, description = "Somebody else changed the same paths since the base: `paths`", body = Problem,
        content_type = "application/problem+json"),
    (status = 422, description = "The gate refuses: `findings` is a list of `{file, line, message}`", body = Problem,
        content_type = "application/problem+json"),
    (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
))]
async fn one(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(repo): Path<RepoName>,
    headers: HeaderMap,
    Json(request): Json<CommitRequest>,
) -> Result<Response, ApiError> {
    let repos = [(repo.clone(), (request.base, request.changes))].into();
    let answer = commit(&app, &caller, &headers, request.message, repos).await?;
    let committed = answer.repos.get(&repo).ok_or_else(|| ApiError::internal(&"a commit without its repository"))?;
    let status = if committed.changed { StatusCode::CREATED } else { StatusCode::OK };
    Ok(stamped(committed.head, (status, JsonBody(shown(*committed))).into_response()))
}

/// Commits to several repositories at once: all or nothing.
#[utoipa::path(post, path = "/api/v1/commits", tag = "commits", operation_id = "commitSeveral", params(
    ("Idempotency-Key" = Option<String>, Header, description = "Repeating a request under its key commits once"),
), request_body = MultiCommitRequest, responses(
    (status = 201, description = "Committed", body = MultiCommitResponse),
    (status = 200, description = "The changes made no difference anywhere", body = MultiCommitResponse),
    (status = 409, description = "Somebody else changed the same paths since a base: `paths`", body = Problem,
        content_type = "application/problem+json"),
    (status = 422, description = "The gate refuses: `findings` is a list of `{repo, file, line, message}`", body = Problem,
        content_type = "application/problem+json"),
    (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
))]
async fn several(
    State(app): State<Arc<App>>,
    caller: Caller,
    headers: HeaderMap,
    Json(request): Json<MultiCommitRequest>,
) -> Result<Response, ApiError> {
    let invalid = |words: String| ApiError::new(Code::Invalid, words);
    if !(1..=REPOS_MAX).contains(&request.repos.len()) {
        return Err(invalid(format!("a commit names 1 to {REPOS_MAX} repositories")));
    }
    let mut repos = BTreeMap::new();
    for (name, part) in request.repos {
        let name: RepoName = name.parse().map_err(|error: crate::state::BadName| invalid(error.to_string()))?;
        repos.insert(name, (part.base, part.changes));
    }
    let answer = commit(&app, &caller, &headers, request.message, repos).await?;
    let changed = answer.repos.values().any(|committed| committed.changed);
    let status = if changed { StatusCode::CREATED } else { StatusCode::OK };
    let repos = answer.repos.into_iter().map(|(name, committed)| (name.to_string(), shown(committed))).collect();
    Ok((status, JsonBody(MultiCommitResponse { repos })).into_response())
}

async fn commit(
    app: &App,
    caller: &Caller,
    headers: &HeaderMap,
    message: String,
    repos: BTreeMap<RepoName, Changes>,
) -> Result<CommitAnswer, ApiError> {
    for repo in repos.keys() {
        authorize(caller, Action::Commit(repo))?;
    }
    let bytes = repos.values().flat_map(|(_, changes)| changes).map(weight).sum();
    let request = commit::CommitRequest {
        author: caller.author(app.cluster()),
        message: checked_message(message)?,
        idempotency_key: idempotency_key(headers)?,
        repos: work_on(bytes, move || repos.into_iter().map(repo_change).collect::<Result<_, _>>()).await??,
    };
    Ok(app.core.commit(request).await?)
}

/// What a change weighs, roughly.
fn weight(change: &ChangeRequest) -> usize {
    let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    change.path.len() + text(&change.content) + text(&change.content_base64)
}

type Changes = (RevisionSpec, Vec<ChangeRequest>);

fn repo_change((repo, (base, changes)): (RepoName, Changes)) -> Result<(RepoName, RepoChange), ApiError> {
    let changes = changes.into_iter().map(tree_change).collect::<Result<_, _>>()?;
    Ok((repo, RepoChange { base, changes }))
}

fn shown(committed: Committed) -> CommitResponse {
    CommitResponse {
        revision: committed.head.revision,
        commit: committed.head.commit.to_string(),
        unchanged: !committed.changed,
    }
}

fn checked_message(message: String) -> Result<String, ApiError> {
    let invalid = |words: &str| Err(ApiError::new(Code::Invalid, words));
    if message.trim().is_empty() {
        return invalid("the message is empty");
    }
    if message.len() > MESSAGE_MAX_BYTES || message.contains('\0') {
        return invalid("the message is longer than 64 KiB or has a NUL in it");
    }
    Ok(message)
}

pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get(cluster::api::IDEMPOTENCY_KEY) else { return Ok(None) };
    let text = value.to_str().ok().filter(|text| (1..=256).contains(&text.len()));
    let text = text.ok_or_else(|| ApiError::bad_request("an Idempotency-Key has 1 to 256 printable characters"))?;
    Ok(Some(text.to_owned()))
}

/// One change of a request, checked. Exactly one of the five forms.
fn tree_change(mut change: ChangeRequest) -> Result<TreeChange, ApiError> {
    let path = checked_path(&change.path)?;
    let content = change.content.take();
    let wrong = |words: &str| Err(ApiError::new(Code::Invalid, format!("{}: {words}", change.path)));
    let mode = match change.mode.as_deref() {
        None => None,
        Some("100644") => Some(Mode::File),
        Some("100755") => Some(Mode::Exec),
        Some("120000") => Some(Mode::Symlink),
        Some(_) => return wrong("the mode must be 100644, 100755 or 120000"),
    };
    let put = |data: Vec<u8>| TreeChange::Put { path: path.clone(), mode, content: Content::Bytes(data.into()) };
    match (content, &change.content_base64, change.delete, &change.rename_to) {
        (Some(text), None, false, None) => Ok(put(text.into_bytes())),
        (None, Some(text), false, None) => match STANDARD.decode(text) {
            Ok(data) => Ok(put(data)),
            Err(_) => wrong("content_base64 is not standard base64"),
        },
        (None, None, true, None) if mode.is_none() => Ok(TreeChange::Delete { path }),
        (None, None, false, Some(to)) if mode.is_none() => Ok(TreeChange::Rename { from: path, to: checked_path(to)? }),
        (None, None, false, None) => match mode {
            Some(mode @ (Mode::File | Mode::Exec)) => Ok(TreeChange::Chmod { path, mode }),
            _ => wrong("there is nothing to do: content, content_base64, delete, rename_to or mode is needed"),
        },
        _ => {
            wrong("exactly one of content, content_base64, delete and rename_to is needed; mode goes with content only")
        }
    }
}

fn checked_path(text: &str) -> Result<RepoPath, ApiError> {
    text.parse().map_err(|error: repos::PathError| ApiError::new(Code::Invalid, error.to_string()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn change(json: &str) -> Result<TreeChange, ApiError> {
        tree_change(serde_json::from_str(json).unwrap())
    }

    #[test]
    fn every_form_of_a_change() {
        assert!(matches!(change(r#"{"path":"a","content":"x"}"#), Ok(TreeChange::Put { mode: None, .. })));
        assert!(matches!(
            change(r#"{"path":"a","content_base64":"eA==","mode":"100755"}"#),
            Ok(TreeChange::Put { mode: Some(Mode::Exec), .. })
        ));
        assert!(matches!(change(r#"{"path":"a","delete":true}"#), Ok(TreeChange::Delete { .. })));
        assert!(matches!(change(r#"{"path":"a","rename_to":"b"}"#), Ok(TreeChange::Rename { .. })));
        assert!(matches!(change(r#"{"path":"a","mode":"100755"}"#), Ok(TreeChange::Chmod { .. })));
    }

    #[test]
    fn ambiguous_and_harmful_changes_are_refused() {
        for bad in [
            r#"{"path":"a"}"#,
            r#"{"path":"a","content":"x","delete":true}"#,
            r#"{"path":"a","content":"x","content_base64":"eA=="}"#,
            r#"{"path":"a","delete":true,"mode":"100644"}"#,
            r#"{"path":"a","content":"x","mode":"40000"}"#,
            r#"{"path":"a","mode":"120000"}"#,
            r#"{"path":"a","content_base64":"!"}"#,
            r#"{"path":"../a","content":"x"}"#,
            r#"{"path":".git/config","content":"x"}"#,
            r#"{"path":"a","rename_to":"/etc/passwd"}"#,
        ] {
            assert_eq!(change(bad).unwrap_err().code(), Code::Invalid, "{bad}");
        }
    }
}
