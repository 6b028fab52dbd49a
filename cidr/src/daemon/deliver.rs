//! Bringing windows from the journal to every server: a task per server, each at its own pace.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cluster::error::Chain;
use cluster::http_client::Backoff;
use tokio_util::sync::CancellationToken;

use crate::hand_in::{HandIn, Merged, merge};
use crate::metrics::ServerLabel;
use crate::outbox::Courier;
use crate::service::Service;

/// How often figures about what waits are taken.
const COUNT_EVERY: Duration = Duration::from_secs(10);

/// Keeps a courier for every server that the settings name.
pub async fn deliver(service: Arc<Service>, stop: CancellationToken) {
    let mut couriers: BTreeMap<String, CancellationToken> = BTreeMap::new();
    let mut count = tokio::time::interval(COUNT_EVERY);
    loop {
        let reconfigured = service.reconfigured.notified();
        let servers = service.settings().servers.clone();
        couriers.retain(|server, stop| {
            let stays = servers.contains(server);
            if !stays {
                stop.cancel();
            }
            stays
        });
        for server in servers {
            couriers.entry(server.clone()).or_insert_with(|| {
                let stop = stop.child_token();
                tokio::spawn(carry(service.clone(), server, stop.clone()));
                stop
            });
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = reconfigured => {}
            _ = count.tick() => {
                let service = service.clone();
                let _ = blocking(move || measure(&service)).await;
            }
        }
    }
}

/// Reads a directory.
fn measure(service: &Service) {
    for (server, waiting) in service.outbox.waiting().unwrap_or_default() {
        service.meters.waiting.get_or_create(&ServerLabel { server }).set(waiting as i64);
    }
}

/// Brings everything to one server, as long as it is one.
async fn carry(service: Arc<Service>, server: String, stop: CancellationToken) {
    let mut backoff = Backoff::default();
    let mut complained = false;
    while !stop.is_cancelled() {
        match carry_on(&service, &server, &stop, &mut backoff, &mut complained).await {
            Ok(()) => return,
            Err(why) => {
                if !std::mem::replace(&mut complained, true) {
                    tracing::warn!(server, why, "windows wait for this server");
                }
            }
        }
        // A changed address may help at once.
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(backoff.next_delay()) => {}
            () = service.reconfigured.notified() => {}
        }
    }
}

async fn carry_on(
    service: &Arc<Service>,
    server: &str,
    stop: &CancellationToken,
    backoff: &mut Backoff,
    complained: &mut bool,
) -> Result<(), String> {
    let mut written = service.outbox.written();
    let words = |error: logd_journal::JournalError| Chain(&error).to_string();
    let (of, to) = (service.clone(), server.to_owned());
    let mut courier = blocking(move || of.outbox.courier(&to)).await?.map_err(words)?;
    loop {
        written.borrow_and_update();
        let (back, message) = blocking(move || next(courier)).await?;
        courier = back;
        let Some(message) = message.map_err(words)? else {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                _ = written.changed() => continue,
            }
        };
        let sent = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            sent = hand_over(service, server, message) => sent,
        };
        let next = sent?;
        if std::mem::take(complained) {
            tracing::info!(server, "windows are delivered again");
        }
        backoff.reset();
        courier = blocking(move || courier.acknowledge(next).map(|()| courier)).await?.map_err(words)?;
    }
}

fn next(mut courier: Courier) -> (Courier, Result<Option<HandIn>, logd_journal::JournalError>) {
    let message = courier.next();
    (courier, message)
}

/// Disks block; tasks must not.
async fn blocking<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(run).await.map_err(|error| error.to_string())
}

/// Brings a message to a server; up to where it has everything then.
async fn hand_over(service: &Arc<Service>, server: &str, message: HandIn) -> Result<u64, String> {
    let next = message.next;
    if server == service.node {
        let service = service.clone();
        blocking(move || receive(&service, &service.node, &message)).await??;
    } else {
        let windows = blocking(move || message.encode()).await?;
        service.peers.deliver(server, windows.into()).await.map_err(|error| error.to_string())?;
    }
    Ok(next)
}

/// Merges a message of a node into the store. Blocks for the disk.
pub fn receive(service: &Service, node: &str, message: &HandIn) -> Result<Merged, String> {
    let store = service.store().ok_or_else(|| format!("{} keeps no counts", service.node))?;
    if let Some(version) = message.later_version() {
        return Err(format!(
            "{node} hands in windows of version {version}, {} knows 1: run the same cidr, or a newer one, here",
            service.node
        ));
    }
    let merged = merge(&store, node, message).map_err(|error| Chain(&error).to_string())?;
    service.meters.merged.inc_by(merged.records);
    service.meters.repeated.inc_by(merged.repeated);
    service.meters.malformed.inc_by(merged.malformed);
    if merged.malformed > 0 {
        tracing::error!(node, records = merged.malformed, "windows that make no sense were dropped");
    }
    Ok(merged)
}
