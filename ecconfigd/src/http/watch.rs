//! Watching: long polls and event streams of repositories and targets.
//!
//! Thousands of these wait at a time, so one holds a place among the watchers, a position, and little else: a long poll's answer is made
//! outside of the handler ([`Later`]), whose layers are gone while it waits. A stream repeats nothing and leaves nothing out: `id:` is the
//! revision (or serial), and `Last-Event-ID` goes on after it. Who may not watch any more (a revoked token, a removed node) gets no further
//! event. Shutdown ends them all at once with words that send the client to another server, and so does a server that hears nothing of the
//! cluster any more: what it has is no news.

use std::convert::Infallible;
use std::pin::Pin;
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
use super::read::MIN_REVISION_WAIT;
use super::web::Later;
use crate::accounts::{Action, Caller, Who, authorize};
use crate::state::{NodeName, RepoName};
use crate::watch::TargetEvent;

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
    /// The last revision that is known; the answer is the first matching one after it. One that does not exist is refused. Default: the head.
    after: Option<u64>,
    /// Only revisions that changed a path matching this glob; may be repeated. `**` crosses directories, and a
    /// pattern that names a directory means everything in it.
    #[param(required = false)]
    path: Vec<String>,
    /// Wait until this server has at least this revision; 503 when it takes too long.
    min_revision: Option<u64>,
}

impl WatchQuery {
    fn parse(query: Option<&str>) -> Result<Self, ApiError> {
        let pairs: Vec<(String, String)> = serde_html_form(query.unwrap_or_default())?;
        let mut parsed = Self::default();
        for (name, value) in pairs {
            match name.as_str() {
                "after" => parsed.after = Some(number(&value)?),
                "min_revision" => parsed.min_revision = Some(number(&value)?),
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
    ), headers(("X-Revision" = u64, description = "The event's revision; of a stream, the one after which it begins"))),
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
    app.core.may_be_followed()?;
    let place = app.places.watchers.take().await?;
    app.core.known_repo(&repo).await?;
    app.reached(&repo, query.min_revision).await?;
    let after = last_event_id(&headers)?.or(query.after);
    if let Some(after) = after {
        app.core.known_revision(&repo, after).await.map_err(|error| match error {
            error @ crate::error::Error::NotFound { .. } => {
                ApiError::from(error).hint("it was seen in another cluster: begin after a revision of this one")
            }
            error => error.into(),
        })?;
    }
    let mut watch = app.core.watch(&repo, after, &query.path)?;
    if accepts(&headers, EVENT_STREAM) {
        let position = watch.position();
        let events = watch.into_stream().map(|event| frame("revision", event.record.revision, &event.json));
        return Ok(event_stream(app, caller, position, events, place));
    }
    let wait = wait(&app, &headers);
    Ok(Later::answer(async move {
        let _place = place;
        let event = tokio::select! {
            event = watch.next() => event,
            () = tokio::time::sleep(wait) => return not_modified(watch.position()),
            () = app.draining.cancelled() => None,
        };
        let event = event.map(|event| (event.record.revision, event.json.clone()));
        polled(&app, &caller, event)
    }))
}

/// What a long poll came to; `None`: it was ended.
fn polled(app: &App, caller: &Caller, event: Option<(u64, Bytes)>) -> Response {
    match event {
        None => ended().into_response(),
        Some(_) if !app.accounts.stands(caller) => no_more().into_response(),
        Some((revision, body)) => json(revision, body),
    }
}

/// Where a target watch begins.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct TargetQuery {
    /// The serial that is known; the answer is the next one. Without it, the present target at once.
    #[serde(default, deserialize_with = "revision_number")]
    after: Option<u64>,
    /// Wait until this server has at least this serial; 503 when it takes too long.
    #[serde(default, deserialize_with = "revision_number")]
    min_revision: Option<u64>,
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
    (status = 304, description = "The target did not change in time",
        headers(("X-Revision" = u64, description = "The target's serial"))),
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
    let mut now = app.core.target_from(&node, after).await?;
    let streams = accepts(&headers, EVENT_STREAM);
    let known = after.is_some_and(|after| after == now.record.serial);
    let reached = query.min_revision.is_none_or(|min| min <= now.record.serial);
    if !streams && !known && reached {
        return Ok(json(now.record.serial, now.json.clone()));
    }
    app.core.may_be_followed()?;
    let place = app.places.watchers.take().await?;
    if let Some(min) = query.min_revision.filter(|_| !reached) {
        now = app.target_at_least(&node, min).await?;
        if !streams && after != Some(now.record.serial) {
            return Ok(json(now.record.serial, now.json.clone()));
        }
    }
    if streams {
        let targets = app.core.watch_target(&node, after.unwrap_or(0))?;
        let events = targets.into_stream().map(|event| frame("target", event.record.serial, &event.json));
        return Ok(event_stream(app, caller, now.record.serial, events, place));
    }
    let mut targets = app.core.watch_target(&node, now.record.serial)?;
    let (wait, serial) = (wait(&app, &headers), now.record.serial);
    Ok(Later::answer(async move {
        let _place = place;
        let event = tokio::select! {
            event = targets.next() => event,
            () = tokio::time::sleep(wait) => return not_modified(serial),
            () = app.draining.cancelled() => None,
        };
        let event = event.map(|event| (event.record.serial, event.json.clone()));
        polled(&app, &caller, event)
    }))
}

