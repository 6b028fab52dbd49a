//! Random trees, random local edits, random upstream changes: the result is what a naive model says, path by path,
//! and `git status` agrees with ours. And editors that write while updates happen: no edit is lost.
#![allow(clippy::unwrap_used)]

mod worktree_support;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use repos::Mode;
use repos::worktree::{ChangeKind, OnOverlap, Scan, StageOptions, WorktreeError};
use worktree_support::*;

type Tree = BTreeMap<String, (Mode, String)>;

/// Few names, so that files, directories and both sides meet often.
const NAMES: [&str; 12] = ["a", "a-b", "a.b", "a/x", "a/y", "b", "b/c/d", "b/c/e", "b/c.d", "é/ü", "z", "z/0"];

#[derive(Debug, Clone)]
enum Step {
    /// Upstream puts or removes.
    Upstream(usize, Option<(Mode, u8)>),
    /// A line of the file is replaced on one side.
    Line {
        upstream: bool,
        name: usize,
        line: usize,
        text: u8,
    },
    Local(usize, Option<(Mode, u8)>),
    GitAdd(usize),
    GitCommit,
    /// `None`: every file is looked at; else what the watch tells, just after the trees were tended to or not.
    Update(OnOverlap, Option<bool>),
    Prepare,
    Tend,
    /// The tree as upstream has it.
    Reset,
}

fn mode() -> impl Strategy<Value = Mode> {
    prop_oneof![4 => Just(Mode::File), 1 => Just(Mode::Exec), 1 => Just(Mode::Symlink)]
}

fn step() -> impl Strategy<Value = Step> {
    let name = 0..NAMES.len();
    let put = || proptest::option::weighted(0.75, (mode(), 0..6u8));
    prop_oneof![
        4 => (name.clone(), put()).prop_map(|(n, p)| Step::Upstream(n, p)),
        3 => (any::<bool>(), name.clone(), 0..12usize, any::<u8>()).prop_map(|(upstream, name, line, text)| Step::Line { upstream, name, line, text }),
        4 => (name.clone(), put()).prop_map(|(n, p)| Step::Local(n, p)),
        1 => name.prop_map(Step::GitAdd),
        1 => Just(Step::GitCommit),
        4 => (prop_oneof![3 => Just(OnOverlap::Refuse), 1 => Just(OnOverlap::Mine), 1 => Just(OnOverlap::Theirs)], any::<Option<bool>>()).prop_map(|(o, t)| Step::Update(o, t)),
        1 => Just(Step::Prepare),
        1 => Just(Step::Tend),
        1 => Just(Step::Reset),
    ]
}

fn text(seed: u8) -> String {
    (0..12).map(|i| format!("line {i} of {seed}\n")).collect()
}

fn with_line(text: &str, line: usize, seed: u8) -> String {
    text.lines()
        .enumerate()
        .map(|(i, l)| if i == line { format!("changed by {seed}\n") } else { format!("{l}\n") })
        .collect()
}

/// Puts a path into a tree if no file is where a directory would be, nor the other way round.
fn fits(tree: &Tree, name: &str) -> bool {
    tree.keys().all(|other| {
        other == name || (!other.starts_with(&format!("{name}/")) && !name.starts_with(&format!("{other}/")))
    })
}

fn on_disk(root: &Path) -> Tree {
    fn walk(dir: &Path, prefix: &str, out: &mut Tree) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
            let meta = entry.path().symlink_metadata().unwrap();
            if name == ".git" || name == "global" {
            } else if meta.is_dir() {
                walk(&entry.path(), &format!("{name}/"), out);
            } else if meta.is_symlink() {
                out.insert(name, (Mode::Symlink, std::fs::read_link(entry.path()).unwrap().to_str().unwrap().into()));
            } else {
                let mode = if meta.permissions().mode() & 0o100 != 0 { Mode::Exec } else { Mode::File };
                out.insert(name, (mode, std::fs::read_to_string(entry.path()).unwrap()));
            }
        }
    }
    let mut tree = Tree::new();
    walk(root, "", &mut tree);
    tree
}

fn write_local(root: &Path, name: &str, file: Option<&(Mode, String)>) {
    let path = root.join(name);
    let _ = std::fs::remove_file(&path);
    let Some((mode, data)) = file else { return };
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    if *mode == Mode::Symlink {
        std::os::unix::fs::symlink(data, &path).unwrap();
    } else {
        std::fs::write(&path, data).unwrap();
        let perm = if *mode == Mode::Exec { 0o755 } else { 0o644 };
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(perm)).unwrap();
    }
}

