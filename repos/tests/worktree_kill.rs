//! A process that updates a working copy is killed at every step; the tree is the old or the new one each time, no
//! edit is lost, and the next run repairs the rest.
#![cfg(debug_assertions)] // a release has no fault points
#![allow(clippy::unwrap_used)]

mod worktree_support;

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use repos::worktree::{OnOverlap, Scan, StageOptions, Target, Targets, WorkingCopy, fault};
use worktree_support::*;

/// The victim: run as a process of its own, with what to do in the environment. Passes when nobody asks for it.
#[test]
fn victim() {
    let Ok(root) = std::env::var("VICTIM_ROOT") else { return };
    let wc = WorkingCopy::open(Path::new(&root)).unwrap();
    let targets: Targets =
        serde_json::from_str::<std::collections::BTreeMap<String, Target>>(&std::env::var("VICTIM_TARGETS").unwrap())
            .unwrap();
    let mut options = StageOptions { on_overlap: OnOverlap::Theirs, ..StageOptions::default() };
    if std::env::var_os("VICTIM_TENDED").is_some() {
        // As an agent does: the update is worked out for what differs alone.
        wc.watch().unwrap();
        wc.tend(Scan::Full).unwrap();
        wc.tend(Scan::Watched).unwrap();
        options.scan = Scan::Watched;
    }
    let staged = wc.stage(&targets, &options).unwrap();
    if std::env::var_os("VICTIM_LATE").is_some() {
        std::fs::write(wc.root().join("n1/x"), "late edit\n").unwrap();
        std::fs::write(wc.root().join("late-new"), "late new\n").unwrap();
        std::fs::remove_file(wc.root().join("n1/doomed")).unwrap();
    }
    staged.exchange().unwrap().settle().unwrap();
}

fn victim_of(world: &World) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["victim", "--exact", "--nocapture"]).env("VICTIM_ROOT", world.root());
    command.env("VICTIM_TARGETS", serde_json::to_string(&world.targets()).unwrap());
    command
}

fn kill_at(world: &World, point: &str, late: bool) {
    let mut command = victim_of(world);
    command.env("ECCFG_FAULT", point);
    if late {
        command.env("VICTIM_LATE", "1");
    }
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.signal(), Some(9), "{point} was not passed: {:?} {text}", output.status);
}

/// Every file with its content, and the base, as one text.
fn picture(world: &World) -> String {
    fn walk(dir: &Path, out: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.file_name() == Some(std::ffi::OsStr::new(".git")) {
                let state = std::fs::read_to_string(path.join("eccfg/state")).unwrap();
                let state: serde_json::Value = serde_json::from_str(&state).unwrap();
                out.push(format!("base {}: {}", path.display(), state["base"]["revision"]));
                let main = std::fs::read_to_string(path.join("refs/heads/main")).unwrap();
                out.push(format!("main {}: {}", path.display(), main.trim()));
            } else if path.is_dir() {
                walk(&path, out);
            } else {
                out.push(format!("{}: {}", path.display(), String::from_utf8_lossy(&std::fs::read(&path).unwrap())));
            }
        }
    }
    let mut lines = Vec::new();
    walk(world.root(), &mut lines);
    lines.sort();
    lines.join("\n")
}

/// A world two updates old, with local edits, and a third update waiting.
fn ready(spare: bool) -> World {
    let mut world = World::filled();
    world.commit("default", &[put("default/bulk", "1\n"), put("n1/doomed", "d\n"), put("will/go", "1\n")]);
    world.update().unwrap();
    if spare {
        world.wc.prepare().unwrap();
    }
    world.write("default/a.conf", "ONE\ntwo\nthree\nfour\nfive\n");
    world.write("untracked/file", "mine\n");
    world.write("both", "my version\0\n");
    world.write("staged", "staged\n");
    world.git(&["add", "staged"]);
    world.commit(
        "default",
        &[
            put("default/a.conf", "one\ntwo\nthree\nfour\nFIVE\n"),
            gone("will/go"),
            put("new/file", "n\n"),
            put("both", "upstream\n"),
        ],
    );
    world.commit("global", &[put("cluster.toml", "[node.n2]\n")]);
    world
}

/// What `victim` leaves if nobody kills it, with the last-moment edits or without.
fn expected(spare: bool, late: bool) -> (String, String) {
    let world = ready(spare);
    let old = picture(&world);
    let options = StageOptions { on_overlap: OnOverlap::Theirs, ..quick() };
    world.update_with(&options).unwrap();
    if late {
        world.write("n1/x", "late edit\n");
        world.write("late-new", "late new\n");
        std::fs::remove_file(world.file("n1/doomed")).unwrap();
    }
    let new = picture(&world);
    (old.replace(&world.root().display().to_string(), "ROOT"), new.replace(&world.root().display().to_string(), "ROOT"))
}