impl App {
    /// The node's target, once it has at least this serial here.
    async fn target_at_least(&self, node: &NodeName, serial: u64) -> Result<Arc<TargetEvent>, ApiError> {
        let mut targets = self.core.watch_target(node, 0)?;
        let reached = async {
            while let Some(target) = targets.next().await {
                if target.record.serial >= serial {
                    return Some(target);
                }
            }
            None
        };
        let reached = tokio::time::timeout(MIN_REVISION_WAIT, reached).await;
        let late = || ApiError::new(Code::NotYet, format!("the target of {node} has not serial {serial} here yet"));
        reached.map_err(|_| late())?.ok_or_else(ended)
    }
}

const EVENT_STREAM: &str = "text/event-stream";

fn ended() -> ApiError {
    ApiError::new(Code::Unavailable, "the server is stopping, or the watch fell behind")
        .hint("ask again, or another server")
}

fn no_more() -> ApiError {
    ApiError::new(Code::Unauthorized, "what this watch was opened with does not hold any more").hint("log in again")
}

fn wait(app: &App, headers: &HeaderMap) -> Duration {
    let asked = preferred_wait_s(headers).map_or(WAIT_DEFAULT, Duration::from_secs);
    asked.min(app.limits.now().wait_time)
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

/// Events, and comments while there are none; ends when the source ends, the server drains, or the caller may not watch any more.
fn event_stream(
    app: Arc<App>,
    caller: Caller,
    position: u64,
    events: impl Stream<Item = Bytes> + Send + 'static,
    place: OwnedSemaphorePermit,
) -> Response {
    let first = Bytes::from_static(b"retry: 1000\n\n");
    let draining = app.draining.clone().cancelled_owned();
    let events = Box::pin(events);
    let watcher =
        Watcher { events: Box::pin(events), accounts: app.core.accounts_version(), app, caller, _place: place };
    let rest = futures::stream::unfold(watcher, |mut watcher| async move {
        let bytes = watcher.next().await?;
        Some((bytes, watcher))
    });
    let stream = futures::stream::once(std::future::ready(first)).chain(rest).take_until(draining);
    let mut response = Response::new(Body::from_stream(stream.map(Ok::<_, Infallible>)));
    stamp(&mut response, position);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(EVENT_STREAM));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response.extensions_mut().insert(super::connection::LastAnswer);
    response
}

/// What an event stream holds.
struct Watcher<S> {
    events: Pin<Box<S>>,
    app: Arc<App>,
    caller: Caller,
    /// The version of the accounts that the caller was last found in.
    accounts: u64,
    _place: OwnedSemaphorePermit,
}

impl<S: Stream<Item = Bytes>> Watcher<S> {
    async fn next(&mut self) -> Option<Bytes> {
        let next = tokio::time::timeout(KEEP_ALIVE, self.events.next()).await;
        if !self.stands() {
            return None;
        }
        next.unwrap_or(Some(Bytes::from_static(b": still here\n\n")))
    }

    /// Asked before every event, so users are looked up only when some account has changed; nodes are in memory.
    fn stands(&mut self) -> bool {
        let version = self.app.core.accounts_version();
        let unchanged = std::mem::replace(&mut self.accounts, version) == version;
        (unchanged && matches!(self.caller.who, Who::User { .. })) || self.app.accounts.stands(&self.caller)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn globs_repeat_and_are_bounded() {
        let query = WatchQuery::parse(Some("after=r47&path=a%2F**&path=b&x=y")).unwrap();
        assert_eq!(query, WatchQuery { after: Some(47), path: vec!["a/**".into(), "b".into()], min_revision: None });
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
