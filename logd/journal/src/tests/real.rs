//! On the real file system: locks, other processes' eyes, waiting.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::*;
use crate::{JournalError, View};

const PATIENCE: Option<Duration> = Some(Duration::from_secs(60));

#[test]
fn a_second_writer_is_refused_with_the_name_of_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let first = Journal::open(dir.path(), Options { node: "n1".into(), ..Options::default() }).unwrap();
    let error = Journal::open(dir.path(), Options { node: "n2".into(), ..Options::default() }).unwrap_err();
    assert!(matches!(error, JournalError::Lock(_)));
    let text = error.to_string();
    assert!(text.contains("logd of node n1") && text.contains(&format!("pid {}", std::process::id())), "{text}");
    first.close().unwrap();
    Journal::open(dir.path(), Options::default()).unwrap();
}

/// A log that was quiet over a restart or several.
#[test]
fn a_journal_without_records_is_opened_again_and_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut uuids = Vec::new();
    for _ in 0..3 {
        let journal = Journal::open(dir.path(), Options::default()).unwrap();
        journal.ensure_subscriber("a").unwrap();
        uuids.push(journal.uuid());
        journal.close().unwrap();
    }
    for text in ["first", "second"] {
        let journal = Journal::open(dir.path(), Options::default()).unwrap();
        uuids.push(journal.uuid());
        journal.append(text.as_bytes()).unwrap();
        journal.close().unwrap();
    }
    let journal = Journal::open(dir.path(), Options::default()).unwrap();
    assert!(uuids.iter().all(|uuid| *uuid == journal.uuid()), "{uuids:?}");
    // Numbers may be left out, and nothing is missing.
    assert_eq!(read_all(&mut journal.reader_of("a").unwrap()), ["2=first", "3=second"]);
}

#[test]
fn a_view_reads_what_is_synced_and_waits_for_more() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path(), Options { segment_bytes: 4096, ..Options::default() }).unwrap();
    journal.subscribe("a").unwrap();
    journal.append(b"first").unwrap();
    let view = View::open(dir.path()).unwrap();
    let mut reader = view.reader(0).unwrap();
    assert_eq!(read_all(&mut reader), ["1=first"]);
    assert!(!reader.wait(Some(Duration::from_millis(10))).unwrap(), "there is nothing more yet");
    let waiting = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let mut read = 0;
            while read < 300 {
                waiting.store(true, Ordering::Release);
                assert!(reader.wait(PATIENCE).unwrap(), "after {read} records");
                read += read_all(&mut reader).len();
            }
        });
        while !waiting.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        for i in 0..300 {
            journal.append(format!("line {i} of the log").as_bytes()).unwrap();
        }
        reading.join().unwrap();
    });
    assert!(view.subscribers().unwrap().len() == 1 && journal.status().unwrap().segments.len() > 2);
}

#[test]
fn subscribers_can_be_changed_from_beside() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path(), Options { segment_bytes: 1000, ..Options::default() }).unwrap();
    for i in 0..100 {
        journal.append(format!("a line of the log, number {i}").as_bytes()).unwrap();
    }
    let mut view = View::open(dir.path()).unwrap();
    view.subscribe("tool").unwrap();
    view.set_position("tool", 90).unwrap();
    assert_eq!(journal.subscribers().unwrap()[0].next, 90);
    assert!(view.collect().unwrap().segments > 0);
    assert!(read_all(&mut journal.reader_of("tool").unwrap()).len() == 11);
    journal.append(b"it goes on").unwrap();
    view.set_position("tool", 1).unwrap();
    let read = read_all(&mut journal.reader_of("tool").unwrap());
    assert!(read[0].contains("gone with their segments"), "{}", read[0]);
    view.unsubscribe("tool").unwrap();
    assert!(matches!(view.unsubscribe("tool"), Err(JournalError::NoSubscriber { .. })));
}

#[test]
fn an_empty_directory_is_no_journal() {
    let dir = tempfile::tempdir().unwrap();
    let error = View::open(dir.path()).unwrap_err();
    assert!(matches!(error, JournalError::NotAJournal { .. }), "{error}");
}

#[test]
fn a_journal_of_an_earlier_boot_is_read_without_a_writer() {
    let fs = Simulation::new();
    let journal = open(&fs, small());
    for i in 0..20 {
        journal.append(format!("line {i}").as_bytes()).unwrap();
    }
    let left = fs.after_power_loss(&mut crate::fs::simulation::Seeded(1));
    let view = View::open_on(Arc::new(left), dir()).unwrap();
    assert_eq!(read_all(&mut view.reader(0).unwrap()).len(), 20);
}

/// The bytes of version 1: whoever changes them changes the version.
#[test]
fn the_files_of_version_1() {
    use crate::fs::Fs;
    let fs = Simulation::new();
    let journal = open(&fs, small());
    journal.subscribe("master").unwrap();
    journal.append(b"a line").unwrap();
    journal.checkpoint("master", 2).unwrap();
    journal.append(&[b'.'; 200]).unwrap();
    journal.append(b"behind a mark").unwrap();
    journal.close().unwrap();
    let mut out = String::new();
    for name in fs.list(dir()).unwrap() {
        let file = fs.open(&dir().join(&name), false).unwrap();
        let mut bytes = vec![0; file.length().unwrap() as usize];
        crate::fs::read_full_at(&*file, &mut bytes, 0).unwrap();
        out += &format!("{name}\n");
        for line in bytes.chunks(32) {
            let hex: Vec<String> =
                line.chunks(8).map(|eight| eight.iter().map(|b| format!("{b:02x}")).collect()).collect();
            out += &format!("  {}\n", hex.join(" "));
        }
    }
    insta::assert_snapshot!(out);
}
