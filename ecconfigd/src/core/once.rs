//! Doing once what a client repeats under a key, where it is more than one commit.
//!
//! A commit's key is looked up by whoever builds it. Creating and copying repositories is more: what has to be written depends on what is
//! there, and after the first time that is something else. So the key is looked up before, on a node that has caught up, and again where it
//! was refused: an earlier request may have been on its way. What is remembered is the key together with what was to be done, so that a key
//! that is used for something else is another one.

use sha2::{Digest as _, Sha256};

use super::Core;
use crate::error::{Error, Result};
use crate::state::{Author, Head, RepoName};

/// A key, and what is to be done once under it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Once(String);

impl Once {
    /// `what` names everything that the request says.
    pub fn new(key: &str, what: &[&str]) -> Once {
        let mut hash = Sha256::new();
        for part in [&[key], what].concat() {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Once(format!("once {}", hex::encode(&hash.finalize()[..16])))
    }
}

impl Core {
    /// Does it, unless it was done; answers where the repository stood with it. An error of `work` may come of an earlier request under the key,
    /// so it is looked up once more; a refusal inside its success cannot, and stands.
    pub(super) async fn once(
        &self,
        repo: &RepoName,
        author: &Author,
        key: Option<Once>,
        work: impl AsyncFnOnce(Option<String>) -> Result<Result<Head>>,
    ) -> Result<Head> {
        let Some(Once(key)) = key else { return work(None).await? };
        let done = || -> Result<Option<Head>> {
            let known = self.inner.proposer.state.idempotent(&author.user, &key).map_err(Error::internal)?;
            Ok(known.and_then(|known| known.answer.get(repo).map(|(head, _)| *head)))
        };
        self.catch_up().await?;
        if let Some(head) = done()? {
            return Ok(head);
        }
        match work(Some(key.clone())).await {
            // The answer to a refusal is as new as the refusal.
            Err(error) => done()?.ok_or(error),
            Ok(answer) => answer,
        }
    }
}
