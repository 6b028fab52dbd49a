//! Telling the cluster what became of a target.
//!
//! Only the newest report of a program means anything, so there is no queue: a newer one replaces one that could not be sent yet.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::snapshot::Shared;
use super::{Settings, Version};
use crate::api::{NodeReport, ReportState};
use crate::error::Chain;
use crate::http_client::{ApiClient, Backoff, Call, escape};

/// A reason is for people; whole logs belong elsewhere.
const DETAIL_LIMIT_CHARS: usize = 4000;

/// Reports about the configuration in use.
#[derive(Debug, Clone)]
pub struct Reporter {
    shared: Arc<Shared>,
}

impl Reporter {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The configuration in use proved good (`Healthy`) or bad (`Failed`). Nothing is reported while none is in use.
    pub fn report(&self, state: ReportState, detail: impl Into<String>) {
        if let Some(version) = self.shared.running_version() {
            self.shared.report(&version, state, detail.into());
        }
    }
}

/// The way to the servers; without one (a directory is followed) reports are log lines only.
#[derive(Debug)]
pub(super) struct Reports {
    newest: Option<watch::Sender<Option<NodeReport>>>,
}

impl Reports {
    pub(super) fn start(client: Option<ApiClient>, settings: &Settings) -> Self {
        let Some(client) = client else { return Self { newest: None } };
        let (newest, reports) = watch::channel(None);
        let path = format!("/api/v1/nodes/{}/report", escape(&settings.node));
        tokio::spawn(deliver(client, path, reports, settings.stop.clone()));
        Self { newest: Some(newest) }
    }

    pub(super) fn send(&self, settings: &Settings, version: &Version, state: ReportState, detail: String) {
        let (Some(newest), Some(serial)) = (&self.newest, version.serial) else { return };
        let search_path = settings.search_path.as_ref().map(|path| path.directories().to_vec());
        let report = NodeReport {
            program: settings.program.clone(),
            serial,
            repos: version.repos.clone(),
            state,
            detail: detail.chars().take(DETAIL_LIMIT_CHARS).collect(),
            steps: Vec::new(),
            search_path,
            version: env!("CARGO_PKG_VERSION").into(),
            time: None,
        };
        newest.send_if_modified(|newest| {
            let changed = newest.as_ref() != Some(&report);
            if changed {
                *newest = Some(report);
            }
            changed
        });
    }
}

async fn deliver(
    client: ApiClient,
    path: String,
    mut reports: watch::Receiver<Option<NodeReport>>,
    stop: CancellationToken,
) {
    let mut backoff = Backoff::default();
    while let Some(Ok(())) = stop.run_until_cancelled(reports.changed()).await {
        loop {
            let Some(report) = reports.borrow_and_update().clone() else { break };
            match post(&client, &path, &report).await {
                Ok(()) => {
                    backoff.reset();
                    break;
                }
                Err(error) if error.is_temporary() => {
                    tracing::debug!(error = %Chain(&error), "report not delivered yet");
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = tokio::time::sleep(backoff.next_delay()) => {}
                        // A newer report need not wait for the older one's pause to end; it is picked up above.
                        Ok(()) = reports.changed() => reports.mark_changed(),
                    }
                }
                Err(error) => {
                    tracing::warn!(error = %Chain(&error), serial = report.serial, "report refused by the server");
                    break;
                }
            }
        }
    }
}

async fn post(client: &ApiClient, path: &str, report: &NodeReport) -> Result<(), crate::http_client::ClientError> {
    // The same report twice changes nothing, so any server may be tried.
    let key = format!("{}-{}-{:?}", report.program, report.serial, report.state).to_lowercase();
    let key = format!("{key}-{:08x}", crc(report.detail.as_bytes()));
    client.send(Call::post(path).json(report)?.idempotency_key(&key)).await.map(drop)
}

/// Tells reports with different reasons apart; no protection against anything.
fn crc(bytes: &[u8]) -> u32 {
    use sha2::{Digest as _, Sha256};
    let digest = Sha256::digest(bytes);
    u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]])
}
