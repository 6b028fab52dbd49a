//! The HTTP face: one file per group of endpoints, and what they share.
//!
//! A request passes, from outside in: its connection ([`connection`]), the request's id, log and metrics ([`web`]), the places that bound
//! how many are worked on ([`crate::limits`]), who calls ([`crate::accounts`]), and then its handler. Handlers translate between HTTP
//! and [`crate::core::Core`] and decide nothing else; every failure becomes words in [`problem`].

mod account;
pub mod activity;
pub mod bridge;
mod certify;
mod commits;
pub mod connection;
mod doctor;
mod effective;
pub mod extract;
mod files;
mod git;
mod history;
mod http1;
mod leftover;
pub mod metrics;
mod nodes;
mod operations;
pub mod problem;
mod read;
mod repositories;
mod stream;
mod subclusters;
mod trust;
mod watch;
pub mod web;
mod wire;

use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use cluster::identity::ReloadingIdentity;
use http::{Extensions, HeaderMap, header};
use tokio_util::sync::CancellationToken;
use utoipa::OpenApi as _;
use utoipa_axum::router::OpenApiRouter;

use crate::accounts::{Accounts, Caller};
use crate::core::Core;
use crate::limits::{AllPlaces, ConnectionGate, Live};
use metrics::Metrics;
use problem::{ApiError, Code};

pub(crate) use certify::{Issued, Question, certificate_record};
pub(crate) use trust::now_ms;

/// What every handler can reach.
pub struct App {
    /// The replicated core.
    pub core: Core,
    /// Who may log in.
    pub accounts: Accounts,
    /// The bounds.
    pub limits: Live,
    /// The places that the bounds leave.
    pub places: AllPlaces,
    /// Open connections.
    pub connections: Arc<ConnectionGate>,
    /// This node's certificate and the CA's.
    pub identity: Arc<ReloadingIdentity>,
    /// Counters.
    pub metrics: Metrics,
    /// No new work from here on.
    pub draining: CancellationToken,
    /// The cluster's name.
    pub cluster: String,
}

impl App {
    /// The cluster's name.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// Who sent a request.
    async fn authenticate(&self, headers: &HeaderMap, extensions: &Extensions) -> Result<Option<Caller>, ApiError> {
        let info = extract::connection(extensions)?;
        let caller = self.accounts.authenticate(headers, info.peer.as_ref(), info.remote.ip()).await;
        // A certificate that does not hold any more will not hold for the next request either: connecting anew is all that helps.
        if caller.is_err() && info.peer.is_some() && !headers.contains_key(header::AUTHORIZATION) {
            info.leave();
        }
        caller
    }
}

/// The route that a request took, left in its answer for metrics and log.
#[derive(Clone)]
struct Route(MatchedPath);

/// Every endpoint.
pub fn router(app: &Arc<App>) -> Router {
    let (worked_on, _) = requests().split_for_parts();
    let (waiting, _) = watch::routes().split_for_parts();
    let (always, _) = operations::routes().split_for_parts();
    let (examining, _) = doctor::routes().split_for_parts();
    let worked_on = worked_on.layer(from_fn_with_state(app.clone(), take_place));
    let all = worked_on.merge(waiting).merge(examining).merge(git::routes());
    let all = all.layer(from_fn_with_state(app.clone(), refuse_when_out));
    all.merge(always)
        .layer(from_fn(note_route))
        .fallback(extract::no_such_path)
        .method_not_allowed_fallback(extract::no_such_method)
        .with_state(app.clone())
}

/// The endpoints whose work has an end: they take a place and have a time limit.
fn requests() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .merge(repositories::routes())
        .merge(subclusters::routes())
        .merge(files::routes())
        .merge(history::routes())
        .merge(commits::routes())
        .merge(effective::routes())
        .merge(nodes::routes())
        .merge(trust::routes())
        .merge(account::routes())
}

async fn take_place(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let _place = match app.places.requests.take().await {
        Ok(place) => place,
        Err(error) => return error.into_response(),
    };
    match tokio::time::timeout(app.limits.now().request_time, next.run(request)).await {
        Ok(response) => response,
        Err(_) => ApiError::new(Code::TimedOut, "the request took too long")
            .hint("a write may have happened; repeat it under the same Idempotency-Key")
            .into_response(),
    }
}

/// What a node says of itself and of the cluster, also while it serves nothing else.
const ALSO_WHEN_OUT: [&str; 4] = ["/api/v1/cluster", "/api/v1/cluster/members", "/api/v1/nodes", "/api/v1/doctor"];

/// A node that has taken itself out serves nothing that it holds: it may be wrong.
async fn refuse_when_out(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    match app.core.out() {
        Some(why) if !ALSO_WHEN_OUT.contains(&request.uri().path()) => {
            ApiError::new(Code::Unavailable, why).hint("ask another server").not_done().into_response()
        }
        _ => next.run(request).await,
    }
}

async fn note_route(request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let mut response = next.run(request).await;
    if let Some(route) = route {
        response.extensions_mut().insert(Route(route));
    }
    response
}

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "eccluster",
        description = "The configuration server of an eccluster. Besides this API it serves every repository to git at `/{repo}.git`.\n\n\
            Errors are RFC 9457 problem documents with a stable `code`. Answers that depend on a revision carry `X-Revision`, \
            reads take `min_revision`, every answer carries `X-Request-Id`.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0"),
    ),
    security(("basic" = []), ("bearer" = []), ("node" = [])),
    modifiers(&Schemes),
)]
struct Description;

struct Schemes;

impl utoipa::Modify for Schemes {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
        let http = |scheme, words: &str| {
            SecurityScheme::Http(HttpBuilder::new().scheme(scheme).description(Some(words)).build())
        };
        let components = openapi.components.get_or_insert_default();
        components
            .add_security_scheme("basic", http(HttpAuthScheme::Basic, "User and password, or a token as password"));
        components.add_security_scheme("bearer", http(HttpAuthScheme::Bearer, "An API token"));
        let node = SecurityScheme::MutualTls {
            description: Some("A node's certificate".into()),
            extensions: None,
            deprecated: None,
        };
        components.add_security_scheme("node", node);
    }
}

/// The API's description, made from the handlers: what `docs/openapi.json` is compared with.
pub fn openapi_json() -> Bytes {
    static JSON: OnceLock<Bytes> = OnceLock::new();
    JSON.get_or_init(describe).clone()
}

fn describe() -> Bytes {
    let routes = OpenApiRouter::with_openapi(Description::openapi())
        .merge(requests())
        .merge(watch::routes())
        .merge(doctor::routes())
        .merge(operations::routes());
    let mut openapi = routes.into_openapi();
    // The router's `{*path}` is OpenAPI's `{path}`.
    let paths = std::mem::take(&mut openapi.paths.paths);
    openapi.paths.paths = paths.into_iter().map(|(path, item)| (path.replace("{*", "{"), item)).collect();
    let text = openapi.to_pretty_json().expect("the description has no map with keys that are not text");
    format!("{text}\n").into()
}