/// The naive model of one path: `Ok(None)` where the model does not know (a merge of lines).
fn expect(
    base: Option<&(Mode, String)>,
    ours: Option<&(Mode, String)>,
    theirs: Option<&(Mode, String)>,
) -> Result<Option<Option<(Mode, String)>>, ()> {
    if theirs == base || ours == theirs {
        return Ok(Some(ours.cloned()));
    }
    if ours == base {
        return Ok(Some(theirs.cloned()));
    }
    match (ours, theirs) {
        (Some((a, _)), Some((b, _))) if *a != Mode::Symlink && *b != Mode::Symlink => Ok(None),
        _ => Err(()),
    }
}

struct Play {
    world: World,
    upstream: Tree,
    base: Tree,
    pending: Vec<(String, Option<(Mode, String)>)>,
}

impl Play {
    fn new() -> Play {
        let mut world = World::new();
        world.commit("default", &[put("a/x", &text(0)), put("b/c/d", &text(1)), put("keep", "k\n")]);
        world.commit("global", &[put("cluster.toml", "")]);
        world.wc.watch().unwrap();
        world.update().unwrap();
        world.wc.tend(Scan::Watched).unwrap();
        let upstream = on_disk(world.root());
        Play { world, base: upstream.clone(), upstream, pending: Vec::new() }
    }

    fn set_upstream(&mut self, name: &str, file: Option<(Mode, String)>) {
        match &file {
            Some(file) if fits(&self.upstream, name) => drop(self.upstream.insert(name.into(), file.clone())),
            None if self.upstream.remove(name).is_some() => {}
            _ => return,
        }
        self.pending.push((name.into(), file));
    }

    fn push_upstream(&mut self) {
        let changes = std::mem::take(&mut self.pending);
        // The last state of each path is what counts, against what the last commit had.
        let names: std::collections::BTreeSet<&String> = changes.iter().map(|(n, _)| n).collect();
        let tip: Tree = {
            let store = self.world.wc.objects("default").unwrap();
            let reader = store.reader().unwrap();
            let tree = reader.tree_of(self.world.tips["default"].commit).unwrap();
            let read = |e: repos::Entry| {
                (e.path.to_string(), (e.mode, String::from_utf8(reader.blob(e.id, 1 << 20).unwrap()).unwrap()))
            };
            reader.list(tree, None, true).unwrap().into_iter().map(read).collect()
        };
        let mut edits: Vec<Edit<'_>> = Vec::new();
        for name in names {
            match (self.upstream.get(name), tip.get(name)) {
                (None, Some(_)) => edits.push((name.as_bytes(), None)),
                (Some(file), old) if old != Some(file) => {
                    edits.push((name.as_bytes(), Some((file.0, file.1.as_bytes()))))
                }
                _ => {}
            }
        }
        if !edits.is_empty() {
            self.world.commit("default", &edits);
        }
    }

    fn local(&self, name: &str, file: Option<(Mode, String)>) {
        let now = on_disk(self.world.root());
        if file.is_none() || fits(&now, name) {
            let path = self.world.file(name);
            if path.is_dir() && !path.is_symlink() {
                // Only empty directories are left there.
                let _ = std::fs::remove_dir_all(&path);
            }
            write_local(self.world.root(), name, file.as_ref());
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Upstream(name, file) => self.set_upstream(NAMES[*name], file.map(|(mode, seed)| (mode, text(seed)))),
            Step::Local(name, file) => self.local(NAMES[*name], file.map(|(mode, seed)| (mode, text(seed)))),
            Step::Line { upstream, name, line, text } => {
                let name = NAMES[*name];
                let tree = if *upstream { self.upstream.clone() } else { on_disk(self.world.root()) };
                let Some((mode, old)) = tree.get(name).filter(|(mode, _)| *mode != Mode::Symlink) else { return };
                let new = Some((*mode, with_line(old, *line, *text)));
                if *upstream { self.set_upstream(name, new) } else { self.local(name, new) }
            }
            Step::GitAdd(name) => {
                let _ = git_command(self.world.root()).args(["add", "-A", "--", NAMES[*name]]).output().unwrap();
            }
            Step::GitCommit => {
                let _ = git_command(self.world.root()).args(["commit", "-q", "-m", "local"]).output().unwrap();
            }
            Step::Update(how, watched) => self.update(*how, *watched),
            Step::Prepare => self.world.wc.prepare().unwrap(),
            Step::Tend => assert!(self.world.wc.tend(Scan::Watched).unwrap().is_empty()),
            Step::Reset => {
                self.world.git(&["reset", "-q", "--hard", "origin/main"]);
                self.world.git(&["clean", "-q", "-fdx", "-e", "/global"]);
            }
        }
        self.check();
    }

