#![allow(clippy::unwrap_used)]
//! The journal as a whole, on a file system in memory and on the real one.

mod crash;
mod limits;
mod real;
mod rot;
mod stories;

use std::path::Path;
use std::sync::{Arc, Mutex};

use crate::fs::simulation::Simulation;
use crate::{Event, Item, Journal, Options, Reader};

/// The directory in the simulation; it needs no other.
fn dir() -> &'static Path {
    Path::new("j")
}

/// Small segments, no thread: what happens depends on nothing but the calls.
fn small() -> Options {
    Options { segment_bytes: 700, sync_delay: None, ..Options::default() }
}

fn open(fs: &Simulation, options: Options) -> Journal {
    Journal::open_on(Arc::new(fs.clone()), dir(), options).unwrap()
}

/// Everything from a reader's place on as text: `7=payload` for records, the gap's words for gaps.
fn read_all(reader: &mut Reader) -> Vec<String> {
    let mut out = Vec::new();
    while let Some(item) = reader.next_item().unwrap() {
        out.push(match item {
            Item::Record(record) => {
                format!("{}={}", record.sequence, String::from_utf8_lossy(record.payload))
            }
            Item::Gap(gap) => gap.to_string(),
        });
    }
    out
}

/// Options whose events are collected.
fn listening(options: Options) -> (Options, Arc<Mutex<Vec<Event>>>) {
    let events: Arc<Mutex<Vec<Event>>> = Arc::default();
    let collected = Arc::clone(&events);
    let on_event = move |event: &Event| collected.lock().unwrap().push(event.clone());
    (Options { on_event: Some(Arc::new(on_event)), ..options }, events)
}
