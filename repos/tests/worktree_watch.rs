//! A watched working copy: whatever anybody does to it is known before the exchange, or carried over after it, and never lost. Every
//! test compares with what a look at every file would have found.
#![allow(clippy::unwrap_used)]

mod worktree_support;

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use repos::worktree::{Scan, Settled, StageOptions, WorkingCopy};
use worktree_support::*;

fn mode(mode: u32) -> std::fs::Permissions {
    std::fs::Permissions::from_mode(mode)
}

fn watched() -> StageOptions {
    StageOptions { scan: Scan::Watched, ..quick() }
}

/// A watched working copy in which nothing is left to be looked at.
fn world() -> World {
    let mut world = World::new();
    world.commit(
        "default",
        &[put("d/a", "a\n"), put("d/sub/b", "b\n"), put("e/c", "c\n"), put("f", "f\n"), put("bulk", "0\n")],
    );
    world.commit("global", &[put("g/h", "h\n")]);
    world.wc.watch().unwrap();
    world.update().unwrap();
    world.wc.prepare().unwrap();
    for _ in 0..2 {
        assert!(world.wc.tend(Scan::Watched).unwrap().is_empty());
        assert_eq!(world.wc.watch_trouble(), None);
    }
    world
}

/// Another revision, which has nothing to do with what a test edits.
fn update(world: &mut World, round: u64) -> Settled {
    world.commit("default", &[put("bulk", &format!("{round}\n"))]);
    world.update_with(&watched()).unwrap()
}

