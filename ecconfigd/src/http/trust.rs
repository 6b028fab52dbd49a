//! How a node becomes one of the cluster: one-time tokens, enrolment, renewal, the CA's certificate.
//!
//! The token is good once, for one subcluster, until it ends; it is used up in the same log entry that registers the node, so two nodes
//! cannot both enrol with it. A name that is registered already can be enrolled again with a fresh token (a machine was set up anew), but
//! not to another subcluster, and never the name of a node that runs ecconfigd.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Json as JsonBody;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use cluster::api::{
    EnrollRequest, EnrollResponse, JoinRequest, JoinResponse, NodeTokenRequest, NodeTokenResponse, Problem,
    RenewRequest, RenewResponse,
};
use cluster::identity::JoinToken;
use http::{HeaderValue, StatusCode, header};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::certify::{Issued, Question};
use super::extract::{Json, Path, Payload};
use super::problem::{ApiError, Code};
use crate::accounts::{Action, Caller, Who, authorize};
use crate::state::{NodeName, NodeTokenRecord, RepoName, rfc3339};

/// How long a node token is good for unless the request says otherwise: an afternoon of installing machines.
const NODE_TOKEN_TTL: Duration = Duration::from_secs(24 * 3600);
/// The longest life of a node token.
const NODE_TOKEN_TTL_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

impl Payload for EnrollRequest {}
impl Payload for JoinRequest {}
impl Payload for RenewRequest {}
impl Payload for NodeTokenRequest {}

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(node_token))
        .routes(routes!(replace))
        .routes(routes!(enroll))
        .routes(routes!(join))
        .routes(routes!(renew))
        .routes(routes!(ca))
}

/// Makes a one-time token for a new node.
#[utoipa::path(post, path = "/api/v1/node-tokens", tag = "trust", operation_id = "createNodeToken",
    request_body = NodeTokenRequest, responses(
    (status = 201, description = "The token, shown once", body = NodeTokenResponse),
    (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
))]
async fn node_token(
    State(app): State<Arc<App>>,
    caller: Caller,
    Json(request): Json<NodeTokenRequest>,
) -> Result<Response, ApiError> {
    authorize(&caller, Action::IssueNodeToken)?;
    let invalid = |words: String| ApiError::new(Code::Invalid, words);
    let subcluster: RepoName =
        request.subcluster.parse().map_err(|error: crate::state::BadName| invalid(error.to_string()))?;
    if subcluster.is_global() {
        return Err(invalid("global is no subcluster: a node belongs to one of the others".into()));
    }
    app.core.known_repo(&subcluster).await?;
    let ttl = ttl(request.ttl.as_deref(), NODE_TOKEN_TTL, NODE_TOKEN_TTL_MAX)?;
    let (token, record) = new_token(&app, &caller, &subcluster, ttl);
    app.core.put_node_token(record).await?;
    tracing::info!(by = caller.name(), id = token.id(), %subcluster, "a node token was made");
    let body = NodeTokenResponse {
        token: token.expose().to_string(),
        subcluster: subcluster.to_string(),
        expires: rfc3339(now_ms() + ttl.as_millis() as u64),
    };
    Ok((StatusCode::CREATED, no_store(), JsonBody(body)).into_response())
}

fn new_token(app: &App, caller: &Caller, subcluster: &RepoName, ttl: Duration) -> (JoinToken, NodeTokenRecord) {
    let token = JoinToken::generate(app.identity.current().ca_fingerprint());
    let record = NodeTokenRecord {
        id: token.id(),
        secret_sha256: token.secret().sha256(),
        subcluster: subcluster.clone(),
        created_by: caller.name().to_owned(),
        expires_clock_ms: app.core.clock_ms() + ttl.as_millis() as u64,
    };
    (token, record)
}

