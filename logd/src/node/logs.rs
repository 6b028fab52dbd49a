//! The table of this node's logs, and what a new configuration does to it.
//!
//! A log that is no longer configured keeps its journal: managers still drain it, and it is opened again at every start as long as its directory is
//! there. Only its inputs end. Nobody's lines wait for another log's change.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cluster::documents::schema::logd::Log as Settings;
use logd_journal::JournalError;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::log::{Log, Place, Writer};
use crate::input::{self, Running};
use crate::path::Names;

/// Where journals are, below the daemon's data directory.
pub const JOURNALS: &str = "journal";

/// How long inputs may take to get their last lines to the disk.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// This node's logs.
#[derive(Debug)]
pub struct Logs {
    context: input::Context,
    failed: CancellationToken,
    table: Mutex<BTreeMap<String, Entry>>,
    /// Counts changes of the table, for managers that wait for new logs.
    changes: watch::Sender<u64>,
}

#[derive(Debug)]
struct Entry {
    log: Arc<Log>,
    writer: Writer,
    /// What feeds it, as it was configured.
    inputs: Option<(Settings, Running)>,
}

impl Logs {
    /// A node without logs; journals that are there already are opened, for whoever has not read them yet.
    pub fn open(context: input::Context) -> Result<Arc<Self>, JournalError> {
        let logs =
            Self { context, failed: CancellationToken::new(), table: Mutex::default(), changes: watch::Sender::new(1) };
        for name in logs.on_disk() {
            logs.open_log(&name, None)?;
        }
        Ok(Arc::new(logs))
    }

    /// Takes the logs of a new configuration. What cannot be opened is an error, and what was running goes on as it was.
    pub async fn configure(&self, wanted: &BTreeMap<String, Settings>) -> Result<(), JournalError> {
        for (name, settings) in wanted {
            match self.get(name) {
                Some(log) => log.configure(Some(settings))?,
                None => self.open_log(name, Some(settings))?,
            }
        }
        for name in self.names() {
            let settings = wanted.get(&name);
            if settings.is_none()
                && let Some(log) = self.get(&name)
            {
                log.configure(None)?;
            }
            self.feed(&name, settings).await;
        }
        self.changed();
        Ok(())
    }

    /// Starts, stops or exchanges what feeds a log. Inputs whose settings stay are not touched.
    async fn feed(&self, name: &str, settings: Option<&Settings>) {
        let taken = {
            let mut table = self.lock();
            let Some(entry) = table.get_mut(name) else { return };
            let same = match (&entry.inputs, settings) {
                (Some((old, _)), Some(new)) => old.input == new.input && old.max_line == new.max_line,
                (None, None) => true,
                _ => false,
            };
            if same {
                return;
            }
            entry.inputs.take()
        };
        if let Some((_, running)) = taken {
            // With a full disk the old input's last lines wait for room; the new one need not.
            let _ = tokio::time::timeout(STOP_PATIENCE, running.stop()).await;
        }
        let (Some(settings), Some(log)) = (settings, self.get(name)) else { return };
        let running = input::start(&log, settings, &self.context);
        if let Some(entry) = self.lock().get_mut(name) {
            entry.inputs = Some((settings.clone(), running));
        }
    }

    /// Ends the inputs, lets the writers finish, and closes the journals.
    pub async fn stop(&self) {
        let entries: Vec<Entry> = std::mem::take(&mut *self.lock()).into_values().collect();
        let mut writers = Vec::new();
        let mut stopping = Vec::new();
        for Entry { log, writer, inputs } in entries {
            writers.push(writer);
            stopping.push(async move {
                let inputs = async {
                    if let Some((_, running)) = inputs {
                        running.stop().await;
                    }
                };
                tokio::pin!(inputs);
                if tokio::time::timeout(STOP_PATIENCE, &mut inputs).await.is_err() {
                    log.give_up();
                    inputs.await;
                }
                log.stop();
            });
        }
        futures::future::join_all(stopping).await;
        let joined = tokio::task::spawn_blocking(|| writers.into_iter().for_each(Writer::join));
        let _ = joined.await;
    }

    /// A log by name.
    pub fn get(&self, name: &str) -> Option<Arc<Log>> {
        self.lock().get(name).map(|entry| Arc::clone(&entry.log))
    }

    /// All logs.
    pub fn all(&self) -> Vec<Arc<Log>> {
        self.lock().values().map(|entry| Arc::clone(&entry.log)).collect()
    }

    /// Changes whenever there are other logs.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Subscribers have changed: managers that wait for a change look again.
    pub fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Cancelled when a journal can no longer be written.
    pub fn failed(&self) -> &CancellationToken {
        &self.failed
    }

    fn names(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Entry>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn directory(&self) -> PathBuf {
        self.context.data.join(JOURNALS)
    }

    fn on_disk(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.directory()) else { return Vec::new() };
        // A directory without a segment never held a line.
        let holds_journal = |path: PathBuf| logd_journal::View::open(&path).is_ok();
        let mut names: Vec<String> = entries
            .flatten()
            .filter(|entry| holds_journal(entry.path()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        names
    }

    fn open_log(&self, name: &str, settings: Option<&Settings>) -> Result<(), JournalError> {
        let names = Names { log: name.into(), ..self.context.names.clone() };
        let place = Place { dir: self.directory().join(name), names, failed: self.failed.clone() };
        let (log, writer) = Log::open(&place, settings)?;
        self.lock().insert(name.into(), Entry { log, writer, inputs: None });
        Ok(())
    }
}
