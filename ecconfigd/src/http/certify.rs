//! Who gets a certificate: enrolments, joins and renewals, judged where the CA's key is.
//!
//! Any node is asked; one without the key passes the question on to a voter (`core/certify.rs`), which trusts it no more than it must: tokens
//! are in the question and looked up again, a member renews its own certificate, and for others only those of clients, which lead nowhere
//! that the node that asks could not go.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use cluster::api::{EnrollRequest, EnrollResponse, JoinRequest, JoinResponse, NodeRole, Problem, RenewResponse};
use cluster::documents::schema::values::HostPort;
use cluster::identity::{Ca, CertChain, IdentityError, JoinToken, NodeCert, Peer};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::App;
use super::problem::{ApiError, Code};
use super::trust::now_ms;
use crate::core::{Certifier, JoinMember, RegisterNode};
use crate::peer::{Refusal, RefusalCode};
use crate::state::{CertificateRecord, NodeKind, NodeName, NodeRecord, NodeTokenRecord, RepoName};

/// Names of one certificate: listen address, host name, and a few that somebody wants.
const MAX_NAMES: usize = 16;

/// What is asked. Travels between nodes as JSON.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Question {
    /// A token and a key become a client.
    Enroll(EnrollRequest),
    /// A token and a key become a member.
    Join(JoinRequest),
    /// A node has a certificate and wants a fresh one.
    Renew {
        /// The node, as its present certificate proves to whoever asks.
        node: NodeName,
        /// The request with its key.
        csr_pem: String,
        /// What it is reached by, beside what the cluster knows.
        names: Vec<String>,
    },
}

/// What was issued.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Issued {
    Enroll(EnrollResponse),
    Join(JoinResponse),
    Renew(RenewResponse),
}

/// What a voter answers another node.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Issued(Issued),
    Refused(Box<Problem>),
}

/// Who stands for what the question says.
enum Voucher {
    /// This node: it has seen the proof itself.
    Own,
    /// A member that passes it on.
    Member(Peer),
}

impl Question {
    /// Whether asking two voters does no harm: an enrolment uses its token up.
    fn is_repeatable(&self) -> bool {
        !matches!(self, Self::Enroll(_))
    }
}

impl App {
    /// Issues what this node was asked for, itself or through a voter. Once it answers, this node knows the new certificate.
    pub(crate) async fn certify(&self, question: Question) -> Result<Issued, ApiError> {
        if let Some(ca) = self.ca().await? {
            return self.issue(&ca, question, Voucher::Own).await;
        }
        let repeatable = question.is_repeatable();
        let question = serde_json::to_vec(&question).map_err(|error| ApiError::internal(&error))?;
        let answer = self.core.ask_certifier(question.into(), repeatable).await?;
        match serde_json::from_slice(&answer).map_err(|error| ApiError::internal(&error))? {
            Answer::Refused(problem) => Err(ApiError::from_problem(*problem)),
            Answer::Issued(issued) => {
                // Whoever has it comes back with it, perhaps to this node.
                if let Err(error) = self.core.linearize().await {
                    tracing::warn!("a certificate was issued and is not known here yet: {error}");
                }
                Ok(issued)
            }
        }
    }

    async fn issue(&self, ca: &Ca, question: Question, voucher: Voucher) -> Result<Issued, ApiError> {
        match question {
            Question::Enroll(request) => self.enroll(ca, &request).await.map(Issued::Enroll),
            Question::Join(request) => self.join(ca, &request).await.map(Issued::Join),
            Question::Renew { node, csr_pem, names } => {
                let wanted = self.renewed(&node, &names, &voucher).await?;
                let chain = self.sign(ca, &csr_pem, &wanted)?;
                // Known to all before it is shown to anybody: a node with a certificate that nobody knows is sent away.
                self.core.certificate_issued(&node, issued(&chain)?).await?;
                Ok(Issued::Renew(RenewResponse { certificate_pem: chain.pem, ca_pem: chain.ca_pem }))
            }
        }
    }

