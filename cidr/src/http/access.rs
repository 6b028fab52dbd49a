//! Who may ask: this machine on plain loopback, nodes by their certificate, people and programs by the cluster's accounts. Whoever may change
//! the configuration may add and remove counts, too; readers only ask.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use cluster::api::{AccountRole, Whoami};
use cluster::control::Failure;
use cluster::error::Chain;
use cluster::identity::Peer;
use http::StatusCode;
use http::header::{AUTHORIZATION, ORIGIN};

use super::listen::Line;
use super::{App, Refusal};

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

/// What the cluster's accounts say of a login.
async fn known(app: &App, authorization: &str) -> Result<Login, Refusal> {
    let Some(accounts) = &app.accounts else {
        return Err(Refusal::forbidden("this daemon follows a directory and knows no accounts"));
    };
    let whoami = accounts.whoami(authorization).await.map_err(|error| {
        tracing::warn!(error = %Chain(&error), "no server says who this is");
        let failure = Failure::new("no server of the cluster says who this is").code("accounts");
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, failure)
    })?;
    Ok(whoami.map_or(Login::Nothing, |whoami| Login::of(&whoami)))
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
    match known(app, &login).await? {
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
