//! The client of ecconfigd's HTTP API, for every program that is not ecconfigd.
//!
//! Several servers are tried in order, beginning with the one that answered last; what may have happened already is never sent twice
//! (only GET, HEAD and requests with an `Idempotency-Key` go to a second server once the first has seen them, or what the first says it has
//! certainly not done). Trust is the cluster's own
//! CA; proxies of the environment and redirects are ignored, because both would carry credentials elsewhere. No secret appears in
//! `Debug`, `Display` or a URL.

mod backoff;
mod body;
mod call;
mod error;
mod server;
mod sse;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::header::{AUTHORIZATION, RETRY_AFTER};
use http::{HeaderValue, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

pub use backoff::Backoff;
pub use body::{Reply, UploadWriter, upload_pipe};
pub use call::{Call, Payload};
pub use error::{ApiError, Attempt, ClientError};
pub use reqwest::{Body, Method};
pub use server::ServerUrl;
pub use sse::{EventStream, Incoming, SseEvent, SseParser};

use crate::api::{Problem, X_REQUEST_ID};
use crate::identity::{Fingerprint, ReloadingIdentity};
use crate::tls::{self, PinnedCa};

/// A server that does not accept a connection within this time is passed over.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// What an ordinary request may take from first byte to last.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Pings on connections with open requests find a dead server where no packet would.
const PING_EVERY: Duration = Duration::from_secs(15);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// A problem document is a few kilobytes, or as many findings as a gate lists.
const PROBLEM_LIMIT_BYTES: u64 = 4 << 20;

/// How a caller proves who it is.
#[derive(Clone, Default)]
pub enum Credentials {
    /// Not at all.
    #[default]
    None,
    /// User and password.
    Basic {
        /// The user.
        username: String,
        /// The password.
        password: Zeroizing<String>,
    },
    /// An API token.
    Bearer(Zeroizing<String>),
    /// The node's certificate, always the newest.
    Identity(Arc<ReloadingIdentity>),
}

impl Credentials {
    /// The certificate that new connections show.
    fn certificate(&self) -> Option<Fingerprint> {
        match self {
            Self::Identity(identity) => Some(identity.current().peer().fingerprint),
            _ => None,
        }
    }

    /// The `Authorization` header, marked as sensitive.
    fn header(&self) -> Result<Option<HeaderValue>, ClientError> {
        use base64::Engine as _;
        let text = match self {
            Self::None | Self::Identity(_) => return Ok(None),
            Self::Bearer(token) => Zeroizing::new(format!("Bearer {}", **token)),
            Self::Basic { username, password } => {
                let pair = Zeroizing::new(format!("{username}:{}", **password));
                let encoded = base64::engine::general_purpose::STANDARD.encode(pair.as_bytes());
                Zeroizing::new(format!("Basic {encoded}"))
            }
        };
        let mut value = HeaderValue::from_str(&text)
            .map_err(|_| ClientError::Setup { what: "credentials", why: "they hold a line break".into() })?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Basic { username, .. } => write!(f, "Basic({username})"),
            Self::Bearer(_) => f.write_str("Bearer(…)"),
            Self::Identity(identity) => write!(f, "Identity({})", identity.current().node()),
        }
    }
}

/// A client of one cluster. Cheap to clone; all clones share connections and the memory of which server works.
#[derive(Clone)]
pub struct ApiClient {
    inner: Arc<Inner>,
}

struct Inner {
    connections: ArcSwap<Connections>,
    tls: rustls::ClientConfig,
    servers: ArcSwap<Vec<ServerUrl>>,
    /// Index of the server that answered last; tried first.
    good: AtomicUsize,
    credentials: Credentials,
    authorization: Option<HeaderValue>,
}

/// Open connections, made with one certificate.
struct Connections {
    http: reqwest::Client,
    /// For event streams: over HTTP/1.1 each has a connection of its own, of which the server keeps next to nothing while it is quiet.
    streams: reqwest::Client,
    /// The certificate shown by these, where one is.
    certificate: Option<Fingerprint>,
}

impl ApiClient {
    /// A client that trusts the CA in `ca_pem` alone.
    pub fn new(servers: Vec<ServerUrl>, ca_pem: &str, credentials: Credentials) -> Result<Self, ClientError> {
        let identity = match &credentials {
            Credentials::Identity(identity) => Some(identity.clone()),
            _ => None,
        };
        let tls = tls::client_config(ca_pem, identity)
            .map_err(|error| ClientError::Setup { what: "TLS", why: crate::error::Chain(&error).to_string() })?;
        Self::with_tls(servers, tls, credentials)
    }

    /// A client that acts as a node and trusts the CA of that node's identity.
    pub fn as_node(servers: Vec<ServerUrl>, identity: Arc<ReloadingIdentity>) -> Result<Self, ClientError> {
        let ca_pem = identity.current().ca_pem().to_owned();
        Self::new(servers, &ca_pem, Credentials::Identity(identity))
    }

