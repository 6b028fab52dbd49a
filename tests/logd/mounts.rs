//! File systems that lie, and file systems that are full.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::lab::{Client, ECCLUSTER, Lab, check_sources, compile_shim, eventually, text};

/// A small file system in memory; needs root, as `.ci/run` has.
pub struct Tmpfs(PathBuf);

impl Tmpfs {
    pub fn mount(at: &Path, bytes: u64) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: mounting needs root");
            return None;
        }
        fs::create_dir_all(at).unwrap();
        let options = format!("size={bytes}");
        let mounted =
            nix::mount::mount(Some("tmpfs"), at, Some("tmpfs"), nix::mount::MsFlags::empty(), Some(options.as_str()));
        match mounted {
            Ok(()) => Some(Self(at.into())),
            Err(errno) => {
                eprintln!("skipped: {errno} for a tmpfs");
                None
            }
        }
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// Locks that are always granted, as on a network mount without a lock service.
const NO_LOCKS: &str = "
#include <sys/file.h>
int flock(int fd, int operation) { (void)fd; (void)operation; return 0; }
";

/// The same for the file that another host holds; the daemon's own check passes.
const NO_LOCKS_OF_OTHERS: &str = "
#define _GNU_SOURCE
#include <sys/file.h>
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
int flock(int fd, int operation) {
    char link[64], path[4096];
    snprintf(link, sizeof link, \"/proc/self/fd/%d\", fd);
    ssize_t bytes = readlink(link, path, sizeof path - 1);
    path[bytes < 0 ? 0 : bytes] = 0;
    if (strstr(path, \"/shared/\")) return 0;
    return ((int (*)(int, int))dlsym(RTLD_NEXT, \"flock\"))(fd, operation);
}
";

#[test]
fn check_mount_tells_a_good_one_from_one_whose_locks_do_nothing() {
    let mut lab = Lab::new(&["n1"], "[log.a]\n");
    let check = |dir: &Path, shim: Option<&Path>| {
        let mut command = Command::new(ECCLUSTER);
        command.args(["logd", "check-mount"]).arg(dir);
        if let Some(shim) = shim {
            command.env("LD_PRELOAD", shim);
        }
        command.output().unwrap()
    };
    let good = lab.path("good");
    fs::create_dir_all(&good).unwrap();
    let _tmpfs = Tmpfs::mount(&good, 1 << 20);
    let output = check(&good, None);
    assert!(output.status.success() && text(&output).contains("behave"), "{}", text(&output));
    assert_eq!(fs::read_dir(&good).unwrap().count(), 0, "nothing is left behind");

    let shim = compile_shim(lab.dir.path(), NO_LOCKS);
    let output = check(&good, Some(&shim));
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("another process got a lock that this one holds"), "{}", text(&output));
    // And the daemon refuses to put data there.
    lab.spawn("n1", &[("LD_PRELOAD", shim.to_str().unwrap())]);
    let ended = eventually("the daemon ends", || lab.ended("n1"));
    assert_eq!(ended.code(), Some(1));
    assert!(lab.log("n1").contains("cannot be trusted with data"), "{}", lab.log("n1"));
}

/// Two daemons with one directory: as two hosts with one mount are, but for the network between them.
#[test]
fn check_mount_asks_another_node() {
    let mut lab = Lab::new(&["n1", "n2"], "[log.a]\n");
    let shared = lab.path("shared");
    fs::create_dir_all(&shared).unwrap();
    lab.start("n1");
    lab.start("n2");
    let check = |lab: &Lab| lab.run("n1", &["check-mount", shared.to_str().unwrap(), "--peer", "n2"]);
    let good = check(&lab);
    assert!(good.status.success(), "{}", text(&good));
    // Locks that end at the host's border: the other side gets every one.
    lab.stop("n2");
    let shim = compile_shim(lab.dir.path(), NO_LOCKS_OF_OTHERS);
    lab.start_with("n2", &[("LD_PRELOAD", shim.to_str().unwrap())]);
    let wrong = check(&lab);
    assert_eq!(wrong.status.code(), Some(1));
    assert!(text(&wrong).contains("n2 got a lock that this one holds"), "{}", text(&wrong));
    // Not the same mount: n2 has nothing there.
    let unknown = lab.run("n1", &["check-mount", shared.to_str().unwrap(), "--peer", "n9"]);
    assert!(text(&unknown).contains("names no node n9"), "{}", text(&unknown));
    assert_eq!(fs::read_dir(&shared).unwrap().count(), 0, "nothing is left behind");
}

/// First the node's disk, then the manager's; both go on by themselves.
#[test]
fn full_disks_lose_and_repeat_nothing() {
    let conf = r#"
        [log.mainlog]
        [managers.m1]
        logfile = "{out}/%{l}"
    "#;
    let mut lab = Lab::new(&["n1", "m1"], conf);
    let Some(_of_node) = Tmpfs::mount(&lab.path("n1/data"), 6 << 20) else { return };
    let Some(_of_manager) = Tmpfs::mount(&lab.path("out"), 6 << 20) else { return };
    let fill = |path: PathBuf| {
        let _ = fs::write(&path, vec![b'x'; 16 << 20]);
        path
    };
    lab.start("n1");
    lab.start("m1");
    let mut client = Client::new(lab.socket("n1", "mainlog"), "one");
    client.send_until(1_000);

    let filler = fill(lab.path("n1/data/filler"));
    let socket = lab.socket("n1", "mainlog");
    let sending = std::thread::spawn(move || {
        let mut client = Client::behind(socket, "one", 1_000);
        client.send_until(20_000);
    });
    let logs = |lab: &Lab| text(&lab.run("n1", &["logs"]));
    eventually("the node says that its disk is full", || logs(&lab).contains("the disk is full").then_some(()));
    fs::remove_file(filler).unwrap();
    sending.join().unwrap();
    eventually("the first lines", || (lab.lines("mainlog").len() >= 20_000).then_some(()));

    let filler = fill(lab.path("out/filler"));
    let mut client = Client::behind(lab.socket("n1", "mainlog"), "one", 20_000);
    client.send_until(40_000);
    let full = || text(&lab.run("m1", &["metrics"])).contains("logd_manager_disk_full{} 1");
    eventually("the manager says that its disk is full", || full().then_some(()));
    fs::remove_file(filler).unwrap();
    eventually("every line", || (lab.lines("mainlog").len() >= 40_000).then_some(()));
    check_sources(&lab.lines("mainlog"), &BTreeMap::from([("one".into(), 40_000)]));
}
