//! Stops after every call, and at every byte of every write, and looks at what is left: after a kill, and after power losses.
//!
//! What must hold: all that was acknowledged is there, in order, under its numbers, from each subscriber's position on; nothing else is but records
//! that were really submitted; nothing is reported as lost; what a reader has seen stays; a number is never given twice; the journal goes on.

use std::collections::BTreeMap;

use super::*;
use crate::fs::Fs;
use crate::fs::simulation::Seeded;
use crate::{Batch, Durability, JournalError};

const SEED: u64 = 0x5EED_0005;

/// What the process under test was told, and what it saw, before it died.
#[derive(Debug, Default)]
struct Memory {
    /// Payload → its number, for appends that were answered, and whether as safe.
    answered: BTreeMap<String, (u64, bool)>,
    /// Payloads in the order in which they were given to the journal; those of failed appends too.
    submitted: Vec<String>,
    /// Numbers that somebody was told.
    given: BTreeMap<u64, String>,
    /// What the reader saw.
    seen: BTreeMap<u64, String>,
    /// Per subscriber: the last position that was acknowledged, and one that may have been set.
    positions: BTreeMap<String, (u64, u64)>,
    /// Batches with a note, in order: what they held, and whether they were answered as safe. The note is the place in this list, from 1.
    noted: Vec<(Vec<String>, bool)>,
    /// May be there or not: additions and removals that were under way.
    doubtful: Vec<String>,
}

/// One run of a script that is the same for a seed, until it is stopped.
fn run(fs: &Simulation, seed: u64, memory: &mut Memory) -> Result<(), JournalError> {
    let mut random = Seeded(seed);
    for life in 0..2 {
        let journal = Journal::open_on(Arc::new(fs.clone()), dir(), small())?;
        let mut reader = journal.reader(0);
        for step in 0..9 {
            match random.below(8) {
                0..=3 => append(&journal, &mut random, &format!("{life}.{step}"), memory)?,
                4 => {
                    let name = format!("s{}", random.below(2));
                    if memory.positions.contains_key(&name) {
                        checkpoint(&journal, &name, &mut random, memory)?;
                    } else {
                        subscribe(&journal, &name, memory)?;
                    }
                }
                5 => {
                    if let Some(name) = memory.positions.keys().next().cloned() {
                        checkpoint(&journal, &name, &mut random, memory)?;
                    }
                }
                6 => journal.sync()?,
                _ if random.below(3) == 0 => {
                    if let Some(name) = memory.positions.keys().next_back().cloned() {
                        memory.positions.remove(&name);
                        memory.doubtful.push(name.clone());
                        journal.unsubscribe(&name)?;
                        memory.doubtful.pop();
                    }
                }
                _ => {}
            }
            while let Some(item) = reader.next_item()? {
                match item {
                    Item::Record(record) => {
                        let payload = String::from_utf8_lossy(record.payload).into_owned();
                        memory.seen.insert(record.sequence, payload);
                    }
                    Item::Gap(gap) => assert_eq!(gap.lost, crate::Lost::Removed, "{gap}"),
                }
            }
        }
        journal.close()?;
    }
    Ok(())
}

fn append(journal: &Journal, random: &mut Seeded, label: &str, memory: &mut Memory) -> Result<(), JournalError> {
    let mut batch = Batch::new();
    let mut payloads = Vec::new();
    for i in 0..=random.below(3) {
        let payload = format!("{label}.{i}{}", "x".repeat(random.below(90) as usize));
        batch.push(1, payload.as_bytes())?;
        payloads.push(payload);
    }
    memory.submitted.extend(payloads.iter().cloned());
    let noted = random.below(2) == 0;
    if noted {
        memory.noted.push((payloads.clone(), false));
        batch.note(b"source", memory.noted.len().to_string().as_bytes())?;
    }
    let durability = if random.below(3) == 0 { Durability::Fast } else { Durability::Safe };
    let numbers = journal.append_as(&mut batch, durability)?;
    for (number, payload) in numbers.zip(payloads) {
        memory.answered.insert(payload.clone(), (number, durability == Durability::Safe));
        assert_eq!(memory.given.insert(number, payload), None, "number {number} was given twice");
    }
    if durability == Durability::Safe {
        // The sync took along what was written before.
        memory.answered.values_mut().for_each(|(_, safe)| *safe = true);
        memory.noted.iter_mut().for_each(|(_, safe)| *safe = true);
    }
    Ok(())
}

fn subscribe(journal: &Journal, name: &str, memory: &mut Memory) -> Result<(), JournalError> {
    memory.doubtful.push(name.into());
    let next = journal.subscribe(name)?;
    memory.doubtful.pop();
    memory.positions.insert(name.into(), (next, next));
    Ok(())
}

