//! One log's way into one sink: read, put, confirm, checkpoint; from the start of what was not confirmed after every failure.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cluster::documents::schema::logd::{Sink as Settings, TooLarge};
use logd_journal::{Item, JournalError, Reader};
use tokio_util::sync::CancellationToken;

use super::{Context, Figures, Message, Outlet, Put, SinkError, aside, open};
use crate::node::Log;
use crate::path::Names;

/// What is put at once; with the sink's own copy of it, all the memory that a log and a sink need.
const BATCH_BYTES: usize = 256 << 10;
/// The same in records.
const BATCH_RECORDS: usize = 1024;
/// Between attempts to reach a sink.
const RETRY: std::ops::Range<Duration> = Duration::from_millis(200)..Duration::from_secs(10);

pub(super) struct Feed {
    pub(super) sink: String,
    pub(super) settings: Settings,
    pub(super) log: Arc<Log>,
    pub(super) context: Context,
    pub(super) figures: Arc<Figures>,
    pub(super) stop: CancellationToken,
}

/// How far a connection has come.
struct Progress {
    /// The number after the last record that was put.
    put: u64,
    /// Records that were put and are not confirmed.
    unconfirmed: u64,
    /// When the first of them was put.
    since: Instant,
}

impl Feed {
    pub(super) async fn run(self) {
        let (mut pause, mut complaint) = (RETRY.start, String::new());
        let mut batch_records = BATCH_RECORDS;
        loop {
            let sending = self.send(&mut pause, batch_records);
            let Some(result) = self.stop.run_until_cancelled(sending).await else { return };
            let Err(error) = result else { return };
            // A line that waits is tried alone, or those behind it would be sent each time.
            batch_records = if matches!(error, SinkError::TooLarge(_)) { 1 } else { BATCH_RECORDS };
            self.figures.failures.fetch_add(1, Ordering::Relaxed);
            self.figures.waiting.store(true, Ordering::Relaxed);
            let words = cluster::error::Chain(&error).to_string();
            if words != complaint {
                tracing::warn!(sink = self.sink, log = self.log.name(), error = words, "the sink's records wait");
                complaint = words;
            }
            if self.stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
            pause = (pause * 2).min(RETRY.end);
        }
    }

    /// Connects and sends until something goes wrong. Ends well when the log has.
    async fn send(&self, pause: &mut Duration, mut batch_records: usize) -> Result<(), SinkError> {
        let mut outlet = self.open().await?;
        let mut reader = self.log.journal().reader_of(&self.settings.subscriber)?;
        let mut synced = self.log.synced();
        let mut progress = Progress { put: reader.position().next, unconfirmed: 0, since: Instant::now() };
        loop {
            let messages;
            (reader, messages) = self.read(reader, batch_records).await?;
            let next = reader.position().next;
            if messages.is_empty() && progress.unconfirmed == 0 {
                // What was skipped (damage, `max_backlog`) must not be waited for.
                progress.put = next;
                tokio::select! {
                    arrived = synced.wait_for(|synced| *synced > next) => if arrived.is_err() { return Ok(()) },
                    error = outlet.idle(), if !outlet.is_spent() => return Err(error),
                }
                continue;
            }
            if !messages.is_empty() {
                if outlet.is_spent() {
                    outlet = self.open().await?;
                }
                if progress.unconfirmed == 0 {
                    progress.since = Instant::now();
                }
                self.put(&mut *outlet, &messages, &mut progress).await?;
                progress.put = next;
                batch_records = BATCH_RECORDS;
            }
            let due = progress.since + outlet.confirm_every();
            if due <= Instant::now() {
                self.confirm(&mut *outlet, &mut progress).await?;
                *pause = RETRY.start;
            } else if messages.is_empty() {
                tokio::select! {
                    arrived = synced.wait_for(|synced| *synced > next) => if arrived.is_err() { return Ok(()) },
                    () = tokio::time::sleep_until(due.into()) => {}
                    error = outlet.idle() => return Err(error),
                }
            }
        }
    }

    /// Sends records; what is too long for the sink is put aside, or ends the connection with everything before it confirmed.
    async fn put(
        &self,
        outlet: &mut dyn Outlet,
        messages: &[Message],
        progress: &mut Progress,
    ) -> Result<(), SinkError> {
        let mut rest = messages;
        while !rest.is_empty() {
            let Put::Before { place, why } = outlet.put(rest).await? else {
                progress.unconfirmed += rest.len() as u64;
                return Ok(());
            };
            let (before, behind) = rest.split_at(place);
            progress.unconfirmed += before.len() as u64;
            let Some((too_large, behind)) = behind.split_first() else { return Ok(()) };
            progress.put = too_large.sequence;
            if self.settings.too_large == TooLarge::Wait {
                self.confirm(outlet, progress).await?;
                return Err(SinkError::TooLarge(why));
            }
            self.put_aside(too_large, &why).await?;
            progress.unconfirmed += 1;
            rest = behind;
        }
        Ok(())
    }

    async fn put_aside(&self, message: &Message, why: &str) -> Result<(), SinkError> {
        let path = aside::path_of(&self.context.data, &self.sink, self.log.name());
        let (file, copy) = (path.clone(), message.clone());
        let done = tokio::task::spawn_blocking(move || aside::put(&file, &copy)).await;
        let done = done.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        done.map_err(|source| SinkError::Aside { path: path.clone(), source })?;
        self.figures.aside.fetch_add(1, Ordering::Relaxed);
        let (sink, log, bytes) = (&self.sink, self.log.name(), message.payload.len());
        tracing::error!(sink, log, bytes, why, path = %path.display(), "a line is too long for the sink and put aside");
        Ok(())
    }

    async fn open(&self) -> Result<Box<dyn Outlet>, SinkError> {
        let names = Names { log: self.log.name().into(), ..self.context.names.clone() };
        open(&self.sink, &self.settings, &names, &self.context).await
    }

    async fn confirm(&self, outlet: &mut dyn Outlet, progress: &mut Progress) -> Result<(), SinkError> {
        outlet.confirm().await?;
        let (log, subscriber, next) = (self.log.clone(), self.settings.subscriber.clone(), progress.put);
        blocking(move || log.journal().checkpoint(&subscriber, next).map(drop)).await?;
        self.figures.confirmed.fetch_add(std::mem::take(&mut progress.unconfirmed), Ordering::Relaxed);
        self.figures.waiting.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// The next records; none when there are none yet.
    async fn read(&self, mut reader: Reader, batch_records: usize) -> Result<(Reader, Vec<Message>), SinkError> {
        let (uuid, sink, log) = (self.log.journal().uuid(), self.sink.clone(), self.log.name().to_owned());
        blocking(move || {
            let (mut messages, mut bytes) = (Vec::new(), 0);
            while messages.len() < batch_records && bytes < BATCH_BYTES {
                match reader.next_item()? {
                    Some(Item::Record(record)) => {
                        bytes += record.payload.len();
                        let id = format!("{uuid}-{}", record.sequence);
                        let (sequence, time_us) = (record.sequence, record.time_us);
                        messages.push(Message { id, sequence, time_us, payload: record.payload.to_vec() });
                    }
                    Some(Item::Gap(gap)) => tracing::error!(sink, log, what = %gap, "lines are missing"),
                    None => break,
                }
            }
            Ok((reader, messages))
        })
        .await
    }
}

/// Runs something that reads or writes the disk.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, JournalError> + Send + 'static,
) -> Result<T, SinkError> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.map_err(|error| SinkError::Io(std::io::Error::other(error)))??)
}
