//! Questions: `/query`, `/series`, `/count`.

use axum::Json;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use cidr_engine::Format;
use futures::StreamExt as _;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::Value;
use tokio_stream::wrappers::ReceiverStream;

use super::{App, Refusal};
use crate::daemon::control;
use crate::daemon::queries::{self, Piece};
use crate::service::Count;

/// `/query?q=…&format=text|json|csv`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueryParameters {
    q: String,
    format: Option<String>,
}

/// Answers a question; the body streams. A failure after the first rows cuts the body off, which HTTP shows as an error.
pub async fn query(
    State(app): State<App>,
    parameters: Result<Query<QueryParameters>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let Query(QueryParameters { q, format }) = parameters.map_err(|error| Refusal::wrong(error.body_text()))?;
    let format = match format {
        Some(name) => control::format_of(&name).map_err(|failure| Refusal::new(StatusCode::BAD_REQUEST, failure))?,
        None => accepted(&headers),
    };
    let mut pieces = queries::begin(&app.service, q, format).await?;
    // The first piece decides about the status.
    let first = match pieces.recv().await {
        Some(Err(failure)) => return Err(failure.into()),
        Some(Ok(bytes)) => bytes,
        None => Bytes::new(),
    };
    let rest = ReceiverStream::new(pieces).map(|piece: Piece| piece.map_err(|failure| failure.failure()));
    let body = Body::from_stream(futures::stream::once(async { Ok(first) }).chain(rest));
    Ok(([(CONTENT_TYPE, media_type(format))], body).into_response())
}

fn accepted(headers: &HeaderMap) -> Format {
    let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    match accept {
        _ if accept.contains("application/json") => Format::Json,
        _ if accept.contains("text/csv") => Format::Csv,
        _ => Format::Text,
    }
}

const fn media_type(format: Format) -> &'static str {
    match format {
        Format::Text => "text/plain; charset=utf-8",
        Format::Json => "application/json",
        Format::Csv => "text/csv; charset=utf-8",
    }
}

/// The series with their first and last windows, and their monitors.
pub async fn series(State(app): State<App>) -> Result<Json<Value>, Refusal> {
    let service = app.service.clone();
    let series = control::aside(move || control::series(&service)).await;
    series.map(Json).map_err(|failure| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, failure))
}

/// `/count?series=…&block=…&last=30m`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CountParameters {
    pub(super) series: String,
    pub(super) block: String,
    pub(super) last: String,
}

impl CountParameters {
    pub(super) fn checked(&self) -> Result<(cidr_engine::Block, u64), Refusal> {
        let block = self.block.parse().map_err(|error: cidr_engine::BlockError| Refusal::wrong(error.to_string()))?;
        let last: cluster::units::HumanDuration =
            self.last.parse().map_err(|error| Refusal::wrong(format!("last: {error}")))?;
        Ok((block, last.as_millis().div_ceil(1_000)))
    }
}

/// What the cluster counted lately.
pub async fn count(
    State(app): State<App>,
    parameters: Result<Query<CountParameters>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Count>, Refusal> {
    let Query(parameters) = parameters.map_err(|error| Refusal::wrong(error.body_text()))?;
    let (block, last_s) = parameters.checked()?;
    let count = app.service.count(&parameters.series, &block, last_s).await;
    Ok(Json(count.map_err(|failure| Refusal::new(StatusCode::BAD_REQUEST, failure))?))
}
