//! git over smart HTTP: `/<repo>.git/info/refs`, `git-upload-pack`, `git-receive-pack`.
//!
//! The protocol itself is `repos::protocol`'s; here are the transport, the rights and the bounds. Every advertisement and every fetch does
//! a read-index first, so a fetch anywhere after a push anywhere sees it. A refused push is an answer with status 200: its reasons travel
//! in git's own report, where the client shows them behind `remote:`.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use cluster::api::X_REVISION;
use cluster::error::Chain;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use repos::protocol::{Advertised, Error, Service, Version, decode_body, receive_pack, upload_pack};
use repos::{RefMap, RefName, Store};
use serde::Deserialize;

use super::App;
use super::bridge::{BodyReader, BodyWriter, Pace};
use super::extract::{Path, Query};
use super::problem::{ApiError, Code};
use crate::accounts::{Action, Caller, authorize};
use crate::commit::{PushCommand, PushOutcome, PushRequest};
use crate::core::Core;
use crate::state::RepoName;

const GIT_PROTOCOL: HeaderName = HeaderName::from_static("git-protocol");

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/{repo}/info/refs", get(info_refs))
        .route("/{repo}/git-upload-pack", post(upload))
        .route("/{repo}/git-receive-pack", post(receive))
}

/// `default.git` names the repository `default`.
fn repo_name(segment: &str) -> Result<RepoName, ApiError> {
    let name = segment.strip_suffix(".git").and_then(|name| name.parse().ok());
    name.ok_or_else(|| ApiError::not_found(format!("there is no repository at /{segment}")))
}

fn version(headers: &HeaderMap) -> Version {
    Version::from_header(headers.get(GIT_PROTOCOL).map(HeaderValue::as_bytes))
}

/// A repository as one request sees it: its objects, and its refs at one moment.
struct View {
    store: Store,
    refs: Arc<RefMap>,
    revision: u64,
    head: RefName,
}

impl View {
    /// What everybody has agreed on by now.
    async fn newest(app: &App, repo: &RepoName) -> Result<Self, ApiError> {
        let linearized = tokio::time::timeout(app.limits.now().request_time, app.core.linearize()).await;
        linearized.map_err(|_| ApiError::new(Code::Unavailable, "a majority of the servers does not answer"))??;
        let record = app.core.repo(repo)?;
        Ok(Self {
            store: app.core.store(repo)?,
            refs: app.core.refs(repo)?,
            revision: record.head.revision,
            head: record.head_ref.clone(),
        })
    }

    fn advertised(&self) -> Advertised<'_> {
        Advertised { refs: &self.refs, head: &self.head }
    }
}

impl App {
    fn pace(&self) -> Pace {
        let limits = self.limits.now();
        Pace { pause: limits.body_idle_time, deadline: Instant::now() + limits.transfer_time }
    }

    fn may_use(&self, caller: &Caller, repo: &RepoName, service: Service) -> Result<(), ApiError> {
        match service {
            Service::UploadPack => authorize(caller, Action::Read(repo)),
            Service::ReceivePack => authorize(caller, Action::Commit(repo)),
        }
    }
}

#[derive(Debug, Deserialize)]
struct InfoRefs {
    service: Option<String>,
}

/// What a repository has to offer.
async fn info_refs(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(segment): Path<String>,
    Query(query): Query<InfoRefs>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let repo = repo_name(&segment)?;
    let service = query.service.as_deref().and_then(Service::from_name);
    let service = service.ok_or_else(|| {
        ApiError::new(Code::Forbidden, "git's dumb protocol is not served here").hint("use a git from this century")
    })?;
    app.may_use(&caller, &repo, service)?;
    let place = app.places.fetches.take().await?;
    let view = View::newest(&app, &repo).await?;
    let (version, revision) = (version(&headers), view.revision);
    let advertising = tokio::task::spawn_blocking(move || {
        let _place = place;
        let mut out = Vec::new();
        match service {
            Service::UploadPack => upload_pack::advertise(&view.store, version, view.advertised(), &mut out)?,
            Service::ReceivePack => receive_pack::advertise(version, view.advertised(), &mut out)?,
        }
        Ok::<_, Error>(out)
    });
    let out = advertising.await.map_err(|error| ApiError::internal(&error))?;
    let out = out.map_err(|error| ApiError::internal(&error))?;
    Ok(at_revision(revision, answer(service.advertisement_type(), out.into())))
}

fn at_revision(revision: u64, mut response: Response) -> Response {
    response.headers_mut().insert(X_REVISION, HeaderValue::from(revision));
    response
}

/// git's answers are never kept by anybody in between.
fn answer(content_type: &'static str, body: Body) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(content_type)),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache, max-age=0, must-revalidate")),
        (header::EXPIRES, HeaderValue::from_static("Fri, 01 Jan 1980 00:00:00 GMT")),
        (header::PRAGMA, HeaderValue::from_static("no-cache")),
    ];
    (StatusCode::OK, headers, body).into_response()
}

