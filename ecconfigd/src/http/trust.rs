//! How a node becomes one of the cluster: one-time tokens, enrolment, renewal, the CA's certificate.
//!
//! The token is good once, for one subcluster, until it ends; it is used up in the same log entry that registers the node, so two nodes
//! cannot both enrol with it. A name that is registered already can be enrolled again with a fresh token (a machine was set up anew), but
//! not to another subcluster, and never the name of a node that runs ecconfigd.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Json as JsonBody;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use cluster::api::{
    EnrollRequest, EnrollResponse, JoinRequest, JoinResponse, NodeRole, NodeTokenRequest, NodeTokenResponse, Problem,
    RenewRequest, RenewResponse,
};
use cluster::documents::schema::values::HostPort;
use cluster::identity::{Ca, CertChain, DEFAULT_VALIDITY, IdentityError, JoinToken, NodeCert};
use http::{HeaderValue, StatusCode, header};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::extract::{Json, Path, Payload};
use super::problem::{ApiError, Code};
use crate::accounts::{Action, Caller, Who, authorize};
use crate::core::{JoinMember, RegisterNode};
use crate::state::{CertificateRecord, NodeKind, NodeName, NodeRecord, NodeTokenRecord, RepoName, rfc3339};

/// How long a node token is good for unless the request says otherwise: an afternoon of installing machines.
const NODE_TOKEN_TTL: Duration = Duration::from_secs(24 * 3600);
/// The longest life of a node token.
const NODE_TOKEN_TTL_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

impl Payload for EnrollRequest {}
impl Payload for JoinRequest {}
impl Payload for RenewRequest {}
impl Payload for NodeTokenRequest {}

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(node_token))
        .routes(routes!(replace))
        .routes(routes!(enroll))
        .routes(routes!(join))
        .routes(routes!(renew))
        .routes(routes!(ca))
}

/// Makes a one-time token for a new node.
#[utoipa::path(post, path = "/api/v1/node-tokens", tag = "trust", operation_id = "createNodeToken",
    request_body = NodeTokenRequest, responses(
    (status = 201, description = "The token, shown once", body = NodeTokenResponse),
    (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
))]
async fn node_token(
    State(app): State<Arc<App>>,
    caller: Caller,
    Json(request): Json<NodeTokenRequest>,
) -> Result<Response, ApiError> {
    authorize(&caller, Action::IssueNodeToken)?;
    let invalid = |words: String| ApiError::new(Code::Invalid, words);
    let subcluster: RepoName =
        request.subcluster.parse().map_err(|error: crate::state::BadName| invalid(error.to_string()))?;
    if subcluster.is_global() {
        return Err(invalid("global is no subcluster: a node belongs to one of the others".into()));
    }
    app.core.repo(&subcluster)?;
    let ttl = ttl(request.ttl.as_deref(), NODE_TOKEN_TTL, NODE_TOKEN_TTL_MAX)?;
    let (token, record) = new_token(&app, &caller, &subcluster, ttl);
    app.core.put_node_token(record).await?;
    tracing::info!(by = caller.name(), id = token.id(), %subcluster, "a node token was made");
    let body = NodeTokenResponse {
        token: token.expose().to_string(),
        subcluster: subcluster.to_string(),
        expires: rfc3339(now_ms() + ttl.as_millis() as u64),
    };
    Ok((StatusCode::CREATED, no_store(), JsonBody(body)).into_response())
}

fn new_token(app: &App, caller: &Caller, subcluster: &RepoName, ttl: Duration) -> (JoinToken, NodeTokenRecord) {
    let token = JoinToken::generate(app.identity.current().ca_fingerprint());
    let record = NodeTokenRecord {
        id: token.id(),
        secret_sha256: token.secret().sha256(),
        subcluster: subcluster.clone(),
        created_by: caller.name().to_owned(),
        expires_clock_ms: app.core.clock_ms() + ttl.as_millis() as u64,
    };
    (token, record)
}

