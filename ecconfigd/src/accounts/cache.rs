//! Remembers verified credentials for a moment, so that a git client that polls with a password is not a CPU attack.
//!
//! An entry is keyed by a keyed hash of user, password and the stored hash that it was verified against (the key lives only in this
//! process): when the stored hash changes, on whichever node, the entry no longer matches. Nothing here can be turned back into a
//! password, and the tables are bounded. Wrong passwords are remembered as well, in a table of their own that they cannot push anybody's
//! good one out of: a herd of clients with an outdated password costs one argon2 run and not one each.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::password::Secret;

/// How long a verified password is believed without running argon2 again.
const KEEP: Duration = Duration::from_secs(300);
/// How long a wrong one is.
const KEEP_WRONG: Duration = Duration::from_secs(60);
/// Entries, at some 100 bytes each. At the bound the oldest one goes: its owner pays one argon2 run.
const MAX_ENTRIES: usize = 4096;
/// Wrong ones.
const MAX_WRONG: usize = 1024;

/// User, password and stored hash under a key that nobody else has.
pub type Digest32 = [u8; 32];

/// The cache; see the module's words.
pub struct CredentialCache {
    key: [u8; 32],
    good: Table,
    wrong: Table,
}

impl CredentialCache {
    /// An empty cache under a fresh key.
    pub fn new() -> Result<Self, getrandom::Error> {
        let mut key = [0u8; 32];
        getrandom::fill(&mut key)?;
        Ok(Self { key, good: Table::new(KEEP, MAX_ENTRIES), wrong: Table::new(KEEP_WRONG, MAX_WRONG) })
    }

    /// What these credentials are known by. `stored` is `None` for a user who does not exist.
    pub fn digest(&self, user: &str, password: &Secret, stored: Option<&str>) -> Digest32 {
        let mut hash = Sha256::new();
        hash.update(self.key);
        for part in [user, password.expose(), stored.unwrap_or_default()] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        hash.finalize().into()
    }

    /// Whether these credentials fitted or not a moment ago, where that is known.
    pub fn known(&self, credentials: &Digest32, now: Instant) -> Option<bool> {
        if self.good.has(credentials, now) {
            return Some(true);
        }
        self.wrong.has(credentials, now).then_some(false)
    }

    /// Remembers the outcome of a verification.
    pub fn remember(&self, credentials: Digest32, fits: bool, now: Instant) {
        let table = if fits { &self.good } else { &self.wrong };
        table.put(credentials, now);
    }
}

/// Digests and when each was verified.
struct Table {
    keep: Duration,
    max: usize,
    verified: Mutex<HashMap<Digest32, Instant>>,
}

impl Table {
    fn new(keep: Duration, max: usize) -> Self {
        Self { keep, max, verified: Mutex::default() }
    }

    fn has(&self, credentials: &Digest32, now: Instant) -> bool {
        let verified = self.verified.lock().expect("no code panics while it holds this lock");
        verified.get(credentials).is_some_and(|at| now.saturating_duration_since(*at) < self.keep)
    }

    fn put(&self, credentials: Digest32, now: Instant) {
        let mut verified = self.verified.lock().expect("no code panics while it holds this lock");
        if verified.len() >= self.max && !verified.contains_key(&credentials) {
            self.make_room(&mut verified, now);
        }
        verified.insert(credentials, now);
    }

    /// Drops what is too old, and the oldest entry if that was not enough.
    fn make_room(&self, verified: &mut HashMap<Digest32, Instant>, now: Instant) {
        verified.retain(|_, at| now.saturating_duration_since(*at) < self.keep);
        if verified.len() >= self.max
            && let Some(oldest) = verified.iter().min_by_key(|(_, at)| **at).map(|(key, _)| *key)
        {
            verified.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn secret(text: &str) -> Secret {
        Secret::new(text.into())
    }

    #[test]
    fn an_entry_ends_with_time_and_with_the_password() {
        let cache = CredentialCache::new().unwrap();
        let now = Instant::now();
        let digest = |user: &str, password: &str, stored| cache.digest(user, &secret(password), stored);
        cache.remember(digest("admin", "p", Some("hash-1")), true, now);
        let known = |user, password, stored, at| cache.known(&digest(user, password, stored), at);
        assert_eq!(known("admin", "p", Some("hash-1"), now), Some(true));
        assert_eq!(known("admin", "p", Some("hash-2"), now), None, "a changed password must be verified again");
        assert_eq!(known("admin", "p", Some("hash-1"), now + KEEP), None);
        assert_eq!(known("adminp", "", Some("hash-1"), now), None);
        assert_eq!(known("admin", "q", Some("hash-1"), now), None);
    }

    #[test]
    fn a_wrong_password_is_known_as_wrong_and_pushes_no_good_one_out() {
        let cache = CredentialCache::new().unwrap();
        let now = Instant::now();
        let good = cache.digest("admin", &secret("p"), Some("h"));
        cache.remember(good, true, now);
        for number in 0..MAX_WRONG + 10 {
            cache.remember(cache.digest("admin", &secret(&number.to_string()), Some("h")), false, now);
        }
        assert_eq!(cache.wrong.verified.lock().unwrap().len(), MAX_WRONG);
        assert_eq!(cache.known(&good, now), Some(true));
        let last = cache.digest("admin", &secret(&(MAX_WRONG + 9).to_string()), Some("h"));
        assert_eq!(cache.known(&last, now), Some(false));
        assert_eq!(cache.known(&last, now + KEEP_WRONG), None);
    }

    #[test]
    fn the_table_is_bounded() {
        let cache = CredentialCache::new().unwrap();
        let now = Instant::now();
        let digest = |number: usize| cache.digest(&number.to_string(), &secret("p"), Some("h"));
        for number in 0..MAX_ENTRIES + 10 {
            cache.remember(digest(number), true, now + Duration::from_micros(number as u64));
        }
        assert_eq!(cache.good.verified.lock().unwrap().len(), MAX_ENTRIES);
        assert_eq!(cache.known(&digest(MAX_ENTRIES + 9), now + Duration::from_secs(1)), Some(true));
        assert_eq!(cache.known(&digest(0), now + Duration::from_secs(1)), None);
    }
}
