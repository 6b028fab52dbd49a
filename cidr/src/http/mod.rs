//! HTTP on port 9000. Handlers translate between HTTP and [`crate::service::Service`]; nothing is decided here but who may ask.

mod access;
mod cluster;
mod events;
mod listen;
mod lists;
mod query;
mod words;

use std::sync::Arc;

use ::cluster::accounts::Accounts;
use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::StatusCode;
use http::header::CONTENT_TYPE;

pub use listen::Listener;
pub use words::Refusal;

use crate::daemon::control;
use crate::hand_in::MAX_MESSAGE_BYTES;
use crate::service::Service;

/// Events of one request, and addresses of one bulk lookup.
const BODY_BYTES: usize = 16 << 20;

/// What handlers have at hand.
#[derive(Clone)]
pub struct App {
    service: Arc<Service>,
    accounts: Option<Arc<Accounts>>,
}

/// All routes.
pub fn router(service: Arc<Service>, accounts: Option<Accounts>) -> Router {
    let app = App { service, accounts: accounts.map(Arc::new) };
    let people = Router::new()
        .route("/query", get(query::query))
        .route("/series", get(query::series))
        .route("/count", get(query::count))
        .route("/lists", get(lists::names))
        .route("/lists/lookup", get(lists::lookup).post(lists::lookup_many))
        .route_layer(axum::middleware::from_fn_with_state(app.clone(), access::readers));
    let senders = Router::new()
        .route("/events", post(events::events))
        .route("/remove", post(events::remove))
        .route_layer(axum::middleware::from_fn_with_state(app.clone(), access::senders));
    let nodes = Router::new()
        .route("/cluster/windows", post(cluster::windows).layer(DefaultBodyLimit::max(MAX_MESSAGE_BYTES)))
        .route("/cluster/count", get(cluster::count))
        .route("/cluster/remove", post(cluster::remove))
        .route_layer(axum::middleware::from_fn(access::nodes));
    let open = Router::new().route("/healthz", get(healthz)).route("/metrics", get(metrics));
    let all = people.merge(senders).layer(DefaultBodyLimit::max(BODY_BYTES)).merge(nodes).merge(open);
    all.fallback(|| async { Refusal::not_found("there is nothing at this path") }).with_state(app)
}

async fn healthz() -> &'static str {
    "ok\n"
}

async fn metrics(State(app): State<App>) -> Result<Response, Refusal> {
    // It reads /proc.
    let rendered = control::aside(move || Ok(app.service.meters.registry.render())).await;
    let rendered = rendered.map_err(|failure| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, failure))?;
    Ok(([(CONTENT_TYPE, ::cluster::telemetry::CONTENT_TYPE)], rendered).into_response())
}