fn checkpoint(journal: &Journal, name: &str, random: &mut Seeded, memory: &mut Memory) -> Result<(), JournalError> {
    let (now, _) = memory.positions[name];
    let next = now + random.below(journal.synced() - now + 1);
    memory.positions.insert(name.into(), (now, next));
    journal.checkpoint(name, next)?;
    memory.positions.insert(name.into(), (next, next));
    Ok(())
}

/// Opens what is left and compares it with what was promised.
fn check(fs: &Simulation, memory: &Memory, power_loss: bool, case: &str) {
    let (options, events) = listening(small());
    let journal = Journal::open_on(Arc::new(fs.clone()), dir(), options).unwrap_or_else(|e| panic!("{case}: {e:?}"));
    let events = events.lock().unwrap().clone();
    let bad = |event: &&Event| matches!(event, Event::Rot { .. } | Event::DamagedSubscriber { .. });
    assert_eq!(events.iter().find(bad), None, "{case}");
    if !memory.given.is_empty() {
        assert!(!events.iter().any(|event| matches!(event, Event::Wiped { .. })), "{case}");
    }

    let subscribers = journal.subscribers().unwrap();
    for subscriber in &subscribers {
        match memory.positions.get(&subscriber.name) {
            Some(range) => assert!([range.0, range.1].contains(&subscriber.next), "{case}: {subscriber:?} {range:?}"),
            None => assert!(memory.doubtful.contains(&subscriber.name), "{case}: {subscriber:?} was removed"),
        }
    }
    for name in memory.positions.keys() {
        assert!(subscribers.iter().any(|subscriber| subscriber.name == *name), "{case}: {name} is gone");
        check_records(&mut journal.reader_of(name).unwrap(), memory, power_loss, case);
    }
    check_records(&mut journal.reader(0), memory, power_loss, case);
    check_notes(&journal, memory, case);

    // It goes on, with a number that nobody knows.
    let newest = journal.append(b"after").unwrap();
    let highest = memory.given.keys().chain(memory.seen.keys()).next_back().copied().unwrap_or(0);
    assert!(newest > highest, "{case}: {newest} after {highest}");
    let all = read_all(&mut journal.reader(0));
    assert_eq!(all.last(), Some(&format!("{newest}=after")), "{case}");
    journal.close().unwrap();
    let journal = open(fs, small());
    assert_eq!(journal.append(b"next").unwrap(), newest + 1, "{case}: a clean end leaves no jump");
}

/// Each batch with a note is there whole or not at all, and the note is that of the newest one that is there.
fn check_notes(journal: &Journal, memory: &Memory, case: &str) {
    let all = read_all(&mut journal.reader(0));
    let present: Vec<&str> = all.iter().filter_map(|text| Some(text.split_once('=')?.1)).collect();
    let note = journal.note(b"source").map_or(0, |note| String::from_utf8(note).unwrap().parse::<usize>().unwrap());
    let mut newest = None;
    for (number, (payloads, _)) in (1..).zip(&memory.noted) {
        let there = payloads.iter().filter(|payload| present.contains(&payload.as_str())).count();
        assert!(there == 0 || there == payloads.len(), "{case}: {there} of batch {number}, {payloads:?}, in {all:?}");
        if there > 0 {
            newest = Some(number);
        }
    }
    match newest {
        Some(newest) => assert_eq!(note, newest, "{case}: {all:?}"),
        // Its segment is gone by right, or it never was there.
        None => {
            let safe = memory.noted.iter().rposition(|(_, safe)| *safe).map_or(0, |place| place + 1);
            assert!(note >= safe && note <= memory.noted.len(), "{case}: {note} after {safe}");
        }
    }
}

fn check_records(reader: &mut Reader, memory: &Memory, power_loss: bool, case: &str) {
    let from = reader.position().next;
    let mut found: BTreeMap<u64, String> = BTreeMap::new();
    while let Some(item) = reader.next_item().unwrap() {
        match item {
            Item::Gap(gap) => panic!("{case}: {gap}"),
            Item::Record(record) => {
                let payload = String::from_utf8(record.payload.to_vec()).unwrap();
                assert!(found.last_key_value().is_none_or(|(last, _)| *last < record.sequence), "{case}: order");
                found.insert(record.sequence, payload);
            }
        }
    }
    for (number, payload) in &found {
        assert!(memory.submitted.contains(payload), "{case}: {payload} was invented");
        if let Some((given, _)) = memory.answered.get(payload) {
            assert_eq!(given, number, "{case}: {payload} has another number");
        }
    }
    // What segments that every subscriber had passed held is gone by right.
    let oldest = if from > 0 { from } else { found.keys().next().copied().unwrap_or(u64::MAX) };
    let by_payload: BTreeMap<&String, u64> = found.iter().map(|(number, payload)| (payload, *number)).collect();
    for (payload, (number, safe)) in &memory.answered {
        let promised = *safe || !power_loss;
        assert!(
            !promised || *number < oldest || by_payload.contains_key(payload),
            "{case}: {number} {payload} is lost"
        );
    }
    for (number, payload) in memory.seen.range(oldest..) {
        assert_eq!(found.get(number), Some(payload), "{case}: a reader saw {number}, which is gone");
    }
    // In the order of submission there is no hole.
    let present = memory.submitted.iter().map(|payload| by_payload.contains_key(payload));
    let edges = present.fold((0, false), |(edges, before), here| (edges + u32::from(here && !before), here)).0;
    assert!(edges <= 1, "{case}: a hole in {found:?} of {:?}", memory.submitted);
}

