//! What handlers take apart requests with. Every refusal is a problem document.

use std::sync::Arc;

use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::response::IntoResponse as _;
use bytes::{Bytes, BytesMut};
use cluster::api::RevisionSpec;
use futures::StreamExt as _;
use http::request::Parts;
use http::{HeaderMap, header};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};

use super::App;
use super::activity::ConnectionInfo;
use super::problem::{ApiError, Code};
use crate::accounts::Caller;
use crate::limits::Limits;
use crate::outside::HERE_BYTES;

/// Parameters in the path; one that cannot be is a thing that does not exist.
pub struct Path<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match axum::extract::Path::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(value)) => Ok(Self(value)),
            Err(rejection) => Err(ApiError::not_found(rejection.body_text())),
        }
    }
}

/// Parameters in the query.
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match axum::extract::Query::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(value)) => Ok(Self(value)),
            Err(rejection) => Err(ApiError::bad_request(rejection.body_text())),
        }
    }
}

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = ApiError;

    /// Somebody; nobody in particular is asked for credentials.
    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let caller = app.authenticate(&parts.headers, &parts.extensions).await?;
        caller.ok_or_else(|| {
            ApiError::new(Code::Unauthorized, "this needs a user and password, a token, or a node's certificate")
        })
    }
}

/// The connection a request came over.
pub fn connection(extensions: &http::Extensions) -> Result<Arc<ConnectionInfo>, ApiError> {
    let info = extensions.get::<Arc<ConnectionInfo>>().cloned();
    info.ok_or_else(|| ApiError::internal(&"a request without its connection"))
}

/// A JSON body's type, and which of the two limits it has.
pub trait Payload: DeserializeOwned + Send + 'static {
    /// The largest body that is read.
    fn limit_bytes(limits: &Limits) -> usize {
        limits.body_bytes
    }
}

/// A JSON body.
pub struct Json<T>(pub T);

impl<T: Payload> FromRequest<Arc<App>> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        if !is_json(request.headers()) {
            return Err(ApiError::new(Code::MediaType, "the body must be application/json"));
        }
        let limits = app.limits.now();
        let body = read_body(request, T::limit_bytes(&limits), &limits).await?;
        parse(body).await.map(Self)
    }
}

/// Works on so many bytes of a request: here if they are few, else on a thread that may block.
pub async fn work_on<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    if bytes <= HERE_BYTES {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await.map_err(|error| ApiError::internal(&error))
}

async fn parse<T: Payload>(body: Bytes) -> Result<T, ApiError> {
    let parsed = work_on(body.len(), move || serde_json::from_slice(&body)).await?;
    parsed.map_err(|error: serde_json::Error| {
        let code = if error.is_data() { Code::Invalid } else { Code::BadRequest };
        ApiError::new(code, format!("the body does not fit: {error}"))
    })
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = value.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
        || (essence.len() > 5 && essence[essence.len() - 5..].eq_ignore_ascii_case("+json"))
}

/// Reads a whole body within its size and pause limits.
async fn read_body(request: Request, limit_bytes: usize, limits: &Limits) -> Result<Bytes, ApiError> {
    let too_large = || ApiError::new(Code::TooLarge, format!("the body may have {limit_bytes} bytes"));
    let announced =
        request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit_bytes as u64) {
        return Err(too_large());
    }
    let mut stream = request.into_body().into_data_stream();
    let mut body = BytesMut::new();
    while let Some(chunk) = next_chunk(&mut stream, limits).await? {
        if body.len() + chunk.len() > limit_bytes {
            return Err(too_large());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// The next piece of a body, unless it pauses for too long.
pub async fn next_chunk(stream: &mut axum::body::BodyDataStream, limits: &Limits) -> Result<Option<Bytes>, ApiError> {
    match tokio::time::timeout(limits.body_idle_time, stream.next()).await {
        Err(_) => Err(ApiError::new(Code::TooSlow, "the body paused for too long")),
        Ok(None) => Ok(None),
        Ok(Some(Ok(chunk))) => Ok(Some(chunk)),
        Ok(Some(Err(error))) => Err(ApiError::bad_request(format!("the body broke off: {error}"))),
    }
}

/// `47` or `r47` in a query.
pub fn revision_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    match Option::<RevisionSpec>::deserialize(deserializer)? {
        None => Ok(None),
        Some(RevisionSpec::Number(number)) => Ok(Some(number)),
        Some(RevisionSpec::Commit(text)) => Err(serde::de::Error::custom(format!("{text} is not a revision number"))),
    }
}

/// What a caller of `Prefer: wait=SECONDS` asks for.
pub fn preferred_wait_s(headers: &HeaderMap) -> Option<u64> {
    let values = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
    let mut tokens = values.flat_map(|value| value.split([',', ';'])).map(str::trim);
    tokens.find_map(|token| {
        let (name, value) = token.split_once('=')?;
        if !name.trim().eq_ignore_ascii_case("wait") {
            return None;
        }
        value.trim().trim_matches('"').parse().ok()
    })
}

/// Whether the caller would rather have this media type than JSON: it is named in `Accept`.
pub fn accepts(headers: &HeaderMap, media_type: &str) -> bool {
    let values = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let mut ranges = values.flat_map(|value| value.split(',')).map(|range| range.split(';').next().unwrap_or_default());
    ranges.any(|range| range.trim().eq_ignore_ascii_case(media_type))
}

/// The answer for a path that does not exist.
pub async fn no_such_path(request: Request) -> axum::response::Response {
    ApiError::not_found(format!("there is nothing at {}", request.uri().path())).into_response()
}

/// The answer for a method that a path does not have. axum adds `Allow`.
pub async fn no_such_method(request: Request) -> axum::response::Response {
    let words = format!("{} cannot be used on {}", request.method(), request.uri().path());
    ApiError::new(Code::MethodNotAllowed, words).into_response()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        headers
    }

    #[test]
    fn wait_is_found_among_preferences() {
        assert_eq!(preferred_wait_s(&headers("prefer", "respond-async, wait=10")), Some(10));
        assert_eq!(preferred_wait_s(&headers("prefer", "Wait=\"3\"")), Some(3));
        assert_eq!(preferred_wait_s(&headers("prefer", "wait=soon")), None);
        assert_eq!(preferred_wait_s(&HeaderMap::new()), None);
    }

    #[test]
    fn media_types() {
        assert!(accepts(&headers("accept", "text/html, text/event-stream;q=0.9"), "text/event-stream"));
        assert!(!accepts(&headers("accept", "*/*"), "text/event-stream"));
        assert!(is_json(&headers("content-type", "application/json; charset=utf-8")));
        assert!(is_json(&headers("content-type", "application/merge-patch+json")));
        assert!(!is_json(&headers("content-type", "text/plain")));
        assert!(!is_json(&HeaderMap::new()));
    }
}
