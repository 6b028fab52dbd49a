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
pub mod flight;
pub mod login;
pub mod password;
mod rights;
pub mod throttle;
pub mod token;

use std::net::IpAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cluster::api::{AccountRole, CallerKind, NodeRole, Whoami};
use cluster::identity::Peer;
use http::{HeaderMap, header};

use crate::core::Core;
use crate::http::problem::{ApiError, Code};
use crate::state::{Author, NodeKind, NodeName, NodeRecord, RepoName, Role, TokenRecord, UserRecord};
use login::{Denied, Logins};
use password::{PasswordError, Secret};
use time::OffsetDateTime;

pub use rights::{Action, authorize};

/// How a caller proved who it is, with what tells later whether that still holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// The account's password.
    Password {
        /// The account's generation: it goes up with every change of password and role.
        generation: u64,
    },
    /// An API token.
    Token {
        /// The token's id.
        id: String,
    },
    /// A node's certificate.
    Certificate {
        /// Its fingerprint in hex.
        fingerprint: String,
        /// When it ends.
        not_after: OffsetDateTime,
    },
}

impl Proof {
    fn as_str(&self) -> &'static str {
        match self {
            Self::Password { .. } => "password",
            Self::Token { .. } => "token",
            Self::Certificate { .. } => "certificate",
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
            Who::User { name, role, .. } => {
                let account_role = Some(match role {
                    Role::Admin => AccountRole::Admin,
                    Role::Committer => AccountRole::Committer,
                    Role::Reader => AccountRole::Reader,
                });
                Whoami { kind: CallerKind::User, name: name.clone(), by, subcluster: None, role: None, account_role }
            }
            Who::Node { name, subcluster, role } => Whoami {
                kind: CallerKind::Node,
                name: name.to_string(),
                by,
                subcluster: Some(subcluster.to_string()),
                role: Some(*role),
                account_role: None,
            },
        }
    }
}

/// How long a server may take to catch up with the majority before it says no to somebody.
const CATCH_UP_TIME: Duration = Duration::from_secs(5);

/// Finds out who calls.
pub struct Accounts {
    core: Core,
    logins: Logins,
}

/// What a request brings to prove who sent it.
enum Credentials {
    Basic { user: String, password: Secret },
    Bearer(Secret),
}