    /// A client that knows only the CA's fingerprint. Without credentials: whoever learns the CA this way logs in afterwards.
    pub fn pinned(servers: Vec<ServerUrl>, ca: Fingerprint) -> Result<(Self, Arc<PinnedCa>), ClientError> {
        let (tls, pinned) = tls::pinned_by_fingerprint(ca)
            .map_err(|error| ClientError::Setup { what: "TLS", why: crate::error::Chain(&error).to_string() })?;
        Ok((Self::with_tls(servers, tls, Credentials::None)?, pinned))
    }

    fn with_tls(
        servers: Vec<ServerUrl>,
        tls: rustls::ClientConfig,
        credentials: Credentials,
    ) -> Result<Self, ClientError> {
        if servers.is_empty() {
            return Err(no_server());
        }
        let connections = ArcSwap::from_pointee(connections(&tls, credentials.certificate())?);
        let authorization = credentials.header()?;
        let servers = ArcSwap::from_pointee(servers);
        let good = AtomicUsize::new(0);
        Ok(Self { inner: Arc::new(Inner { connections, tls, servers, good, credentials, authorization }) })
    }

    /// The connections to use now. After the node's certificate was replaced they are new ones: a server may end its trust in the old
    /// certificate at any time. What is still streaming on an old connection goes on there.
    fn connections(&self) -> Result<Arc<Connections>, ClientError> {
        let certificate = self.inner.credentials.certificate();
        let present = self.inner.connections.load_full();
        if present.certificate == certificate {
            return Ok(present);
        }
        let fresh = Arc::new(connections(&self.inner.tls, certificate)?);
        self.inner.connections.store(fresh.clone());
        Ok(fresh)
    }

    /// The servers in the order they were given.
    pub fn servers(&self) -> Arc<Vec<ServerUrl>> {
        self.inner.servers.load_full()
    }

    /// Speaks to these from the next request on, in every clone. An open stream stays where it is until it is opened anew.
    pub fn set_servers(&self, servers: Vec<ServerUrl>) -> Result<(), ClientError> {
        if servers.is_empty() {
            return Err(no_server());
        }
        self.inner.servers.store(Arc::new(servers));
        self.inner.good.store(0, Ordering::Relaxed);
        Ok(())
    }

    /// The server that is tried first.
    pub fn preferred_server(&self) -> ServerUrl {
        let servers = self.servers();
        servers[self.inner.good.load(Ordering::Relaxed) % servers.len()].clone()
    }

    /// How this client logs in.
    pub fn credentials(&self) -> &Credentials {
        &self.inner.credentials
    }

    /// `GET` a JSON document.
    pub async fn get_json<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.send(Call::get(path)).await?.json().await
    }

    /// `GET` bytes, at most `limit_bytes`.
    pub async fn get_bytes(&self, path: &str, limit_bytes: u64) -> Result<bytes::Bytes, ClientError> {
        self.send(Call::get(path)).await?.bytes(limit_bytes).await
    }

    /// `POST` JSON, once: a lost answer is an error, not a second attempt.
    pub async fn post_json<B: Serialize, T: DeserializeOwned>(&self, path: &str, body: &B) -> Result<T, ClientError> {
        self.send(Call::post(path).json(body)?).await?.json().await
    }

    /// `POST` JSON under an idempotency key, which makes it safe to try every server.
    pub async fn post_json_idempotent<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
        key: &str,
    ) -> Result<T, ClientError> {
        self.send(Call::post(path).json(body)?.idempotency_key(key)).await?.json().await
    }

    /// Waits up to `wait` for news at a long-poll endpoint; `None` when there were none.
    pub async fn long_poll<T: DeserializeOwned>(&self, path: &str, wait: Duration) -> Result<Option<T>, ClientError> {
        let call = Call::get(path)
            .header("prefer", &format!("wait={}", wait.as_secs()))
            .timeout(wait + Duration::from_secs(15));
        let reply = self.send(call).await?;
        if reply.status() == StatusCode::NOT_MODIFIED || reply.status() == StatusCode::NO_CONTENT {
            return Ok(None);
        }
        reply.json().await.map(Some)
    }

    /// Follows a server-sent event stream, reconnecting and resuming after `last_event_id` for ever.
    pub fn events(&self, path: &str, last_event_id: Option<String>) -> EventStream {
        EventStream::new(self.clone(), path.into(), last_event_id)
    }

    /// Sends a request and gives the answer with its body unread. Statuses from 400 up, and redirects, are errors.
    pub async fn send(&self, mut call: Call) -> Result<Reply, ClientError> {
        let servers = self.servers();
        let count = servers.len();
        let first = self.inner.good.load(Ordering::Relaxed) % count;
        let mut attempts: Vec<Attempt> = Vec::new();
        for index in (0..count).map(|offset| (first + offset) % count) {
            let Some(body) = call.take_body() else { break };
            match self.try_server(&servers[index], &call, body).await {
                Ok(reply) => {
                    self.inner.good.store(index, Ordering::Relaxed);
                    return Ok(reply);
                }
                Err(error) if error.may_try_next(call.is_repeatable()) => {
                    attempts.push(Attempt { server: servers[index].clone(), error: Box::new(error) });
                }
                Err(ClientError::Api(mut error)) => {
                    error.in_doubt = attempts.iter().any(|attempt| !attempt.error.is_certainly_not_done());
                    return Err(ClientError::Api(error));
                }
                Err(error) => return Err(error),
            }
        }
        Err(match attempts.len() {
            1 => *attempts.swap_remove(0).error,
            _ => ClientError::Unreachable { attempts },
        })
    }

    async fn try_server(&self, server: &ServerUrl, call: &Call, body: Option<Body>) -> Result<Reply, ClientError> {
        let connections = self.connections()?;
        let http = if call.wants_events() { &connections.streams } else { &connections.http };
        let mut request = http.request(call.method.clone(), server.join(&call.path)?);
        request = request.headers(call.headers.clone());
        if let Some(authorization) = &self.inner.authorization {
            request = request.header(AUTHORIZATION, authorization.clone());
        }
        if let Some(body) = body {
            request = request.body(body);
        }
        let sent = match call.timeout {
            // A stream has no end to wait for: only the head of the answer is timed.
            call::Timeout::HeadOnly(limit) => tokio::time::timeout(limit, request.send())
                .await
                .map_err(|_| ClientError::TimedOut { server: server.clone(), after: limit })?,
            call::Timeout::Whole(limit) => request.timeout(limit).send().await,
        };
        let response = sent.map_err(|error| ClientError::transport(server, error))?;
        let status = response.status();
        if status.is_success() || status == StatusCode::NOT_MODIFIED {
            return Ok(Reply::new(server.clone(), response));
        }
        Err(ClientError::Api(Box::new(api_error(server.clone(), response).await)))
    }
}

