//! What operators do to whole repositories, and to the leadership.

use std::sync::Arc;

use axum::Json as JsonBody;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use cluster::api::{CopyRepo, PinRequest, Problem, RepoInfo};
use http::{HeaderMap, StatusCode};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::commits::idempotency_key;
use super::extract::{Json, Path, Payload};
use super::problem::{ApiError, Code};
use super::read::stamped;
use crate::accounts::{Action, Caller, authorize};
use crate::core::Once;
use crate::state::{BadName, Head, NodeName, RepoName};

impl Payload for CopyRepo {}
impl Payload for PinRequest {}

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(freeze))
        .routes(routes!(thaw))
        .routes(routes!(copy))
        .routes(routes!(pin))
        .routes(routes!(unpin))
}

/// Freezes a repository: it takes no commits, and nodes keep the revision that they have. Others go on. Again is harmless.
#[utoipa::path(post, path = "/api/v1/repos/{repo}/freeze", tag = "subclusters", operation_id = "freezeRepo",
    params(("repo" = String, Path, description = "The repository")), responses(
    (status = 200, description = "Frozen", body = RepoInfo),
    (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
))]
async fn freeze(State(app): State<Arc<App>>, caller: Caller, Path(repo): Path<RepoName>) -> Result<Response, ApiError> {
    set_frozen(&app, &caller, &repo, true).await
}

/// Thaws a repository. Again is harmless.
#[utoipa::path(post, path = "/api/v1/repos/{repo}/thaw", tag = "subclusters", operation_id = "thawRepo",
    params(("repo" = String, Path, description = "The repository")), responses(
    (status = 200, description = "Thawed", body = RepoInfo),
    (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
))]
async fn thaw(State(app): State<Arc<App>>, caller: Caller, Path(repo): Path<RepoName>) -> Result<Response, ApiError> {
    set_frozen(&app, &caller, &repo, false).await
}

async fn set_frozen(app: &App, caller: &Caller, repo: &RepoName, frozen: bool) -> Result<Response, ApiError> {
    authorize(caller, Action::ManageRepo(repo))?;
    let head = app.core.set_frozen(repo, frozen).await?;
    Ok(info(repo, head, frozen, StatusCode::OK))
}

/// Copies another repository onto this one: with its whole history, which creates it, or its newest tree as one revision.
#[utoipa::path(post, path = "/api/v1/repos/{repo}/copy", tag = "subclusters", operation_id = "copyRepo", params(
    ("repo" = String, Path, description = "The repository that becomes the copy"),
    ("Idempotency-Key" = Option<String>, Header, description = "Repeating a request under its key copies once"),
), request_body = CopyRepo, responses(
    (status = 201, description = "Copied", body = RepoInfo),
    (status = 409, description = "It exists already, and was to get a history", body = Problem,
        content_type = "application/problem+json"),
    (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
))]
async fn copy(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(to): Path<RepoName>,
    headers: HeaderMap,
    Json(request): Json<CopyRepo>,
) -> Result<Response, ApiError> {
    authorize(&caller, Action::ManageRepo(&to))?;
    let invalid = |words: String| ApiError::new(Code::Invalid, words);
    let from: RepoName = request.from.parse().map_err(|error: BadName| invalid(error.to_string()))?;
    if from == to {
        return Err(invalid(format!("{to} cannot be copied onto itself")));
    }
    if from.is_global() || to.is_global() {
        return Err(invalid("global is no subcluster: it can be neither side of a copy".into()));
    }
    cluster::identity::check_subcluster_name(to.as_str()).map_err(|error| invalid(error.to_string()))?;
    let what = if request.with_history { "copy with history" } else { "copy" };
    let key = idempotency_key(&headers)?.map(|key| Once::new(&key, &[what, from.as_str(), to.as_str()]));
    let author = caller.author(app.cluster());
    let head = if request.with_history {
        app.core.copy_with_history(&from, &to, &author, key).await?
    } else {
        app.core.copy_tip(&from, &to, &author, key).await?
    };
    Ok(info(&to, head, false, StatusCode::CREATED))
}

fn info(repo: &RepoName, head: Head, frozen: bool, status: StatusCode) -> Response {
    let (name, commit) = (repo.to_string(), head.commit.to_string());
    let body = JsonBody(RepoInfo { name, revision: head.revision, commit, frozen });
    stamped(head, (status, body).into_response())
}

/// Pins the leadership to a node, for as long as that node is healthy. A pin to another node stays: 409.
#[utoipa::path(post, path = "/api/v1/cluster/pin", tag = "subclusters", operation_id = "pinLeader",
    request_body = PinRequest, responses(
    (status = 204, description = "Pinned"),
    (status = 409, description = "Pinned to another node", body = Problem, content_type = "application/problem+json"),
    (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
))]
async fn pin(
    State(app): State<Arc<App>>,
    caller: Caller,
    Json(request): Json<PinRequest>,
) -> Result<StatusCode, ApiError> {
    authorize(&caller, Action::PinLeader)?;
    app.core.pin(&node(&request)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Unpins the leadership from the node that it is pinned to.
#[utoipa::path(post, path = "/api/v1/cluster/unpin", tag = "subclusters", operation_id = "unpinLeader",
    request_body = PinRequest, responses(
    (status = 204, description = "Unpinned"),
    (status = 404, description = "Not pinned to it", body = Problem, content_type = "application/problem+json"),
    (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
))]
async fn unpin(
    State(app): State<Arc<App>>,
    caller: Caller,
    Json(request): Json<PinRequest>,
) -> Result<StatusCode, ApiError> {
    authorize(&caller, Action::PinLeader)?;
    app.core.unpin(&node(&request)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn node(request: &PinRequest) -> Result<NodeName, ApiError> {
    request.node.parse().map_err(|error: BadName| ApiError::new(Code::Invalid, error.to_string()))
}
