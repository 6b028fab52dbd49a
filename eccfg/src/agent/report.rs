//! Telling the cluster how far this node got.
//!
//! Reports go out beside the work, never in its way: a server that is slow or gone does not hold an update up. Only the newest
//! report matters (it says how far the node is), so the mailbox holds one, and what could not be delivered is sent again
//! until a newer one takes its place.

use std::time::Duration;

use cluster::api::NodeReport;
use cluster::http_client::{ApiClient, Backoff, Call, ClientError, escape};
use tokio::sync::watch;

use crate::server::random_key;

/// Where reports are left.
#[derive(Clone, Debug)]
pub(crate) struct Reporter {
    newest: watch::Sender<Option<NodeReport>>,
}

impl Reporter {
    /// A reporter, and the task that delivers what it is given. It ends when the last reporter has gone: an update that is under
    /// way when the agent is told to end still has its report sent.
    pub(crate) fn new(client: ApiClient, node: String) -> (Reporter, impl Future<Output = ()>) {
        let (newest, reports) = watch::channel(None);
        (Reporter { newest }, deliver(client, node, reports))
    }

    /// Leaves a report; one that was not delivered yet gives way.
    pub(crate) fn send(&self, report: NodeReport) {
        self.newest.send_replace(Some(report));
    }
}

async fn deliver(client: ApiClient, node: String, mut reports: watch::Receiver<Option<NodeReport>>) {
    let path = format!("/api/v1/nodes/{}/report", escape(&node));
    let mut backoff = Backoff::default();
    let mut unsent: Option<NodeReport> = None;
    loop {
        let wait = match &unsent {
            None => Duration::MAX,
            Some(report) => match post(&client, &path, report).await {
                Ok(()) => {
                    backoff.reset();
                    unsent = None;
                    Duration::MAX
                }
                Err(error) if error.is_temporary() => {
                    tracing::debug!(%error, "a report was not delivered yet");
                    backoff.next_delay()
                }
                Err(error) => {
                    tracing::warn!(%error, "the server does not take this node's report");
                    unsent = None;
                    Duration::MAX
                }
            },
        };
        tokio::select! {
            changed = reports.changed() => match changed {
                Ok(()) => unsent.clone_from(&reports.borrow_and_update()),
                Err(_) => break,
            },
            () = tokio::time::sleep(wait) => {}
        }
    }
    // One last try; what is not delivered now is sent again at the next start.
    if let Some(report) = &unsent {
        let _ = post(&client, &path, report).await;
    }
}

async fn post(client: &ApiClient, path: &str, report: &NodeReport) -> Result<(), ClientError> {
    // The same report twice changes nothing, so any server may be tried.
    client.send(Call::post(path).json(report)?.idempotency_key(&random_key())).await.map(drop)
}