/// What differs is all that such an update looks at, so what it leaves is compared with what git says about every file.
#[test]
fn updates_of_contents_leave_what_git_expects() {
    let mut world = world();
    let check = |world: &World, what: &str| {
        world.git(&["update-index", "--really-refresh", "-q"]);
        assert_eq!(world.git(&["status", "--porcelain"]), "", "{what}");
        assert_eq!(world.git(&["diff", "origin/main"]), "", "{what}");
        assert!(world.wc.status().unwrap().is_clean(), "{what}");
    };
    let rounds: &[(&str, &[Edit<'_>])] = &[
        ("one file", &[put("f", "1\n")]),
        ("another one, the first catches up", &[put("d/a", "2\n")]),
        ("two in several places", &[put("d/sub/b", "3\n"), put("e/c", "3\n")]),
        ("a mode", &[(b"f", Some((repos::Mode::Exec, b"1\n")))]),
        ("a link in its place", &[(b"f", Some((repos::Mode::Symlink, b"d/a")))]),
        ("a new file", &[put("d/new", "6\n")]),
        ("contents again", &[put("d/new", "7\n"), put("bulk", "7\n")]),
        ("a file goes", &[gone("d/new")]),
        ("contents once more", &[put("bulk", "9\n")]),
        ("a directory in place of a file", &[gone("e/c"), put("e/c/x", "10\n")]),
        ("contents at last", &[put("e/c/x", "11\n")]),
    ];
    for (what, edits) in rounds {
        world.commit("default", edits);
        assert!(world.update_with(&watched()).unwrap().is_empty());
        check(&world, what);
        world.wc.tend(Scan::Watched).unwrap();
        check(&world, what);
        world.wc.tend(Scan::Watched).unwrap();
    }
    world.commit("global", &[put("g/h", "12\n")]);
    assert!(world.update_with(&watched()).unwrap().is_empty());
    check(&world, "the nested repository alone");
    // The same files, another commit: the directory stays, and what is noted about it is about all files.
    world.wc.tend(Scan::Watched).unwrap();
    world.commit("default", &[put("bulk", "13\n")]);
    world.write("bulk", "13\n");
    assert!(world.update_with(&watched()).unwrap().is_empty());
    check(&world, "what was edited alike");
    world.wc.tend(Scan::Full).unwrap();
    check(&world, "in the end");
    world.git(&["fsck", "--strict"]);
}

/// Linked from outside before anything was watched: the kernel tells the outside about writes there.
fn link(world: &World, path: &str) -> std::path::PathBuf {
    let outside = world.temp.path().join("outside");
    std::fs::hard_link(world.file(path), &outside).unwrap();
    world.wc.tend(Scan::Full).unwrap();
    outside
}

#[test]
fn every_kind_of_edit_is_known_before_the_exchange() {
    let mut world = world();
    let outside = world.temp.path().join("dir");
    type Do = fn(&World, &Path);
    let edits: &[(&str, Do)] = &[
        ("write in place", |w, _| std::fs::write(w.file("d/a"), "A\n").unwrap()),
        ("same size, at once again", |w, _| std::fs::write(w.file("d/a"), "B\n").unwrap()),
        ("append", |w, _| {
            std::fs::File::options().append(true).open(w.file("f")).unwrap().write_all(b"x\n").unwrap();
        }),
        ("rename over", |w, _| {
            w.write("e/.tmp", "C\n");
            std::fs::rename(w.file("e/.tmp"), w.file("e/c")).unwrap();
        }),
        ("chmod", |w, _| std::fs::set_permissions(w.file("f"), mode(0o755)).unwrap()),
        ("chmod of a directory", |w, _| std::fs::set_permissions(w.file("e"), mode(0o700)).unwrap()),
        ("delete", |w, _| std::fs::remove_file(w.file("d/sub/b")).unwrap()),
        ("a new file", |w, _| w.write("d/sub/new", "n\n")),
        ("a new directory", |w, _| w.write("new/deep/file", "1\n")),
        ("an edit in the new directory", |w, _| w.write("new/deep/file", "2\n")),
        ("the new directory under another name", |w, _| std::fs::rename(w.file("new"), w.file("newer")).unwrap()),
        ("an edit under the other name", |w, _| w.write("newer/deep/file", "3\n")),
        ("a tracked directory under another name", |w, _| std::fs::rename(w.file("d"), w.file("d2")).unwrap()),
        ("an edit in it", |w, _| w.write("d2/a", "moved\n")),
        ("and back", |w, _| std::fs::rename(w.file("d2"), w.file("d")).unwrap()),
        ("an edit where it was", |w, _| w.write("d/a", "back\n")),
        ("a directory out of the tree", |w, to| std::fs::rename(w.file("newer"), to).unwrap()),
        ("and into it, edited", |w, from| {
            std::fs::write(from.join("deep/file"), "4\n").unwrap();
            std::fs::rename(from, w.file("e/in")).unwrap();
        }),
        ("an edit in what came in", |w, _| w.write("e/in/deep/file", "5\n")),
        ("a file in a directory's place", |w, _| {
            std::fs::remove_dir_all(w.file("e/in")).unwrap();
            w.write("e/in", "file\n");
        }),
        ("a directory in a file's place", |w, _| {
            std::fs::remove_file(w.file("e/in")).unwrap();
            w.write("e/in/again", "6\n");
        }),
        ("an empty directory", |w, _| std::fs::create_dir(w.file("empty")).unwrap()),
        ("a directory in another one's place", |w, to| {
            w.write("other/a", "from the other\n");
            std::fs::rename(w.file("d"), to).unwrap();
            std::fs::rename(w.file("other"), w.file("d")).unwrap();
        }),
        ("a link", |w, _| std::os::unix::fs::symlink("a", w.file("d/link")).unwrap()),
        ("in the nested repository", |w, _| w.write("global/g/h", "H\n")),
        ("a directory there", |w, _| w.write("global/i/j", "J\n")),
        ("renamed there", |w, _| std::fs::rename(w.file("global/i"), w.file("global/k")).unwrap()),
        ("an edit there", |w, _| w.write("global/k/j", "K\n")),
    ];
    for (round, (what, edit)) in edits.iter().enumerate() {
        edit(&world, &outside);
        let before = tree(world.root());
        let settled = update(&mut world, round as u64);
        assert!(settled.is_empty(), "{what}: found only after the exchange: {settled:?}");
        assert_eq!(without_bulk(&tree(world.root())), without_bulk(&before), "{what}");
        if round % 3 == 0 {
            assert!(world.wc.tend(Scan::Watched).unwrap().is_empty(), "{what}");
        }
        let status = world.wc.status().unwrap();
        assert!(world.wc.tend(Scan::Full).unwrap().is_empty(), "{what}");
        assert_eq!(world.wc.status().unwrap(), status, "{what}");
        assert_eq!(world.wc.saved().unwrap(), [], "{what}");
    }
    world.git(&["fsck", "--strict"]);
}

/// Every path with its type, permissions and content.
fn tree(root: &Path) -> Vec<String> {
    fn walk(dir: &Path, out: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            let mode = meta.permissions().mode();
            if path.file_name().is_some_and(|name| name == ".git") {
                continue;
            }
            if meta.is_dir() {
                out.push(format!("{} {mode:o}", path.display()));
                walk(&path, out);
            } else {
                let data = if meta.is_symlink() { Vec::new() } else { std::fs::read(&path).unwrap() };
                out.push(format!("{} {mode:o} {}", path.display(), String::from_utf8_lossy(&data)));
            }
        }
    }
    let mut out = Vec::new();
    walk(root, &mut out);
    out.sort();
    out
}

fn without_bulk(tree: &[String]) -> Vec<&String> {
    tree.iter().filter(|line| !line.contains("/bulk ")).collect()
}

/// The proof that a watched update does not look at every file, and that nothing is lost by it.
#[test]
fn what_the_kernel_does_not_tell_is_carried_over_after_the_exchange() {
    let mut world = world();
    let outside = link(&world, "f");
    std::fs::write(&outside, "through another name\n").unwrap();
    let settled = update(&mut world, 1);
    assert_eq!(settled.carried, [path("f")]);
    assert_eq!(world.read("f"), "through another name\n");
    // The link's other end is the displaced tree now; what is written there late is found when every file is looked at.
    std::fs::write(&outside, "late, through another name\n").unwrap();
    assert!(world.wc.tend(Scan::Watched).unwrap().is_empty());
    assert_eq!(world.wc.tend(Scan::Full).unwrap().carried, [path("f")]);
    assert_eq!(world.read("f"), "late, through another name\n");
}

#[test]
fn a_look_at_every_file_knows_what_the_kernel_did_not_tell() {
    let mut world = world();
    let outside = link(&world, "f");
    std::fs::write(&outside, "through another name\n").unwrap();
    world.wc.tend(Scan::Full).unwrap();
    assert!(update(&mut world, 1).is_empty());
    assert_eq!(world.read("f"), "through another name\n");
}

/// A file that is written through memory, as databases and some editors do.
struct Mapping(*mut libc::c_void);

const LEN: usize = 2;

#[allow(unsafe_code)] // The kernel offers no other way to write without telling anybody.
impl Mapping {
    fn new(path: &Path) -> Mapping {
        let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
        // SAFETY: a new mapping of an open file, at a place that the kernel chooses.
        let at = unsafe {
            libc::mmap(std::ptr::null_mut(), LEN, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, fd, 0)
        };
        assert_ne!(at, libc::MAP_FAILED);
        Mapping(at)
    }

    fn write(&self, data: [u8; LEN]) {
        // SAFETY: the mapping is LEN bytes long, and only this test writes to it.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), self.0.cast(), LEN) };
    }
}

#[allow(unsafe_code)]
impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` and used by nobody after this.
        unsafe { libc::munmap(self.0, LEN) };
    }
}

#[test]
fn writes_through_a_mapping_are_carried_over_or_known_once_it_ends() {
    let mut world = world();
    let mapping = Mapping::new(&world.file("d/a"));
    world.wc.tend(Scan::Watched).unwrap();
    mapping.write(*b"M\n");
    let settled = update(&mut world, 1);
    assert_eq!(settled.carried, [path("d/a")], "the rescan of the displaced tree");
    assert_eq!(world.read("d/a"), "M\n");
    // It is the displaced tree's file that is mapped now. The end of the mapping is told.
    mapping.write(*b"N\n");
    drop(mapping);
    assert_eq!(world.wc.tend(Scan::Watched).unwrap().carried, [path("d/a")]);
    assert_eq!(world.read("d/a"), "N\n");

    let mapping = Mapping::new(&world.file("e/c"));
    world.wc.tend(Scan::Watched).unwrap();
    mapping.write(*b"O\n");
    drop(mapping);
    assert!(update(&mut world, 2).is_empty(), "known before the exchange");
    assert_eq!(world.read("e/c"), "O\n");
}

#[test]
fn late_writes_through_old_handles_are_told() {
    let mut world = world();
    let mut handle = std::fs::File::options().append(true).open(world.file("f")).unwrap();
    assert!(update(&mut world, 1).is_empty());
    handle.write_all(b"late\n").unwrap();
    assert_eq!(world.wc.tend(Scan::Watched).unwrap().carried, [path("f")]);
    assert_eq!(world.read("f"), "f\nlate\n");
    // And without anybody tending, by the next update.
    let mut handle = std::fs::File::options().append(true).open(world.file("f")).unwrap();
    assert!(update(&mut world, 2).is_empty());
    handle.write_all(b"later\n").unwrap();
    update(&mut world, 3);
    assert_eq!(world.read("f"), "f\nlate\nlater\n");
    assert!(world.wc.saved().unwrap().is_empty());
}

/// Somebody edits at exactly the moment in which an update passes a point; at every point.
#[cfg(debug_assertions)]
#[test]
fn edits_at_every_moment_of_an_update_survive() {
    use repos::worktree::fault;
    for point in fault::POINTS.iter().filter(|p| !p.starts_with("flip.") && **p != "stage.harvested") {
        let mut world = world();
        // Also held open from before, as a program does that appends.
        let mut handle = std::fs::File::options().append(true).open(world.file("d/sub/b")).unwrap();
        world.commit("default", &[put("bulk", "new\n"), put("e/added", "upstream\n")]);
        let root = world.root().to_owned();
        let mut passed = false;
        let interfere = move |name: &'static str| {
            if name == *point && !std::mem::replace(&mut passed, true) {
                std::fs::write(root.join("d/a"), "edited\n").unwrap();
                std::fs::write(root.join("e/.tmp"), "renamed over\n").unwrap();
                std::fs::rename(root.join("e/.tmp"), root.join("e/c")).unwrap();
                std::fs::create_dir_all(root.join("fresh/deep")).unwrap();
                std::fs::write(root.join("fresh/deep/file"), "created\n").unwrap();
                std::fs::remove_file(root.join("f")).unwrap();
                handle.write_all(b"appended\n").unwrap();
            }
        };
        let targets = world.targets();
        fault::interfering(interfere, || {
            world.wc.stage(&targets, &watched()).unwrap().exchange().unwrap().settle().unwrap();
        });
        world.wc.tend(Scan::Watched).unwrap();
        assert_eq!(world.read("d/a"), "edited\n", "{point}");
        assert_eq!(world.read("e/c"), "renamed over\n", "{point}");
        assert_eq!(world.read("fresh/deep/file"), "created\n", "{point}");
        assert!(!world.file("f").exists(), "{point}");
        assert_eq!(world.read("d/sub/b"), "b\nappended\n", "{point}");
        assert_eq!((world.read("bulk"), world.read("e/added")), ("new\n".into(), "upstream\n".into()), "{point}");
        assert!(world.wc.saved().unwrap().is_empty(), "{point}: {:?}", world.wc.saved().unwrap());
        // And the next update knows it all.
        assert!(update(&mut world, 7).is_empty(), "{point}");
        assert_eq!(world.read("d/a"), "edited\n", "{point}");
        world.git(&["fsck", "--strict"]);
    }
}

#[test]
fn more_than_can_be_remembered_means_a_look_at_every_file() {
    let mut world = world();
    std::fs::create_dir(world.file("many")).unwrap();
    world.wc.tend(Scan::Watched).unwrap();
    for i in 0..6000 {
        std::fs::write(world.file(&format!("many/{i}")), "x\n").unwrap();
    }
    let outside = link(&world, "f");
    std::fs::write(world.file("d/a"), "edited\n").unwrap();
    for i in 0..6000 {
        std::fs::set_permissions(world.file(&format!("many/{i}")), mode(0o600)).unwrap();
    }
    std::fs::write(&outside, "hidden\n").unwrap();
    // Even what the kernel did not tell is known: every file was looked at.
    assert!(update(&mut world, 1).is_empty());
    assert_eq!((world.read("f"), world.read("d/a")), ("hidden\n".into(), "edited\n".into()));
    // Then it is watched again.
    world.wc.tend(Scan::Watched).unwrap();
    world.write("e/c", "edited\n");
    assert!(update(&mut world, 2).is_empty());
    assert_eq!(world.read("e/c"), "edited\n");
}

#[test]
fn somebody_elses_update_is_noticed() {
    let mut world = world();
    world.write("d/a", "edited\n");
    world.commit("default", &[put("bulk", "1\n")]);
    let other = WorkingCopy::open(world.root()).unwrap();
    other.stage(&world.targets(), &quick()).unwrap().exchange().unwrap().settle().unwrap();
    world.write("e/c", "edited\n");
    assert!(update(&mut world, 2).is_empty());
    assert_eq!((world.read("d/a"), world.read("e/c")), ("edited\n".into(), "edited\n".into()));
    other.revert(&[path("d/a")]).unwrap();
    assert!(update(&mut world, 3).is_empty());
    assert_eq!(world.read("d/a"), "a\n");
    assert!(world.wc.saved().unwrap().is_empty());
}

/// Run as a process of its own by the next tests, with limits. Passes when nobody asks for it.
#[test]
fn limited() {
    if std::env::var_os("WATCH_LIMITED").is_none() {
        return;
    }
    let mut world = World::new();
    let files: Vec<String> = (0..20).map(|i| format!("d{i}/f")).collect();
    world.commit("default", &files.iter().map(|f| put(f, "f\n")).collect::<Vec<_>>());
    world.commit("global", &[put("g", "g\n")]);
    world.update().unwrap();
    world.wc.watch().unwrap();
    world.wc.tend(Scan::Watched).unwrap();
    let why = world.wc.watch_trouble().expect("20 directories are more than the limit");
    assert!(why.contains("fs.inotify.max_user_watches"), "{why}");
    // Every update looks at every file: even what the kernel would not have told is known before the exchange.
    let outside = link(&world, "d3/f");
    std::fs::write(&outside, "hidden\n").unwrap();
    world.write("d7/f", "edited\n");
    assert!(update(&mut world, 1).is_empty());
    world.wc.tend(Scan::Watched).unwrap();
    assert_eq!((world.read("d3/f"), world.read("d7/f")), ("hidden\n".into(), "edited\n".into()));
}

fn run_limited(command: &mut Command) -> std::process::Output {
    command.args(["limited", "--exact", "--nocapture"]).env("WATCH_LIMITED", "1").output().unwrap()
}

#[cfg(debug_assertions)]
#[test]
fn with_too_many_directories_every_update_looks_at_every_file() {
    let output = run_limited(Command::new(std::env::current_exe().unwrap()).env("ECCFG_WATCH_LIMIT", "10"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The kernel's own limit, where this machine lets us make a user namespace with one.
#[test]
fn the_kernels_limit_is_understood() {
    let script = "echo 10 > /proc/sys/user/max_inotify_watches && exec \"$0\" \"$@\"";
    let mut probe = Command::new("unshare");
    probe.args(["-Ur", "sh", "-c", "echo 10 > /proc/sys/user/max_inotify_watches"]);
    if !probe.output().is_ok_and(|output| output.status.success()) {
        eprintln!("no user namespace with limits of its own here; the test with an assumed limit has to do");
        return;
    }
    let mut command = Command::new("unshare");
    command.args(["-Ur", "sh", "-c", script]).arg(std::env::current_exe().unwrap());
    let output = run_limited(&mut command);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