    fn update(&mut self, how: OnOverlap, watched: Option<bool>) {
        self.push_upstream();
        if watched == Some(true) {
            assert!(self.world.wc.tend(Scan::Watched).unwrap().is_empty());
        }
        let before = on_disk(self.world.root());
        let options = StageOptions {
            on_overlap: how,
            scan: if watched.is_some() { Scan::Watched } else { Scan::Full },
            ..quick()
        };
        let result =
            self.world.wc.stage(&self.world.targets(), &options).and_then(|s| s.exchange()).and_then(|e| e.settle());
        let after = on_disk(self.world.root());
        match result {
            Err(WorktreeError::Overlap { paths }) => {
                assert_eq!(how, OnOverlap::Refuse);
                assert!(!paths.is_empty());
                assert_eq!(before, after, "a refused update changes nothing");
            }
            Err(err) => panic!("{err:?}"),
            Ok(settled) => {
                assert!(settled.is_empty(), "{settled:?}");
                self.compare(&before, &after, how);
                self.base = self.upstream.clone();
            }
        }
    }

    fn compare(&self, before: &Tree, after: &Tree, how: OnOverlap) {
        let names: std::collections::BTreeSet<&String> =
            before.keys().chain(after.keys()).chain(self.upstream.keys()).chain(self.base.keys()).collect();
        for name in names {
            let (base, ours, theirs) = (self.base.get(name), before.get(name), self.upstream.get(name));
            // Where one side has a file and the other a directory, the sides decide, not the path.
            let crossed = !fits(before, name) || !fits(&self.upstream, name);
            match expect(base, ours, theirs) {
                _ if crossed => {}
                Ok(Some(expected)) => assert_eq!(after.get(name), expected.as_ref(), "{name} {how:?}"),
                Ok(None) => {}
                Err(()) => match how {
                    OnOverlap::Refuse => panic!("{name}: an overlap was not refused"),
                    OnOverlap::Mine => assert_eq!(after.get(name), ours, "{name}"),
                    _ => assert_eq!(after.get(name), theirs, "{name}"),
                },
            }
        }
    }

