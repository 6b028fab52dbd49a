//! Logging in with a password: the way from what was typed to yes or no, at the least cost that keeps guessing slow.
//!
//! What is known is answered from the cache. What is not takes one turn of argon2, and everybody who asks the same in the meantime waits
//! for that turn's outcome. Failed logins are counted per address, and an address that failed too often is sent away before it costs
//! anything: when it asks, and once more when its turn comes, so that a hundred guesses sent at once are not a hundred runs.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cache::{CredentialCache, Digest32};
use super::flight::Flights;
use super::password::{MAX_PASSWORD_BYTES, PasswordError, Secret, Verifier};
use super::throttle::Throttle;

/// Different verifications under way: more than the verifier lets wait, which is where the bound belongs.
const MAX_FLIGHTS: usize = 1024;
/// How often a caller joins a verification that is given up because the address that set it off had guessed too often.
const ROUNDS: usize = 4;

/// Why a login is not answered with yes.
#[derive(Debug, Clone)]
pub enum Denied {
    /// The password is wrong, or there is no such user.
    Wrong,
    /// This address failed too often: how long it has to wait.
    Throttled(Duration),
    /// It could not be verified.
    Failed(PasswordError),
}

/// Verifies passwords; see the module's words.
pub struct Logins(Arc<Shared>);

struct Shared {
    verifier: Verifier,
    cache: CredentialCache,
    throttle: Throttle,
    flights: Flights<Digest32, Outcome>,
}

/// What a verification came to; `None`: its address had to be sent away.
type Outcome = Result<Option<bool>, PasswordError>;

impl Logins {
    /// At most so many runs of argon2 at once.
    pub fn new(parallel: usize) -> anyhow::Result<Self> {
        let cache = CredentialCache::new().map_err(|error| anyhow::anyhow!("no random numbers: {error}"))?;
        let (verifier, throttle) = (Verifier::new(parallel)?, Throttle::default());
        Ok(Self(Arc::new(Shared { verifier, cache, throttle, flights: Flights::new(MAX_FLIGHTS) })))
    }

    /// Whether the password fits the stored hash; `stored` is `None` for a user who does not exist.
    pub async fn check(
        &self,
        user: &str,
        password: &Secret,
        stored: Option<&str>,
        address: IpAddr,
    ) -> Result<(), Denied> {
        let credentials = self.0.cache.digest(user, password, stored);
        for _ in 0..ROUNDS {
            let known = self.0.cache.known(&credentials, Instant::now());
            if known == Some(true) {
                return Ok(());
            }
            self.unthrottled(address)?;
            if known == Some(false) || password.expose().len() > MAX_PASSWORD_BYTES {
                return Err(self.failed(address));
            }
            let mut led = false;
            let work = || {
                led = true;
                let (shared, password) = (self.0.clone(), password.clone());
                let stored = stored.map(str::to_owned);
                async move { shared.verify(credentials, password, stored.as_deref(), address).await }
            };
            match self.0.flights.join(credentials, work).await.unwrap_or(Err(PasswordError::Busy)) {
                Ok(Some(true)) => return Ok(()),
                // Its own failure is counted before the next turn begins; those who waited along count theirs.
                Ok(Some(false)) if led => return Err(Denied::Wrong),
                Ok(Some(false)) => return Err(self.failed(address)),
                Ok(None) => {}
                Err(error) => return Err(Denied::Failed(error)),
            }
        }
        Err(Denied::Failed(PasswordError::Busy))
    }

    /// Hashes a new password under the bounds that verifications have.
    pub async fn hash(&self, password: Secret) -> Result<String, PasswordError> {
        self.0.verifier.turn().await?.hash(password).await
    }

    /// Lets an address pass that has not failed too often.
    pub fn unthrottled(&self, address: IpAddr) -> Result<(), Denied> {
        self.0.throttle.wait(address, Instant::now()).map_or(Ok(()), |wait| Err(Denied::Throttled(wait)))
    }

    /// Counts a failed login.
    pub fn failed(&self, address: IpAddr) -> Denied {
        self.0.failed(address);
        Denied::Wrong
    }

