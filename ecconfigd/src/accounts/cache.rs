//! Remembers verified credentials for a moment, so that a git client that polls with a password is not a CPU attack.
//!
//! An entry is keyed by a keyed hash of user and password (the key lives only in this process) and carries the stored hash that it was
//! verified against: when the stored hash changes, on whichever node, the entry no longer matches. Nothing here can be turned back into
//! a password, and the table is bounded.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::password::Secret;

/// How long a verified password is believed without running argon2 again.
const KEEP: Duration = Duration::from_secs(300);
/// Entries, at some 100 bytes each. At the bound the oldest one goes: its owner pays one argon2 run.
const MAX_ENTRIES: usize = 4096;

/// The cache; see the module's words.
pub struct CredentialCache {
    key: [u8; 32],
    entries: Mutex<HashMap<[u8; 32], Entry>>,
}

struct Entry {
    stored: [u8; 32],
    verified: Instant,
}

impl CredentialCache {
    /// An empty cache under a fresh key.
    pub fn new() -> Result<Self, getrandom::Error> {
        let mut key = [0u8; 32];
        getrandom::fill(&mut key)?;
        Ok(Self { key, entries: Mutex::default() })
    }

    /// Whether this password was verified against this stored hash a moment ago.
    pub fn knows(&self, user: &str, password: &Secret, stored: &str, now: Instant) -> bool {
        let entries = self.entries.lock().expect("no code panics while it holds this lock");
        let entry = entries.get(&self.digest(user, password));
        entry.is_some_and(|entry| entry.stored == self.digest_of(stored) && now.duration_since(entry.verified) < KEEP)
    }

    /// Remembers a verification that succeeded.
    pub fn remember(&self, user: &str, password: &Secret, stored: &str, now: Instant) {
        let entry = Entry { stored: self.digest_of(stored), verified: now };
        let mut entries = self.entries.lock().expect("no code panics while it holds this lock");
        if entries.len() >= MAX_ENTRIES {
            make_room(&mut entries, now);
        }
        entries.insert(self.digest(user, password), entry);
    }

    fn digest(&self, user: &str, password: &Secret) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(self.key);
        hash.update((user.len() as u64).to_be_bytes());
        hash.update(user);
        hash.update(password.expose());
        hash.finalize().into()
    }

    fn digest_of(&self, stored: &str) -> [u8; 32] {
        Sha256::new().chain_update(self.key).chain_update(stored).finalize().into()
    }
}

/// Drops what is too old, and the oldest entry if that was not enough.
fn make_room(entries: &mut HashMap<[u8; 32], Entry>, now: Instant) {
    entries.retain(|_, entry| now.duration_since(entry.verified) < KEEP);
    if entries.len() >= MAX_ENTRIES
        && let Some(oldest) = entries.iter().min_by_key(|(_, entry)| entry.verified).map(|(key, _)| *key)
    {
        entries.remove(&oldest);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_entry_ends_with_time_and_with_the_password() {
        let cache = CredentialCache::new().unwrap();
        let (now, password) = (Instant::now(), Secret::new("p".into()));
        cache.remember("admin", &password, "hash-1", now);
        assert!(cache.knows("admin", &password, "hash-1", now));
        assert!(!cache.knows("admin", &password, "hash-2", now), "a changed password must be verified again");
        assert!(!cache.knows("admin", &password, "hash-1", now + KEEP));
        assert!(!cache.knows("adminp", &Secret::new(String::new()), "hash-1", now));
        assert!(!cache.knows("admin", &Secret::new("q".into()), "hash-1", now));
    }

    #[test]
    fn the_table_is_bounded() {
        let cache = CredentialCache::new().unwrap();
        let now = Instant::now();
        for number in 0..MAX_ENTRIES + 10 {
            cache.remember(
                &number.to_string(),
                &Secret::new("p".into()),
                "h",
                now + Duration::from_micros(number as u64),
            );
        }
        assert_eq!(cache.entries.lock().unwrap().len(), MAX_ENTRIES);
        let last = (MAX_ENTRIES + 9).to_string();
        assert!(cache.knows(&last, &Secret::new("p".into()), "h", now + Duration::from_secs(1)));
        assert!(!cache.knows("0", &Secret::new("p".into()), "h", now + Duration::from_secs(1)));
    }
}
