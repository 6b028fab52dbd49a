//! The writer as a task of a simulation: the same steps, but a sync takes virtual time, and a crash can come before it is over.

use futures::future::BoxFuture;
use tokio::sync::mpsc;

use super::writer::{Group, Request, Writer};

/// The simulated disk below the log.
pub(crate) trait Platter: Send + Sync + 'static {
    /// Waits as long as a sync takes.
    fn sync(&self) -> BoxFuture<'static, ()>;

    /// Everything up to this place of this segment is on the disk.
    fn synced(&self, segment: u64, end: u64);

    /// A bug to order: says that it is on the disk before the sync.
    fn acks_early(&self) -> bool;
}

impl Writer {
    /// Serves requests until one closes the log or all senders are gone.
    pub(crate) async fn run_simulated(mut self, mut requests: mpsc::Receiver<Request>, platter: impl Platter) {
        // What an opened log holds was synced when it was opened.
        platter.synced(self.segment.number, self.end);
        let mut group = Group::default();
        while let Some(first) = requests.recv().await {
            let segment = self.segment.number;
            self.gather(&mut group, first, &mut requests);
            if self.segment.number != segment {
                platter.synced(self.segment.number, self.end);
            }
            let (close, must_sync) = (group.close, group.must_sync);
            self.put(&mut group);
            if must_sync && !platter.acks_early() {
                platter.sync().await;
            }
            self.settle(&mut group);
            if must_sync {
                if platter.acks_early() {
                    platter.sync().await;
                }
                platter.synced(self.segment.number, self.end);
            }
            if close {
                return;
            }
        }
    }
}