    /// Our status against git's, and git's against the index that we write.
    fn check(&self) {
        let status = self.world.wc.status().unwrap();
        let mine: BTreeMap<String, ChangeKind> =
            status.mounts[0].changes.iter().map(|c| (c.path.to_string(), c.kind)).collect();
        let git = self.world.git(&["-c", "core.quotePath=false", "status", "--porcelain", "-uall", "-z"]);
        let git: BTreeMap<String, String> =
            git.split('\0').filter(|l| !l.is_empty()).map(|l| (l[3..].to_owned(), l[..2].to_owned())).collect();
        // Against the base, straight from git: the tree and what is not in it.
        let names =
            self.world.git(&["-c", "core.quotePath=false", "diff", "--name-only", "--no-renames", "-z", "origin/main"]);
        let mut expected: Vec<String> = names.split('\0').filter(|l| !l.is_empty()).map(str::to_owned).collect();
        expected.extend(git.iter().filter(|(_, c)| *c == "??").map(|(n, _)| n.clone()));
        // Removed from the index only: git shows the file twice, and it differs from upstream only if its content does.
        expected.sort();
        expected.dedup();
        let on_disk = on_disk(self.world.root());
        expected.retain(|n| on_disk.get(n) != self.base.get(n));
        assert_eq!(mine.keys().cloned().collect::<Vec<_>>(), expected, "ours {mine:?}\ngit {git:?}");
        for (name, kind) in &mine {
            let code = git.get(name).map_or("", |c| c.as_str());
            match kind {
                ChangeKind::Untracked => assert_eq!(code, "??", "{name}"),
                ChangeKind::Missing => assert_eq!(&code[1..], "D", "{name}: {code}"),
                _ => {}
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: std::env::var("WORKTREE_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(24), max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn updates_are_what_a_naive_model_says(steps in proptest::collection::vec(step(), 1..24)) {
        let mut play = Play::new();
        for step in &steps {
            play.step(step);
        }
        play.world.git(&["fsck", "--strict"]);
    }
}

/// Editors write, rename and append in every way while updates run. Every text that an editor wrote last to a file is
/// in the live tree or among the saved edits when all is quiet.
#[test]
fn concurrent_editors_lose_nothing() {
    let mut world = World::new();
    let files: Vec<String> = (0..8).map(|i| format!("default/f{i}")).collect();
    let edits: Vec<_> = files.iter().map(|f| put(f, "start\n")).collect();
    world.commit("default", &edits);
    world.commit("global", &[put("cluster.toml", "")]);
    world.update().unwrap();
    let stop = AtomicBool::new(false);
    let root = world.root().to_owned();
    let written = std::thread::scope(|scope| {
        let editors: Vec<_> = (0..3)
            .map(|who| {
                scope.spawn({
                    let (stop, root) = (&stop, &root);
                    move || edit(who, root, stop)
                })
            })
            .collect();
        world.wc.watch().unwrap();
        for round in 0..40 {
            // Upstream touches files of its own, and the editors' files now and then.
            let name =
                if round % 5 == 4 { format!("default/f{}", round % 8) } else { format!("default/u{}", round % 4) };
            world.commit("default", &[put(&name, &format!("upstream {round}\n"))]);
            let options = StageOptions {
                on_overlap: OnOverlap::Mine,
                scan: if round % 2 == 0 { Scan::Full } else { Scan::Watched },
                ..quick()
            };
            let staged = world.wc.stage(&world.targets(), &options).unwrap();
            std::thread::yield_now();
            staged.exchange().unwrap().settle().unwrap();
            if round % 7 == 0 {
                world.wc.sweep().unwrap();
            } else if round % 3 == 0 {
                world.wc.tend(Scan::Watched).unwrap();
            }
        }
        stop.store(true, Ordering::Relaxed);
        editors.into_iter().flat_map(|e| e.join().unwrap()).collect::<Vec<_>>()
    });
    // Everybody is done: what went through old handles is found now.
    world.wc.sweep().unwrap();
    let mut all = String::new();
    for (_, (_, data)) in on_disk(&root) {
        all.push_str(&data);
    }
    let saved = world.wc.saved().unwrap();
    for edit in &saved {
        all.extend(edit.file.iter().map(|f| std::fs::read_to_string(f).unwrap()));
    }
    let lost: Vec<_> = written.iter().filter(|text| !all.contains(text.as_str())).collect();
    assert!(lost.is_empty(), "{} of {} edits lost: {lost:?}; {} saved", lost.len(), written.len(), saved.len());
    world.git(&["fsck", "--strict"]);
}

/// Each editor writes files that only it has; the last text of each must survive. Returns those texts.
fn edit(who: usize, root: &Path, stop: &AtomicBool) -> Vec<String> {
    let mut last: BTreeMap<String, String> = BTreeMap::new();
    let mut n = 0usize;
    while !stop.load(Ordering::Relaxed) {
        n += 1;
        // Leaves the processor to the updates: the more of them, the more chances to lose something.
        std::thread::yield_now();
        let text = format!("<editor {who} edit {n}>\n");
        let name = match who {
            // A tracked file, in place.
            0 => format!("default/f{}", n % 3),
            // A tracked file, as editors do it: written beside and renamed.
            1 => format!("default/f{}", 3 + n % 3),
            // New files, each once.
            _ if n > 300 => break,
            _ => format!("default/new/{n}"),
        };
        let path = root.join(&name);
        let written = match who {
            1 => {
                let temp = root.join(format!("default/.swp-{who}"));
                std::fs::write(&temp, &text).and_then(|()| std::fs::rename(&temp, &path))
            }
            _ => std::fs::create_dir_all(path.parent().unwrap()).and_then(|()| std::fs::write(&path, &text)),
        };
        // Between writing and renaming the tree may have been exchanged: then the rename fails, and the editor says so.
        if written.is_ok() {
            last.insert(name, text);
        }
    }
    last.into_values().collect()
}
