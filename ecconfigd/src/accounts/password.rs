//! Passwords: argon2id, and the bound on how much of the machine it may take.
//!
//! One verification costs 19 MiB and some 20 ms of a core on purpose, so whoever can make the server verify can make it busy. Hence at most
//! `password_checks` verifications run at once, at most [`WAITING`] wait for one, and the rest are told to come back later. Runs happen on
//! blocking threads, never on the ones that serve connections. The 19 MiB are kept and used again: allocated and freed on whatever thread
//! comes along, they would stay behind in every thread's heap.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use argon2::password_hash::{Output, ParamsString, PasswordHash, Salt, SaltString};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use subtle::ConstantTimeEq as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use zeroize::Zeroizing;

/// Callers that may wait for a run: two seconds of work. More are refused with [`PasswordError::Busy`].
const WAITING: usize = 64;
/// The longest password that is hashed; longer input is refused before it costs anything.
pub const MAX_PASSWORD_BYTES: usize = 256;

/// A password that wipes itself and never shows up in a log.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes the text over.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text itself, for comparing and hashing.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Why a password could not be hashed or verified. A wrong password is not an error.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PasswordError {
    /// Too many verifications wait already.
    #[error("too many passwords are being verified")]
    Busy,
    /// The stored hash cannot be read.
    #[error("the stored password hash cannot be read")]
    Corrupt,
    /// The new password cannot be accepted.
    #[error("the password must have {min} to {MAX_PASSWORD_BYTES} bytes", min = MIN_PASSWORD_BYTES)]
    Length,
    /// argon2 itself refused.
    #[error("the password cannot be hashed: {0}")]
    Hash(String),
}

/// The shortest password that can be set.
pub const MIN_PASSWORD_BYTES: usize = 8;

/// argon2id as OWASP recommends it: 19 MiB, two passes, one lane.
fn params() -> Params {
    Params::new(19 * 1024, 2, 1, None).expect("the parameters are constants within argon2's limits")
}

/// Working memory of argon2, kept for the next run while there is one: 19 MiB are a tenth of what a server takes with ten thousand watchers.
type Memory = Vec<Block>;

/// Bytes of a hash.
const HASH_BYTES: usize = 32;

/// Hashes a new password into the PHC text form. Costs some 20 ms: call it on a blocking thread.
pub fn hash(password: &Secret) -> Result<String, PasswordError> {
    hash_with(password, &mut Memory::new())
}

fn hash_with(password: &Secret, memory: &mut Memory) -> Result<String, PasswordError> {
    let length = password.expose().len();
    if !(MIN_PASSWORD_BYTES..=MAX_PASSWORD_BYTES).contains(&length) {
        return Err(PasswordError::Length);
    }
    let failed = |error: &dyn fmt::Display| PasswordError::Hash(error.to_string());
    let mut salt = [0u8; 16];
    getrandom::fill(&mut salt).map_err(|error| failed(&error))?;
    let salt = SaltString::encode_b64(&salt).map_err(|error| failed(&error))?;
    let params = params();
    let output = run(password, salt.as_salt(), &params, Version::V0x13, memory).map_err(|error| failed(&error))?;
    let hash = PasswordHash {
        algorithm: Algorithm::Argon2id.ident(),
        version: Some(Version::V0x13.into()),
        params: ParamsString::try_from(&params).map_err(|error| failed(&error))?,
        salt: Some(salt.as_salt()),
        hash: Some(Output::new(&output).map_err(|error| failed(&error))?),
    };
    Ok(hash.to_string())
}

/// Whether the password fits the stored hash. Costs some 20 ms: call it on a blocking thread.
fn verify(password: &Secret, stored: &str, memory: &mut Memory) -> Result<bool, PasswordError> {
    let corrupt = |_| PasswordError::Corrupt;
    let stored = PasswordHash::new(stored).map_err(corrupt)?;
    let params = Params::try_from(&stored).map_err(corrupt)?;
    let version = stored.version.map_or(Ok(Version::V0x13), Version::try_from).map_err(|_| PasswordError::Corrupt)?;
    let (Some(salt), Some(expected)) = (stored.salt, stored.hash) else { return Err(PasswordError::Corrupt) };
    if stored.algorithm != Algorithm::Argon2id.ident() {
        return Err(PasswordError::Corrupt);
    }
    let output = run(password, salt, &params, version, memory).map_err(corrupt)?;
    Ok(expected.as_bytes().ct_eq(&output).into())
}

