//! What changes a journal.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use clap::{Args, Subcommand};
use logd_journal::{Event, Journal, Options, View};
use serde_json::json;

use super::{Failure, Ui, show, view};

/// Make a journal
#[derive(Debug, Args)]
pub(super) struct Create {
    /// Subscribers from the first record on
    #[arg(short, long = "subscriber", value_name = "SUBSCRIBER")]
    subscribers: Vec<String>,
    /// Where
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(super) enum SubscriberCommand {
    /// List subscribers and how far they are behind (-s)
    List {
        /// The journal
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
    /// Add a subscriber that gets everything that is there (-a)
    Add {
        /// Its name
        name: String,
        /// The journals
        #[arg(value_name = "DIR", required = true)]
        dirs: Vec<PathBuf>,
    },
    /// Erase a subscriber (-e)
    #[command(alias = "remove")]
    Erase {
        /// Its name
        name: String,
        /// The journals
        #[arg(value_name = "DIR", required = true)]
        dirs: Vec<PathBuf>,
    },
}

pub(super) fn subscriber(command: &SubscriberCommand, ui: &mut Ui<'_>) -> Result<(), Failure> {
    match command {
        SubscriberCommand::List { dir } => show::subscribers(&mut view(dir)?, ui),
        SubscriberCommand::Add { name, dirs } => dirs.iter().try_for_each(|dir| add(&view(dir)?, name, true, ui)),
        SubscriberCommand::Erase { name, dirs } => dirs.iter().try_for_each(|dir| erase(&view(dir)?, name, true, ui)),
    }
}

pub(super) fn create(create: &Create, ui: &mut Ui<'_>) -> Result<(), Failure> {
    if std::fs::read_dir(&create.dir).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(crate::jlog::OldError::Exists { path: create.dir.clone() }.into());
    }
    let journal = Journal::open(&create.dir, options())?;
    create.subscribers.iter().try_for_each(|name| journal.ensure_subscriber(name))?;
    let uuid = journal.uuid().to_string();
    journal.close()?;
    ui.print(|| json!({ "uuid": uuid }), format!("journal {uuid}\n"))
}

/// How `jlogctl` opens what it has for itself.
pub(super) fn options() -> Options {
    // Nothing goes by age or size because somebody looked.
    let keep = logd_journal::Keep { age: std::time::Duration::MAX, bytes: u64::MAX };
    Options { program: "jlogctl".into(), sync_delay: None, keep, ..Options::default() }
}

pub(super) fn add(view: &View, name: &str, verbose: bool, ui: &mut Ui<'_>) -> Result<(), Failure> {
    view.subscribe(name)?;
    let next = view.subscriber(name)?.next;
    say(verbose, ui, || json!({ "added": name, "next": next }), format!("added {name} at {next}\n"))
}

pub(super) fn erase(view: &View, name: &str, verbose: bool, ui: &mut Ui<'_>) -> Result<(), Failure> {
    let removed = view.unsubscribe(name)?;
    let value = || json!({ "erased": name, "segments_removed": removed.segments, "bytes_removed": removed.bytes });
    say(verbose, ui, value, format!("erased {name}; {} segments removed\n", removed.segments))
}

pub(super) fn set(view: &mut View, name: &str, next: u64, verbose: bool, ui: &mut Ui<'_>) -> Result<(), Failure> {
    view.set_position(name, next)?;
    say(verbose, ui, || json!({ "set": name, "next": next }), format!("{name} is at {next}\n"))
}

pub(super) fn clean(view: &mut View, verbose: bool, ui: &mut Ui<'_>) -> Result<(), Failure> {
    let removed = view.collect()?;
    let value = || json!({ "segments_removed": removed.segments, "bytes_removed": removed.bytes });
    say(verbose, ui, value, format!("{} segments removed, {} bytes\n", removed.segments, removed.bytes))
}

/// Opens the journal for writing and closes it again: that is the repair.
pub(super) fn repair(dir: &Path, ui: &mut Ui<'_>) -> Result<(), Failure> {
    // Only what is a journal: opening would make one.
    drop(view(dir)?);
    let events: Arc<Mutex<Vec<Event>>> = Arc::default();
    let heard = Arc::clone(&events);
    let listener = move |event: &Event| heard.lock().unwrap_or_else(PoisonError::into_inner).push(event.clone());
    let journal = Journal::open(dir, Options { on_event: Some(Arc::new(listener)), ..options() })?;
    for damaged in journal.subscribers()?.into_iter().filter(|one| !one.sound) {
        journal.checkpoint(&damaged.name, journal.first()?)?;
    }
    journal.close()?;
    let events = std::mem::take(&mut *events.lock().unwrap_or_else(PoisonError::into_inner));
    if events.is_empty() {
        return ui.print(|| json!({ "repaired": [] }), "nothing to repair\n");
    }
    let texts: Vec<String> = events.iter().map(in_words).collect();
    ui.print(|| json!({ "repaired": texts }), texts.iter().map(|text| format!("{text}\n")).collect::<String>())
}

fn in_words(event: &Event) -> String {
    match event {
        Event::TornTail { path, offset, bytes, records } => {
            format!(
                "{}: a torn tail of {bytes} bytes ({records} whole records, none acknowledged) was cut at {offset}",
                path.display()
            )
        }
        Event::UnfinishedSegment { path } => {
            format!("{}: was never finished and held nothing; removed", path.display())
        }
        Event::Rot { path, bytes } => {
            format!("{}: {bytes} damaged bytes stay; readers are told what is missing", path.display())
        }
        Event::Wiped { path } => format!("{}: its segments were gone; it is another journal now", path.display()),
        Event::DamagedSubscriber { name } => {
            format!("subscriber {name}: its position was damaged; it gets everything that is there")
        }
        other => format!("{other:?}"),
    }
}

fn say(verbose: bool, ui: &mut Ui<'_>, value: impl FnOnce() -> serde_json::Value, text: String) -> Result<(), Failure> {
    if verbose || ui.json { ui.print(value, text) } else { Ok(()) }
}