    async fn enroll(&self, ca: &Ca, request: &EnrollRequest) -> Result<EnrollResponse, ApiError> {
        let name = node_name(&request.node)?;
        let token = find_token(self, &request.token).await?;
        let existing = self.core.nodes().into_iter().find(|node| node.name == name);
        check_existing(existing.as_deref(), &name, &token.subcluster)?;
        let address = self.node_address(&name).await;
        let wanted = certificate_for(&name, &token.subcluster, NodeRole::Client, address.as_deref());
        let chain = self.sign(ca, &request.csr_pem, &wanted)?;
        let record = NodeRecord {
            name: name.clone(),
            subcluster: token.subcluster.clone(),
            kind: NodeKind::Client,
            raft_id: None,
            address: None,
            joined_time_ms: now_ms(),
            certificates: vec![issued(&chain)?],
        };
        self.core.register_node(RegisterNode { record, token: Some(token.id) }).await?;
        tracing::info!(node = %name, subcluster = %token.subcluster, "a node enrolled");
        Ok(EnrollResponse {
            certificate_pem: chain.pem,
            ca_pem: chain.ca_pem,
            subcluster: token.subcluster.to_string(),
            cluster: self.cluster().to_owned(),
        })
    }

    async fn join(&self, ca: &Ca, request: &JoinRequest) -> Result<JoinResponse, ApiError> {
        let name = node_name(&request.node)?;
        let invalid = |words: String| ApiError::new(Code::Invalid, words);
        let address: HostPort = request.address.parse().map_err(|error| invalid(format!("address: {error}")))?;
        let (token, subcluster) = find_join_token(self, &name, &request.token).await?;
        let role = if request.learner { NodeRole::Learner } else { NodeRole::Voter };
        let wanted = certificate_for(&name, &subcluster, role, Some(&address.to_string()));
        let wanted = reached_at(wanted, &self.not_of_others(&name, &request.names));
        let chain = self.sign(ca, &request.csr_pem, &wanted)?;
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
        let member = self.core.join_member(JoinMember { record, voter: !request.learner, key_sha256, token }).await?;
        tracing::info!(node = %name, %subcluster, raft_id = member.raft_id, "a server joined");
        Ok(JoinResponse {
            certificate_pem: chain.pem,
            ca_pem: chain.ca_pem,
            subcluster: subcluster.to_string(),
            cluster: self.cluster().to_owned(),
            raft_id: member.raft_id,
        })
    }

    /// What a node's fresh certificate shall say: what the state says of it, not what the old one did.
    async fn renewed(&self, node: &NodeName, names: &[String], voucher: &Voucher) -> Result<NodeCert, ApiError> {
        let record = self.core.node(node)?;
        let itself = match voucher {
            Voucher::Own => true,
            Voucher::Member(peer) => peer.node == node.as_str(),
        };
        let role = match record.kind {
            NodeKind::Client => NodeRole::Client,
            NodeKind::Server if !itself => {
                let words =
                    format!("the certificate of {node}, which runs ecconfigd, is not renewed through another node");
                return Err(ApiError::new(Code::Unavailable, words).hint("ask that node or a voter"));
            }
            NodeKind::Server if self.core.member(node).is_some_and(|member| member.voter) => NodeRole::Voter,
            NodeKind::Server => NodeRole::Learner,
        };
        let address = self.node_address(node).await;
        let names = self.not_of_others(node, names);
        Ok(reached_at(certificate_for(node, &record.subcluster, role, address.as_deref()), &names))
    }

    /// Without the names and addresses of other nodes: clients would take this one for them.
    fn not_of_others(&self, node: &NodeName, names: &[String]) -> Vec<String> {
        let taken: BTreeSet<String> = self
            .core
            .nodes()
            .iter()
            .filter(|other| other.name != *node)
            .flat_map(|other| [Some(other.name.to_string()), other.address.as_deref().map(host)])
            .flatten()
            .collect();
        names.iter().filter(|name| !taken.contains(&host(name))).cloned().collect()
    }

    fn sign(&self, ca: &Ca, csr_pem: &str, wanted: &NodeCert) -> Result<CertChain, ApiError> {
        let signed = ca.issue(csr_pem, wanted, self.limits.now().certificate_life);
        signed.map_err(|error| ApiError::new(Code::Invalid, error.to_string()))
    }

