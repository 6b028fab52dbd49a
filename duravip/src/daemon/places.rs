//! Where the other members are: addresses as the configuration has them, names as the resolver knows them. A resolver that
//! does not answer takes nobody away whose place is known, and is asked again about those whose place is not.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cluster::documents::schema::values::{Host, HostPort};
use duravip_core::MemberId;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::inbox::{Inbox, Input};
use super::plan::Plan;

/// The longest that is waited for the resolver.
const PATIENCE: Duration = Duration::from_secs(2);
/// Before it is asked again about names that it did not know.
const AGAIN: Duration = Duration::from_secs(1);
/// Before it is asked again about names that it knew: members move rarely.
const RENEW: Duration = Duration::from_secs(60);

/// The places that are known, each with what the configuration said.
#[derive(Debug, Default)]
pub struct Places {
    known: BTreeMap<MemberId, (HostPort, SocketAddr)>,
    /// Whose names were not known at the last look: said once.
    missing: BTreeSet<MemberId>,
}

impl Places {
    /// The places now.
    pub fn all(&self) -> BTreeMap<MemberId, SocketAddr> {
        self.known.iter().map(|(member, (_, place))| (*member, *place)).collect()
    }

    /// Looks for all members of a configuration, at the same time. Says how soon to look again; not at all, if it has no names.
    pub async fn look(&mut self, plan: &Plan) -> Option<Duration> {
        self.known.retain(|member, (place, _)| plan.peers.get(member) == Some(place));
        let mut lookups = JoinSet::new();
        for (member, place) in plan.peers.clone() {
            match place.host {
                Host::Ip(ip) => drop(self.known.insert(member, (place.clone(), SocketAddr::new(ip, place.port)))),
                Host::Name(_) => drop(lookups.spawn(async move {
                    let found = tokio::time::timeout(PATIENCE, lookup(place.to_string())).await;
                    (member, place, found.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())))
                })),
            }
        }
        let mut again = None;
        while let Some(Ok((member, place, found))) = lookups.join_next().await {
            let found = match found {
                Ok(found) => {
                    self.missing.remove(&member);
                    found
                }
                Err(error) => {
                    if self.missing.insert(member) {
                        tracing::warn!(%place, %error, "a member's name cannot be resolved");
                    }
                    Vec::new()
                }
            };
            // Of several addresses the one in use stays: the resolver may name them in another order each time.
            let stays = self.known.get(&member).is_some_and(|(_, known)| found.contains(known));
            if let Some(first) = found.first().filter(|_| !stays) {
                self.known.insert(member, (place, *first));
            }
            let soon = if self.known.contains_key(&member) { RENEW } else { AGAIN };
            again = again.min(Some(soon)).or(Some(soon));
        }
        again
    }

    /// Keeps the loop informed, until it has ended.
    pub async fn keep(mut self, mut plans: watch::Receiver<Arc<Plan>>, inbox: Inbox, stop: CancellationToken) {
        loop {
            let before = self.all();
            let plan = plans.borrow_and_update().clone();
            let again = self.look(&plan).await;
            if self.all() != before {
                inbox.send(Input::Places(self.all()));
            }
            tokio::select! {
                () = stop.cancelled() => return,
                changed = plans.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(again.unwrap_or_default()), if again.is_some() => {}
            }
        }
    }
}

async fn lookup(place: String) -> io::Result<Vec<SocketAddr>> {
    Ok(tokio::net::lookup_host(place).await?.collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::plan::tests::plan_of;
    use super::*;

    #[tokio::test]
    async fn who_was_found_once_is_not_lost_with_the_resolver() {
        // Its members are 10.0.0.1, n2.example:9 and 10.0.0.3.
        let plan = plan_of("n1", "").unwrap();
        let (n2, n3) = (MemberId::of_name("n2"), MemberId::of_name("n3"));
        let mut places = Places::default();
        assert_eq!(places.look(&plan).await, Some(AGAIN), "n2.example is a name that nobody has");
        assert_eq!(places.all(), [(n3, "10.0.0.3:4803".parse().unwrap())].into());
        let found: SocketAddr = "10.0.0.2:9".parse().unwrap();
        places.known.insert(n2, (plan.peers[&n2].clone(), found));
        assert_eq!(places.look(&plan).await, Some(RENEW));
        assert_eq!(places.all()[&n2], found);
        // What was found for another name says nothing about this one.
        places.known.insert(n2, ("elsewhere.example:9".parse().unwrap(), found));
        places.look(&plan).await;
        assert_eq!(places.all().get(&n2), None);
    }
}
