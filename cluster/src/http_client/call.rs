//! One request, before a server is chosen for it.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use reqwest::Body;
use serde::Serialize;

use super::{ClientError, REQUEST_TIMEOUT};
use crate::api::IDEMPOTENCY_KEY;

/// What a request carries.
#[derive(Debug, Default)]
pub enum Payload {
    /// Nothing.
    #[default]
    Empty,
    /// Bytes, which can be sent again.
    Bytes(Bytes),
    /// A stream, which cannot.
    Stream(Option<Body>),
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Timeout {
    Whole(Duration),
    HeadOnly(Duration),
}

/// A request in the making.
#[derive(Debug)]
pub struct Call {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    pub(super) timeout: Timeout,
    payload: Payload,
}

impl Call {
    /// A request for an absolute path, with its query. [`super::escape`] makes values safe.
    pub fn new(method: Method, path: &str) -> Self {
        Self {
            method,
            path: path.into(),
            headers: HeaderMap::new(),
            timeout: Timeout::Whole(REQUEST_TIMEOUT),
            payload: Payload::Empty,
        }
    }

    /// `GET`.
    pub fn get(path: &str) -> Self {
        Self::new(Method::GET, path)
    }

    /// `POST`.
    pub fn post(path: &str) -> Self {
        Self::new(Method::POST, path)
    }

    /// `DELETE`.
    pub fn delete(path: &str) -> Self {
        Self::new(Method::DELETE, path)
    }

    /// Adds a query parameter, escaped.
    pub fn query(mut self, name: &str, value: impl ToString) -> Self {
        let separator = if self.path.contains('?') { '&' } else { '?' };
        self.path = format!("{}{separator}{name}={}", self.path, super::escape(&value.to_string()));
        self
    }

    /// Adds a header; one that cannot be expressed is left out.
    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(HeaderName::from_static(name), value);
        }
        self
    }

    /// Sends JSON.
    pub fn json<B: Serialize + ?Sized>(mut self, body: &B) -> Result<Self, ClientError> {
        let bytes = serde_json::to_vec(body)
            .map_err(|error| ClientError::Setup { what: "request body", why: error.to_string() })?;
        self.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        self.headers.entry(ACCEPT).or_insert(HeaderValue::from_static("application/json"));
        self.payload = Payload::Bytes(bytes.into());
        Ok(self)
    }

    /// Sends bytes or a stream as `content_type`.
    pub fn body(mut self, content_type: &'static str, payload: Payload) -> Self {
        self.headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        self.payload = payload;
        self
    }

    /// Makes the request safe to repeat.
    pub fn idempotency_key(self, key: &str) -> Self {
        self.header(IDEMPOTENCY_KEY, key)
    }

    /// Limits the whole exchange.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = Timeout::Whole(limit);
        self
    }

    /// Limits the time to the head of the answer only: for bodies that stream.
    pub fn streaming(mut self, head_limit: Duration) -> Self {
        self.timeout = Timeout::HeadOnly(head_limit);
        self
    }

    /// True when a second server may get the request after the first may have acted on it.
    pub(super) fn is_repeatable(&self) -> bool {
        self.method == Method::GET || self.method == Method::HEAD || self.headers.contains_key(IDEMPOTENCY_KEY)
    }

    /// True when the answer is a stream of events.
    pub(super) fn wants_events(&self) -> bool {
        self.headers.get(ACCEPT).is_some_and(|accept| accept == "text/event-stream")
    }

    /// The body for one attempt; `None` when it was a stream and is spent.
    pub(super) fn take_body(&mut self) -> Option<Option<Body>> {
        match &mut self.payload {
            Payload::Empty => Some(None),
            Payload::Bytes(bytes) => Some(Some(bytes.clone().into())),
            Payload::Stream(body) => body.take().map(Some),
        }
    }
}
