//! What others do to a machine: tables that are flushed, interfaces that are made anew, a log that nobody reads.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;

use duravip::effects::fence::Fence;
use nix::sys::signal::{Signal, kill};

use crate::lab::{Lab, Owners, eventually, ip, possible};
use crate::prober::Prober;
use crate::{SETTINGS, of, vips};

fn all_have_some(after: &Owners) -> bool {
    ["n1", "n2", "n3"].iter().all(|name| !of(after, name).is_empty())
}

#[test]
fn what_others_do_to_a_machine_is_noticed_and_made_good() {
    if !possible() {
        return;
    }
    let mut lab = Lab::new(3, &format!("{SETTINGS}{}", vips(4, 2)));
    lab.start_all();
    let prober = Prober::start(&lab, lab.settled().keys().copied());
    let owners = prober.settled(&lab, "the start", all_have_some);
    let elsewhere = |owners: &Owners, name: &str| {
        let theirs = of(owners, name);
        eventually("its addresses elsewhere", || {
            let answering = prober.answering();
            theirs.iter().all(|address| answering[address].as_ref().is_some_and(|who| who != name)).then_some(())
        });
    };

    // As `nft flush ruleset` does. Without its fence a machine whose daemon and guard are gone would go on answering.
    lab.on("n1", || Fence::open().unwrap().remove().unwrap());
    eventually("the fence", || {
        let history = lab.duravip("n1", "history");
        String::from_utf8_lossy(&history.stdout).contains("is built again").then_some(())
    });
    assert_eq!(lab.ask("n1", "show").unwrap()["fence"], true);
    kill(lab.guard("n1"), Signal::SIGKILL).unwrap();
    lab.kill("n1");
    elsewhere(&owners, "n1");
    let held = lab.held();
    let silent = |address| held[address].len() == 2;
    assert!(of(&owners, "n1").iter().all(silent), "the test means nothing if somebody took them off: {held:?}");
    prober.assert_never_two("a fence that had been flushed");
    lab.start("n1");
    let owners = prober.settled(&lab, "the return", all_have_some);

    // The new interface has the old name, and another number.
    lab.remove_interface("n2");
    elsewhere(&owners, "n2");
    lab.make_interface("n2");
    prober.settled(&lab, "the new interface", all_have_some);

    // The kernel tells the segment whose the node's own address is now, so that the others find it; ours are not the kernel's.
    let setting =
        |name: &str| format!("netns exec {} sysctl -qw net.ipv4.conf.eth0.{name}", lab.machine("n3").namespace);
    ip(&setting("arp_notify=1"));
    ip(&format!("-n {} link set eth0 address 02:77:00:00:00:99", lab.machine("n3").namespace));
    let theirs = of(&lab.settled(), "n3");
    lab.order("n1", "announce view");
    eventually("the new hardware address", || {
        let (answering, announced) = (prober.answering(), prober.last_announced());
        let new = format!("{:x?}", [2, 0x77, 0, 0, 0, 0x99]);
        let known = |address| answering[address].as_ref() == Some(&new) && announced.get(address) == Some(&new);
        theirs.iter().all(known).then_some(())
    });
}

#[test]
fn a_log_that_nobody_reads_holds_nobody_up() {
    if !possible() {
        return;
    }
    let mut lab = Lab::new(3, &format!("{SETTINGS}{}", vips(4, 2)));
    let (_unread, log) = std::io::pipe().unwrap();
    lab.start_with_log("n1", log.try_clone().unwrap().into());
    lab.start("n2");
    lab.start("n3");
    lab.settled_with("addresses on all three", all_have_some);
    // Another opening of the pipe: the daemon's own must not learn to give up.
    let path = format!("/proc/self/fd/{}", log.as_raw_fd());
    let mut filler = File::options().write(true).custom_flags(nix::libc::O_NONBLOCK).open(path).unwrap();
    let full = loop {
        if let Err(error) = filler.write(&[b'x'; 100]) {
            break error.kind();
        }
    };
    assert_eq!(full, ErrorKind::WouldBlock);
    // One has a lot to say about this.
    lab.kill("n2");
    lab.settled_with("everything on two", |after| of(after, "n2").is_empty());
    lab.start("n2");
    lab.settled_with("addresses on all three again", all_have_some);
    assert_eq!(lab.lapses("n1"), 0, "n1 waited for who reads its log");
}
