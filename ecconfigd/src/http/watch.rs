//! Watching: long polls and event streams of repositories and targets.
//!
//! Thousands of these wait at a time, so one holds a place among the watchers, a position, and little else. A stream repeats nothing and
//! leaves nothing out: `id:` is the revision (or serial), and `Last-Event-ID` goes on after it. Shutdown ends them all at once with words
//! that send the client to another server.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use cluster::api::{Problem, Target, WatchEvent, X_REVISION};
use futures::{Stream, StreamExt as _};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Deserialize;
use tokio::sync::OwnedSemaphorePermit;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::extract::{Path, Query, accepts, preferred_wait_s, revision_number};
use super::problem::{ApiError, Code};
use crate::accounts::{Action, Caller, authorize};
use crate::state::{NodeName, RepoName};

/// What a long poll waits unless `Prefer: wait=` says otherwise.
const WAIT_DEFAULT: Duration = Duration::from_secs(60);
/// A comment this often keeps proxies from closing a quiet stream, and finds clients that are gone.
const KEEP_ALIVE: Duration = Duration::from_secs(25);
/// Globs of one watch.
const GLOBS_MAX: usize = 64;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(watch)).routes(routes!(target))
}

/// Where a watch begins and what it looks for. `path` may be repeated, so the query is taken apart by hand.
#[derive(Debug, Default, PartialEq, Eq, IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "the fields that are not read stand for the documentation")]
struct WatchQuery {
    /// The last revision that is known; the answer is the first matching one after it. Default: the head.
    after: Option<u64>,
    /// Only revisions that changed a path matching this glob; may be repeated. `**` crosses directories, and a
    /// pattern that names a directory means everything in it.
    #[param(required = false)]
    path: Vec<String>,
}

impl WatchQuery {
    fn parse(query: Option<&str>) -> Result<Self, ApiError> {
        let pairs: Vec<(String, String)> = serde_html_form(query.unwrap_or_default())?;
        let mut parsed = Self::default();
        for (name, value) in pairs {
            match name.as_str() {
                "after" => parsed.after = Some(number(&value)?),
                "path" if parsed.path.len() < GLOBS_MAX => parsed.path.push(value),
                "path" => return Err(ApiError::bad_request(format!("a watch has at most {GLOBS_MAX} globs"))),
                _ => {}
            }
        }
        Ok(parsed)
    }
}

/// `a=1&b=2` into pairs, decoded.
fn serde_html_form(query: &str) -> Result<Vec<(String, String)>, ApiError> {
    let uri: http::Uri = format!("/?{query}").parse().map_err(|_| ApiError::bad_request("the query cannot be read"))?;
    axum::extract::Query::<Vec<(String, String)>>::try_from_uri(&uri)
        .map(|query| query.0)
        .map_err(|rejection| ApiError::bad_request(rejection.body_text()))
}

fn number(text: &str) -> Result<u64, ApiError> {
    let digits = text.strip_prefix('r').unwrap_or(text);
    digits.parse().map_err(|_| ApiError::bad_request(format!("{text:?} is not a revision number")))
}

/// Follows a repository: a long poll, or with `Accept: text/event-stream` a stream.
///
/// The long poll answers with the first matching revision after `after`, or 304 after `Prefer: wait=SECONDS` (default 60). The stream's
/// `id:` is the revision, and `Last-Event-ID` resumes it.
#[utoipa::path(get, path = "/api/v1/repos/{repo}/watch", tag = "watch", operation_id = "watch", params(
    ("repo" = String, Path, description = "The repository"),
    WatchQuery,
    ("Prefer" = Option<String>, Header, description = "`wait=SECONDS`"),
    ("Last-Event-ID" = Option<u64>, Header, description = "The last revision that a stream delivered; goes before `after`"),
), responses(
    (status = 200, description = "The revision, or a stream of them", content(
        (WatchEvent = "application/json"), (String = "text/event-stream"),
    ), headers(("X-Revision" = u64, description = "The event's revision"))),
    (status = 304, description = "Nothing matched in time",
        headers(("X-Revision" = u64, description = "The last revision looked at: go on after it"))),
    (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
))]
async fn watch(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(repo): Path<RepoName>,
    uri: http::Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    authorize(&caller, Action::Read(&repo))?;
    let query = WatchQuery::parse(uri.query())?;
    let place = app.places.watchers.take().await?;
    let after = last_event_id(&headers)?.or(query.after);
    let mut watch = app.core.watch(&repo, after, &query.path)?;
    if accepts(&headers, EVENT_STREAM) {
        let events = watch.into_stream().map(|event| frame("revision", event.record.revision, &event.json));
        return Ok(event_stream(&app, events, place));
    }
    let wait = wait(&app, &headers);
    // The head's bytes are 8 KiB of somebody's buffer: not needed while waiting.
    drop((headers, uri, query, caller));
    let event = tokio::select! {
        event = watch.next() => event.ok_or_else(ended)?,
        () = tokio::time::sleep(wait) => return Ok(not_modified(watch.position())),
        () = app.draining.cancelled() => return Err(ended()),
    };
    Ok(json(event.record.revision, event.json.clone()))
}

/// Where a target watch begins.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct TargetQuery {
    /// The serial that is known; the answer is the next one. Without it, the present target at once.
    #[serde(default, deserialize_with = "revision_number")]
    after: Option<u64>,
}

