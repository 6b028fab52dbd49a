//! Watchers that move from node to node: by choice, or because theirs died.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use openraft::AsyncRuntime as _;
use tokio::sync::mpsc;

use super::clients::repo;
use super::cluster::World;
use super::invariants::watch_gap_free::Received;
use super::node::Node;
use super::oracle::Revision;
use super::rng::Rng;
use super::runtime::{Scheduler, locked, now, sleep_us};
use crate::state::Head;
use crate::watch::{Globs, Watch};

/// What the subscriber was sent; shared with the run, which compares it at the end.
pub(super) type Inbox = Arc<Mutex<Received>>;

/// Starts a subscriber from revision 0 on; it goes on until the run is dropped.
pub(super) fn start(world: &World, number: u64, globs: &[&str]) -> Inbox {
    let patterns: Vec<String> = globs.iter().map(|glob| (*glob).to_owned()).collect();
    let globs = Globs::new(&patterns).expect("good globs");
    let received = Received { repo: repo("default"), globs, events: Vec::new() };
    let inbox = Arc::new(Mutex::new(received));
    let rng = Rng::new(world.plan.seed).fork(2000 + number);
    drop(Scheduler::spawn(run(world.clone(), rng, inbox.clone())));
    inbox
}

async fn run(world: World, mut rng: Rng, inbox: Inbox) {
    // Where the stream says to resume: the last event, as a client would.
    let mut last = 0;
    while world.failure().is_none() {
        let running = world.running();
        let Some(node) = rng.pick(&running).cloned() else {
            sleep_us(10_000).await;
            continue;
        };
        drop(running);
        let mut events = connect(node, &world, &inbox, last);
        let until = now() + Duration::from_millis(rng.between(100, 900));
        // A closed stream is a dead node, or one that ends its watchers.
        while let Ok(Some(event)) = Scheduler::timeout(until.saturating_sub(now()), events.recv()).await {
            last = event.head.revision;
            locked(&inbox).events.push(event);
            world.history(|history| history.events += 1);
        }
        sleep_us(rng.between(500, 20_000)).await;
    }
}

/// A stream of events from a node.
fn connect(node: Node, world: &World, inbox: &Inbox, last: u64) -> mpsc::Receiver<Revision> {
    // As many as a socket would hold; then the node's side waits.
    let (sender, receiver) = mpsc::channel(16);
    let (name, globs) = {
        let inbox = locked(inbox);
        (inbox.repo.clone(), inbox.globs.clone())
    };
    let (state, scope, disk, world) = (node.state.clone(), node.scope.clone(), node.disk.clone(), world.clone());
    drop(node);
    scope.spawn(async move {
        if disk.out().is_some() {
            return;
        }
        let Ok(mut watch) = Watch::new(state, name, Some(last), globs) else { return };
        loop {
            let next = Scheduler::select2(sender.closed(), watch.next()).await;
            let openraft::async_runtime::Select2::Second(Some(event)) = next else { return };
            let record = &event.record;
            let revision = Revision {
                repo: record.repo.clone(),
                head: Head { revision: record.revision, commit: record.commit },
                message: record.message.clone(),
                paths: record.paths.clone(),
            };
            sleep_us(world.net().client_delay_us()).await;
            if sender.send(revision).await.is_err() {
                return;
            }
        }
    });
    receiver
}
