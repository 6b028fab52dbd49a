//! One's own account: who am I, API tokens, password.

use std::sync::Arc;
use std::time::Duration;

use axum::Json as JsonBody;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use cluster::api::{PasswordRequest, Problem, TokenCreated, TokenInfo, TokenRequest, Whoami};
use http::{HeaderValue, StatusCode, header};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::extract::{Json, Path, Payload};
use super::problem::{ApiError, Code};
use super::trust::{now_ms, ttl};
use crate::accounts::password::Secret;
use crate::accounts::{Action, Caller, Proof, Who, authorize, token};
use crate::state::{TokenRecord, rfc3339};

/// How long an API token is good for unless the request says otherwise.
const TOKEN_TTL: Duration = Duration::from_secs(90 * 24 * 3600);
/// The longest life of an API token.
const TOKEN_TTL_MAX: Duration = Duration::from_secs(3660 * 24 * 3600);
/// Live tokens of one user: a script that makes one per run and never revokes is stopped here.
const TOKENS_MAX: usize = 500;

impl Payload for TokenRequest {}
impl Payload for PasswordRequest {}

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(whoami))
        .routes(routes!(list, create))
        .routes(routes!(revoke))
        .routes(routes!(password))
}

/// Who the server takes the caller for.
#[utoipa::path(get, path = "/api/v1/whoami", tag = "account", operation_id = "whoami", responses(
    (status = 200, description = "The caller", body = Whoami),
    (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
))]
async fn whoami(caller: Caller) -> JsonBody<Whoami> {
    JsonBody(caller.whoami())
}

/// Lists the caller's API tokens, without their secrets; an administrator sees everybody's.
#[utoipa::path(get, path = "/api/v1/tokens", tag = "account", operation_id = "listTokens", responses(
    (status = 200, description = "The tokens", body = Vec<TokenInfo>),
    (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
))]
async fn list(State(app): State<Arc<App>>, caller: Caller) -> Result<JsonBody<Vec<TokenInfo>>, ApiError> {
    let user = user_of(&caller)?;
    let all = authorize(&caller, Action::AllAccounts).is_ok();
    let tokens = app.core.tokens(if all { None } else { Some(user) })?;
    Ok(JsonBody(tokens.into_iter().map(info).collect()))
}

/// Makes an API token for the caller.
#[utoipa::path(post, path = "/api/v1/tokens", tag = "account", operation_id = "createToken",
    request_body = TokenRequest, responses(
    (status = 201, description = "The token, shown once", body = TokenCreated),
    (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
))]
async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    Json(request): Json<TokenRequest>,
) -> Result<Response, ApiError> {
    let user = user_of(&caller)?;
    let invalid = |words: &str| ApiError::new(Code::Invalid, words);
    let name = request.name.trim();
    if name.is_empty() || name.len() > 200 || name.chars().any(char::is_control) {
        return Err(invalid("a token's name has 1 to 200 printable characters"));
    }
    if app.core.tokens(Some(user))?.len() >= TOKENS_MAX {
        return Err(ApiError::new(Code::TooMany, format!("{user} has {TOKENS_MAX} tokens")).hint("revoke some"));
    }
    let ttl = ttl(request.ttl.as_deref(), TOKEN_TTL, TOKEN_TTL_MAX)?;
    let fresh = token::new().map_err(|error| ApiError::internal(&error))?;
    let ttl_ms = ttl.as_millis() as u64;
    let record = TokenRecord {
        id: fresh.id.clone(),
        secret_sha256: fresh.secret_sha256,
        user: user.to_owned(),
        name: name.to_owned(),
        created_time_ms: now_ms(),
        expires_time_ms: now_ms() + ttl_ms,
        expires_clock_ms: app.core.clock_ms() + ttl_ms,
    };
    let expires = rfc3339(record.expires_time_ms);
    app.core.put_token(record).await?;
    tracing::info!(by = caller.name(), id = fresh.id, "an API token was made");
    let body = TokenCreated { id: fresh.id, name: name.to_owned(), token: fresh.text.expose().to_owned(), expires };
    let no_store = [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];
    Ok((StatusCode::CREATED, no_store, JsonBody(body)).into_response())
}

/// Revokes an API token at once.
#[utoipa::path(delete, path = "/api/v1/tokens/{id}", tag = "account", operation_id = "revokeToken", params(
    ("id" = String, Path, description = "The token's id"),
), responses(
    (status = 204, description = "Revoked"),
    (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
))]
async fn revoke(State(app): State<Arc<App>>, caller: Caller, Path(id): Path<String>) -> Result<StatusCode, ApiError> {
    let user = user_of(&caller)?;
    let unknown = || ApiError::not_found(format!("no such token: {id}"));
    let record = app.core.token(&id)?.ok_or_else(unknown)?;
    if record.user != user && authorize(&caller, Action::AllAccounts).is_err() {
        return Err(unknown());
    }
    app.core.delete_token(&id).await?;
    tracing::info!(by = caller.name(), %id, "an API token was revoked");
    Ok(StatusCode::NO_CONTENT)
}

/// Changes the caller's password. It must have logged in with the old one: a token that leaked cannot take the account over.
#[utoipa::path(put, path = "/api/v1/password", tag = "account", operation_id = "changePassword",
    request_body = PasswordRequest, responses(
    (status = 204, description = "Changed"),
    (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
))]
async fn password(
    State(app): State<Arc<App>>,
    caller: Caller,
    Json(request): Json<PasswordRequest>,
) -> Result<StatusCode, ApiError> {
    let user = user_of(&caller)?;
    if !matches!(caller.by, Proof::Password { .. }) {
        return Err(ApiError::new(Code::Forbidden, "changing the password needs the old password, not a token"));
    }
    let mut record = app.core.user(user)?.ok_or_else(|| ApiError::not_found(format!("no such user: {user}")))?;
    record.password_hash = app.accounts.hash_password(Secret::new(request.password)).await?;
    app.core.put_user(record).await?;
    tracing::info!(user, "a password was changed");
    Ok(StatusCode::NO_CONTENT)
}

fn user_of(caller: &Caller) -> Result<&str, ApiError> {
    authorize(caller, Action::OwnAccount)?;
    match &caller.who {
        Who::User { name, .. } => Ok(name),
        Who::Node { name, .. } => Err(ApiError::new(Code::Forbidden, format!("the node {name} has no account"))),
    }
}

fn info(record: TokenRecord) -> TokenInfo {
    TokenInfo {
        id: record.id,
        name: record.name,
        user: record.user,
        created: rfc3339(record.created_time_ms),
        expires: rfc3339(record.expires_time_ms),
    }
}
