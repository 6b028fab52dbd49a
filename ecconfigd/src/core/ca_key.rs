//! The CA's key is where the votes are: a new voter gets it from another over their connection, and who votes no more deletes it.
//!
//! What always holds: it travels only to a node that votes by this node's own membership, and no copy is deleted before another voter has
//! said that it holds one. The last copy would take the cluster's trust with it.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use cluster::error::Chain;
use cluster::identity::{Ca, IdentityError};
use zeroize::Zeroizing;

use crate::peer::{Client, Method, Refusal, RefusalCode, Target};

/// Whether the asked node holds the key; every server may know.
const HOLD: &[u8] = b"hold";
/// The key itself.
const GIVE: &[u8] = b"give";
/// How long an answer may take.
const WITHIN: Duration = Duration::from_secs(5);

/// What this node knows of itself and the others.
pub(super) struct Votes<'a> {
    /// The data directory.
    pub(super) data: &'a Path,
    /// Whether this node votes, now and by its record.
    pub(super) votes: bool,
    /// Whether its record says that it shall not vote, or there is none although there are others.
    pub(super) gone: bool,
    /// The others that vote.
    pub(super) voters: Vec<Target>,
}

/// Gets the key or deletes it, if one of the two is due.
pub(super) async fn look(votes: &Votes<'_>, client: &Client) -> Result<(), String> {
    let held = Ca::key_file(votes.data).exists();
    match (votes.votes, held) {
        (true, false) => get(votes, client).await,
        (false, true) if votes.gone => delete(votes, client).await,
        _ => Ok(()),
    }
}

async fn get(votes: &Votes<'_>, client: &Client) -> Result<(), String> {
    let mut why = "no other node votes".to_owned();
    for target in &votes.voters {
        match client.call(target, Method::CA_KEY, Bytes::from_static(GIVE), WITHIN).await {
            Ok(key) => return keep(votes.data, &key).await,
            Err(error) => why = error.to_string(),
        }
    }
    Err(format!("the CA's key could not be had: {why}"))
}

async fn keep(data: &Path, key: &[u8]) -> Result<(), String> {
    let (data, key) = (data.to_owned(), Zeroizing::new(key.to_vec()));
    let kept = tokio::task::spawn_blocking(move || {
        let key = std::str::from_utf8(&key).map_err(|_| "it is no PEM file".to_owned())?;
        let certificate = std::fs::read_to_string(data.join("ca.pem")).map_err(|error| error.to_string())?;
        // Refuses a key that does not belong to this cluster's certificate.
        let ca = Ca::from_pem(&certificate, key).map_err(|error| Chain(&error).to_string())?;
        ca.store(&data).map_err(|error| Chain(&error).to_string())
    });
    kept.await.map_err(|error| error.to_string())??;
    tracing::info!("this node votes and holds the CA's key now");
    Ok(())
}

async fn delete(votes: &Votes<'_>, client: &Client) -> Result<(), String> {
    for target in &votes.voters {
        let answer = client.call(target, Method::CA_KEY, Bytes::from_static(HOLD), WITHIN).await;
        if answer.is_ok_and(|answer| answer[..] == [1]) {
            let file = Ca::key_file(votes.data);
            let removed = tokio::task::spawn_blocking(move || cluster::files::remove(&file));
            removed.await.map_err(|error| error.to_string())?.map_err(|error| Chain(&error).to_string())?;
            tracing::info!("this node does not vote any more: its copy of the CA's key is deleted");
            return Ok(());
        }
    }
    Err("no other voter says that it holds the CA's key, so this node's copy stays".into())
}

/// Answers another node. `voters` are the numbers of those that vote, `caller` is one of the members.
pub(super) async fn answer(
    data: &Path,
    body: &[u8],
    caller: Option<u64>,
    voters: &BTreeSet<u64>,
) -> Result<Bytes, Refusal> {
    let data = data.to_owned();
    let loaded = tokio::task::spawn_blocking(move || Ca::load(&data));
    let ca = match loaded.await.map_err(Refusal::failed)? {
        Ok(ca) => Some(ca),
        Err(IdentityError::Missing { .. }) => None,
        Err(error) => return Err(Refusal::failed(Chain(&error))),
    };
    match (body, ca) {
        (HOLD, ca) => Ok(Bytes::copy_from_slice(&[u8::from(ca.is_some())])),
        (GIVE, _) if !caller.is_some_and(|caller| voters.contains(&caller)) => {
            Err(Refusal::new(RefusalCode::Stranger, "the CA's key is for voters"))
        }
        (GIVE, Some(ca)) => Ok(Bytes::copy_from_slice(ca.key_pem().as_bytes())),
        (GIVE, None) => Err(Refusal::new(RefusalCode::NotNow, "this node does not hold the CA's key")),
        _ => Err(Refusal::bad("it asks for something else than the CA's key")),
    }
}