/// What a node shall have, numbered by its own serial; with the same waiting and streaming as watch.
#[utoipa::path(get, path = "/api/v1/nodes/{node}/target", tag = "watch", operation_id = "getTarget", params(
    ("node" = String, Path, description = "The node"),
    TargetQuery,
    ("Prefer" = Option<String>, Header, description = "`wait=SECONDS`"),
    ("Last-Event-ID" = Option<u64>, Header, description = "The last serial that a stream delivered; goes before `after`"),
), responses(
    (status = 200, description = "The target, or a stream of them", content(
        (Target = "application/json"), (String = "text/event-stream"),
    ), headers(("X-Revision" = u64, description = "The target's serial"))),
    (status = 304, description = "The target did not change in time"),
    (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
))]
async fn target(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(node): Path<NodeName>,
    Query(query): Query<TargetQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    authorize(&caller, Action::Follow(&node))?;
    let after = last_event_id(&headers)?.or(query.after);
    if accepts(&headers, EVENT_STREAM) {
        let place = app.places.watchers.take().await?;
        let targets = app.core.watch_target(&node, after.unwrap_or(0))?;
        let events = targets.into_stream().map(|event| frame("target", event.record.serial, &event.json));
        return Ok(event_stream(&app, events, place));
    }
    let now = app.core.target(&node)?;
    if after.is_none_or(|after| after != now.record.serial) {
        return Ok(json(now.record.serial, now.json.clone()));
    }
    let _place = app.places.watchers.take().await?;
    let mut targets = app.core.watch_target(&node, now.record.serial)?;
    let wait = wait(&app, &headers);
    drop((headers, caller));
    let event = tokio::select! {
        event = targets.next() => event.ok_or_else(ended)?,
        () = tokio::time::sleep(wait) => return Ok(not_modified(now.record.serial)),
        () = app.draining.cancelled() => return Err(ended()),
    };
    Ok(json(event.record.serial, event.json.clone()))
}

const EVENT_STREAM: &str = "text/event-stream";

fn ended() -> ApiError {
    ApiError::new(Code::Unavailable, "the server is stopping, or the watch fell behind")
        .hint("ask again, or another server")
}

fn wait(app: &App, headers: &HeaderMap) -> Duration {
    let asked = preferred_wait_s(headers).map_or(WAIT_DEFAULT, Duration::from_secs);
    asked.min(app.limits.wait_time)
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<u64>, ApiError> {
    let Some(value) = headers.get("last-event-id") else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    if text.is_empty() { Ok(None) } else { number(text).map(Some) }
}

fn json(revision: u64, body: Bytes) -> Response {
    let mut response = ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response();
    stamp(&mut response, revision);
    response
}

fn not_modified(revision: u64) -> Response {
    let mut response = StatusCode::NOT_MODIFIED.into_response();
    stamp(&mut response, revision);
    response
}

fn stamp(response: &mut Response, revision: u64) {
    response.headers_mut().insert(X_REVISION, HeaderValue::from(revision));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
}

/// One event as the stream carries it. The JSON has no newline: serde writes none.
fn frame(name: &str, id: u64, json: &Bytes) -> Bytes {
    let mut frame = Vec::with_capacity(json.len() + 64);
    frame.extend_from_slice(format!("id: {id}\nevent: {name}\ndata: ").as_bytes());
    frame.extend_from_slice(json);
    frame.extend_from_slice(b"\n\n");
    frame.into()
}

/// Events, and comments while there are none; ends when the source ends or the server drains.
fn event_stream(
    app: &Arc<App>,
    events: impl Stream<Item = Bytes> + Send + 'static,
    place: OwnedSemaphorePermit,
) -> Response {
    let first = Bytes::from_static(b"retry: 1000\n\n");
    let draining = app.draining.clone().cancelled_owned();
    let events = Box::pin(events);
    let rest = futures::stream::unfold((events, place), |(mut events, place)| async move {
        match tokio::time::timeout(KEEP_ALIVE, events.next()).await {
            Ok(None) => None,
            Ok(Some(event)) => Some((event, (events, place))),
            Err(_) => Some((Bytes::from_static(b": still here\n\n"), (events, place))),
        }
    });
    let stream = futures::stream::once(std::future::ready(first)).chain(rest).take_until(draining);
    let mut response = Response::new(Body::from_stream(stream.map(Ok::<_, Infallible>)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(EVENT_STREAM));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response.extensions_mut().insert(super::connection::LastAnswer);
    response
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn globs_repeat_and_are_bounded() {
        let query = WatchQuery::parse(Some("after=r47&path=a%2F**&path=b&x=y")).unwrap();
        assert_eq!(query, WatchQuery { after: Some(47), path: vec!["a/**".into(), "b".into()] });
        assert_eq!(WatchQuery::parse(None).unwrap(), WatchQuery::default());
        assert!(WatchQuery::parse(Some("after=main")).is_err());
        assert!(WatchQuery::parse(Some(&"path=a&".repeat(65))).is_err());
    }

    #[test]
    fn a_frame_is_one_event() {
        let frame = frame("revision", 7, &Bytes::from_static(b"{\"a\":1}"));
        assert_eq!(frame, "id: 7\nevent: revision\ndata: {\"a\":1}\n\n");
    }
}