fn leftovers(world: &World) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(world.wc.state_dir())
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    let trash = std::fs::read_dir(world.wc.state_dir().join("trash")).into_iter().flatten();
    names.extend(trash.map(|e| format!("trash/{}", e.unwrap().file_name().to_string_lossy())));
    names.retain(|n| {
        !n.starts_with("manifest-")
            && !["copy.json", "lock", "journal", "objects", "saved", "spare", "trash"].contains(&n.as_str())
    });
    names
}

fn run(point: &str, spare: bool, late: bool, old: &str, new: &str) {
    let world = ready(spare);
    kill_at(&world, point, late);
    let root = world.root().display().to_string();
    let seen = picture(&world).replace(&root, "ROOT");
    let exchanged = seen.contains("new/file");
    if !late || point.starts_with("stage.") {
        let one = if exchanged { new } else { old };
        if late {
            assert!(!exchanged, "{point}");
        } else {
            assert_eq!(seen, one, "{point}: neither the old nor the new tree");
        }
    }
    // Git finds a whole repository at once, whatever happened.
    world.git(&["fsck", "--strict"]);
    world.git(&["status"]);
    // The next run repairs, and then updates as if nothing had happened.
    let wc = WorkingCopy::open(world.root()).unwrap();
    assert!(wc.is_settled().unwrap(), "{point}");
    assert_eq!(leftovers(&world), Vec::<String>::new(), "{point}");
    assert!(!world.file(".git/index.lock").exists() && !world.file("global/.git/index.lock").exists(), "{point}");
    if late && !point.starts_with("stage.locked") {
        let edited = point.starts_with("exchange") || point.starts_with("settle");
        if edited {
            assert_eq!(world.read("n1/x"), "late edit\n", "{point}");
            assert_eq!(world.read("late-new"), "late new\n", "{point}");
            assert!(!world.file("n1/doomed").exists(), "{point}");
        }
    }
    let options = StageOptions { on_overlap: OnOverlap::Theirs, ..quick() };
    wc.stage(&world.targets(), &options).unwrap().exchange().unwrap().settle().unwrap();
    let seen = picture(&world).replace(&root, "ROOT");
    if !late || seen.contains("late edit") {
        assert_eq!(seen, new, "{point}");
    }
    assert_eq!(wc.saved().unwrap().iter().map(|s| s.path.to_string()).collect::<Vec<_>>(), ["both"], "{point}");
    world.git(&["fsck", "--strict"]);
    let status = world.git(&["status", "--porcelain"]);
    assert!(
        status.contains("A  staged\n") && status.contains(" M default/a.conf\n") && status.contains("?? untracked/\n"),
        "{point}: {status}"
    );
}

#[test]
fn killed_at_every_step_of_an_update() {
    for spare in [true, false] {
        let (old, new) = expected(spare, false);
        for point in fault::POINTS.iter().filter(|p| !p.starts_with("flip.")) {
            run(point, spare, false, &old, &new);
        }
    }
}

/// The same where the two trees were compared before and only contents change: nothing is looked at but what differs.
#[test]
fn killed_at_every_step_of_a_small_update_of_tended_trees() {
    let ready = || {
        let mut world = World::filled();
        world.commit("default", &[put("default/bulk", "1\n"), put("n1/x", "x\n")]);
        world.update().unwrap();
        world.wc.prepare().unwrap();
        world.commit("default", &[put("default/bulk", "2\n")]);
        world.update().unwrap();
        world.write("untracked/file", "mine\n");
        world.commit("default", &[put("n1/x", "xx\n")]);
        world.commit("global", &[put("cluster.toml", "[node.n2]\n")]);
        world
    };
    let picture = |world: &World| picture(world).replace(&world.root().display().to_string(), "ROOT");
    let (old, new) = {
        let world = ready();
        let old = picture(&world);
        world.update().unwrap();
        (old, picture(&world))
    };
    for point in fault::POINTS.iter().filter(|p| !p.starts_with("flip.")) {
        let world = ready();
        let output = victim_of(&world).env("ECCFG_FAULT", point).env("VICTIM_TENDED", "1").output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.signal(), Some(9), "{point} was not passed: {:?} {text}", output.status);
        let seen = picture(&world);
        assert!(seen == old || seen == new, "{point}: neither the old nor the new tree\n{seen}");
        world.git(&["fsck", "--strict"]);
        let wc = WorkingCopy::open(world.root()).unwrap();
        assert!(wc.is_settled().unwrap(), "{point}");
        wc.stage(&world.targets(), &quick()).unwrap().exchange().unwrap().settle().unwrap();
        assert_eq!(picture(&world), new, "{point}");
        assert!(wc.saved().unwrap().is_empty(), "{point}");
        assert_eq!(world.git(&["status", "--porcelain"]), "?? untracked/\n", "{point}");
    }
}

