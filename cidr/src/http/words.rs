//! Refusals as problem documents (RFC 9457), as on every other port of the cluster.

use axum::response::{IntoResponse, Response};
use cluster::api::Problem;
use cluster::control::Failure;
use http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, StatusCode};

use crate::daemon::queries::QueryFailure;

/// Why a request was not served.
#[derive(Debug)]
pub struct Refusal {
    status: StatusCode,
    failure: Failure,
}

impl Refusal {
    /// A refusal with a status.
    pub const fn new(status: StatusCode, failure: Failure) -> Self {
        Self { status, failure }
    }

    /// The request makes no sense.
    pub fn wrong(words: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Failure::new(words).code("request"))
    }

    /// Nothing there.
    pub fn not_found(words: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, Failure::new(words).code("not_found"))
    }

    /// Who are you?
    pub fn unauthorized(words: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, Failure::new(words).code("unauthorized"))
    }

    /// Not you.
    pub fn forbidden(words: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, Failure::new(words).code("forbidden"))
    }
}

impl From<QueryFailure> for Refusal {
    fn from(failure: QueryFailure) -> Self {
        let status = match failure {
            QueryFailure::Wrong(_) => StatusCode::BAD_REQUEST,
            QueryFailure::Unable(_) | QueryFailure::Busy => StatusCode::SERVICE_UNAVAILABLE,
            QueryFailure::Slow { .. } => StatusCode::GATEWAY_TIMEOUT,
        };
        Self::new(status, failure.failure())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let problem = Problem::of_failure(self.status, self.failure);
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        let mut response = (self.status, [(CONTENT_TYPE, "application/problem+json")], body).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let basic = HeaderValue::from_static("Basic realm=\"eccluster\", charset=\"UTF-8\"");
            response.headers_mut().insert(WWW_AUTHENTICATE, basic);
        }
        response
    }
}
