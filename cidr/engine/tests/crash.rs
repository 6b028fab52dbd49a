//! The plug is pulled at every byte of a commit and all through maintenance; what was not synced is lost, wholly or in part. Afterwards the
//! store holds what it held before or what it holds after, never anything else, and goes on from there.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use cidr_engine::language::{Statement, parse};
use cidr_engine::{Care, Committed, DAY_S, Disk, Origin, Output, QueryOptions, Store, StoreOptions, Window};
use common::{Model, NODES, Random, SERIES, first_day, open, options, window};

/// A disk that works until its budget of bytes and calls is used up, and then loses what was not synced.
#[derive(Clone)]
struct FailingDisk(Arc<Mutex<State>>);

struct State {
    /// Bytes and calls that still work.
    budget: u64,
    used: u64,
    /// Budgets at which a call began, for tests that try all of them.
    calls: Vec<u64>,
    /// Bytes of a file that are safe.
    synced: HashMap<PathBuf, u64>,
    /// How to take back changes of names, per directory, oldest first.
    names: Vec<(PathBuf, Undo)>,
}

enum Undo {
    Create(PathBuf),
    Rename { from: PathBuf, to: PathBuf, replaced: Option<Vec<u8>> },
    Remove { path: PathBuf, content: Vec<u8> },
}

fn plug() -> io::Error {
    io::Error::other("the plug was pulled")
}

impl FailingDisk {
    fn with_budget(budget: u64) -> Self {
        let state = State { budget, used: 0, calls: Vec::new(), synced: HashMap::new(), names: Vec::new() };
        Self(Arc::new(Mutex::new(state)))
    }

    fn call(&self) -> io::Result<std::sync::MutexGuard<'_, State>> {
        let mut state = self.0.lock().unwrap();
        let used = state.used;
        state.calls.push(used);
        if state.used >= state.budget {
            return Err(plug());
        }
        state.used += 1;
        Ok(state)
    }

    /// What the power cut leaves: a random part of what was not synced, in order.
    fn lose(&self, random: &mut Random) {
        let mut state = self.0.lock().unwrap();
        state.budget = 0;
        for (path, synced) in std::mem::take(&mut state.synced) {
            if let Ok(file) = OpenOptions::new().write(true).open(&path) {
                let length = file.metadata().unwrap().len();
                file.set_len(synced + random.below(length.saturating_sub(synced) + 1)).unwrap();
            }
        }
        let lost = random.below(state.names.len() as u64 + 1) as usize;
        for _ in 0..lost {
            match state.names.pop().unwrap().1 {
                Undo::Create(path) => drop(fs::remove_file(path)),
                Undo::Rename { from, to, replaced } => {
                    fs::rename(&to, &from).unwrap();
                    if let Some(content) = replaced {
                        fs::write(&to, content).unwrap();
                    }
                }
                Undo::Remove { path, content } => fs::write(path, content).unwrap(),
            }
        }
    }
}

struct FailingFile {
    disk: FailingDisk,
    path: PathBuf,
    file: fs::File,
}