/// A token for a machine that takes a member's name over: the old machine is dead, or will be.
#[utoipa::path(post, path = "/api/v1/nodes/{node}/replace", tag = "trust", operation_id = "replaceNode", params(
    ("node" = String, Path, description = "The member to replace"),
), responses(
    (status = 201, description = "The token, shown once", body = NodeTokenResponse),
    (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
))]
async fn replace(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(node): Path<NodeName>,
) -> Result<Response, ApiError> {
    authorize(&caller, Action::ManageNodes)?;
    let subcluster = app.core.node(&node)?.subcluster.clone();
    let (token, record) = new_token(&app, &caller, &subcluster, NODE_TOKEN_TTL);
    app.core.allow_replace(&node, record).await?;
    tracing::info!(by = caller.name(), id = token.id(), %node, "a node may be replaced");
    let body = NodeTokenResponse {
        token: token.expose().to_string(),
        subcluster: subcluster.to_string(),
        expires: rfc3339(now_ms() + NODE_TOKEN_TTL.as_millis() as u64),
    };
    Ok((StatusCode::CREATED, no_store(), JsonBody(body)).into_response())
}

/// Turns a one-time token and a key into a certificate. Needs no login: the token is one.
#[utoipa::path(post, path = "/api/v1/enroll", tag = "trust", operation_id = "enroll", security(()),
    request_body = EnrollRequest, responses(
    (status = 200, description = "The certificate", body = EnrollResponse),
    (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
))]
async fn enroll(State(app): State<Arc<App>>, Json(request): Json<EnrollRequest>) -> Result<Response, ApiError> {
    match app.certify(Question::Enroll(request)).await? {
        Issued::Enroll(body) => Ok((no_store(), JsonBody(body)).into_response()),
        _ => Err(other_answer()),
    }
}

/// A server becomes a member of the cluster. Needs no login: the token is one. Again with the same key is the same join.
#[utoipa::path(post, path = "/api/v1/join", tag = "trust", operation_id = "join", security(()),
    request_body = JoinRequest, responses(
    (status = 200, description = "The certificate, and who it is in the group", body = JoinResponse),
    (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
))]
async fn join(State(app): State<Arc<App>>, Json(request): Json<JoinRequest>) -> Result<Response, ApiError> {
    match app.certify(Question::Join(request)).await? {
        Issued::Join(body) => Ok((no_store(), JsonBody(body)).into_response()),
        _ => Err(other_answer()),
    }
}

/// A node gets a fresh certificate, authenticated by the one it has.
#[utoipa::path(post, path = "/api/v1/renew", tag = "trust", operation_id = "renew",
    request_body = RenewRequest, responses(
    (status = 200, description = "The certificate", body = RenewResponse),
    (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
))]
async fn renew(
    State(app): State<Arc<App>>,
    caller: Caller,
    Json(request): Json<RenewRequest>,
) -> Result<Response, ApiError> {
    authorize(&caller, Action::Renew)?;
    let Who::Node { name, .. } = &caller.who else {
        return Err(ApiError::new(Code::Forbidden, "only a node can renew its certificate"));
    };
    let names = Vec::new();
    match app.certify(Question::Renew { node: name.clone(), csr_pem: request.csr_pem, names }).await? {
        Issued::Renew(body) => Ok((no_store(), JsonBody(body)).into_response()),
        _ => Err(other_answer()),
    }
}

fn other_answer() -> ApiError {
    ApiError::internal(&"another certificate than the one asked for was issued")
}

/// The CA's certificate. Needs no login; whoever fetches it this way must compare its fingerprint.
#[utoipa::path(get, path = "/api/v1/ca", tag = "trust", operation_id = "getCa", security(()), responses(
    (status = 200, description = "The certificate as PEM", content_type = "application/x-pem-file", body = String),
))]
async fn ca(State(app): State<Arc<App>>) -> Response {
    let content_type = (header::CONTENT_TYPE, HeaderValue::from_static("application/x-pem-file"));
    ([content_type], app.identity.current().ca_pem().to_owned()).into_response()
}

fn no_store() -> [(http::HeaderName, HeaderValue); 1] {
    [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))]
}

/// A life that was asked for, within its bounds.
pub(super) fn ttl(asked: Option<&str>, default: Duration, max: Duration) -> Result<Duration, ApiError> {
    let Some(text) = asked else { return Ok(default) };
    let invalid = |words: String| ApiError::new(Code::Invalid, words);
    let asked: cluster::units::HumanDuration = text.parse().map_err(|error| invalid(format!("ttl: {error}")))?;
    if asked.get() > max || asked.get() < Duration::from_secs(1) {
        return Err(invalid(format!("ttl: between 1s and {}d", max.as_secs() / 86_400)));
    }
    Ok(asked.get())
}

/// The wall clock, for people.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