/// A token for a machine that takes a member's name over: the old machine is dead, or will be.
#[utoipa::path(post, path = "/api/v1/nodes/{node}/replace", tag = "trust", operation_id = "replaceNode", params(
    ("node" = String, Path, description = "The member to replace"),
), responses(
    (status = 201, description = "The token, shown once", body = NodeTokenResponse),
    (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
))]
async fn replace(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(node): Path<NodeName>,
) -> Result<Response, ApiError> {
    authorize(&caller, Action::ManageNodes)?;
    let subcluster = app.core.node(&node)?.subcluster.clone();
    let (token, record) = new_token(&app, &caller, &subcluster, NODE_TOKEN_TTL);
    app.core.allow_replace(&node, record).await?;
    tracing::info!(by = caller.name(), id = token.id(), %node, "a node may be replaced");
    let body = NodeTokenResponse {
        token: token.expose().to_string(),
        subcluster: subcluster.to_string(),
        expires: rfc3339(now_ms() + NODE_TOKEN_TTL.as_millis() as u64),
    };
    Ok((StatusCode::CREATED, no_store(), JsonBody(body)).into_response())
}

/// Turns a one-time token and a key into a certificate. Needs no login: the token is one.
#[utoipa::path(post, path = "/api/v1/enroll", tag = "trust", operation_id = "enroll", security(()),
    request_body = EnrollRequest, responses(
    (status = 200, description = "The certificate", body = EnrollResponse),
    (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
))]
async fn enroll(State(app): State<Arc<App>>, Json(request): Json<EnrollRequest>) -> Result<Response, ApiError> {
    let ca = app.ca()?;
    let name = node_name(&request.node)?;
    let token = find_token(&app, &request.token)?;
    let existing = app.core.nodes().into_iter().find(|node| node.name == name);
    check_existing(existing.as_deref(), &name, &token.subcluster)?;
    let address = app.node_address(&name).await;
    let wanted = certificate_for(&name, &token.subcluster, NodeRole::Client, address.as_deref());
    let chain = ca
        .issue(&request.csr_pem, &wanted, DEFAULT_VALIDITY)
        .map_err(|error| ApiError::new(Code::Invalid, error.to_string()))?;
    let record = NodeRecord {
        name: name.clone(),
        subcluster: token.subcluster.clone(),
        kind: NodeKind::Client,
        raft_id: None,
        address: None,
        joined_time_ms: now_ms(),
        certificates: vec![issued(&chain)?],
    };
    app.core.register_node(RegisterNode { record, token: Some(token.id) }).await?;
    tracing::info!(node = %name, subcluster = %token.subcluster, "a node enrolled");
    let body = EnrollResponse {
        certificate_pem: chain.pem,
        ca_pem: chain.ca_pem,
        subcluster: token.subcluster.to_string(),
        cluster: app.cluster().to_owned(),
    };
    Ok((no_store(), JsonBody(body)).into_response())
}

/// A server becomes a member of the cluster. Needs no login: the token is one. Again with the same key is the same join.
#[utoipa::path(post, path = "/api/v1/join", tag = "trust", operation_id = "join", security(()),
    request_body = JoinRequest, responses(
    (status = 200, description = "The certificate, and who it is in the group", body = JoinResponse),
    (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
))]
async fn join(State(app): State<Arc<App>>, Json(request): Json<JoinRequest>) -> Result<Response, ApiError> {
    let name = node_name(&request.node)?;
    let invalid = |words: String| ApiError::new(Code::Invalid, words);
    let address: HostPort = request.address.parse().map_err(|error| invalid(format!("address: {error}")))?;
    let (token, subcluster) = find_join_token(&app, &name, &request.token)?;
    let role = if request.learner { NodeRole::Learner } else { NodeRole::Voter };
    let wanted = certificate_for(&name, &subcluster, role, Some(&address.to_string()));
    let wanted = request.names.iter().take(MAX_NAMES).fold(wanted, |certificate, name| certificate.reached_at(name));
    let chain =
        app.ca()?.issue(&request.csr_pem, &wanted, DEFAULT_VALIDITY).map_err(|error| invalid(error.to_string()))?;
    let record = NodeRecord {
        name: name.clone(),
        subcluster: subcluster.clone(),
        kind: NodeKind::Server,
        raft_id: None,
        address: Some(address.to_string()),
        joined_time_ms: now_ms(),
        certificates: vec![issued(&chain)?],
    };
    let key_sha256 = public_key_sha256(&chain.pem).map_err(|error| ApiError::internal(&error))?;
    let member = app.core.join_member(JoinMember { record, voter: !request.learner, key_sha256, token }).await?;
    tracing::info!(node = %name, %subcluster, raft_id = member.raft_id, "a server joined");
    let body = JoinResponse {
        certificate_pem: chain.pem,
        ca_pem: chain.ca_pem,
        subcluster: subcluster.to_string(),
        cluster: app.cluster().to_owned(),
        raft_id: member.raft_id,
    };
    Ok((no_store(), JsonBody(body)).into_response())
}

