//! Who may ask: this machine on plain loopback, nodes by their certificate, people and programs by the cluster's accounts. Whoever may change
//! the configuration may add and remove counts, too; readers only ask.
//!
//! Accounts are the cluster's: the credentials are shown to ecconfigd, once a minute for each.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use cluster::api::{AccountRole, Whoami};
use cluster::http_client::{ApiClient, Call};
use cluster::identity::{Peer, ReloadingIdentity};
use http::StatusCode;
use http::header::{AUTHORIZATION, ORIGIN};
use sha2::{Digest as _, Sha256};

use super::listen::Line;
use super::{App, Refusal};

/// How long an answer of ecconfigd holds.
const HOLDS: Duration = Duration::from_secs(60);
/// Logins that are remembered; at this number all are forgotten.
const REMEMBERED: usize = 10_000;
/// A login is asked for this long.
const ASK: Duration = Duration::from_secs(5);

/// A login's hash with what ecconfigd said, and when.
type Remembered = HashMap<[u8; 32], (Instant, Login)>;

/// What a login is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Login {
    /// The cluster does not know it.
    Nothing,
    /// Questions.
    Read,
    /// Events and removals, too.
    Write,
}

impl Login {
    fn of(whoami: &Whoami) -> Self {
        match whoami.account_role {
            Some(AccountRole::Admin | AccountRole::Committer) => Self::Write,
            // A server that says no role is an older one.
            Some(AccountRole::Reader) | None => Self::Read,
        }
    }
}

/// The way to the cluster's accounts.
pub struct Access {
    servers: Option<ApiClient>,
    identity: Option<Arc<ReloadingIdentity>>,
    remembered: Mutex<Remembered>,
}

impl Access {
    /// Asks the servers that `client` knows; without one there are no accounts here.
    pub fn new(identity: Option<Arc<ReloadingIdentity>>, client: Option<ApiClient>) -> Self {
        Self { servers: client, identity, remembered: Mutex::default() }
    }

    async fn login(&self, authorization: &str) -> Result<Login, Refusal> {
        let (Some(servers), Some(identity)) = (&self.servers, &self.identity) else {
            return Err(Refusal::forbidden("this daemon follows a directory and knows no accounts"));
        };
        let key: [u8; 32] = Sha256::digest(authorization).into();
        let known = self.remembered().get(&key).filter(|(when, _)| when.elapsed() < HOLDS).map(|(_, login)| *login);
        if let Some(login) = known {
            return Ok(login);
        }
        // A client without a certificate: what counts are the credentials, not this node's.
        let ca = identity.current().ca_pem().to_owned();
        let client = ApiClient::new(servers.servers().to_vec(), &ca, cluster::http_client::Credentials::None);
        let client = client.map_err(|error| unreachable_accounts(&error))?;
        let call = Call::get("/api/v1/whoami").header("authorization", authorization).timeout(ASK);
        let login = match client.send(call).await {
            Ok(reply) => reply.json::<Whoami>().await.map_or(Login::Nothing, |whoami| Login::of(&whoami)),
            Err(error) if error.status() == Some(StatusCode::UNAUTHORIZED.as_u16()) => Login::Nothing,
            Err(error) => return Err(unreachable_accounts(&error)),
        };
        let mut remembered = self.remembered();
        if remembered.len() >= REMEMBERED {
            remembered.clear();
        }
        remembered.insert(key, (Instant::now(), login));
        Ok(login)
    }

    fn remembered(&self) -> std::sync::MutexGuard<'_, Remembered> {
        // Every change is a single insertion.
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unreachable_accounts(error: &cluster::http_client::ClientError) -> Refusal {
    tracing::warn!(error = %cluster::error::Chain(error), "no server says who this is");
    let failure = cluster::control::Failure::new("no server of the cluster says who this is").code("accounts");
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, failure)
}

/// Lets in who may read: this machine, nodes, accounts.
pub async fn readers(State(app): State<App>, request: Request, next: Next) -> Result<Response, Refusal> {
    let login = login(&request)?;
    admit(&app, login, Login::Read).await?;
    Ok(next.run(request).await)
}

/// Lets in who may add: this machine, nodes, and accounts that may change the configuration. A page in a browser on this machine is kept out
/// of the plain port.
pub async fn senders(State(app): State<App>, request: Request, next: Next) -> Result<Response, Refusal> {
    let plain = matches!(request.extensions().get(), Some(Line::Plain));
    if plain && request.headers().contains_key(ORIGIN) {
        return Err(Refusal::forbidden("requests of web pages are not taken here"));
    }
    let login = login(&request)?;
    admit(&app, login, Login::Write).await?;
    Ok(next.run(request).await)
}

/// Lets in nodes alone.
pub async fn nodes(request: Request, next: Next) -> Result<Response, Refusal> {
    match request.extensions().get() {
        Some(Line::Secure(Some(_))) => Ok(next.run(request).await),
        _ => Err(Refusal::forbidden("only nodes of the cluster may ask this, with their certificate")),
    }
}

/// The node behind a request that [`nodes`] let in.
pub fn peer_of(extensions: &http::Extensions) -> Option<&Peer> {
    match extensions.get() {
        Some(Line::Secure(Some(peer))) => Some(peer),
        _ => None,
    }
}

/// Lets in without a login, or with one that is good for this.
async fn admit(app: &App, login: Option<String>, needed: Login) -> Result<(), Refusal> {
    let Some(login) = login else { return Ok(()) };
    match app.access.login(&login).await? {
        Login::Nothing => Err(Refusal::unauthorized("the cluster does not know this login")),
        good if good >= needed => Ok(()),
        _ => Err(Refusal::forbidden(
            "this account may ask, but neither add nor remove: that takes a committer or an admin",
        )),
    }
}

/// The login that has to be asked about; none on this machine and for nodes.
fn login(request: &Request) -> Result<Option<String>, Refusal> {
    if let Some(Line::Plain | Line::Secure(Some(_))) = request.extensions().get() {
        return Ok(None);
    }
    let header = request.headers().get(AUTHORIZATION).and_then(|header| header.to_str().ok());
    let header = header.ok_or_else(|| Refusal::unauthorized("log in with an account of the cluster"))?;
    Ok(Some(header.to_owned()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn readers_ask_and_committers_add() {
        let login = |json: &str| Login::of(&serde_json::from_str(json).unwrap());
        let user = |role: &str| login(&format!(r#"{{"kind":"user","name":"a","by":"token","account_role":"{role}"}}"#));
        assert_eq!([user("admin"), user("committer"), user("reader")], [Login::Write, Login::Write, Login::Read]);
        assert_eq!(login(r#"{"kind":"user","name":"a","by":"password"}"#), Login::Read);
        assert!(Login::Nothing < Login::Read && Login::Read < Login::Write);
    }
}