    /// The CA with its key, which only voters hold. Read where it is needed: it comes and goes with the vote, and is seldom used.
    async fn ca(&self) -> Result<Option<Ca>, ApiError> {
        let data = self.core.data_dir().to_owned();
        let loaded = tokio::task::spawn_blocking(move || Ca::load(&data));
        match loaded.await.map_err(|error| ApiError::internal(&error))? {
            Ok(ca) => Ok(Some(ca)),
            Err(IdentityError::Missing { .. }) => Ok(None),
            Err(error) => Err(ApiError::internal(&cluster::error::Chain(&error))),
        }
    }
}

impl Certifier for App {
    fn certify(self: Arc<Self>, asker: Peer, question: Bytes) -> BoxFuture<'static, Result<Bytes, Refusal>> {
        let answer = async move {
            let question: Question = serde_json::from_slice(&question).map_err(Refusal::bad)?;
            let not_now = |words: &str| Refusal::new(RefusalCode::NotNow, words);
            let ca = self.ca().await.map_err(|_| not_now("the CA's key cannot be read here, see this node's log"))?;
            let ca = ca.ok_or_else(|| not_now("this node does not hold the CA's key"))?;
            let answer = match self.issue(&ca, question, Voucher::Member(asker)).await {
                Ok(issued) => Answer::Issued(issued),
                Err(error) => Answer::Refused(Box::new(error.problem().clone())),
            };
            serde_json::to_vec(&answer).map(Bytes::from).map_err(Refusal::failed)
        };
        answer.boxed()
    }
}

/// The token's public part and its subcluster: a live token, or the one that this very member has joined with. Whether the key is the
/// member's, too, is decided in the log.
async fn find_join_token(app: &App, name: &NodeName, text: &str) -> Result<(String, RepoName), ApiError> {
    if let Some(member) = app.core.member(name)
        && let Ok(token) = text.parse::<JoinToken>()
        && token.id() == member.token
        && token.secret_matches(&member.token_sha256)
    {
        return Ok((token.id(), app.core.node(name)?.subcluster.clone()));
    }
    find_token(app, text).await.map(|token| (token.id, token.subcluster))
}

/// What a member is recognised by when it repeats a join.
fn public_key_sha256(pem: &str) -> Result<[u8; 32], String> {
    use sha2::Digest as _;
    use x509_parser::prelude::{FromDer as _, X509Certificate};
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).map_err(|error| error.to_string())?;
    let (_, certificate) = X509Certificate::from_der(&pem.contents).map_err(|error| error.to_string())?;
    Ok(sha2::Sha256::digest(certificate.public_key().raw).into())
}

fn node_name(text: &str) -> Result<NodeName, ApiError> {
    let invalid = |words: String| ApiError::new(Code::Invalid, words);
    cluster::identity::check_node_name(text).map_err(|error| invalid(error.to_string()))?;
    text.parse().map_err(|error: crate::state::BadName| invalid(error.to_string()))
}

/// The live token that this text is. One answer for all that is wrong with it: who guesses learns nothing. One that is not known here may have
/// been made elsewhere a moment ago: nobody is told "no" before this node has caught up.
async fn find_token(app: &App, text: &str) -> Result<NodeTokenRecord, ApiError> {
    let wrong = || {
        ApiError::new(Code::Forbidden, "the token is not known, was used already, or has ended")
            .hint("eccfg node token makes a fresh one")
    };
    let token: JoinToken = text.parse().map_err(|_| wrong())?;
    let mut record = app.core.node_token(&token.id())?;
    if record.is_none() {
        app.core.catch_up().await?;
        record = app.core.node_token(&token.id())?;
    }
    record.filter(|record| token.secret_matches(&record.secret_sha256)).ok_or_else(wrong)
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

/// The host of `host:port`, or what is a host already.
fn host(address: &str) -> String {
    let host = address.parse::<HostPort>().map(|address| address.host.to_string());
    host.unwrap_or_else(|_| address.trim_matches(['[', ']']).to_owned()).to_ascii_lowercase()
}

fn reached_at(certificate: NodeCert, names: &[String]) -> NodeCert {
    names.iter().take(MAX_NAMES).fold(certificate, |certificate, name| certificate.reached_at(name))
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
