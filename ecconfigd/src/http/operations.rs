//! What operators and their tools ask: liveness, readiness, metrics, the API's own description, and a page for whoever opens a browser.
//!
//! None of these needs a login and none takes a place in a queue: they must answer when nothing else does.

use std::sync::Arc;

use axum::Json as JsonBody;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use cluster::api::{Health, Problem};
use http::{HeaderValue, header};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::problem::{ApiError, Code};
use crate::core::Readiness;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(healthz))
        .routes(routes!(readyz))
        .routes(routes!(metrics))
        .routes(routes!(openapi))
        .routes(routes!(index))
}

/// The process is alive.
#[utoipa::path(get, path = "/healthz", tag = "operations", operation_id = "healthz", security(()), responses(
    (status = 200, description = "Alive", body = Health),
))]
async fn healthz() -> JsonBody<Health> {
    JsonBody(Health { status: "ok".into() })
}

/// The server has caught up with the log and answers requests.
#[utoipa::path(get, path = "/readyz", tag = "operations", operation_id = "readyz", security(()), responses(
    (status = 200, description = "Ready", body = Health),
    (status = 503, description = "Not ready, and why", body = Problem, content_type = "application/problem+json"),
))]
async fn readyz(State(app): State<Arc<App>>) -> Result<JsonBody<Health>, ApiError> {
    let why = match app.core.readiness() {
        Readiness::Ready if !app.draining.is_cancelled() => return Ok(JsonBody(Health { status: "ok".into() })),
        Readiness::Ready | Readiness::Stopping => "the server is stopping".to_owned(),
        Readiness::Starting(why) => format!("starting: {why}"),
        Readiness::ReadOnly(why) | Readiness::OutOfRoom(why) => format!("read-only: {why}"),
        Readiness::Out(why) => why,
        Readiness::Failed(why) => format!("failed: {why}"),
    };
    Err(ApiError::new(Code::Unavailable, why))
}

/// Metrics for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "operations", operation_id = "metrics", security(()), responses(
    (status = 200, description = "OpenMetrics text", content_type = "application/openmetrics-text", body = String),
))]
async fn metrics(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    // Not one of the readers' places: whoever holds those must not hide it.
    let work = tokio::task::spawn_blocking(move || {
        app.metrics.sample(&app);
        app.metrics.registry.render()
    });
    let text = work.await.map_err(|error| ApiError::internal(&error))?;
    let content_type = (header::CONTENT_TYPE, HeaderValue::from_static(cluster::telemetry::CONTENT_TYPE));
    Ok(([content_type], text).into_response())
}

/// This document.
#[utoipa::path(get, path = "/api/v1/openapi.json", tag = "operations", operation_id = "openapi", security(()), responses(
    (status = 200, description = "OpenAPI 3.1", body = Object),
))]
async fn openapi() -> Response {
    let content_type = (header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    ([content_type], super::openapi_json()).into_response()
}

/// What this is, in a few words.
#[utoipa::path(get, path = "/", tag = "operations", operation_id = "index", security(()), responses(
    (status = 200, description = "A small page", content_type = "text/html", body = String),
))]
async fn index(State(app): State<Arc<App>>) -> Response {
    let page = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><title>eccluster</title>\
         <style>body{{font:16px/1.5 sans-serif;max-width:40em;margin:4em auto;padding:0 1em}}</style>\
         <h1>eccluster</h1><p>This is ecconfigd {version} on node <b>{node}</b> of cluster <b>{cluster}</b>: \
         git repositories and a JSON API for the configuration of every node.</p>\
         <ul><li><code>git clone https://HOST:PORT/default.git</code>\
         <li><a href=/api/v1/openapi.json>the API</a>\
         <li><a href=/readyz>ready?</a> · <a href=/metrics>metrics</a></ul>",
        version = env!("CARGO_PKG_VERSION"),
        node = app.core.node_name(),
        cluster = escaped(app.cluster()),
    );
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    (headers, page).into_response()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
