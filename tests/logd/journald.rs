//! A real journald, in a mount namespace whose `/run` is its own.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::lab::{Lab, Program, check_sources, eventually};

const JOURNALD: &str = "/usr/lib/systemd/systemd-journald";

/// Starts journald; answers it with the root directory as it sees it.
fn start(lab: &Lab) -> Option<(Program, PathBuf)> {
    let has_id = fs::read("/etc/machine-id").is_ok_and(|id| !id.is_empty());
    if !nix::unistd::geteuid().is_root() || !has_id || !Path::new(JOURNALD).exists() {
        eprintln!("skipped: a journald of its own needs root, {JOURNALD} and /etc/machine-id");
        return None;
    }
    let pid_file = lab.path("journald.pid");
    let script = format!(
        "mount -t tmpfs none /run && mkdir -p /run/systemd/journal /run/log/journal && echo $$ > {} && exec {JOURNALD}",
        pid_file.display()
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
    let program = Program::start(&mut command)?;
    let pid = eventually("journald starts", || {
        let pid = fs::read_to_string(&pid_file).ok()?;
        pid.ends_with('\n').then(|| pid.trim().to_owned())
    });
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    eventually("journald listens", || root.join("run/systemd/journal/socket").exists().then_some(()));
    // logd asks `journalctl`, which has to look into that namespace.
    fs::create_dir_all(lab.path("bin")).unwrap();
    let wrapper = lab.path("bin/journalctl");
    fs::write(&wrapper, format!("#!/bin/sh\nexec nsenter --mount=/proc/{pid}/ns/mnt /usr/bin/journalctl \"$@\"\n"))
        .unwrap();
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
    Some((program, root))
}

#[test]
fn the_systems_journal_is_read_exactly_once() {
    let conf = "[log.system]\ninput = \"journald\"\n[managers.n1]\nlogfile = \"{out}/%{l}\"\n";
    let mut lab = Lab::new(&["n1"], conf);
    let Some((_journald, root)) = start(&lab) else { return };
    let socket = UnixDatagram::unbound().unwrap();
    let log = |from: u64, to: u64| {
        for number in from..=to {
            let entry = format!("MESSAGE=story {number}\nPRIORITY=4\nSYSLOG_IDENTIFIER=teller\n");
            socket.send_to(entry.as_bytes(), root.join("run/systemd/journal/socket")).unwrap();
        }
    };
    let path = format!("{}:{}", lab.path("bin").display(), std::env::var("PATH").unwrap_or_default());
    let environment = [("PATH", path.as_str())];
    let told = |lab: &Lab| {
        // The kernel's messages are in it too.
        let lines = lab.lines("system").into_iter().filter(|line| line.contains(" teller "));
        lines.collect::<Vec<String>>()
    };
    let until = |lab: &Lab, count: usize| {
        eventually(&format!("{count} entries"), || (told(lab).len() >= count).then_some(()));
    };
    log(1, 50);
    lab.start_with("n1", &environment);
    until(&lab, 50);
    log(51, 100);
    until(&lab, 60);
    lab.kill("n1");
    log(101, 150);
    lab.start_with("n1", &environment);
    log(151, 200);
    until(&lab, 200);
    assert!(told(&lab)[0].starts_with("<12>1 "), "{:?}", told(&lab)[0]);
    let texts: Vec<String> = told(&lab).iter().map(|line| line.rsplit_once(" - - ").unwrap().1.to_owned()).collect();
    check_sources(&texts, &BTreeMap::from([("story".into(), 200)]));
}
