//! Warns of a subscriber that does not read, long before `max_backlog` makes somebody pay for it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::wire::protocol::LogStatus;
use crate::wire::service::Service;

/// How often is looked: a full journal of the usual limit takes minutes at the fastest disks.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// Looks until `stop`.
pub(super) async fn watch(service: Arc<Service>, stop: CancellationToken) {
    let mut known = Known::default();
    while stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
        let service = service.clone();
        let Ok(Ok(logs)) = tokio::task::spawn_blocking(move || service.status()).await else { continue };
        for (log, subscriber, percent) in known.new_ones(&logs) {
            tracing::warn!(log, subscriber, percent, "a subscriber has not read so much of max_backlog");
        }
    }
}

/// Who is far behind: half of `max_backlog` or more; by log and subscriber, with the percentage.
pub fn far_behind(logs: &[LogStatus]) -> impl Iterator<Item = (&str, &str, u64)> {
    logs.iter().filter(|log| log.max_backlog > 0).flat_map(|log| {
        let percent = |bytes: u64| bytes.saturating_mul(100) / log.max_backlog;
        let each = log.subscribers.iter().map(move |one| (log.log.as_str(), one.name.as_str(), percent(one.bytes)));
        each.filter(|(.., percent)| *percent >= 50)
    })
}

/// Whom was warned of; again only after they had caught up.
#[derive(Debug, Default)]
struct Known(BTreeSet<(String, String)>);

impl Known {
    fn new_ones<'a>(&mut self, logs: &'a [LogStatus]) -> Vec<(&'a str, &'a str, u64)> {
        let now: Vec<_> = far_behind(logs).collect();
        let key = |(log, subscriber, _): &(&str, &str, u64)| ((*log).to_owned(), (*subscriber).to_owned());
        let before = std::mem::replace(&mut self.0, now.iter().map(key).collect());
        now.into_iter().filter(|one| !before.contains(&key(one))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::protocol::SubscriberStatus;

    fn log(behind_bytes: u64) -> LogStatus {
        let subscriber = SubscriberStatus {
            name: "m1".into(),
            next: 1,
            records: 1,
            bytes: behind_bytes,
            seconds: 1,
            dropped: 0,
            reader: None,
        };
        LogStatus {
            log: "a".into(),
            configured: true,
            bytes: behind_bytes,
            first: 1,
            next: 2,
            cut_lines: 0,
            full: false,
            blocked: false,
            max_backlog: 1000,
            subscribers: vec![subscriber],
        }
    }

    #[test]
    fn one_warning_until_it_has_caught_up() {
        let mut known = Known::default();
        let mut warnings =
            |bytes| known.new_ones(&[log(bytes)]).iter().map(|(.., percent)| *percent).collect::<Vec<_>>();
        assert!(warnings(499).is_empty());
        assert_eq!(warnings(520), [52]);
        assert!(warnings(990).is_empty(), "it is known");
        assert!(warnings(10).is_empty());
        assert_eq!(warnings(1000), [100]);
        let unlimited = LogStatus { max_backlog: 0, ..log(1000) };
        assert_eq!(far_behind(&[unlimited]).count(), 0);
    }
}
