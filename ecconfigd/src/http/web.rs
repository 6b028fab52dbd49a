//! Around every request: its id, its log line, its count, and a net under handlers that panic.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::response::IntoResponse as _;
use bytes::Bytes;
use cluster::api::X_REQUEST_ID;
use cluster::telemetry::RequestId;
use futures::FutureExt as _;
use http::{HeaderValue, Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tower::ServiceExt as _;
use tracing::Instrument as _;

use super::connection::{ConnectionInfo, Handler, InFlight};
use super::problem::{ApiError, ProblemBody};
use super::{App, Route};

/// The router with everything around it.
pub struct Web {
    app: Arc<App>,
    router: Router,
}

impl Web {
    /// Every endpoint of the application.
    pub fn new(app: Arc<App>) -> Arc<Self> {
        let router = super::router(&app);
        Arc::new(Self { app, router })
    }
}

impl Handler for Web {
    async fn handle(self: Arc<Self>, request: Request<Incoming>, info: Arc<ConnectionInfo>) -> Response<Body> {
        let in_flight = InFlight::begin(&info);
        let id = RequestId::accept(request.headers().get(X_REQUEST_ID).and_then(|value| value.to_str().ok()));
        let span = id.span();
        // Boxed: a connection keeps room for the largest future it may ever hold.
        let response = Box::pin(self.answer(request, info, &id)).instrument(span).await;
        response.map(|body| Body::new(Guarded { body, _in_flight: in_flight }))
    }
}

impl Web {
    async fn answer(&self, request: Request<Incoming>, info: Arc<ConnectionInfo>, id: &RequestId) -> Response<Body> {
        let started = Instant::now();
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let remote = info.remote;
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(info);
        let answering = AssertUnwindSafe(self.router.clone().oneshot(request)).catch_unwind();
        let mut response = match answering.await {
            Ok(Ok(response)) => response,
            Ok(Err(never)) => match never {},
            Err(_) => ApiError::internal(&"a handler panicked").into_response(),
        };
        self.mark(&mut response, id);
        let route = response.extensions_mut().remove::<Route>();
        let (status, took) = (response.status(), started.elapsed());
        self.app.metrics.answered(&method, route.as_ref().map(|route| route.0.as_str()), status, took);
        tracing::debug!(%method, path, status = status.as_u16(), took_ms = took.as_secs_f64() * 1000.0, %remote, "answered");
        response
    }

    /// Puts the id into the headers, and into the document of a problem.
    fn mark(&self, response: &mut Response<Body>, id: &RequestId) {
        if let Some(ProblemBody(mut problem)) = response.extensions_mut().remove() {
            problem.request_id = Some(id.as_str().to_owned());
            let body = serde_json::to_vec(&problem).expect("a problem has no map with keys that are not text");
            response.headers_mut().remove(http::header::CONTENT_LENGTH);
            *response.body_mut() = body.into();
        }
        if let Ok(value) = HeaderValue::from_str(id.as_str()) {
            response.headers_mut().insert(X_REQUEST_ID, value);
        }
    }
}

/// An answer's body: the request is in flight until it is sent or dropped.
struct Guarded {
    body: Body,
    _in_flight: InFlight,
}

impl HttpBody for Guarded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
