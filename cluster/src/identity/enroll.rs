//! Getting a certificate from the cluster: once with a token, from then on with the certificate at hand.

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use super::{Fingerprint, Identity, IdentityError, JoinToken, KeyRequest, ReloadingIdentity};
use crate::api::{EnrollRequest, EnrollResponse, RenewRequest, RenewResponse};
use crate::error::Chain;
use crate::http_client::{ApiClient, Backoff, ServerUrl};
use crate::lock::{DirLock, Owner};

/// Sleeping in pieces: a clock that is set, or a machine that was suspended, must not hide a due date for long.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);
/// Held while renewing: a node's programs share its identity, and one new certificate serves them all.
const RENEWAL_LOCK: &str = ".renewal.lock";

/// Exchanges a one-time token for an identity.
///
/// The token leaves this machine only after the server has shown the CA with the fingerprint inside the token and a certificate of that
/// CA for the name it was called by. Nothing is written; the caller stores the identity where it wants it.
pub async fn enroll(servers: Vec<ServerUrl>, token: &JoinToken, node: &str) -> Result<Identity, IdentityError> {
    let request = |source| IdentityError::Request { action: "enroll", source: Box::new(source) };
    let (client, _) = ApiClient::pinned(servers, token.ca_fingerprint()).map_err(request)?;
    let key = KeyRequest::generate(node)?;
    let body = EnrollRequest { token: token.expose().to_string(), node: node.into(), csr_pem: key.csr_pem().into() };
    let answer: EnrollResponse = client.post_json("/api/v1/enroll", &body).await.map_err(request)?;
    let identity = key.certified(&answer.certificate_pem, &answer.ca_pem)?;
    expect_ca(&identity, token.ca_fingerprint())?;
    expect_node(&identity, node)?;
    Ok(identity)
}

/// Gets a fresh certificate for a fresh key, authenticated by the present one.
pub async fn renew(client: &ApiClient, present: &Identity) -> Result<Identity, IdentityError> {
    let request = |source| IdentityError::Request { action: "renew the certificate", source: Box::new(source) };
    let key = KeyRequest::generate(present.node())?;
    let body = RenewRequest { csr_pem: key.csr_pem().into() };
    let answer: RenewResponse = client.post_json("/api/v1/renew", &body).await.map_err(request)?;
    let identity = key.certified(&answer.certificate_pem, &answer.ca_pem)?;
    expect_ca(&identity, present.ca_fingerprint())?;
    expect_node(&identity, present.node())?;
    Ok(identity)
}

fn expect_ca(identity: &Identity, ca: Fingerprint) -> Result<(), IdentityError> {
    if identity.ca_fingerprint() == ca {
        return Ok(());
    }
    Err(IdentityError::invalid("the issued certificate", "it comes from another CA than the one that is trusted"))
}

fn expect_node(identity: &Identity, node: &str) -> Result<(), IdentityError> {
    if identity.node() == node {
        return Ok(());
    }
    Err(IdentityError::invalid("the issued certificate", format!("it names {}, not {node}", identity.node())))
}

/// Keeps an identity fresh: renews at two thirds of the certificate's life, stores and uses the result at once.
#[derive(Debug)]
pub struct Renewer {
    identity: Arc<ReloadingIdentity>,
}

impl Renewer {
    /// A renewer for this identity.
    pub fn new(identity: Arc<ReloadingIdentity>) -> Self {
        Self { identity }
    }

    /// Renews through the cluster's API until `stop`.
    pub async fn run(self, client: ApiClient, stop: CancellationToken) {
        let issue = move |present: Arc<Identity>| {
            let client = client.clone();
            async move { renew(&client, &present).await }
        };
        self.run_with(issue, stop).await;
    }

    /// The same with another way to get a certificate: ecconfigd has the CA at hand.
    pub async fn run_with<F, Fut>(self, mut issue: F, stop: CancellationToken)
    where
        F: FnMut(Arc<Identity>) -> Fut,
        Fut: Future<Output = Result<Identity, IdentityError>>,
    {
        let mut backoff = Backoff::new(Duration::from_secs(10), Duration::from_secs(3600));
        let mut changes = self.identity.changes();
        loop {
            let wait = until(self.identity.current().peer().renewal_due()).min(LONGEST_SLEEP);
            if !wait.is_zero() {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(wait) => {}
                    _ = changes.changed() => {}
                }
                // Another program that shares the directory may have renewed; an error there shows when renewal is due.
                let _ = self.identity.reload();
                continue;
            }
            let renewed = match stop.run_until_cancelled(self.renew_once(&mut issue)).await {
                None => return,
                Some(result) => result,
            };
            match renewed {
                Ok(()) if until(self.identity.current().peer().renewal_due()).is_zero() => {
                    tracing::warn!("the renewed certificate is due for renewal already; is this clock right?");
                }
                Ok(()) => {
                    backoff.reset();
                    tracing::info!(until = %self.identity.current().peer().not_after, "certificate renewed");
                    continue;
                }
                Err(error) => self.complain(&error),
            }
            if stop.run_until_cancelled(tokio::time::sleep(backoff.next_delay())).await.is_none() {
                return;
            }
        }
    }

    /// Renews unless another program on this machine, which shares the directory, does or did.
    async fn renew_once<F, Fut>(&self, issue: &mut F) -> Result<(), IdentityError>
    where
        F: FnMut(Arc<Identity>) -> Fut,
        Fut: Future<Output = Result<Identity, IdentityError>>,
    {
        let dir = self.identity.dir();
        let owner = Owner::current("the renewal of the certificate", self.identity.current().node());
        let _lock = DirLock::acquire_file(&dir.join(RENEWAL_LOCK), dir, &owner)
            .map_err(|error| IdentityError::invalid("renewal", Chain(&error)))?;
        self.identity.reload()?;
        let present = self.identity.current();
        if !until(present.peer().renewal_due()).is_zero() {
            return Ok(());
        }
        let fresh = issue(present).await?;
        let identity = self.identity.clone();
        // Several files, each of them synced.
        let replaced = tokio::task::spawn_blocking(move || identity.replace(&fresh)).await;
        replaced.map_err(|error| IdentityError::invalid("renewal", error))?
    }

    fn complain(&self, error: &IdentityError) {
        let until = self.identity.current().peer().not_after;
        let error = Chain(error);
        if until <= OffsetDateTime::now_utc() {
            tracing::error!(%error, %until, "the certificate has expired; enroll this node again");
        } else {
            tracing::warn!(%error, %until, "certificate not renewed, will try again");
        }
    }
}

fn until(moment: OffsetDateTime) -> Duration {
    (moment - OffsetDateTime::now_utc()).try_into().unwrap_or(Duration::ZERO)
}