fn run(
    password: &Secret,
    salt: Salt<'_>,
    params: &Params,
    version: Version,
    memory: &mut Memory,
) -> Result<[u8; HASH_BYTES], argon2::password_hash::Error> {
    let mut bytes = [0u8; Salt::MAX_LENGTH];
    let salt = salt.decode_b64(&mut bytes)?;
    memory.resize(params.block_count(), Block::default());
    let mut output = [0u8; HASH_BYTES];
    let argon2 = Argon2::new(Algorithm::Argon2id, version, params.clone());
    argon2.hash_password_into_with_memory(password.expose().as_bytes(), salt, &mut output, memory)?;
    Ok(output)
}

/// Runs verifications with the bounds named at the top.
#[derive(Debug, Clone)]
pub struct Verifier {
    /// Callers that may wait or run.
    places: usize,
    /// Bounded: one permit for each of them; none left means [`PasswordError::Busy`].
    queue: Arc<Semaphore>,
    running: Arc<Semaphore>,
    /// Bounded: as many as run at once. Empty when nobody waits for a turn.
    memories: Arc<Mutex<Vec<Memory>>>,
    /// What an unknown user's password is compared with, so that the time does not tell who exists.
    decoy: Arc<str>,
    /// Runs of argon2 so far.
    runs: Arc<AtomicU64>,
}

impl Verifier {
    /// At most so many verifications at once. Prepares the decoy hash.
    pub fn new(parallel: usize) -> Result<Self, PasswordError> {
        let decoy = hash(&Secret::new("nobody's password".into()))?;
        Ok(Self {
            places: parallel + WAITING,
            queue: Arc::new(Semaphore::new(parallel + WAITING)),
            running: Arc::new(Semaphore::new(parallel)),
            memories: Arc::default(),
            decoy: decoy.into(),
            runs: Arc::default(),
        })
    }

    /// Runs of argon2 since the start.
    pub fn runs(&self) -> u64 {
        self.runs.load(Ordering::Relaxed)
    }

    /// Keeps working memory for the next run, if there is one.
    fn keep(&self, memory: Memory) {
        // The place of the run that ends is still taken.
        let others = self.places.saturating_sub(self.queue.available_permits() + 1);
        let mut memories = lock(&self.memories);
        if others > 0 {
            memories.push(memory);
        } else {
            memories.clear();
        }
    }

    /// Waits for a turn; [`PasswordError::Busy`] when too many wait already.
    pub async fn turn(&self) -> Result<Turn, PasswordError> {
        let queued = self.queue.clone().try_acquire_owned().map_err(|_| PasswordError::Busy)?;
        let running = self.running.clone().acquire_owned().await.map_err(|_| PasswordError::Busy)?;
        Ok(Turn { verifier: self.clone(), permits: (queued, running) })
    }
}

/// The right to run argon2 once.
#[derive(Debug)]
pub struct Turn {
    verifier: Verifier,
    permits: Permits,
}

/// Held until the next one's turn may begin.
type Permits = (OwnedSemaphorePermit, OwnedSemaphorePermit);

impl Turn {
    /// Whether the password fits; with no stored hash the answer is no, after the same work. The next one's turn begins when the
    /// permits are dropped.
    pub async fn verify(self, password: Secret, stored: Option<&str>) -> Result<(bool, Permits), PasswordError> {
        if password.expose().len() > MAX_PASSWORD_BYTES {
            return Ok((false, self.permits));
        }
        let known = stored.is_some();
        let stored: Arc<str> = stored.map_or_else(|| self.verifier.decoy.clone(), Arc::from);
        let (fits, permits) = self.run(move |memory| verify(&password, &stored, memory)).await?;
        Ok((fits && known, permits))
    }

