//! Who calls, and what they may do.
//!
//! A caller proves itself by user and password, by an API token (as bearer, or where HTTP Basic has the password), or by the node
//! certificate of its TLS connection. [`Accounts::authenticate`] finds out who it is, [`authorize`] alone decides what they may do: rights
//! per repository and path will change that one function and nothing around it.
//!
//! What a node may do is little: read its own subcluster's repository and `global`, follow its own target, report for itself, renew its own
//! certificate, see the cluster's membership. Nodes that run ecconfigd read every repository, because they hold them all anyway. No node
//! commits in its own name.

pub mod cache;
pub mod password;
pub mod throttle;
pub mod token;

use std::net::IpAddr;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cluster::api::{CallerKind, NodeRole, Whoami};
use cluster::identity::Peer;
use http::{HeaderMap, header};

use crate::core::Core;
use crate::http::problem::{ApiError, Code};
use crate::state::{Author, NodeKind, NodeName, RepoName, Role, TokenRecord, UserRecord};
use cache::CredentialCache;
use password::{PasswordError, Secret, Verifier};
use throttle::Throttle;

/// How a caller proved who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// The account's password.
    Password,
    /// An API token.
    Token,
    /// A node's certificate.
    Certificate,
}

impl Proof {
    fn as_str(self) -> &'static str {
        match self {
            Self::Password => "password",
            Self::Token => "token",
            Self::Certificate => "certificate",
        }
    }
}

/// Somebody who proved who they are.
#[derive(Debug, Clone)]
pub struct Caller {
    /// User or node.
    pub who: Who,
    /// How they proved it.
    pub by: Proof,
}

/// A user or a node.
#[derive(Debug, Clone)]
pub enum Who {
    /// A user's account.
    User {
        /// The login name.
        name: String,
        /// What it may do.
        role: Role,
        /// How its commits are signed.
        author: Author,
    },
    /// A node that is registered.
    Node {
        /// Its name.
        name: NodeName,
        /// Its subcluster, as the replicated state has it.
        subcluster: RepoName,
        /// Its role.
        role: NodeRole,
    },
}

impl Caller {
    /// The user's or node's name, for logs.
    pub fn name(&self) -> &str {
        match &self.who {
            Who::User { name, .. } => name,
            Who::Node { name, .. } => name.as_str(),
        }
    }

    /// How commits of this caller are signed.
    pub fn author(&self, cluster: &str) -> Author {
        match &self.who {
            Who::User { author, .. } => author.clone(),
            Who::Node { name, .. } => Author {
                user: format!("node:{name}"),
                name: name.to_string(),
                email: format!("{name}@nodes.{cluster}"),
            },
        }
    }

    /// What `/api/v1/whoami` answers.
    pub fn whoami(&self) -> Whoami {
        let by = self.by.as_str().to_owned();
        match &self.who {
            Who::User { name, .. } => {
                Whoami { kind: CallerKind::User, name: name.clone(), by, subcluster: None, role: None }
            }
            Who::Node { name, subcluster, role } => Whoami {
                kind: CallerKind::Node,
                name: name.to_string(),
                by,
                subcluster: Some(subcluster.to_string()),
                role: Some(*role),
            },
        }
    }
}