/// The body of a request on its way to a thread that may block.
struct Incoming {
    reader: BodyReader,
    encoding: Option<String>,
    limit_bytes: u64,
}

impl Incoming {
    /// Refuses what is no request of this service.
    fn new(request: Request, service: Service, pace: Pace, limit_bytes: u64) -> Result<Self, ApiError> {
        let text = |name| request.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        if text(header::CONTENT_TYPE) != Some(service.request_type()) {
            return Err(ApiError::new(Code::MediaType, format!("the body must be {}", service.request_type())));
        }
        let encoding = text(header::CONTENT_ENCODING).map(str::to_owned);
        let known = encoding.as_deref().unwrap_or_default().trim().to_ascii_lowercase();
        if !matches!(known.as_str(), "" | "identity" | "gzip" | "x-gzip") {
            return Err(ApiError::new(Code::MediaType, format!("the content encoding {known:?} is not supported")));
        }
        Ok(Self { reader: BodyReader::new(request.into_body(), pace), encoding, limit_bytes })
    }

    /// The body unpacked and bounded.
    fn open(self) -> io::Result<Box<dyn Read>> {
        decode_body(self.encoding.as_deref(), self.reader, self.limit_bytes)
    }
}

/// What both services begin with: the repository, the right to use it so, and the body.
fn begun(
    app: &App,
    caller: &Caller,
    segment: &str,
    request: Request,
    service: Service,
    limit_bytes: u64,
) -> Result<(RepoName, Incoming), ApiError> {
    let repo = repo_name(segment)?;
    app.may_use(caller, &repo, service)?;
    let incoming = Incoming::new(request, service, app.pace(), limit_bytes)?;
    Ok((repo, incoming))
}

/// Clone and fetch: negotiation and pack, streamed.
async fn upload(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(segment): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let limits = upload_pack::UploadLimits::default();
    let version = version(request.headers());
    let service = Service::UploadPack;
    let (repo, incoming) = begun(&app, &caller, &segment, request, service, limits.max_request_bytes)?;
    let place = app.places.fetches.take().await?;
    let view = View::newest(&app, &repo).await?;
    let revision = view.revision;
    let (mut out, beginning) = BodyWriter::new(app.pace());
    let span = tracing::Span::current();
    tokio::task::spawn_blocking(move || {
        let _place = place;
        let _span = span.enter();
        let mut body = match incoming.open() {
            Ok(body) => body,
            Err(error) => return out.fail(error),
        };
        match upload_pack::serve(&view.store, view.advertised(), version, &mut body, &mut out, &limits) {
            Ok(_) => drop(out.finish()),
            // The client has been told already, in git's words.
            Err(error) if error.is_clients_fault() => {
                tracing::info!(%error, "a fetch was refused");
                drop(out.finish());
            }
            Err(error) => {
                tracing::info!(error = %Chain(&error), "a fetch broke off");
                out.fail(match error {
                    Error::Io { source, .. } => source,
                    error => io::Error::other(Inside(error)),
                });
            }
        }
    });
    let body = beginning.await.map_err(unreadable)?;
    Ok(at_revision(revision, answer(service.result_type(), body)))
}

/// A failure of this server, as opposed to one of the request's body.
#[derive(Debug, thiserror::Error)]
#[error("{}", Chain(.0))]
struct Inside(Error);

/// A body that could not be read: it broke off, came too slowly, or is not packed as it says.
fn unreadable(error: io::Error) -> ApiError {
    match error.kind() {
        io::ErrorKind::TimedOut => ApiError::new(Code::TooSlow, error.to_string()),
        _ if error.get_ref().is_some_and(|inner| inner.is::<Inside>()) => ApiError::internal(&error),
        _ => ApiError::bad_request(format!("the body cannot be read: {error}")),
    }
}

/// Push: the pack is streamed into a quarantine, judged, and becomes visible with the log entry that names it.
async fn receive(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(segment): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let limits = app.receive_limits();
    let limit_bytes = limits.max_command_bytes + limits.pack.max_bytes;
    let (repo, incoming) = begun(&app, &caller, &segment, request, Service::ReceivePack, limit_bytes)?;
    let place = app.places.pushes.take().await?;
    let (store, core) = (app.core.store(&repo)?, app.core.clone());
    // The place goes along with the thread: a client that goes away does not make room for another pack while its own is being read.
    let reading = tokio::task::spawn_blocking(move || {
        let mut body = incoming.open()?;
        let push =
            receive_pack::read(&store, &mut WhileThereIsRoom { body: &mut body, core, passed_bytes: 0 }, &limits);
        // A client that is refused early still sends its pack; read on for a while so that it reads our answer.
        let _ = io::copy(&mut (&mut body).take(DISCARD_BYTES), &mut io::sink());
        Ok::<_, io::Error>((push, place))
    });
    let result_type = Service::ReceivePack.result_type();
    let read = reading.await.map_err(|error| ApiError::internal(&error))?;
    let (push, place) = read.map_err(unreadable)?;
    let mut push = match push {
        Ok(push) => push,
        Err(error) => {
            tracing::info!(%error, "a push could not be read");
            let mut out = Vec::new();
            receive_pack::refuse(&error, &mut out).map_err(|error| ApiError::internal(&error))?;
            return Ok(answer(result_type, out.into()));
        }
    };
    let outcome = judge(&app, &caller, repo, &mut push).await;
    drop(place);
    let mut out = Vec::new();
    receive_pack::report(&push, &outcome, &mut out).map_err(|error| ApiError::internal(&error))?;
    Ok(answer(result_type, out.into()))
}