    /// Hashes a new password under the same bounds.
    pub async fn hash(self, password: Secret) -> Result<String, PasswordError> {
        let (hash, _) = self.run(move |memory| hash_with(&password, memory)).await?;
        Ok(hash)
    }

    async fn run<T: Send + 'static>(
        self,
        work: impl FnOnce(&mut Memory) -> Result<T, PasswordError> + Send + 'static,
    ) -> Result<(T, Permits), PasswordError> {
        // The permits travel with the work: a caller that goes away does not free a thread that is still busy.
        let task = tokio::task::spawn_blocking(move || {
            let Self { verifier, permits } = self;
            verifier.runs.fetch_add(1, Ordering::Relaxed);
            let mut memory = lock(&verifier.memories).pop().unwrap_or_default();
            let done = work(&mut memory);
            verifier.keep(memory);
            done.map(|done| (done, permits))
        });
        task.await.map_err(|_| PasswordError::Busy)?
    }
}

fn lock(memories: &Mutex<Vec<Memory>>) -> std::sync::MutexGuard<'_, Vec<Memory>> {
    memories.lock().expect("no code panics while it holds this lock")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn secret(text: &str) -> Secret {
        Secret::new(text.into())
    }

    #[tokio::test]
    async fn a_password_fits_only_its_own_hash() {
        let verifier = Verifier::new(2).unwrap();
        let stored = verifier.turn().await.unwrap().hash(secret("correct horse")).await.unwrap();
        assert!(stored.starts_with("$argon2id$"));
        let fits = async |password: &str, stored: Option<&str>| {
            verifier.turn().await.unwrap().verify(secret(password), stored).await.unwrap().0
        };
        assert!(fits("correct horse", Some(&stored)).await);
        assert!(!fits("battery staple", Some(&stored)).await);
        assert!(!fits("nobody's password", None).await);
        assert_eq!(verifier.runs(), 4);
    }

    #[test]
    fn hashes_are_what_everybody_calls_argon2id() {
        use argon2::password_hash::PasswordVerifier as _;
        let stored = hash(&secret("correct horse")).unwrap();
        let parsed = PasswordHash::new(&stored).unwrap();
        assert!(Argon2::default().verify_password(b"correct horse", &parsed).is_ok(), "{stored}");
    }

    #[tokio::test]
    async fn memory_is_used_again() {
        let verifier = Verifier::new(2).unwrap();
        let runs =
            (0..6).map(|_| async { verifier.turn().await?.verify(secret("x"), None).await.map(|(fits, _)| fits) });
        futures::future::join_all(runs).await;
        assert!(lock(&verifier.memories).len() <= 2);
    }

    #[tokio::test]
    async fn memory_is_kept_only_for_those_who_wait() {
        let verifier = Verifier::new(2).unwrap();
        let kept = || {
            verifier.keep(Memory::new());
            lock(&verifier.memories).len()
        };
        let _own = verifier.turn().await.unwrap();
        assert_eq!(kept(), 0);
        let other = verifier.turn().await.unwrap();
        assert_eq!(kept(), 1);
        drop(other);
        assert_eq!(kept(), 0);
    }

    #[tokio::test]
    async fn a_flood_is_refused_instead_of_queued() {
        let verifier = Verifier::new(2).unwrap();
        let _all = verifier.queue.clone().acquire_many_owned((2 + WAITING) as u32).await.unwrap();
        assert!(matches!(verifier.turn().await, Err(PasswordError::Busy)));
    }

    #[test]
    fn lengths_are_bounded() {
        assert!(matches!(hash(&secret("short")), Err(PasswordError::Length)));
        assert!(matches!(hash(&secret(&"x".repeat(257))), Err(PasswordError::Length)));
    }

    #[test]
    fn a_secret_does_not_show_itself() {
        assert!(!format!("{:?}", secret("hush")).contains("hush"));
    }
}
