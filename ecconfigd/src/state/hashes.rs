//! What replicas compare: the running hash at each index, and the hash of the whole table at some.
//!
//! The running hash covers every write since the beginning, so one difference shows for ever after; it says nothing of a row that was
//! spoiled where it lies. The digest reads all rows. It is cut behind every entry that has a tick, which all replicas apply at the same
//! index, and computed later, beside the work.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};

use redb::{ReadTransaction, ReadableTable as _};
use sha2::{Digest as _, Sha256};

use super::db::{State, StateError, TABLE, damaged};

/// Indexes whose hash is remembered: some seconds of the heaviest load, while members ask every second.
const KEPT_HASHES: usize = 8192;
/// Digests that are remembered: members compute them within a minute of each other.
const KEPT_DIGESTS: usize = 16;

/// A hash.
pub(crate) type Hash = [u8; 32];

/// What is remembered.
#[derive(Default)]
pub(super) struct Hashes {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    hashes: VecDeque<(u64, Hash)>,
    digests: VecDeque<(u64, Hash)>,
    due: Option<(u64, ReadTransaction)>,
}

impl Hashes {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was applied, in order.
    pub(super) fn note(&self, applied: impl IntoIterator<Item = (u64, Hash)>) {
        let mut inner = self.lock();
        for item in applied {
            if inner.hashes.len() == KEPT_HASHES {
                inner.hashes.pop_front();
            }
            inner.hashes.push_back(item);
        }
    }

    /// The whole state was replaced.
    pub(super) fn restart(&self, at: Option<(u64, Hash)>) {
        *self.lock() = Inner { hashes: at.into_iter().collect(), ..Inner::default() };
    }

    /// The table as it is at this index is to be read when there is time. One that still waits is given up for it.
    pub(super) fn digest_later(&self, index: u64, table: ReadTransaction) {
        self.lock().due = Some((index, table));
    }
}

fn find(all: &VecDeque<(u64, Hash)>, index: u64) -> Option<Hash> {
    let at = all.binary_search_by_key(&index, |(index, _)| *index).ok()?;
    all.get(at).map(|(_, hash)| *hash)
}

impl State {
    /// The running hash at an index, if it was passed not long ago.
    pub(crate) fn hash_at(&self, index: u64) -> Option<Hash> {
        find(&self.hashes.lock().hashes, index)
    }

    /// The hash of the whole table at an index, if it was computed not long ago.
    pub(crate) fn digest_at(&self, index: u64) -> Option<Hash> {
        find(&self.hashes.lock().digests, index)
    }

    /// The newest index with a digest.
    pub(crate) fn newest_digest(&self) -> Option<u64> {
        self.hashes.lock().digests.back().map(|(index, _)| *index)
    }

    /// Computes the digest that is due, if one is. Blocks. An error says that the table cannot be read.
    pub(crate) fn compute_digest(&self) -> Result<Option<u64>, StateError> {
        let Some((index, read)) = self.hashes.lock().due.take() else { return Ok(None) };
        // Pages that were spoiled under the database can make it panic.
        let digest = catch_unwind(AssertUnwindSafe(|| digest(&read)));
        let digest = digest.unwrap_or_else(|_| Err(damaged(b"", "the table cannot be read")))?;
        let mut inner = self.hashes.lock();
        // A snapshot may have been installed in between.
        if inner.digests.back().is_none_or(|(newest, _)| *newest < index) {
            if inner.digests.len() == KEPT_DIGESTS {
                inner.digests.pop_front();
            }
            inner.digests.push_back((index, digest));
        }
        Ok(Some(index))
    }
}

fn digest(read: &ReadTransaction) -> Result<Hash, StateError> {
    let mut hash = Sha256::new();
    for item in read.open_table(TABLE)?.iter()? {
        let (key, value) = item?;
        for field in [key.value(), value.value()] {
            hash.update((field.len() as u64).to_le_bytes());
            hash.update(field);
        }
    }
    Ok(hash.finalize().into())
}

#[cfg(test)]
impl State {
    /// As if something else had been applied here.
    pub(crate) fn spoil_hash(&self) {
        let _alone = self.apply.lock().unwrap_or_else(PoisonError::into_inner);
        let mut view = self.view().as_ref().clone();
        view.hash[0] ^= 1;
        self.hashes.restart(Some((view.applied_index(), view.hash)));
        self.view.store(std::sync::Arc::new(view));
    }

    /// A row that no entry wrote.
    pub(crate) fn spoil_table(&self) {
        let _alone = self.apply.lock().unwrap_or_else(PoisonError::into_inner);
        let mut write = self.db.load().begin_write().expect("the database can be written");
        // Durable with the next checkpoint, as everything else.
        write.set_durability(redb::Durability::None).expect("nothing is written yet");
        let key: &[u8] = b"user/nobody";
        write.open_table(TABLE).expect("it has the table").insert(key, key).expect("it takes a row");
        write.commit().expect("it can be written");
    }
}