/// A pack on its way to the disk, which ends when the disk is full: what is in reserve is for the log.
struct WhileThereIsRoom<R> {
    body: R,
    core: Core,
    passed_bytes: u64,
}

/// A small push is read all the same, and refused in the words of the one that decides.
const SMALL_PUSH_BYTES: u64 = 1 << 20;

impl<R: Read> Read for WhileThereIsRoom<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if self.passed_bytes > SMALL_PUSH_BYTES {
            let room = self.core.refuse_read_only();
            room.map_err(|error| io::Error::new(io::ErrorKind::StorageFull, error.to_string()))?;
        }
        let count = self.body.read(bytes)?;
        self.passed_bytes += count as u64;
        Ok(count)
    }
}

/// What is read and thrown away of a push that failed, before the connection is given up.
const DISCARD_BYTES: u64 = 64 << 20;

impl App {
    fn receive_limits(&self) -> receive_pack::ReceiveLimits {
        let mut limits = receive_pack::ReceiveLimits::default();
        let set = self.limits.now();
        limits.pack.max_bytes = set.push_bytes;
        limits.pack.max_objects = set.push_objects;
        limits.pack.max_object_bytes = set.object_bytes;
        limits
    }
}

/// Hands a push to the core and puts its answer into git's form.
async fn judge(app: &App, caller: &Caller, repo: RepoName, push: &mut receive_pack::Push) -> receive_pack::Outcome {
    use receive_pack::{Outcome, RefOutcome};
    if let Err(reason) = &push.received {
        return Outcome::unpack_failed(push, reason.clone());
    }
    if push.commands.is_empty() {
        return Outcome::all_done(push);
    }
    let commands = push.commands.iter();
    let request = PushRequest {
        repo,
        author: caller.author(app.cluster()),
        commands: commands.map(|c| PushCommand { name: c.name.clone(), old: c.old, new: c.new }).collect(),
        atomic: push.capabilities.atomic,
        quarantine: push.quarantine.take(),
    };
    match app.core.push(request).await {
        Ok(PushOutcome { refs, lines, .. }) => Outcome {
            unpack_error: None,
            refs: refs
                .into_iter()
                .map(|(_, done)| done.map_or_else(RefOutcome::Refused, |()| RefOutcome::Done))
                .collect(),
            messages: lines,
        },
        Err(error) => {
            let error = ApiError::from(error);
            let mut outcome = Outcome::all_refused(push, error.code().code().replace('_', " "));
            outcome.messages = error.lines();
            outcome
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_pack_ends_when_the_disk_is_full() {
        use crate::core::CoreLimits;
        use crate::core::tests::{first, options};

        let dir = tempfile::tempdir().unwrap();
        let mut options = options(dir.path());
        options.limits.min_free_bytes = Some(0.into());
        let core = Core::bootstrap(options, first()).await.unwrap();
        let pack = || {
            let mut incoming = WhileThereIsRoom {
                body: io::repeat(0).take(4 * SMALL_PUSH_BYTES),
                core: core.clone(),
                passed_bytes: 0,
            };
            io::copy(&mut incoming, &mut io::sink())
        };
        assert_eq!(pack().unwrap(), 4 * SMALL_PUSH_BYTES);
        core.adjust(&CoreLimits { min_free_bytes: Some((u64::MAX / 2).into()), ..CoreLimits::default() });
        let deadline = Instant::now() + std::time::Duration::from_secs(20);
        while core.read_only().is_none() {
            assert!(Instant::now() < deadline, "nobody looked at the disk");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        let error = pack().unwrap_err();
        assert!(error.kind() == io::ErrorKind::StorageFull && error.to_string().contains("disk is full"), "{error}");
        core.shutdown().await;
    }

    #[test]
    fn a_repository_ends_in_git() {
        assert_eq!(repo_name("default.git").unwrap().as_str(), "default");
        for bad in ["default", "..git", ".git", "A.git", "default.git.git"] {
            assert!(repo_name(bad).is_err(), "{bad}");
        }
    }
}
