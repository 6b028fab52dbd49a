//! Bounds and refusals that need threads or large sizes.

use std::time::Duration;

use super::*;
use crate::record::{HEADER_BYTES, MAX_PAYLOAD_BYTES};
use crate::{AtLimit, Batch, Durability, JournalError, Position, Uuid};

#[test]
fn a_blocked_writer_goes_on_after_a_checkpoint() {
    let fs = Simulation::new();
    let at_limit = AtLimit::Block(Duration::from_secs(600));
    let (options, events) = listening(Options { max_backlog_bytes: Some(2000), at_limit, ..small() });
    let journal = open(&fs, options);
    journal.subscribe("slow").unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| (0..30).try_for_each(|_| journal.append(&[b'x'; 300]).map(drop)));
        while !events.lock().unwrap().iter().any(|event| matches!(event, Event::Blocked { .. })) {
            std::thread::yield_now();
        }
        while !writer.is_finished() {
            journal.checkpoint("slow", journal.synced()).unwrap();
            std::thread::yield_now();
        }
        writer.join().unwrap().unwrap();
    });
    assert!(journal.status().unwrap().bytes() <= 2000);
}

#[test]
fn the_longest_record_and_readers_that_give_its_memory_back() {
    let fs = Simulation::new();
    let journal = open(&fs, Options::default());
    let mut batch = Batch::new();
    batch.push(1, &vec![7; MAX_PAYLOAD_BYTES]).unwrap();
    assert_eq!(batch.size_bytes(), MAX_PAYLOAD_BYTES + HEADER_BYTES);
    journal.append_batch(&mut batch).unwrap();
    for _ in 0..10_000 {
        journal.append_as(&mut small_batch(), Durability::Fast).unwrap();
    }
    journal.sync().unwrap();
    let mut reader = journal.reader(0);
    let mut records = 0;
    while let Some(item) = reader.next_item().unwrap() {
        assert!(matches!(item, Item::Record(_)));
        records += 1;
    }
    assert_eq!(records, 10_001);
    assert!(reader.buffer_bytes() < 1 << 20, "{}", reader.buffer_bytes());
}

fn small_batch() -> Batch {
    let mut batch = Batch::new();
    batch.push(1, b"a line of a log").unwrap();
    batch
}

#[test]
fn fast_records_are_seen_after_a_sync_not_before() {
    let fs = Simulation::new();
    let journal = open(&fs, Options { durability: Durability::Fast, ..small() });
    let mut reader = journal.reader(0);
    journal.append(b"one").unwrap();
    assert_eq!(read_all(&mut reader), Vec::<String>::new());
    journal.sync().unwrap();
    assert_eq!(read_all(&mut reader), ["1=one"]);
}

#[test]
fn the_background_sync_comes_by_itself() {
    let fs = Simulation::new();
    let options = Options { durability: Durability::Fast, sync_delay: Some(Duration::from_millis(1)), ..small() };
    let journal = open(&fs, options);
    let mut reader = journal.reader(0);
    for i in 0..20 {
        journal.append(format!("line {i}").as_bytes()).unwrap();
        assert!(reader.wait(Some(Duration::from_secs(60))).unwrap());
        assert_eq!(read_all(&mut reader).len(), 1, "line {i}");
    }
}

#[test]
fn a_reader_that_waits_is_let_go_when_the_journal_closes() {
    let fs = Simulation::new();
    let journal = open(&fs, small());
    let mut reader = journal.reader(0);
    let waiter = std::thread::spawn(move || (read_all(&mut reader).len(), reader.wait(None).unwrap()));
    journal.close().unwrap();
    assert_eq!(waiter.join().unwrap(), (0, false));
}

#[test]
fn positions_of_another_or_a_longer_journal_are_refused() {
    let fs = Simulation::new();
    let journal = open(&fs, small());
    journal.append(b"one").unwrap();
    let own = Position { uuid: journal.uuid(), next: 2 };
    journal.reader_at(own).unwrap();
    for wrong in [Position { uuid: Uuid([7; 16]), next: 1 }, Position { next: 3, ..own }] {
        let error = journal.reader_at(wrong).unwrap_err();
        assert!(matches!(error, JournalError::Position { .. }), "{error}");
    }
}

#[test]
fn who_looks_at_notes_does_not_wait_for_who_writes() {
    let fs = Simulation::new();
    let journal = open(&fs, small());
    let mut batch = small_batch();
    batch.note(b"source", b"17").unwrap();
    journal.append_batch(&mut batch).unwrap();
    // As it is while a segment ends and the next one is made.
    let writing = crate::commit::locked(&journal.inner().tail);
    std::thread::scope(|scope| {
        let (seen, noted) = std::sync::mpsc::channel();
        let journal = &journal;
        scope.spawn(move || seen.send((journal.note(b"source"), journal.notes().len())));
        let noted = noted.recv_timeout(Duration::from_secs(20));
        drop(writing);
        assert_eq!(noted, Ok((Some(b"17".to_vec()), 1)));
    });
}

#[test]
fn many_writers_share_syncs_and_all_arrive_in_order() {
    let fs = Simulation::new();
    let journal = open(&fs, Options { segment_bytes: 20_000, ..small() });
    journal.subscribe("a").unwrap();
    std::thread::scope(|scope| {
        for thread in 0..16 {
            let journal = &journal;
            scope.spawn(move || {
                for i in 0..100 {
                    journal.append(format!("{thread} {i}").as_bytes()).unwrap();
                }
            });
        }
    });
    let mut newest = [None; 16];
    let lines = read_all(&mut journal.reader_of("a").unwrap());
    assert_eq!(lines.len(), 1600);
    for line in lines {
        let (thread, i) = line.split_once('=').unwrap().1.split_once(' ').unwrap();
        let (thread, i): (usize, u32) = (thread.parse().unwrap(), i.parse().unwrap());
        assert!(newest[thread] < Some(i), "{line}");
        newest[thread] = Some(i);
    }
}
