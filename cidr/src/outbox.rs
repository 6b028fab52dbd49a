//! The windows that this node counted, on disk until every server has them.
//!
//! A journal of logd's with a subscriber per server. A window is handed in when the journal has synced it; a server that is dead or far
//! away finds everything since it was last heard of. Only when [`MAX_BACKLOG_BYTES`] lie here for it, the oldest go, and that is said.

use std::path::Path;
use std::sync::Arc;

use logd_journal::{Batch, Durability, Event, Item, Journal, JournalError, Lost, Options, Reader};
use tokio::sync::watch;

use crate::hand_in::{HandIn, MAX_MESSAGE_BYTES, Portion};

/// A month of windows of a busy node; the disk is shared with others.
const MAX_BACKLOG_BYTES: u64 = 10 << 30;
/// A message is full at this size: large enough that a week's backlog is few round trips, small beside the memory of a server.
const MESSAGE_BYTES: usize = 4 << 20;
/// Records of a message: each may become a file on the server, all of them in one commit.
const MESSAGE_RECORDS: usize = 512;
/// A batch of the journal takes less than 64 MiB.
const BATCH_BYTES: usize = 32 << 20;

const _: () = assert!(MESSAGE_BYTES * 2 < MAX_MESSAGE_BYTES);

/// The journal of windows.
pub struct Outbox {
    journal: Arc<Journal>,
    written: watch::Sender<u64>,
}

impl Outbox {
    /// Opens or makes it.
    pub fn open(dir: &Path, node: &str) -> Result<Self, JournalError> {
        let options = Options {
            program: "cidr".into(),
            node: node.into(),
            durability: Durability::Safe,
            max_backlog_bytes: Some(MAX_BACKLOG_BYTES),
            on_event: Some(Arc::new(tell)),
            ..Options::default()
        };
        let journal = Arc::new(Journal::open(dir, options)?);
        Ok(Self { written: watch::Sender::new(journal.synced()), journal })
    }

    /// Hands windows in, durably. Blocks for the disk.
    pub fn put(&self, portions: &[Portion]) -> Result<(), JournalError> {
        let mut batch = Batch::new();
        for record in portions.iter().flat_map(Portion::encode) {
            if !batch.is_empty() && batch.size_bytes() + record.len() > BATCH_BYTES {
                self.journal.append_batch(&mut batch)?;
                batch.clear();
            }
            let ended = portions.first().map_or(0, |portion| portion.end);
            batch.push(ended.unsigned_abs().saturating_mul(1_000_000), &record)?;
        }
        if !batch.is_empty() {
            self.journal.append_batch(&mut batch)?;
        }
        if !portions.is_empty() {
            self.written.send_replace(self.journal.synced());
        }
        Ok(())
    }

    /// Keeps windows for these servers and for no others. A new one gets what is still there.
    pub fn set_servers(&self, servers: &[String]) -> Result<(), JournalError> {
        for known in self.journal.subscribers()? {
            if !servers.contains(&known.name) {
                tracing::info!(server = known.name, "no longer a CIDR server: windows are not kept for it");
                self.journal.unsubscribe(&known.name)?;
            }
        }
        servers.iter().try_for_each(|server| self.journal.ensure_subscriber(server))
    }

    /// Reads what a server has not acknowledged.
    pub fn courier(&self, server: &str) -> Result<Courier, JournalError> {
        let reader = self.journal.reader_of(server)?;
        Ok(Courier { journal: Arc::clone(&self.journal), server: server.into(), reader, lost: 0, left: None })
    }

    /// Changes with every hand-in.
    pub fn written(&self) -> watch::Receiver<u64> {
        self.written.subscribe()
    }

    /// Records that wait, by server.
    pub fn waiting(&self) -> Result<Vec<(String, u64)>, JournalError> {
        let end = self.journal.synced();
        let servers = self.journal.subscribers()?;
        Ok(servers.into_iter().map(|server| (server.name, end.saturating_sub(server.next))).collect())
    }
}