    /// Runs of argon2 since the start.
    pub fn runs(&self) -> u64 {
        self.0.verifier.runs()
    }
}

impl Shared {
    async fn verify(&self, credentials: Digest32, password: Secret, stored: Option<&str>, address: IpAddr) -> Outcome {
        let turn = self.verifier.turn().await?;
        // Somebody's verification of the same may have ended between this caller's look into the cache and its joining.
        if let Some(known) = self.cache.known(&credentials, Instant::now()) {
            return Ok(Some(known));
        }
        if self.throttle.wait(address, Instant::now()).is_some() {
            return Ok(None);
        }
        let (fits, next) = turn.verify(password, stored).await?;
        self.cache.remember(credentials, fits, Instant::now());
        if !fits {
            self.failed(address);
        }
        drop(next);
        Ok(Some(fits))
    }

    fn failed(&self, address: IpAddr) {
        self.throttle.failed(address, Instant::now());
        tracing::info!(%address, "a login failed");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn secret(text: &str) -> Secret {
        Secret::new(text.into())
    }

    fn address(number: u32) -> IpAddr {
        IpAddr::from((0x0a00_0000 + number).to_be_bytes())
    }

    #[tokio::test]
    async fn a_herd_with_one_password_is_one_run_and_nobody_is_sent_away() {
        let logins = Logins::new(2).unwrap();
        let stored = logins.hash(secret("correct horse")).await.unwrap();
        let before = logins.runs();
        let password = secret("correct horse");
        let herd = (0..1000).map(|number| logins.check("admin", &password, Some(&stored), address(number % 7)));
        let answers = futures::future::join_all(herd).await;
        assert!(answers.iter().all(Result::is_ok), "{:?}", answers.iter().find(|answer| answer.is_err()));
        assert_eq!(logins.runs() - before, 1);
    }

    #[tokio::test]
    async fn a_herd_with_a_wrong_password_is_one_run_and_is_slowed_down() {
        let logins = Logins::new(2).unwrap();
        let stored = logins.hash(secret("correct horse")).await.unwrap();
        for stored in [Some(stored.as_str()), None] {
            let before = logins.runs();
            let password = secret("outdated");
            for round in 0..3 {
                let first = if stored.is_some() { 0 } else { 1000 };
                let herd = (0..200).map(|_| logins.check("admin", &password, stored, address(first + round)));
                let answers = futures::future::join_all(herd).await;
                assert!(answers.iter().all(|answer| matches!(answer, Err(Denied::Wrong | Denied::Throttled(_)))));
                let next = logins.check("admin", &password, stored, address(first + round)).await;
                assert!(matches!(next, Err(Denied::Throttled(_))), "{next:?}");
            }
            assert_eq!(logins.runs() - before, 1);
        }
    }

    #[tokio::test]
    async fn guesses_sent_at_once_are_few_runs() {
        let logins = Logins::new(2).unwrap();
        let guesses: Vec<Secret> = (0..60).map(|number| secret(&format!("guess {number}"))).collect();
        let herd = guesses.iter().map(|guess| logins.check("admin", guess, None, address(1)));
        let answers = futures::future::join_all(herd).await;
        assert!(answers.iter().all(Result::is_err));
        // Ten failures are free, and what runs beside the tenth cannot know of it.
        assert!(logins.runs() <= 12, "{} runs", logins.runs());
    }

    #[tokio::test]
    async fn a_guesser_does_not_keep_others_with_the_same_password_out() {
        let logins = Logins::new(1).unwrap();
        let stored = logins.hash(secret("correct horse")).await.unwrap();
        for _ in 0..20 {
            logins.failed(address(1));
        }
        let password = secret("correct horse");
        let guesser = logins.check("admin", &password, Some(&stored), address(1));
        let person = logins.check("admin", &password, Some(&stored), address(2));
        let (guesser, person) = tokio::join!(guesser, person);
        assert!(matches!(guesser, Err(Denied::Throttled(_))), "{guesser:?}");
        assert!(person.is_ok(), "{person:?}");
    }
}