impl std::fmt::Debug for ApiClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiClient")
            .field("servers", &self.servers())
            .field("credentials", &self.inner.credentials)
            .finish()
    }
}

fn no_server() -> ClientError {
    ClientError::Setup { what: "servers", why: "none is named".into() }
}

fn connections(tls: &rustls::ClientConfig, certificate: Option<Fingerprint>) -> Result<Connections, ClientError> {
    let mut http1 = tls.clone();
    http1.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Connections { http: http_over(tls.clone())?, streams: http_over(http1)?, certificate })
}

fn http_over(tls: rustls::ClientConfig) -> Result<reqwest::Client, ClientError> {
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .https_only(true)
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(PING_EVERY)
        .http2_keep_alive_timeout(PING_TIMEOUT)
        .tcp_nodelay(true)
        .user_agent(concat!("eccluster/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| ClientError::Setup { what: "HTTP", why: crate::error::root_cause(&error) })
}

async fn api_error(server: ServerUrl, response: reqwest::Response) -> ApiError {
    let status = response.status();
    let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let request_id = header(X_REQUEST_ID);
    let retry_after = header(RETRY_AFTER.as_str()).and_then(|text| text.parse().ok()).map(Duration::from_secs);
    let body = Reply::new(server.clone(), response).bytes(PROBLEM_LIMIT_BYTES).await.unwrap_or_default();
    let mut problem: Problem = serde_json::from_slice(&body).unwrap_or_else(|_| Problem {
        title: status.canonical_reason().unwrap_or("HTTP error").into(),
        detail: printable(&body),
        ..Problem::default()
    });
    problem.status = status.as_u16();
    let request_id = request_id.or_else(|| problem.request_id.clone());
    ApiError { server, status: status.as_u16(), request_id, retry_after, problem, in_doubt: false }
}

/// The beginning of an answer that is no problem document (a proxy's page, a plain line).
fn printable(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(300)]);
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>().trim().to_owned()
}

/// Escapes one path segment or query value: everything but letters, digits and `-._~` becomes `%XX`.
pub fn escape(text: &str) -> String {
    escape_bytes(text.as_bytes(), false)
}

/// Escapes a path, keeping its slashes. Takes bytes because paths in git need not be UTF-8.
pub fn escape_path(path: &[u8]) -> String {
    escape_bytes(path, true)
}

fn escape_bytes(bytes: &[u8], keep_slash: bool) -> String {
    use std::fmt::Write as _;
    let mut escaped = String::with_capacity(bytes.len());
    for byte in bytes {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => escaped.push(char::from(*byte)),
            b'/' if keep_slash => escaped.push('/'),
            _ => write!(escaped, "%{byte:02X}").expect("writing to a string cannot fail"),
        }
    }
    escaped
}
