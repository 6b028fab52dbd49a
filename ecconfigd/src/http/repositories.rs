//! Repositories: listing, creating, heads and refs.

use std::sync::Arc;

use axum::Json as JsonBody;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use cluster::api::{CreateRepo, Head, Problem, RefInfo, RepoInfo};
use http::{HeaderMap, StatusCode, header};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::commits::idempotency_key;
use super::extract::{Json, Path, Payload, Query, revision_number};
use super::problem::{ApiError, Code};
use super::read::stamped;
use crate::accounts::{Action, Caller, authorize};
use crate::core::Once;
use crate::state::RepoName;
use crate::templates;

impl Payload for CreateRepo {}

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(head)).routes(routes!(refs))
}

/// How new an answer must be.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Min {
    /// Wait until this server has at least this revision; 503 when it takes too long.
    #[serde(default, deserialize_with = "revision_number")]
    pub(super) min_revision: Option<u64>,
}

/// Lists the repositories that the caller may read.
#[utoipa::path(get, path = "/api/v1/repos", tag = "repositories", operation_id = "listRepos", responses(
    (status = 200, description = "The repositories by name", body = Vec<RepoInfo>),
    (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
))]
async fn list(State(app): State<Arc<App>>, caller: Caller) -> JsonBody<Vec<RepoInfo>> {
    let repos = app.core.repos();
    let readable = repos.into_iter().filter(|(name, _)| authorize(&caller, Action::Read(name)).is_ok());
    let infos = readable.map(|(name, record)| RepoInfo {
        name: name.to_string(),
        revision: record.head.revision,
        commit: record.head.commit.to_string(),
        frozen: record.frozen,
    });
    JsonBody(infos.collect())
}

/// Creates a repository from the packaged templates. Its name is the name of a new subcluster.
#[utoipa::path(post, path = "/api/v1/repos", tag = "repositories", operation_id = "createRepo", params(
    ("Idempotency-Key" = Option<String>, Header, description = "Repeating a request under its key creates once"),
), request_body = CreateRepo, responses(
    (status = 201, description = "Created, at revision 1", body = RepoInfo),
    (status = 409, description = "It exists already", body = Problem, content_type = "application/problem+json"),
    (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
))]
async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    headers: HeaderMap,
    Json(request): Json<CreateRepo>,
) -> Result<Response, ApiError> {
    authorize(&caller, Action::CreateRepo)?;
    let invalid = |words: String| ApiError::new(Code::Invalid, words);
    let name: RepoName = request.name.parse().map_err(|error: crate::state::BadName| invalid(error.to_string()))?;
    cluster::identity::check_subcluster_name(name.as_str()).map_err(|error| invalid(error.to_string()))?;
    let author = caller.author(app.cluster());
    let key = idempotency_key(&headers)?.map(|key| Once::new(&key, &["create", name.as_str()]));
    let head = app.core.create_repo(&name, &author, templates::subcluster(), key).await?;
    let info =
        RepoInfo { name: name.to_string(), revision: head.revision, commit: head.commit.to_string(), frozen: false };
    let location = format!("/api/v1/repos/{name}/head");
    let body = (StatusCode::CREATED, [(header::LOCATION, location)], JsonBody(info)).into_response();
    Ok(stamped(head, body))
}

/// Where `main` stands.
#[utoipa::path(get, path = "/api/v1/repos/{repo}/head", tag = "repositories", operation_id = "getHead",
    params(("repo" = String, Path, description = "The repository"), Min), responses(
    (status = 200, description = "Revision and commit", body = Head,
        headers(("X-Revision" = u64, description = "The revision"))),
    (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
))]
async fn head(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(repo): Path<RepoName>,
    Query(min): Query<Min>,
) -> Result<Response, ApiError> {
    app.may_read(&caller, &repo, min.min_revision).await?;
    let head = app.core.head(&repo)?;
    Ok(stamped(head, JsonBody(Head::from(head))))
}

/// Every ref and where it points.
#[utoipa::path(get, path = "/api/v1/repos/{repo}/refs", tag = "repositories", operation_id = "getRefs",
    params(("repo" = String, Path, description = "The repository"), Min), responses(
    (status = 200, description = "The refs by name", body = Vec<RefInfo>,
        headers(("X-Revision" = u64, description = "The revision of main"))),
    (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
))]
async fn refs(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(repo): Path<RepoName>,
    Query(min): Query<Min>,
) -> Result<Response, ApiError> {
    app.may_read(&caller, &repo, min.min_revision).await?;
    let head = app.core.head(&repo)?;
    let refs = app.core.refs(&repo)?;
    let infos = refs.iter().map(|(name, id)| RefInfo { name: name.to_string(), id: id.to_string() });
    Ok(stamped(head, JsonBody(infos.collect::<Vec<_>>())))
}
