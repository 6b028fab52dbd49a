//! Knowing the node's target: told by the server within a round trip, asked for now and then when telling fails.

use std::time::Duration;

use cluster::api::Target;
use cluster::http_client::{ApiClient, ClientError, Incoming, escape};
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

/// The newest target that is known, as it changes. `None` before any server has answered.
pub(crate) type Targets = watch::Receiver<Option<Target>>;

/// A task that follows the target of `node` until `stop`, and where its findings appear. While the stream is down the target
/// is asked for every `poll`; a stream that is up is not asked beside. Setting `poll` anew also moves the stream to the client's
/// servers of now, where those have changed.
pub(crate) fn follow(
    client: ApiClient,
    node: &str,
    poll: watch::Receiver<Duration>,
    stop: CancellationToken,
) -> (Targets, impl Future<Output = ()> + use<>) {
    let (sender, targets) = watch::channel(None);
    let path = format!("/api/v1/nodes/{}/target", escape(node));
    (targets, run(client, path, poll, sender, stop))
}

async fn run(
    client: ApiClient,
    path: String,
    mut every: watch::Receiver<Duration>,
    targets: watch::Sender<Option<Target>>,
    stop: CancellationToken,
) {
    // Event 0 is before every serial: the first answer is the present target.
    let mut stream = client.events(&path, Some("0".into()));
    let mut servers = client.servers();
    let mut poll = ticking(*every.borrow_and_update());
    let mut connected = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            incoming = stream.next() => match incoming {
                Ok(Incoming::Connected) => connected = true,
                Ok(Incoming::Event(event)) => match serde_json::from_str::<Target>(&event.data) {
                    Ok(target) => offer(&targets, target),
                    Err(error) => tracing::warn!(%error, "a target that is not understood"),
                },
                Ok(Incoming::Lost(error)) => lost(&mut connected, &error),
                Err(error) => lost(&mut connected, &error),
            },
            Ok(()) = every.changed() => {
                poll = ticking(*every.borrow_and_update());
                if client.servers() != servers {
                    servers = client.servers();
                    stream = client.events(&path, Some(stream.last_event_id().unwrap_or("0").to_owned()));
                    connected = false;
                }
            }
            _ = poll.tick(), if !connected => match client.get_json::<Target>(&path).await {
                Ok(target) => offer(&targets, target),
                Err(error) => tracing::debug!(%error, "no server says what this node shall have"),
            },
        }
    }
}

fn ticking(poll: Duration) -> Interval {
    let mut ticking = tokio::time::interval_at(Instant::now() + poll, poll);
    ticking.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticking
}

/// A target is news when its serial is higher: an answer that was under way longer than a newer one changes nothing.
fn offer(targets: &watch::Sender<Option<Target>>, target: Target) {
    targets.send_if_modified(|known| {
        let news = known.as_ref().is_none_or(|known| known.serial < target.serial);
        if news {
            *known = Some(target);
        }
        news
    });
}

/// Said once per loss, not once per attempt.
fn lost(connected: &mut bool, error: &ClientError) {
    if std::mem::take(connected) {
        tracing::warn!(%error, "lost the server; the configuration stays, and the search for a server goes on");
    } else {
        tracing::debug!(%error, "no server yet");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_target_never_replaces_a_newer_one() {
        let (sender, receiver) = watch::channel(None);
        for serial in [3, 2, 4, 4] {
            offer(&sender, Target { serial, repos: Default::default(), frozen: Vec::new() });
        }
        assert_eq!(receiver.borrow().as_ref().map(|target| target.serial), Some(4));
    }
}