impl Write for FailingFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.disk.0.lock().unwrap();
        let works = (state.budget - state.used.min(state.budget)).min(bytes.len() as u64);
        self.file.write_all(&bytes[..works as usize])?;
        state.used += works;
        if works < bytes.len() as u64 { Err(plug()) } else { Ok(bytes.len()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Output for FailingFile {
    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.disk.call()?;
        state.synced.insert(self.path.clone(), self.file.metadata()?.len());
        Ok(())
    }
}

impl FailingDisk {
    fn file(&self, path: &Path, file: fs::File) -> Box<dyn Output> {
        Box::new(FailingFile { disk: self.clone(), path: path.into(), file })
    }
}

impl Disk for FailingDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn Output>> {
        let mut state = self.call()?;
        state.names.push((path.parent().unwrap().into(), Undo::Create(path.into())));
        state.synced.insert(path.into(), 0);
        Ok(self.file(path, fs::File::create(path)?))
    }

    fn append(&self, path: &Path) -> io::Result<Box<dyn Output>> {
        let mut state = self.call()?;
        let file = OpenOptions::new().append(true).open(path)?;
        let length = file.metadata()?.len();
        state.synced.entry(path.into()).or_insert(length);
        Ok(self.file(path, file))
    }

    fn truncate(&self, path: &Path, bytes: u64) -> io::Result<()> {
        let mut state = self.call()?;
        state.synced.insert(path.into(), bytes);
        common::QuickDisk.truncate(path, bytes)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.call()?;
        let replaced = fs::read(to).ok();
        let undo = Undo::Rename { from: from.into(), to: to.into(), replaced };
        state.names.push((to.parent().unwrap().into(), undo));
        if let Some(synced) = state.synced.remove(from) {
            state.synced.insert(to.into(), synced);
        }
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.call()?;
        let undo = Undo::Remove { path: path.into(), content: fs::read(path)? };
        state.names.push((path.parent().unwrap().into(), undo));
        state.synced.remove(path);
        fs::remove_file(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let _state = self.call()?;
        fs::create_dir_all(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.call()?;
        state.names.retain(|(dir, _)| dir != path);
        Ok(())
    }
}

fn open_on(dir: &Path, disk: &FailingDisk) -> cidr_engine::Result<Store> {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    Store::open(dir, StoreOptions { disk, ..options() })
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

const QUESTIONS: [&str; 3] = [
    "show count for 0.0.0.0/0 in union(spam, virus, invalid_recipients) aggregate daily cidrsize 24",
    "show count for 0.0.0.0/0 in spam, virus, invalid_recipients",
    "show count for ::/0 in spam, virus order by count limit 50",
];

fn answers(store: &Store) -> Vec<String> {
    let ask = |text: &str| {
        let mut out = Vec::new();
        store.query(text, &QueryOptions::at(0), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    };
    QUESTIONS.iter().map(|text| ask(text)).collect()
}

fn expected(model: &Model) -> Vec<String> {
    let ask = |text: &str| match parse(text).unwrap() {
        Statement::Count(query) => model.answer(&query, 0),
        _ => panic!("{text}"),
    };
    QUESTIONS.iter().map(|text| ask(text)).collect()
}

/// A directory with some days of windows, and its model.
fn base(random: &mut Random, dir: &Path, windows: u64) -> Model {
    let (store, mut model) = (open(dir), Model::default());
    for n in 0..windows {
        let start = first_day().start() + random.below(40) as i64 * DAY_S / 4;
        let series = SERIES[n as usize % 3];
        let node = *random.pick(&NODES);
        let window = window(random, series, node, start, start + 900, 6);
        store.commit(None, std::slice::from_ref(&window)).unwrap();
        model.add(&window);
    }
    model
}

/// Opens after a crash; sometimes the plug is pulled again while what the crash left is removed.
fn reopen(dir: &Path, random: &mut Random) -> Store {
    if random.one_in(3) {
        let disk = FailingDisk::with_budget(random.below(6));
        drop(open_on(dir, &disk));
        disk.lose(random);
    }
    let store = open(dir);
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let left: Vec<String> = names.filter(|name| name.starts_with(".tmp")).collect();
    assert_eq!(left, Vec::<String>::new());
    let verified = store.verify(&|| false).unwrap();
    assert!(verified.damage.is_empty(), "{:?}", verified.damage);
    store
}

#[test]
fn a_commit_is_whole_or_absent_wherever_it_was_cut() {
    let mut random = Random(1);
    let origin_dir = tempfile::tempdir().unwrap();
    let before = base(&mut random, origin_dir.path(), 9);
    let origin = Origin { node: "n1".into(), sequence: 7 };
    let start = first_day().start();
    let batch: Vec<Window> =
        ["spam", "virus"].iter().map(|series| window(&mut random, series, "n1", start, start + 900, 12)).collect();
    let mut after = before.clone();
    batch.iter().for_each(|window| after.add(window));
    let (before, after) = (expected(&before), expected(&after));
    let (mut cut, mut survived, mut absent) = (0, 0, 0);
    loop {
        let dir = tempfile::tempdir().unwrap();
        copy_dir(origin_dir.path(), dir.path());
        let disk = FailingDisk::with_budget(1_000_000);
        let store = open_on(dir.path(), &disk).unwrap();
        {
            let mut state = disk.0.lock().unwrap();
            state.budget = state.used + cut;
        }
        let result = store.commit(Some(&origin), &batch);
        if result.is_err() {
            // Nothing more is written by a store that does not know what is on its disk, unless nothing had reached the list.
            let _ = store.commit(Some(&origin), &batch).unwrap_err();
        }
        drop(store);
        disk.lose(&mut random);
        let store = reopen(dir.path(), &mut random);
        let merged = store.taken("n1") == Some(7);
        assert!(merged || result.is_err(), "acknowledged at {cut} and lost");
        assert_eq!(answers(&store), if merged { after.clone() } else { before.clone() }, "cut at {cut}");
        let again = store.commit(Some(&origin), &batch).unwrap();
        assert_eq!(again, if merged { Committed::Duplicate } else { Committed::Written });
        assert_eq!(answers(&store), after, "cut at {cut}, handed in again");
        *(if merged { &mut survived } else { &mut absent }) += 1;
        if result.is_ok() {
            break;
        }
        cut += 1;
    }
    assert!(cut > 500 && survived > 0 && absent > 500, "{cut} cuts, {survived} survived");
}

#[test]
fn maintenance_changes_no_sum_wherever_it_was_cut() {
    let mut random = Random(2);
    let dir = tempfile::tempdir().unwrap();
    let model = base(&mut random, dir.path(), 60);
    // Half of the windows are in nodes already, and late ones follow.
    open(dir.path()).maintain(first_day().start() + 5 * DAY_S, |_| Care::default(), &|| false).unwrap();
    cut_maintenance(&mut random, dir.path(), &model, 210);
}

#[test]
fn months_are_written_anew_wherever_that_is_cut() {
    let mut random = Random(12);
    let dir = tempfile::tempdir().unwrap();
    let mut model = base(&mut random, dir.path(), 60);
    let store = open(dir.path());
    let done = store.maintain(first_day().start() + 40 * DAY_S, CONDENSE, &|| false).unwrap();
    assert_eq!(done.months, 3, "March of three series: {done:?}");
    // What comes late for their days.
    for n in 0..9 {
        let start = first_day().start() + random.below(40) as i64 * DAY_S / 4;
        let window = window(&mut random, SERIES[n % 3], "n2", start, start + 900, 6);
        store.commit(None, std::slice::from_ref(&window)).unwrap();
        model.add(&window);
    }
    drop(store);
    cut_maintenance(&mut random, dir.path(), &model, 90);
}

const CONDENSE: fn(&str) -> Care = |_| Care { retention_days: None, condense_days: Some(3) };

/// Cuts a round of maintenance at some of its calls and at some places inside the writes between them.
fn cut_maintenance(random: &mut Random, origin_dir: &Path, model: &Model, cuts: usize) {
    let now = first_day().start() + 40 * DAY_S;
    let right = expected(model);
    let run = |budget: u64, random: &mut Random| {
        let dir = tempfile::tempdir().unwrap();
        copy_dir(origin_dir, dir.path());
        let disk = FailingDisk::with_budget(u64::MAX);
        let store = open_on(dir.path(), &disk).unwrap();
        {
            let mut state = disk.0.lock().unwrap();
            (state.budget, state.used) = (budget, 0);
            state.calls.clear();
        }
        let result = store.maintain(now, CONDENSE, &|| false);
        let calls = disk.0.lock().unwrap().calls.clone();
        drop(store);
        disk.lose(random);
        let store = reopen(dir.path(), random);
        assert_eq!(answers(&store), right, "cut at {budget}");
        store.maintain(now, CONDENSE, &|| false).unwrap();
        assert_eq!(answers(&store), right, "cut at {budget}, maintained again");
        let verified = store.verify(&|| false).unwrap();
        assert!(verified.damage.is_empty(), "{:?}", verified.damage);
        (result.map(|done| done.months), calls)
    };
    let (whole, calls) = run(u64::MAX, random);
    assert!(whole.unwrap() > 0 && calls.len() > 30, "{} calls", calls.len());
    let last = *calls.last().unwrap();
    let some = calls.iter().copied().step_by(1 + calls.len() * 10 / (cuts * 7));
    let places: Vec<u64> = some.chain((0..cuts * 3 / 10).map(|_| random.below(last))).collect();
    for cut in places {
        assert!(run(cut, random).0.is_err(), "cut at {cut} of {last}");
    }
}

#[test]
fn a_lost_manifest_is_made_again_from_the_files() {
    let mut random = Random(3);
    for round in 0..12 {
        let dir = tempfile::tempdir().unwrap();
        let model = base(&mut random, dir.path(), 50);
        let store = open(dir.path());
        let condense_days = (round % 3 == 0).then_some(4);
        let care = |_: &str| Care { retention_days: None, condense_days };
        for days in [4, 7] {
            store.maintain(first_day().start() + days * DAY_S, care, &|| false).unwrap();
        }
        let right = expected(&model);
        assert_eq!(answers(&store), right);
        drop(store);
        let manifest = dir.path().join("manifest");
        if round % 2 == 0 {
            fs::remove_file(&manifest).unwrap()
        } else {
            fs::write(&manifest, b"ECCIDRMF\x01\0\0\0").unwrap()
        }
        assert!(Store::open(dir.path(), options()).is_err(), "files without a list are not ignored");
        let repaired = Store::repair(dir.path(), &common::QuickDisk, &options().owner).unwrap();
        assert!(repaired.kept > 10 && repaired.damaged.is_empty(), "{repaired:?}");
        let store = open(dir.path());
        assert_eq!(answers(&store), right, "round {round}");
        store.maintain(first_day().start() + 40 * DAY_S, care, &|| false).unwrap();
        assert_eq!(answers(&store), right, "round {round}, maintained");
    }
}

#[test]
fn a_flipped_bit_is_found_and_its_file_put_aside() {
    let mut random = Random(4);
    let dir = tempfile::tempdir().unwrap();
    base(&mut random, dir.path(), 12);
    let path = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
    let path = path.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("spam.2")).min().unwrap();
    let sound = fs::read(&path).unwrap();
    for byte in 0..sound.len() {
        let mut damaged = sound.clone();
        damaged[byte] ^= 1 << random.below(8);
        fs::write(&path, &damaged).unwrap();
        let found = open(dir.path()).verify(&|| false).unwrap().damage;
        assert!(matches!(&found[..], [(damaged, _)] if *damaged == path), "byte {byte}: {found:?}");
        // A query that needs it says so instead of giving a wrong count.
        let asked = open(dir.path()).query(QUESTIONS[1], &QueryOptions::at(0), &mut Vec::new());
        let refused = asked.unwrap_err().to_string();
        assert!(refused.contains("is damaged") || refused.contains("has version"), "byte {byte}: {refused}");
    }
    fs::remove_file(dir.path().join("manifest")).unwrap();
    let repaired = Store::repair(dir.path(), &common::QuickDisk, &options().owner).unwrap();
    assert_eq!(repaired.damaged.len(), 1);
    assert!(dir.path().join("damaged").join(path.file_name().unwrap()).exists());
    answers(&open(dir.path()));
}

#[test]
fn a_running_query_keeps_the_files_that_it_began_with() {
    let mut random = Random(5);
    let dir = tempfile::tempdir().unwrap();
    let model = base(&mut random, dir.path(), 60);
    let store = open(dir.path());
    let right = expected(&model);
    let condense = |_: &str| Care { retention_days: None, condense_days: Some(1) };
    let Statement::Count(query) = parse(QUESTIONS[0]).unwrap() else { panic!() };
    let mut rows = 0;
    store
        .rows(&query, &QueryOptions::at(0), &mut |_| {
            if rows == 3 {
                // All windows and nodes that the query still needs are replaced.
                store.maintain(first_day().start() + 40 * DAY_S, condense, &|| false).unwrap();
            }
            rows += 1;
            Ok(())
        })
        .unwrap();
    assert_eq!(rows, right[0].lines().count());
    assert_eq!(answers(&store), right);
}

#[test]
fn a_second_opener_learns_who_has_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let second = Store::open(dir.path(), options()).err().unwrap().to_string();
    assert!(second.contains("is in use by test of node n1"), "{second}");
    let repair = Store::repair(dir.path(), &common::QuickDisk, &options().owner).err().unwrap().to_string();
    assert!(repair.contains("is in use by"), "{repair}");
    drop(store);
    drop(open(dir.path()));
}

#[test]
fn a_query_ends_when_it_is_told_to() {
    let mut random = Random(6);
    let dir = tempfile::tempdir().unwrap();
    base(&mut random, dir.path(), 60);
    let store = open(dir.path());
    for after in [0, 1, 10] {
        let asked = std::cell::Cell::new(0);
        let stop = || {
            asked.set(asked.get() + 1);
            asked.get() > after
        };
        let options = QueryOptions { stop: &stop, ..QueryOptions::at(0) };
        assert!(store.query(QUESTIONS[1], &options, &mut Vec::new()).unwrap_err().is_cancelled());
        assert!(asked.get() <= after + 1);
    }
}

#[test]
fn windows_left_beside_their_packed_day_count_once_and_its_damage_is_found() {
    let mut random = Random(6);
    let (dir, windows) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let model = base(&mut random, dir.path(), 50);
    copy_dir(dir.path(), windows.path());
    let now = first_day().start() + 40 * DAY_S;
    let done = open(dir.path()).maintain(now, |_| Care::default(), &|| false).unwrap();
    let is_window =
        |path: &PathBuf| SERIES.iter().any(|series| path.file_name().unwrap().to_string_lossy().starts_with(series));
    let windows_of = |dir: &Path| {
        let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|path| path.is_file() && is_window(path)).collect::<Vec<_>>()
    };
    assert!(done.days > 0 && windows_of(dir.path()).is_empty(), "{done:?}");
    // As if the removal of the windows' names had been lost, and then the list.
    for path in windows_of(windows.path()) {
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    fs::remove_file(dir.path().join("manifest")).unwrap();
    let repaired = Store::repair(dir.path(), &common::QuickDisk, &options().owner).unwrap();
    assert!(repaired.damaged.is_empty() && repaired.superseded >= 50, "{repaired:?}");
    let store = open(dir.path());
    assert_eq!(answers(&store), expected(&model));
    assert!(windows_of(dir.path()).is_empty(), "leftovers are removed");
    drop(store);

    let nodes = fs::read_dir(dir.path().join("condensed")).unwrap().map(|entry| entry.unwrap().path());
    let packed =
        nodes.filter(|path| path.to_string_lossy().contains(".1d.")).max_by_key(|path| path.metadata().unwrap().len());
    let packed = packed.unwrap();
    let sound = fs::read(&packed).unwrap();
    for _ in 0..150 {
        let mut damaged = sound.clone();
        let byte = random.below(sound.len() as u64) as usize;
        damaged[byte] ^= 1 << random.below(8);
        fs::write(&packed, &damaged).unwrap();
        let found = open(dir.path()).verify(&|| false).unwrap().damage;
        assert!(found.iter().any(|(path, _)| *path == packed), "byte {byte}: {found:?}");
    }
}
