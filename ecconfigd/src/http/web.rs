//! Around every request: its id, its log line, its count, and a net under handlers that panic.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::response::IntoResponse as _;
use bytes::Bytes;
use cluster::api::X_REQUEST_ID;
use cluster::telemetry::RequestId;
use futures::FutureExt as _;
use http::{HeaderValue, Method, Request, Response, Version};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tower::ServiceExt as _;
use tracing::Instrument as _;

use super::activity::{ConnectionInfo, InFlight};
use super::connection::{Answer, Handler, LaterAnswer};
use super::leftover::Whole;
use super::problem::{ApiError, Code, ProblemBody};
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

/// In an answer's extensions: the answer itself comes later. It stands for the handler, whose state and layers are gone by then.
#[derive(Clone)]
pub(super) struct Later(Arc<Mutex<Option<LaterAnswer>>>);

impl Later {
    /// An empty answer that stands for one that is waited for.
    pub(super) fn answer(later: impl Future<Output = Response<Body>> + Send + 'static) -> Response<Body> {
        let mut response = Response::new(Body::empty());
        response.extensions_mut().insert(Self(Arc::new(Mutex::new(Some(Box::pin(later))))));
        response
    }

    fn take(self) -> Option<LaterAnswer> {
        self.0.lock().expect("no code panics while it holds this lock").take()
    }
}

impl Handler for Web {
    async fn handle(self: Arc<Self>, request: Request<Incoming>, info: Arc<ConnectionInfo>) -> Answer {
        let id = RequestId::accept(request.headers().get(X_REQUEST_ID).and_then(|value| value.to_str().ok()));
        let span = id.span();
        let (method, path) = (request.method().clone(), request.uri().path().into());
        let mut about = About {
            in_flight: InFlight::begin(&info),
            id,
            method,
            path,
            remote: info.remote,
            started: Instant::now(),
            route: None,
        };
        // Boxed: a connection keeps room for the largest future it may ever hold.
        let mut response = Box::pin(self.routed(request, info)).instrument(span.clone()).await;
        about.route = response.extensions_mut().remove::<Route>();
        match response.extensions_mut().remove::<Later>().and_then(Later::take) {
            None => Answer::Now(span.in_scope(|| self.finish(response, about))),
            Some(later) => {
                let finished = async move {
                    let response = AssertUnwindSafe(later).catch_unwind().await.unwrap_or_else(|_| panicked());
                    self.finish(response, about)
                };
                Answer::Later(Box::pin(finished.instrument(span)))
            }
        }
    }
}

/// What is kept of a request until it is answered.
struct About {
    in_flight: InFlight,
    id: RequestId,
    method: Method,
    path: Box<str>,
    remote: SocketAddr,
    started: Instant,
    route: Option<Route>,
}

impl Web {
    async fn routed(&self, request: Request<Incoming>, info: Arc<ConnectionInfo>) -> Response<Body> {
        let too_large = self.too_large(&request);
        let mut request = Whole::of(request, &self.app.draining).map(Body::new);
        if let Some(error) = too_large {
            return error.into_response();
        }
        request.extensions_mut().insert(info);
        let answering = AssertUnwindSafe(self.router.clone().oneshot(request)).catch_unwind();
        match answering.await {
            Ok(Ok(response)) => response,
            Ok(Err(never)) => match never {},
            Err(_) => panicked(),
        }
    }

    /// The bounds of a head that HTTP/2 has no words for; hyper has looked at those of HTTP/1.1.
    fn too_large(&self, request: &Request<Incoming>) -> Option<ApiError> {
        let limits = self.app.limits.now();
        let fields = request.headers();
        // HTTP/2 counts 32 bytes for every field besides its name and value (RFC 9113, 6.5.2).
        let bytes: usize = fields.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
        let bytes = bytes + request.uri().path_and_query().map_or(0, |target| target.as_str().len());
        let too_large =
            request.version() == Version::HTTP_2 && (fields.len() > limits.header_count || bytes > limits.header_bytes);
        too_large.then(|| ApiError::new(Code::HeadTooLarge, "the request's head has too many or too large fields"))
    }

    /// Marks, counts and logs an answer.
    fn finish(&self, mut response: Response<Body>, about: About) -> Response<Body> {
        let About { in_flight, id, method, path, remote, started, route } = about;
        mark(&mut response, &id);
        let (status, took) = (response.status(), started.elapsed());
        self.app.metrics.answered(&method, route.as_ref().map(|route| route.0.as_str()), status, took);
        tracing::debug!(%method, path, status = status.as_u16(), took_ms = took.as_secs_f64() * 1000.0, %remote, "answered");
        response.map(|body| Body::new(Guarded { body, _in_flight: in_flight }))
    }
}

fn panicked() -> Response<Body> {
    ApiError::internal(&"a handler panicked").into_response()
}

/// Puts the id into the headers, and into the document of a problem.
pub(super) fn mark(response: &mut Response<Body>, id: &RequestId) {
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