fn tell(event: &Event) {
    match event {
        Event::Dropped(dropped) => tracing::error!(?dropped, "windows were lost: a server was away too long"),
        Event::TornTail { .. } | Event::UnfinishedSegment { .. } => tracing::info!(?event, "the journal of windows"),
        _ => tracing::warn!(?event, "the journal of windows"),
    }
}

/// One server's reader.
pub struct Courier {
    journal: Arc<Journal>,
    server: String,
    reader: Reader,
    lost: u64,
    /// A record that did not fit into the last message.
    left: Option<(u64, Vec<u8>)>,
}

impl Courier {
    /// The next message; none when the server has everything. Call [`Self::acknowledge`] before the next one.
    pub fn next(&mut self) -> Result<Option<HandIn>, JournalError> {
        let mut records: Vec<(u64, Vec<u8>)> = self.left.take().into_iter().collect();
        let mut bytes: usize = records.iter().map(|(_, record)| record.len()).sum();
        let mut next = records.last().map(|(number, _)| number + 1);
        while bytes < MESSAGE_BYTES && records.len() < MESSAGE_RECORDS {
            match self.reader.next_item()? {
                None => break,
                Some(Item::Gap(gap)) => {
                    let lost = if gap.lost == Lost::Damaged { gap.to - gap.from } else { 0 };
                    self.lost += lost;
                    tracing::error!(server = self.server, %gap, "windows are missing in the journal");
                    next = Some(gap.to);
                }
                Some(Item::Record(record)) => {
                    let item = (record.sequence, record.payload.to_vec());
                    if !records.is_empty() && bytes + item.1.len() > MESSAGE_BYTES {
                        self.left = Some(item);
                        break;
                    }
                    next = Some(item.0 + 1);
                    bytes += item.1.len();
                    records.push(item);
                }
            }
        }
        Ok(next.map(|next| HandIn { journal: self.journal.uuid().0, next, records }))
    }

    /// The server has everything below this number.
    pub fn acknowledge(&self, next: u64) -> Result<(), JournalError> {
        self.journal.checkpoint(&self.server, next).map(drop)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use cidr_engine::{Address, Counts};

    fn portion(end: i64, rows: u32) -> Portion {
        let counts: Counts = (0..rows).map(|bits| (Address::V4(bits), 1)).collect();
        Portion { series: "spam".into(), start: end - 60, end, counts }
    }

    #[test]
    fn servers_get_everything_in_messages_of_a_bounded_size() {
        let dir = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(dir.path(), "n1").unwrap();
        outbox.set_servers(&["n1".into(), "n2".into()]).unwrap();
        for end in 1..=2_000 {
            outbox.put(&[portion(end * 60, 3)]).unwrap();
        }
        outbox.put(&[portion(120_060, 1_500_000), portion(120_060, 1_500_000)]).unwrap();
        assert_eq!(outbox.waiting().unwrap(), [("n1".into(), 2_002), ("n2".into(), 2_002)]);
        let mut courier = outbox.courier("n2").unwrap();
        let (mut next, mut records, mut messages) = (1, 0, 0);
        while let Some(message) = courier.next().unwrap() {
            assert!(message.encode().len() < MAX_MESSAGE_BYTES);
            assert_eq!(message.records.first().unwrap().0, next);
            next = message.next;
            records += message.records.len();
            messages += 1;
            courier.acknowledge(next).unwrap();
        }
        assert_eq!((records, messages), (2_002, 5));
        drop((courier, outbox));
        // After a restart, one server has everything and the other nothing.
        let outbox = Outbox::open(dir.path(), "n1").unwrap();
        assert!(outbox.courier("n2").unwrap().next().unwrap().is_none());
        assert_eq!(outbox.courier("n1").unwrap().next().unwrap().unwrap().records.len(), MESSAGE_RECORDS);
        outbox.set_servers(&["n2".into()]).unwrap();
        assert_eq!(outbox.waiting().unwrap(), [("n2".into(), 0)]);
    }
}