/// Names of one certificate: listen address, host name, and a few that somebody wants.
const MAX_NAMES: usize = 16;

/// The token's public part and its subcluster: a live token, or the one that this very member has joined with. Whether the key is the
/// member's, too, is decided in the log.
fn find_join_token(app: &App, name: &NodeName, text: &str) -> Result<(String, RepoName), ApiError> {
    if let Some(member) = app.core.member(name)
        && let Ok(token) = text.parse::<JoinToken>()
        && token.id() == member.token
        && token.secret_matches(&member.token_sha256)
    {
        return Ok((token.id(), app.core.node(name)?.subcluster.clone()));
    }
    find_token(app, text).map(|token| (token.id, token.subcluster))
}

/// What a member is recognised by when it repeats a join.
fn public_key_sha256(pem: &str) -> Result<[u8; 32], String> {
    use sha2::Digest as _;
    use x509_parser::prelude::{FromDer as _, X509Certificate};
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).map_err(|error| error.to_string())?;
    let (_, certificate) = X509Certificate::from_der(&pem.contents).map_err(|error| error.to_string())?;
    Ok(sha2::Sha256::digest(certificate.public_key().raw).into())
}

/// A node gets a fresh certificate, authenticated by the one it has.
#[utoipa::path(post, path = "/api/v1/renew", tag = "trust", operation_id = "renew",
    request_body = RenewRequest, responses(
    (status = 200, description = "The certificate", body = RenewResponse),
    (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
))]
async fn renew(
    State(app): State<Arc<App>>,
    caller: Caller,
    Json(request): Json<RenewRequest>,
) -> Result<Response, ApiError> {
    authorize(&caller, Action::Renew)?;
    let Who::Node { name, subcluster, role } = &caller.who else {
        return Err(ApiError::new(Code::Forbidden, "only a node can renew its certificate"));
    };
    let address = app.node_address(name).await;
    let wanted = certificate_for(name, subcluster, *role, address.as_deref());
    let chain = app
        .ca()?
        .issue(&request.csr_pem, &wanted, DEFAULT_VALIDITY)
        .map_err(|error| ApiError::new(Code::Invalid, error.to_string()))?;
    app.core.certificate_issued(name, issued(&chain)?).await?;
    let body = RenewResponse { certificate_pem: chain.pem, ca_pem: chain.ca_pem };
    Ok((no_store(), JsonBody(body)).into_response())
}

/// The CA's certificate. Needs no login; whoever fetches it this way must compare its fingerprint.
#[utoipa::path(get, path = "/api/v1/ca", tag = "trust", operation_id = "getCa", security(()), responses(
    (status = 200, description = "The certificate as PEM", content_type = "application/x-pem-file", body = String),
))]
async fn ca(State(app): State<Arc<App>>) -> Response {
    let content_type = (header::CONTENT_TYPE, HeaderValue::from_static("application/x-pem-file"));
    ([content_type], app.identity.current().ca_pem().to_owned()).into_response()
}

fn no_store() -> [(http::HeaderName, HeaderValue); 1] {
    [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))]
}