#[test]
fn edits_of_the_last_moment_survive_a_kill() {
    let (old, new) = expected(true, true);
    for point in fault::POINTS.iter().filter(|p| p.starts_with("exchange.") || p.starts_with("settle.")) {
        run(point, true, true, &old, &new);
    }
}

#[test]
fn killed_at_every_step_of_a_move_in_place() {
    for point in fault::POINTS.iter().filter(|p| p.starts_with("flip.")) {
        let mut world = World::filled();
        world.write("n1/x", "committed\n");
        world.write("global/g", "committed\n");
        world.commit("default", &[put("n1/x", "committed\n")]);
        world.commit("global", &[put("g", "committed\n")]);
        kill_at(&world, point, false);
        let wc = WorkingCopy::open(world.root()).unwrap();
        assert!(wc.is_settled().unwrap(), "{point}");
        wc.stage(&world.targets(), &quick()).unwrap().exchange().unwrap().settle().unwrap();
        world.assert_git_clean();
        assert_eq!(wc.base("global").unwrap().unwrap().revision, 2);
        assert_eq!(leftovers(&world), Vec::<String>::new(), "{point}");
        assert!(!world.file(".git/index.lock").exists(), "{point}");
    }
}

/// The next run of the machine, for a process of its own.
fn after_power_loss(world: &World) {
    let output = victim_of(world).env("ECCFG_BOOT", "1".repeat(32)).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The disk has what the file system happened to write of a tree that was being patched: names, but not the content of the new
/// files, and neither the journal nor that the tree has no id any more. (A file system that keeps the order of its own metadata
/// does exactly this when somebody else has it commit in the middle of the update.)
#[test]
fn a_tree_that_was_cut_off_by_power_loss_is_never_taken_for_a_good_one() {
    let (_, new) = expected(true, false);
    for point in ["stage.journal-staging", "stage.patched-first", "stage.patched", "stage.base-written"] {
        let world = ready(true);
        let files = [".conf.eccfg/journal", ".conf.eccfg/spare/.git/eccfg/tree"].map(|f| world.temp.path().join(f));
        let before = files.each_ref().map(|f| std::fs::read(f).unwrap());
        kill_at(&world, point, false);
        for (file, data) in files.iter().zip(before) {
            std::fs::write(file, data).unwrap();
        }
        for file in ["default/a.conf", "new/file", "both", "n1/x"] {
            let file = world.wc.state_dir().join("spare").join(file);
            if file.exists() {
                std::fs::write(file, "").unwrap();
            }
        }
        // Something that reached the previous tree late, and its disk.
        std::fs::write(world.wc.state_dir().join("spare/n1/late"), "late\n").unwrap();
        after_power_loss(&world);
        let seen = picture(&world).replace(&world.root().display().to_string(), "ROOT");
        assert_eq!(seen, new, "{point}");
        let saved: Vec<_> = world.wc.saved().unwrap().iter().map(|s| s.path.to_string()).collect();
        assert_eq!(saved, ["n1/late", "both"], "{point}");
        world.git(&["fsck", "--strict"]);
    }
}

/// What is on disk at the exchange is the whole new tree; what nobody synced are caches.
#[test]
fn an_exchange_is_settled_after_power_loss_without_any_cache() {
    let (_, new) = expected(true, false);
    for point in fault::POINTS.iter().filter(|p| p.starts_with("exchange.") || p.starts_with("settle.")) {
        let world = ready(true);
        kill_at(&world, point, false);
        for entry in std::fs::read_dir(world.wc.state_dir()).unwrap() {
            let entry = entry.unwrap();
            if entry.file_name().to_string_lossy().starts_with("manifest-") {
                std::fs::write(entry.path(), "").unwrap();
            }
        }
        after_power_loss(&world);
        let seen = picture(&world).replace(&world.root().display().to_string(), "ROOT");
        assert_eq!(seen, new, "{point}");
        let saved: Vec<_> = world.wc.saved().unwrap().iter().map(|s| s.path.to_string()).collect();
        assert_eq!(saved, ["both"], "{point}");
        world.git(&["fsck", "--strict"]);
    }
}
