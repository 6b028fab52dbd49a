//! Certificates are issued where the CA's key is: a learner that is asked for one hands the question to a voter.
//!
//! What always holds: a learner never gets more than it is asked for. What is asked is judged again by the voter (a token against the state,
//! a renewal against who the caller's certificate says it is), so the key stays worth more than any node that lacks it. What the question
//! and the answer say is the business of whoever issues; here they are bytes.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use cluster::identity::Peer;
use futures::future::BoxFuture;
use openraft::async_runtime::watch::WatchReceiver as _;

use super::{Core, peers};
use crate::error::{Error, Result};
use crate::peer::{Caller, Method, Refusal, RefusalCode};

/// How long an answer may take: it is a signature and a log entry.
const WITHIN: Duration = Duration::from_secs(10);

/// Issues certificates on this node.
pub trait Certifier: Send + Sync + 'static {
    /// Judges and answers another node's question; [`RefusalCode::NotNow`] where this node lacks the key.
    fn certify(self: Arc<Self>, asker: Peer, question: Bytes) -> BoxFuture<'static, Result<Bytes, Refusal>>;
}

impl Core {
    /// Whoever issues certificates here, for as long as it lives.
    pub fn set_certifier(&self, certifier: Weak<dyn Certifier>) {
        let _ = self.inner.certifier.set(certifier);
    }

    /// Asks one voter after the other. `repeatable` says that asking two does no harm.
    pub async fn ask_certifier(&self, question: Bytes, repeatable: bool) -> Result<Bytes> {
        let inner = &self.inner;
        let mut why = "no other node votes".to_owned();
        let Some(client) = &inner.client else { return Err(Error::Unavailable(why)) };
        let metrics = inner.proposer.raft.metrics().borrow_watched().clone();
        let members = &metrics.membership_config;
        let mut voters: Vec<u64> = members.voter_ids().filter(|id| *id != inner.raft_id).collect();
        // The leader first: what it issues it also writes down without another hop.
        voters.sort_by_key(|id| metrics.current_leader != Some(*id));
        for id in voters {
            let Some(node) = members.membership().get_node(&id) else { continue };
            match client.call(&peers::target(id, node), Method::CERTIFY, question.clone(), WITHIN).await {
                Ok(answer) => return Ok(answer),
                Err(error) if error.may_have_happened() && !repeatable => {
                    return Err(Error::Unavailable(format!("{error}; it may have happened")));
                }
                Err(error) => why = error.to_string(),
            }
        }
        Err(Error::Unavailable(format!("only a voter holds the CA's key, and none answered: {why}")))
    }

    /// Another node's question.
    pub(super) async fn certify(&self, caller: &Caller, question: Bytes) -> Result<Bytes, Refusal> {
        let certifier = self.inner.certifier.get().and_then(Weak::upgrade);
        let certifier = certifier.ok_or_else(|| Refusal::new(RefusalCode::NotNow, "it is starting or stopping"))?;
        certifier.certify(caller.peer.clone(), question).await
    }
}
