//! The cluster's accounts, for daemons that serve people and programs: what somebody shows to a daemon is shown to ecconfigd, once a minute
//! for each.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use crate::api::Whoami;
use crate::http_client::{ApiClient, Call, ClientError, Credentials};
use crate::identity::ReloadingIdentity;

/// How long an answer of ecconfigd holds.
const HOLDS: Duration = Duration::from_secs(60);
/// Logins that are remembered; at this number all are forgotten.
const REMEMBERED: usize = 10_000;
/// A login is asked for this long.
const ASK: Duration = Duration::from_secs(5);

/// A login's hash with what ecconfigd said, and when.
type Remembered = HashMap<[u8; 32], (Instant, Option<Whoami>)>;

/// The way to the cluster's accounts.
pub struct Accounts {
    servers: ApiClient,
    identity: Arc<ReloadingIdentity>,
    remembered: Mutex<Remembered>,
}

impl Accounts {
    /// Asks the servers that `client` knows; a daemon that follows a directory has none, and so no accounts.
    pub fn new(identity: Option<Arc<ReloadingIdentity>>, client: Option<ApiClient>) -> Option<Self> {
        Some(Self { servers: client?, identity: identity?, remembered: Mutex::default() })
    }

    /// Whose login this is: the value of an `Authorization` header (RFC 9110, section 11.6.2). `None` for one that the cluster does not know.
    pub async fn whoami(&self, authorization: &str) -> Result<Option<Whoami>, ClientError> {
        let key: [u8; 32] = Sha256::digest(authorization).into();
        let known = self.remembered().get(&key).filter(|(when, _)| when.elapsed() < HOLDS).cloned();
        if let Some((_, whoami)) = known {
            return Ok(whoami);
        }
        // A client without a certificate: what counts are the credentials, not this node's.
        let ca = self.identity.current().ca_pem().to_owned();
        let client = ApiClient::new(self.servers.servers().to_vec(), &ca, Credentials::None)?;
        let call = Call::get("/api/v1/whoami").header("authorization", authorization).timeout(ASK);
        let whoami = match client.send(call).await {
            Ok(reply) => reply.json::<Whoami>().await.ok(),
            Err(error) if error.status() == Some(http::StatusCode::UNAUTHORIZED.as_u16()) => None,
            Err(error) => return Err(error),
        };
        let mut remembered = self.remembered();
        if remembered.len() >= REMEMBERED {
            remembered.clear();
        }
        remembered.insert(key, (Instant::now(), whoami.clone()));
        Ok(whoami)
    }

    fn remembered(&self) -> MutexGuard<'_, Remembered> {
        // Every change is a single insertion.
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Accounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accounts").field("identity", &self.identity).finish_non_exhaustive()
    }
}