/// What somebody wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action<'a> {
    /// Read a repository, fetch from it, watch it.
    Read(&'a RepoName),
    /// Commit to a repository or push to it.
    Commit(&'a RepoName),
    /// Create a repository.
    CreateRepo,
    /// Freeze, thaw or copy onto a repository.
    ManageRepo(&'a RepoName),
    /// Pin the leadership to a node.
    PinLeader,
    /// See members, nodes and their reports.
    SeeCluster,
    /// Follow a node's target and read its effective documents.
    Follow(&'a NodeName),
    /// Report for a node.
    Report(&'a NodeName),
    /// Make tokens for new nodes.
    IssueNodeToken,
    /// Make, list and revoke one's own API tokens and change one's password.
    OwnAccount,
    /// See and revoke everybody's tokens.
    AllAccounts,
    /// Get a fresh certificate for one's own name.
    Renew,
}

/// The one place that decides.
pub fn authorize(caller: &Caller, action: Action<'_>) -> Result<(), ApiError> {
    let allowed = match &caller.who {
        Who::User { role, .. } => user_may(*role, action),
        Who::Node { name, subcluster, role } => node_may(name, subcluster, *role, action),
    };
    if allowed {
        return Ok(());
    }
    let what = words(action);
    Err(ApiError::new(Code::Forbidden, format!("{} may not {what}", caller.name())))
}

fn user_may(role: Role, action: Action<'_>) -> bool {
    match action {
        Action::Read(_) | Action::SeeCluster | Action::Follow(_) | Action::OwnAccount => true,
        Action::Commit(_) => matches!(role, Role::Admin | Role::Committer),
        Action::CreateRepo
        | Action::ManageRepo(_)
        | Action::PinLeader
        | Action::IssueNodeToken
        | Action::AllAccounts
        | Action::Report(_) => role == Role::Admin,
        Action::Renew => false,
    }
}

fn node_may(name: &NodeName, subcluster: &RepoName, role: NodeRole, action: Action<'_>) -> bool {
    match action {
        Action::Read(repo) => role != NodeRole::Client || repo == subcluster || repo.is_global(),
        Action::SeeCluster | Action::Renew => true,
        Action::Follow(node) | Action::Report(node) => node == name,
        Action::Commit(_)
        | Action::CreateRepo
        | Action::ManageRepo(_)
        | Action::PinLeader
        | Action::IssueNodeToken
        | Action::OwnAccount
        | Action::AllAccounts => false,
    }
}

fn words(action: Action<'_>) -> String {
    match action {
        Action::Read(repo) => format!("read {repo}"),
        Action::Commit(repo) => format!("commit to {repo}"),
        Action::CreateRepo => "create repositories".into(),
        Action::ManageRepo(repo) => format!("freeze, thaw or replace {repo}"),
        Action::PinLeader => "pin the leadership".into(),
        Action::SeeCluster => "see the cluster".into(),
        Action::Follow(node) => format!("follow {node}"),
        Action::Report(node) => format!("report for {node}"),
        Action::IssueNodeToken => "make node tokens".into(),
        Action::OwnAccount => "manage an account".into(),
        Action::AllAccounts => "manage other accounts".into(),
        Action::Renew => "renew a node's certificate".into(),
    }
}

/// Finds out who calls.
pub struct Accounts {
    core: Core,
    verifier: Verifier,
    cache: CredentialCache,
    throttle: Throttle,
}

/// What a request brings to prove who sent it.
enum Credentials {
    Basic { user: String, password: Secret },
    Bearer(Secret),
}

impl Accounts {
    /// Accounts as the core has them.
    pub fn new(core: Core, password_checks: usize) -> anyhow::Result<Self> {
        Ok(Self {
            core,
            verifier: Verifier::new(password_checks)?,
            cache: CredentialCache::new().map_err(|error| anyhow::anyhow!("no random numbers: {error}"))?,
            throttle: Throttle::default(),
        })
    }

    /// Who calls: `None` for nobody in particular, an error for credentials that do not hold.
    ///
    /// Credentials in the request come before the connection's certificate: an administrator may sit on a node.
    pub async fn authenticate(
        &self,
        headers: &HeaderMap,
        peer: Option<&Peer>,
        address: IpAddr,
    ) -> Result<Option<Caller>, ApiError> {
        match (credentials(headers)?, peer) {
            (Some(Credentials::Basic { user, password }), _) => self.basic(user, password, address).await.map(Some),
            (Some(Credentials::Bearer(token)), _) => self.bearer(&token, None, address).map(Some),
            (None, Some(peer)) => self.node(peer).map(Some),
            (None, None) => Ok(None),
        }
    }

    /// Hashes a new password under the bounds that verifications have.
    pub async fn hash_password(&self, password: Secret) -> Result<String, ApiError> {
        self.verifier.hash(password).await.map_err(password_error)
    }

    async fn basic(&self, user: String, password: Secret, address: IpAddr) -> Result<Caller, ApiError> {
        if token::split(password.expose()).is_some() {
            return self.bearer(&password, Some(&user), address);
        }
        let record = self.core.user(&user)?;
        let stored = record.as_ref().map(|record| record.password_hash.as_str());
        let now = Instant::now();
        let known = stored.is_some_and(|stored| self.cache.knows(&user, &password, stored, now));
        if !known {
            self.unthrottled(address)?;
            let fits = self.verifier.verify(password.clone(), stored).await.map_err(password_error)?;
            let Some(stored) = stored.filter(|_| fits) else { return Err(self.failed(address)) };
            self.cache.remember(&user, &password, stored, now);
        }
        match record {
            Some(record) => Ok(self.caller(record, Proof::Password)),
            None => Err(self.failed(address)),
        }
    }

    /// A token is its owner; where a user name came along it must be the owner's, or empty, or one of the usual stand-ins.
    fn bearer(&self, text: &Secret, user: Option<&str>, address: IpAddr) -> Result<Caller, ApiError> {
        let found = self.find_token(text)?;
        let named = |record: &TokenRecord| match user {
            None | Some("" | "token" | "x-access-token") => true,
            Some(user) => user == record.user,
        };
        let owner = match found.filter(named) {
            Some(record) => self.core.user(&record.user)?,
            None => None,
        };
        match owner {
            Some(owner) => Ok(self.caller(owner, Proof::Token)),
            None => {
                self.unthrottled(address)?;
                Err(self.failed(address))
            }
        }
    }

    fn find_token(&self, text: &Secret) -> Result<Option<TokenRecord>, ApiError> {
        let Some((id, secret)) = token::split(text.expose()) else { return Ok(None) };
        let record = self.core.token(id)?;
        Ok(record.filter(|record| token::fits(secret, &record.secret_sha256)))
    }

    fn node(&self, peer: &Peer) -> Result<Caller, ApiError> {
        let gone = || ApiError::new(Code::Forbidden, format!("the node {} is not registered", peer.node));
        let name: NodeName = peer.node.parse().map_err(|_| gone())?;
        let record = self.core.node(&name).map_err(|_| gone())?;
        if record.subcluster.as_str() != peer.subcluster {
            let words =
                format!("the node {name} belongs to {}, its certificate says {}", record.subcluster, peer.subcluster);
            return Err(ApiError::new(Code::Forbidden, words).hint("enrol it again"));
        }
        let role = match record.kind {
            NodeKind::Client => NodeRole::Client,
            NodeKind::Server if peer.role == NodeRole::Voter => NodeRole::Voter,
            NodeKind::Server => NodeRole::Learner,
        };
        let who = Who::Node { name, subcluster: record.subcluster.clone(), role };
        Ok(Caller { who, by: Proof::Certificate })
    }

    fn caller(&self, record: UserRecord, by: Proof) -> Caller {
        let or = |text: String, other: String| if text.is_empty() { other } else { text };
        let author = Author {
            user: record.name.clone(),
            name: or(record.full_name, record.name.clone()),
            email: or(record.email, format!("{}@{}", record.name, self.core.group().cluster)),
        };
        Caller { who: Who::User { name: record.name, role: record.role, author }, by }
    }

    fn unthrottled(&self, address: IpAddr) -> Result<(), ApiError> {
        match self.throttle.wait(address, Instant::now()) {
            None => Ok(()),
            Some(wait) => {
                let words = "too many failed logins from this address";
                Err(ApiError::new(Code::TooMany, words).retry_after(wait))
            }
        }
    }

    fn failed(&self, address: IpAddr) -> ApiError {
        self.throttle.failed(address, Instant::now());
        tracing::info!(%address, "a login failed");
        ApiError::new(Code::Unauthorized, "wrong user, password or token")
    }
}

fn password_error(error: PasswordError) -> ApiError {
    match error {
        PasswordError::Busy => ApiError::new(Code::Overloaded, error.to_string()),
        PasswordError::Length => ApiError::new(Code::Invalid, error.to_string()),
        PasswordError::Corrupt | PasswordError::Hash(_) => ApiError::internal(&error),
    }
}

/// What the `Authorization` header says. A scheme that we do not know is an answer of its own, not an anonymous caller.
fn credentials(headers: &HeaderMap) -> Result<Option<Credentials>, ApiError> {
    let Some(value) = headers.get(header::AUTHORIZATION) else { return Ok(None) };
    let bad = |words: &str| ApiError::new(Code::Unauthorized, words);
    let text = value.to_str().map_err(|_| bad("the Authorization header is not text"))?;
    let (scheme, rest) = text.split_once(' ').ok_or_else(|| bad("the Authorization header has no credentials"))?;
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Ok(Some(Credentials::Bearer(Secret::new(rest.to_owned()))));
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return Err(bad("Basic and Bearer are the schemes that work here"));
    }
    let decoded =
        STANDARD.decode(rest).ok().and_then(|bytes| String::from_utf8(bytes).ok()).map(zeroize::Zeroizing::new);
    let decoded = decoded.ok_or_else(|| bad("the Basic credentials are not base64 of UTF-8 text"))?;
    let (user, password) = decoded.split_once(':').ok_or_else(|| bad("the Basic credentials have no colon"))?;
    // git and curl send the user of a URL with an empty password before they look for one: a question, not a guess.
    if password.is_empty() {
        return Ok(None);
    }
    Ok(Some(Credentials::Basic { user: user.to_owned(), password: Secret::new(password.to_owned()) }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn user(role: Role) -> Caller {
        let author = Author { user: "u".into(), name: "u".into(), email: "u@c".into() };
        Caller { who: Who::User { name: "u".into(), role, author }, by: Proof::Password }
    }

    fn node(role: NodeRole) -> Caller {
        let who = Who::Node { name: "n1".parse().unwrap(), subcluster: "default".parse().unwrap(), role };
        Caller { who, by: Proof::Certificate }
    }

    #[test]
    fn who_may_do_what() {
        let repo = |text: &str| text.parse::<RepoName>().unwrap();
        let (default, global, east) = (repo("default"), repo("global"), repo("east"));
        let (n1, n2): (NodeName, NodeName) = ("n1".parse().unwrap(), "n2".parse().unwrap());
        let callers = [
            user(Role::Admin),
            user(Role::Committer),
            user(Role::Reader),
            node(NodeRole::Client),
            node(NodeRole::Learner),
        ];
        let table = [
            (Action::Read(&default), [true, true, true, true, true]),
            (Action::Read(&global), [true, true, true, true, true]),
            (Action::Read(&east), [true, true, true, false, true]),
            (Action::Commit(&default), [true, true, false, false, false]),
            (Action::CreateRepo, [true, false, false, false, false]),
            (Action::ManageRepo(&default), [true, false, false, false, false]),
            (Action::PinLeader, [true, false, false, false, false]),
            (Action::SeeCluster, [true, true, true, true, true]),
            (Action::Follow(&n1), [true, true, true, true, true]),
            (Action::Follow(&n2), [true, true, true, false, false]),
            (Action::Report(&n1), [true, false, false, true, true]),
            (Action::Report(&n2), [true, false, false, false, false]),
            (Action::IssueNodeToken, [true, false, false, false, false]),
            (Action::OwnAccount, [true, true, true, false, false]),
            (Action::AllAccounts, [true, false, false, false, false]),
            (Action::Renew, [false, false, false, true, true]),
        ];
        for (action, expected) in table {
            let got = callers.each_ref().map(|caller| authorize(caller, action).is_ok());
            assert_eq!(got, expected, "{action:?}");
        }
    }

    #[test]
    fn headers_are_read_or_refused() {
        let parse = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            credentials(&headers)
        };
        assert!(matches!(parse("bearer x"), Ok(Some(Credentials::Bearer(_)))));
        match parse("Basic YWRtaW46YTpi").unwrap().unwrap() {
            Credentials::Basic { user, password } => assert_eq!((user.as_str(), password.expose()), ("admin", "a:b")),
            Credentials::Bearer(_) => panic!("not a bearer"),
        }
        for bad in ["Basic", "Basic !!", "Basic YWRtaW4=", "Digest x", "Basic /w=="] {
            assert_eq!(parse(bad).err().unwrap().code(), Code::Unauthorized, "{bad}");
        }
        assert!(credentials(&HeaderMap::new()).unwrap().is_none());
        // "admin:", what git sends for https://admin@host before it knows the password.
        assert!(parse("Basic YWRtaW46").unwrap().is_none());
    }
}