/// How the run ends when nothing stops it, and its calls.
fn rehearse(seed: u64) -> Vec<crate::fs::simulation::Call> {
    let fs = Simulation::new();
    run(&fs, seed, &mut Memory::default()).unwrap();
    fs.calls()
}

fn stopped_run(seed: u64, call: usize, bytes: usize) -> (Simulation, Memory) {
    let fs = Simulation::new();
    fs.stop_in(call, bytes);
    let mut memory = Memory::default();
    let error = run(&fs, seed, &mut memory).map(|()| "the run was not stopped");
    assert!(error.is_err() || call + 1 >= fs.calls().len(), "{error:?}");
    (fs, memory)
}

#[test]
fn every_call_and_every_byte_after_a_kill() {
    for seed in SEED..SEED + 6 {
        for (number, call) in rehearse(seed).into_iter().enumerate() {
            for bytes in 0..=call.bytes {
                let (fs, memory) = stopped_run(seed, number, bytes);
                let case = format!("seed {seed:#x}, killed in call {number} ({}) after {bytes} bytes", call.name);
                check(&fs.after_kill(), &memory, false, &case);
            }
        }
    }
}

#[test]
fn every_call_and_some_bytes_after_power_losses() {
    for seed in SEED..SEED + 12 {
        for (number, call) in rehearse(seed).into_iter().enumerate() {
            let mut random = Seeded(seed ^ number as u64);
            for loss in 0..12 {
                let bytes = random.below(call.bytes as u64 + 1) as usize;
                let (fs, memory) = stopped_run(seed, number, bytes);
                let case =
                    format!("seed {seed:#x}, power loss {loss} in call {number} ({}) after {bytes} bytes", call.name);
                check(&fs.after_power_loss(&mut random), &memory, true, &case);
            }
        }
    }
}

/// A crash while what an earlier one left is being repaired.
#[test]
fn crashes_in_the_repair_of_a_crash() {
    for seed in SEED..SEED + 4 {
        let calls = rehearse(seed);
        let mut random = Seeded(seed);
        for _ in 0..60 {
            let number = random.below(calls.len() as u64) as usize;
            let (fs, memory) = stopped_run(seed, number, random.below(calls[number].bytes as u64 + 1) as usize);
            let power_loss = random.below(2) == 0;
            let mut left = if power_loss { fs.after_power_loss(&mut random) } else { fs.after_kill() };
            for again in 0..3 {
                left.stop_in(random.below(6) as usize, random.below(64) as usize);
                drop(Journal::open_on(Arc::new(left.clone()), dir(), small()));
                left = if power_loss { left.after_power_loss(&mut random) } else { left.after_kill() };
                let case = format!("seed {seed:#x}, call {number}, power loss {power_loss}, repair {again}");
                check(&left.after_kill(), &memory, power_loss, &case);
            }
        }
    }
}

/// Many threads; the calls interleave as they like, so this is repeatable only in kind. The promises are the same.
#[test]
fn threads_killed_in_the_middle() {
    for seed in SEED..SEED + 30 {
        let fs = Simulation::new();
        let journal = open(&fs, small());
        journal.subscribe("all").unwrap();
        let mut random = Seeded(seed);
        fs.stop_in(fs.calls().len() + random.below(200) as usize, random.below(300) as usize);
        let promised: Vec<(u64, String)> = std::thread::scope(|scope| {
            let write = |thread: u64| {
                let mut promised = Vec::new();
                for i in 0..40 {
                    let payload = format!("{thread}/{i}");
                    match journal.append(payload.as_bytes()) {
                        Ok(number) => promised.push((number, payload)),
                        Err(_) => break,
                    }
                }
                promised
            };
            let threads: Vec<_> = (0..4).map(|thread| scope.spawn(move || write(thread))).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        let left = fs.after_power_loss(&mut random);
        assert!(!left.list(dir()).unwrap().is_empty());
        let reopened = open(&left, small());
        let all = read_all(&mut reopened.reader(0));
        for (number, payload) in promised {
            assert!(all.contains(&format!("{number}={payload}")), "seed {seed:#x}: {number} {payload} is lost");
        }
    }
}