impl Accounts {
    /// Accounts as the core has them.
    pub fn new(core: Core, password_checks: usize) -> anyhow::Result<Self> {
        Ok(Self { core, logins: Logins::new(password_checks)? })
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
            (Some(Credentials::Bearer(token)), _) => self.bearer(&token, None, address).await.map(Some),
            (None, Some(peer)) => self.node(peer).await.map(Some),
            (None, None) => Ok(None),
        }
    }

    /// Whoever is not known here may be known by now elsewhere: this server may just have started, or be behind. Nobody is told "no" before
    /// it has caught up with what the majority knew when it was asked, and 503 is the answer where it cannot.
    async fn caught_up(&self) -> Result<(), ApiError> {
        let caught_up = tokio::time::timeout(CATCH_UP_TIME, self.core.linearize()).await;
        caught_up.map_err(|_| ()).and_then(|done| done.map_err(drop)).map_err(|()| {
            let words = "this server cannot say who you are: it has not caught up with the others";
            ApiError::new(Code::Unavailable, words).hint("try again, or another server").not_done()
        })
    }

    /// Whether the caller would still be let in as the same: what outlasts a request (an event stream) asks again and again.
    pub fn stands(&self, caller: &Caller) -> bool {
        match (&caller.who, &caller.by) {
            (Who::User { name, .. }, Proof::Password { generation }) => {
                matches!(self.core.user(name), Ok(Some(record)) if record.generation == *generation)
            }
            (Who::User { name, role, .. }, Proof::Token { id }) => {
                let token = self.core.token(id).ok().flatten().filter(|token| token.user == *name);
                token.is_some() && matches!(self.core.user(name), Ok(Some(record)) if record.role == *role)
            }
            (Who::Node { name, subcluster, .. }, Proof::Certificate { fingerprint, not_after }) => {
                let record = self.core.node(name).ok().filter(|record| record.subcluster == *subcluster);
                record.is_some_and(|record| issued_to(&record, fingerprint)) && *not_after > OffsetDateTime::now_utc()
            }
            _ => false,
        }
    }

    /// Hashes a new password under the bounds that verifications have.
    pub async fn hash_password(&self, password: Secret) -> Result<String, ApiError> {
        self.logins.hash(password).await.map_err(password_error)
    }

    /// Runs of argon2 since the start.
    pub fn password_runs(&self) -> u64 {
        self.logins.runs()
    }

    async fn basic(&self, user: String, password: Secret, address: IpAddr) -> Result<Caller, ApiError> {
        if token::split(password.expose()).is_some() {
            return self.bearer(&password, Some(&user), address).await;
        }
        let record = self.core.user(&user)?;
        let stored = hash_of(&record);
        let record = match self.logins.check(&user, &password, stored, address).await {
            Err(Denied::Wrong) => {
                self.caught_up().await?;
                let newer = self.core.user(&user)?;
                if hash_of(&newer) == stored {
                    return Err(denied(Denied::Wrong));
                }
                self.logins.check(&user, &password, hash_of(&newer), address).await.map_err(denied)?;
                newer
            }
            checked => checked.map(|()| record).map_err(denied)?,
        };
        let record = record.ok_or_else(|| denied(Denied::Wrong))?;
        let generation = record.generation;
        Ok(self.caller(record, Proof::Password { generation }))
    }

    /// A token is its owner; where a user name came along it must be the owner's, or empty, or one of the usual stand-ins.
    async fn bearer(&self, text: &Secret, user: Option<&str>, address: IpAddr) -> Result<Caller, ApiError> {
        if let Some(caller) = self.owner(text, user)? {
            return Ok(caller);
        }
        self.logins.unthrottled(address).map_err(denied)?;
        self.caught_up().await?;
        self.owner(text, user)?.ok_or_else(|| denied(self.logins.failed(address)))
    }

    fn owner(&self, text: &Secret, user: Option<&str>) -> Result<Option<Caller>, ApiError> {
        let named = |record: &TokenRecord| match user {
            None | Some("" | "token" | "x-access-token") => true,
            Some(user) => user == record.user,
        };
        let Some(token) = self.find_token(text)?.filter(named) else { return Ok(None) };
        let owner = self.core.user(&token.user)?;
        Ok(owner.map(|owner| self.caller(owner, Proof::Token { id: token.id })))
    }

    fn find_token(&self, text: &Secret) -> Result<Option<TokenRecord>, ApiError> {
        let Some((id, secret)) = token::split(text.expose()) else { return Ok(None) };
        let record = self.core.token(id)?;
        Ok(record.filter(|record| token::fits(secret, &record.secret_sha256)))
    }

    /// The node behind a certificate, which held when the connection was made. What has happened since is looked at here, at every
    /// request: a connection may live longer than its certificate and its node.
    async fn node(&self, peer: &Peer) -> Result<Caller, ApiError> {
        if peer.not_after <= OffsetDateTime::now_utc() {
            let words = format!("the certificate of node {} has ended", peer.node);
            return Err(ApiError::new(Code::Unauthorized, words).hint("connect with the renewed one, or enrol again"));
        }
        if let Ok(caller) = self.registered(peer) {
            return Ok(caller);
        }
        self.caught_up().await?;
        self.registered(peer)
    }

    fn registered(&self, peer: &Peer) -> Result<Caller, ApiError> {
        let gone = || ApiError::new(Code::Forbidden, format!("the node {} is not registered", peer.node));
        let name: NodeName = peer.node.parse().map_err(|_| gone())?;
        let record = self.core.node(&name).map_err(|_| gone())?;
        if record.subcluster.as_str() != peer.subcluster {
            let words =
                format!("the node {name} belongs to {}, its certificate says {}", record.subcluster, peer.subcluster);
            return Err(ApiError::new(Code::Forbidden, words).hint("enrol it again"));
        }
        let fingerprint = peer.fingerprint.to_string();
        if !issued_to(&record, &fingerprint) {
            let words = format!("this certificate is not among the newest that node {name} was given");
            return Err(ApiError::new(Code::Forbidden, words).hint("connect with the newest one, or enrol again"));
        }
        let role = match record.kind {
            NodeKind::Client => NodeRole::Client,
            NodeKind::Server if peer.role == NodeRole::Voter => NodeRole::Voter,
            NodeKind::Server => NodeRole::Learner,
        };
        let who = Who::Node { name, subcluster: record.subcluster.clone(), role };
        Ok(Caller { who, by: Proof::Certificate { fingerprint, not_after: peer.not_after } })
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
}

fn hash_of(record: &Option<UserRecord>) -> Option<&str> {
    record.as_ref().map(|record| record.password_hash.as_str())
}

/// Whether a certificate is one of those that the node as it is registered now was given. A name that was removed and given to another
/// machine does not let the first machine in again.
fn issued_to(record: &NodeRecord, fingerprint: &str) -> bool {
    record.certificates.is_empty() || record.certificates.iter().any(|known| known.fingerprint == fingerprint)
}

fn denied(denied: Denied) -> ApiError {
    match denied {
        Denied::Wrong => ApiError::new(Code::Unauthorized, "wrong user, password or token"),
        Denied::Throttled(wait) => {
            ApiError::new(Code::TooMany, "too many failed logins from this address").retry_after(wait)
        }
        Denied::Failed(error) => password_error(error),
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
