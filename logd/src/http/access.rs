//! Who may read: managers and voters by their certificate, people and programs by the cluster's accounts.
//!
//! Accounts are the cluster's: the credentials are shown to ecconfigd, once a minute for each. A daemon that follows a directory knows none.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use cluster::api::Whoami;
use cluster::control::Failure;
use cluster::http_client::{ApiClient, Call, ClientError, Credentials};
use http::StatusCode;
use http::header::AUTHORIZATION;
use sha2::{Digest as _, Sha256};

use super::{App, Refusal};
use crate::wire::trust::{Proved, Trust};

/// How long an answer of ecconfigd holds.
const HOLDS: Duration = Duration::from_secs(60);
/// Logins that are remembered; at this number all are forgotten.
const REMEMBERED: usize = 10_000;
/// A login is asked for this long.
const ASK: Duration = Duration::from_secs(5);

/// Whose connection it is.
#[derive(Debug, Clone)]
pub(super) struct Line(pub(super) Option<Proved>);

/// The way to the cluster's accounts.
pub struct Access {
    servers: Option<ApiClient>,
    trust: Trust,
    /// A login's hash with what ecconfigd said, and when.
    remembered: Mutex<HashMap<[u8; 32], (Instant, bool)>>,
}

impl Access {
    /// Asks the servers that `client` knows; without one there are no accounts here.
    pub fn new(trust: Trust, client: Option<ApiClient>) -> Self {
        Self { servers: client, trust, remembered: Mutex::default() }
    }

    async fn knows(&self, authorization: &str) -> Result<bool, Refusal> {
        let (Some(servers), Trust::Identity(identity)) = (&self.servers, &self.trust) else {
            return Err(forbidden("this daemon follows a directory and knows no accounts"));
        };
        let key: [u8; 32] = Sha256::digest(authorization).into();
        let known = self.remembered().get(&key).filter(|(when, _)| when.elapsed() < HOLDS).map(|(_, good)| *good);
        if let Some(good) = known {
            return Ok(good);
        }
        // A client without a certificate: what counts are the credentials, not this node's.
        let ca = identity.current().ca_pem().to_owned();
        let client = ApiClient::new(servers.servers().to_vec(), &ca, Credentials::None);
        let client = client.map_err(|error| unreachable_accounts(&error))?;
        let call = Call::get("/api/v1/whoami").header("authorization", authorization).timeout(ASK);
        let good = match client.send(call).await {
            Ok(reply) => reply.json::<Whoami>().await.is_ok(),
            Err(error) if error.status() == Some(StatusCode::UNAUTHORIZED.as_u16()) => false,
            Err(error) => return Err(unreachable_accounts(&error)),
        };
        let mut remembered = self.remembered();
        if remembered.len() >= REMEMBERED {
            remembered.clear();
        }
        remembered.insert(key, (Instant::now(), good));
        Ok(good)
    }

    fn remembered(&self) -> std::sync::MutexGuard<'_, HashMap<[u8; 32], (Instant, bool)>> {
        // Every change is a single insertion.
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn forbidden(words: &str) -> Refusal {
    Refusal::new(StatusCode::FORBIDDEN, Failure::new(words).code("forbidden"))
}

fn unreachable_accounts(error: &ClientError) -> Refusal {
    tracing::warn!(error = %cluster::error::Chain(error), "no server says who this is");
    let failure = Failure::new("no server of the cluster says who this is").code("accounts");
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, failure)
}

/// Lets in who may read.
pub(super) async fn readers(State(app): State<App>, request: Request, next: Next) -> Result<Response, Refusal> {
    let line = request.extensions().get::<Line>().and_then(|line| line.0.clone());
    let header = request.headers().get(AUTHORIZATION).and_then(|header| header.to_str().ok()).map(str::to_owned);
    match (line, header) {
        // A login counts also where a certificate does not.
        (_, Some(login)) => {
            if !app.access.knows(&login).await? {
                return Err(Refusal::unauthorized("the cluster does not know this login"));
            }
        }
        (Some(Proved::Member), None) => {}
        (Some(Proved::Node { node, voter }), None) => {
            if !voter && !app.console.is_manager(&node) {
                return Err(forbidden("only managers and voters read logs by their certificate"));
            }
        }
        (None, None) => return Err(Refusal::unauthorized("log in with an account of the cluster")),
    }
    Ok(next.run(request).await)
}
