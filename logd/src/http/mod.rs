//! Reading over HTTP, for the console and for scripts: what `logd logs`, `cat`, `grep` and `tail -f` print, as JSON.
//!
//! It is served on the port of the log service, to whoever asks by TLS for `http/1.1` instead of the nodes' own protocol. Nothing is decided here but
//! who may ask and how much: a page is bounded in lines, bytes and time, and says when there is more. Nothing can be changed this way.

mod access;
mod follow;
mod lines;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use cluster::accounts::Accounts;
use cluster::api::Problem;
use cluster::control::Failure;
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower::Service as _;

use crate::daemon::Console;
use crate::wire::trust::Proved;

/// What is agreed on by ALPN.
pub const PROTOCOL: &[u8] = b"http/1.1";
/// A request's head has this long.
const HEAD: Duration = Duration::from_secs(10);
/// Pages that are made at once: each reads files as fast as the disk gives them. Others wait.
const SCANS: usize = 2;
/// Who follows a log at once; each looks at its files four times a second.
const FOLLOWERS: usize = 32;

/// What handlers have at hand.
#[derive(Clone)]
struct App {
    console: Console,
    accounts: Option<Arc<Accounts>>,
    scans: Arc<Semaphore>,
    followers: Arc<Semaphore>,
}

/// Serves connections.
#[derive(Clone)]
pub struct Http(Router);

impl std::fmt::Debug for Http {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Http")
    }
}

impl Http {
    /// Reads what `console` knows, for nodes and for the cluster's accounts.
    pub fn new(console: Console, accounts: Option<Accounts>) -> Self {
        let app = App {
            console,
            accounts: accounts.map(Arc::new),
            scans: Arc::new(Semaphore::new(SCANS)),
            followers: Arc::new(Semaphore::new(FOLLOWERS)),
        };
        let readers = Router::new()
            .route("/logs", get(journals))
            .route("/logs/{log}/lines", get(lines::lines))
            .route("/logs/{log}/follow", get(follow::follow))
            .route_layer(axum::middleware::from_fn_with_state(app.clone(), access::readers));
        let open = Router::new().route("/healthz", get(|| async { "ok\n" })).route("/metrics", get(metrics));
        let all = readers.merge(open).fallback(|| async { Refusal::not_found("there is nothing at this path") });
        Self(all.with_state(app))
    }

    /// Serves one connection until it ends or `stop`.
    pub(crate) async fn serve(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        peer: Option<Proved>,
        stop: &CancellationToken,
    ) {
        let router = self.0.clone();
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let mut request: Request = request.map(axum::body::Body::new);
            request.extensions_mut().insert(access::Line(peer.clone()));
            router.clone().call(request)
        });
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(HEAD);
        // What is being answered is bounded but for those who follow, and they come again.
        let _ = stop.run_until_cancelled(builder.serve_connection(TokioIo::new(stream), service)).await;
    }
}

/// `logd logs --json`, of this node or with `?all` of every node.
async fn journals(State(app): State<App>, request: Request) -> Result<Json<Value>, Refusal> {
    let all = request.uri().query().unwrap_or_default().split('&').any(|part| part == "all" || part == "all=true");
    app.console.journals(all).await.map(Json).map_err(|failure| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, failure))
}

async fn metrics(State(app): State<App>) -> Result<Response, Refusal> {
    let text = app.console.metrics().await;
    let text = text.map_err(|failure| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, failure))?;
    Ok(([(CONTENT_TYPE, cluster::telemetry::CONTENT_TYPE)], text).into_response())
}

/// Why a request was not served: a problem document (RFC 9457), as on every other port of the cluster.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    failure: Failure,
}

impl Refusal {
    fn new(status: StatusCode, failure: Failure) -> Self {
        Self { status, failure }
    }

    fn wrong(words: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Failure::new(words).code("request"))
    }

    fn not_found(words: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, Failure::new(words).code("not_found"))
    }

    fn unauthorized(words: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, Failure::new(words).code("unauthorized"))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let problem = Problem::of_failure(self.status, self.failure);
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        let mut response = (self.status, [(CONTENT_TYPE, "application/problem+json")], body).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"eccluster\""));
        }
        response
    }
}