fn node_name(text: &str) -> Result<NodeName, ApiError> {
    let invalid = |words: String| ApiError::new(Code::Invalid, words);
    cluster::identity::check_node_name(text).map_err(|error| invalid(error.to_string()))?;
    text.parse().map_err(|error: crate::state::BadName| invalid(error.to_string()))
}

/// The live token that this text is. One answer for all that is wrong with it: who guesses learns nothing.
fn find_token(app: &App, text: &str) -> Result<NodeTokenRecord, ApiError> {
    let wrong = || {
        ApiError::new(Code::Forbidden, "the token is not known, was used already, or has ended")
            .hint("eccfg node token makes a fresh one")
    };
    let token: JoinToken = text.parse().map_err(|_| wrong())?;
    let record = app.core.node_token(&token.id())?.ok_or_else(wrong)?;
    if token.secret_matches(&record.secret_sha256) { Ok(record) } else { Err(wrong()) }
}

fn check_existing(existing: Option<&NodeRecord>, name: &NodeName, subcluster: &RepoName) -> Result<(), ApiError> {
    let Some(existing) = existing else { return Ok(()) };
    let refuse = |words: String, hint: &str| Err(ApiError::new(Code::Exists, words).hint(hint));
    if existing.kind == NodeKind::Server {
        return refuse(format!("{name} runs ecconfigd"), "its identity is in its data directory");
    }
    if existing.subcluster != *subcluster {
        let words = format!("{name} belongs to {}, the token is for {subcluster}", existing.subcluster);
        return refuse(words, "a node changes its subcluster by being removed first");
    }
    Ok(())
}

fn certificate_for(name: &NodeName, subcluster: &RepoName, role: NodeRole, address: Option<&str>) -> NodeCert {
    let certificate = NodeCert::new(name.as_str(), subcluster.as_str(), role);
    match address {
        Some(address) => certificate.reached_at(address),
        None => certificate,
    }
}

/// What the state keeps of a certificate.
pub(crate) fn certificate_record(pem: &str, not_after: time::OffsetDateTime) -> Result<CertificateRecord, String> {
    use x509_parser::prelude::{FromDer as _, X509Certificate};
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).map_err(|error| error.to_string())?;
    let (_, certificate) = X509Certificate::from_der(&pem.contents).map_err(|error| error.to_string())?;
    let fingerprint = cluster::identity::Fingerprint::of(&pem.contents.as_slice().into());
    Ok(CertificateRecord {
        serial: hex::encode(certificate.raw_serial()),
        fingerprint: fingerprint.to_string(),
        issued_time_ms: now_ms(),
        not_after_time_ms: u64::try_from(not_after.unix_timestamp()).unwrap_or(0) * 1000,
    })
}

fn issued(chain: &CertChain) -> Result<CertificateRecord, ApiError> {
    certificate_record(&chain.pem, chain.not_after).map_err(|error| ApiError::internal(&error))
}

/// A life that was asked for, within its bounds.
pub(super) fn ttl(asked: Option<&str>, default: Duration, max: Duration) -> Result<Duration, ApiError> {
    let Some(text) = asked else { return Ok(default) };
    let invalid = |words: String| ApiError::new(Code::Invalid, words);
    let asked: cluster::units::HumanDuration = text.parse().map_err(|error| invalid(format!("ttl: {error}")))?;
    if asked.get() > max || asked.get() < Duration::from_secs(1) {
        return Err(invalid(format!("ttl: between 1s and {}d", max.as_secs() / 86_400)));
    }
    Ok(asked.get())
}

/// The wall clock, for people.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

impl App {
    /// The CA with its key, which only voters hold. Read where it is needed: it comes and goes with the vote, and is seldom used.
    pub(crate) fn ca(&self) -> Result<Ca, ApiError> {
        Ca::load(self.core.data_dir()).map_err(|error| match error {
            IdentityError::Missing { .. } => {
                ApiError::new(Code::Unavailable, "this node does not hold the CA's key").hint("ask a voter")
            }
            error => ApiError::internal(&cluster::error::Chain(&error)),
        })
    }
}
