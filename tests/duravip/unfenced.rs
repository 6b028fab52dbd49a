//! A machine without the kernel's fence: its guard, and behind that the kernel's own clock for every address.

use duravip::effects::netlink::{Batch, CREATE, REQUEST, Socket};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::SockProtocol;

use crate::lab::{Lab, eventually, possible};
use crate::prober::Prober;
use crate::{SETTINGS, of, vips};

/// Somebody else's table under the fence's name, which nobody but its owner can change: this machine cannot have a fence.
/// Lasts as long as the connection that is returned.
fn take_the_fences_place(lab: &Lab, name: &str) -> Socket {
    // The socket stays where it was opened.
    lab.on(name, || {
        let mut socket = Socket::open(SockProtocol::NetlinkNetFilter, 0).unwrap();
        let mut batch = Batch::default();
        const SUBSYSTEM: u16 = 10 << 8;
        const OWNED: u32 = 2;
        batch.message(0x10, REQUEST, &[0, 0, 0, 10]);
        batch.message(SUBSYSTEM, REQUEST | CREATE, &[5, 0, 0, 0]).text(1, "eccluster-vip").number_be(2, OWNED);
        batch.message(0x11, REQUEST, &[0, 0, 0, 10]);
        socket.run_all(batch).unwrap();
        socket
    })
}

#[test]
fn without_a_fence_addresses_leave_by_themselves_when_daemon_and_guard_hang() {
    if !possible() {
        return;
    }
    let mut lab = Lab::new(3, &format!("{SETTINGS}rebalance = \"manual\"\n{}", vips(6, 3)));
    let _table = take_the_fences_place(&lab, "n1");
    lab.start_all_with(2);
    let shown = lab.ask("n1", "show").unwrap();
    // A lease of 1.5 s, in the kernel's whole seconds.
    assert_eq!((&shown["fence"], &shown["lifetime_s"]), (&false.into(), &2.into()), "{shown}");
    let words = String::from_utf8(lab.duravip("n1", "show").stdout).unwrap();
    assert!(words.contains("no kernel fence") && words.contains("leave by themselves 2 s after"), "{words}");
    assert_eq!(lab.ask("n2", "show").unwrap()["fence"], true);

    // They are renewed for as long as the daemon lives: a watch over several lifetimes.
    let owners = lab.settled();
    let theirs = of(&owners, "n1");
    let lost = |lab: &Lab| {
        let text = String::from_utf8(lab.duravip("n1", "metrics").stdout).unwrap();
        let line = text.lines().find(|line| line.starts_with("duravip_lost_total")).unwrap().to_owned();
        line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()
    };
    let watched = std::time::Instant::now();
    while watched.elapsed() < std::time::Duration::from_secs(5) {
        let held = lab.held();
        assert!(theirs.iter().all(|address| held.get(address).is_some_and(|on| on.contains("n1"))), "{held:?}");
    }
    assert_eq!(lost(&lab), 0, "an address came back only after it had expired");

    // A daemon that hangs: the guard has its addresses off before anybody else may have them.
    let prober = Prober::start(&lab, owners.keys().copied());
    prober.settled(&lab, "the start", |_| true);
    lab.signal("n1", Signal::SIGSTOP);
    eventually("its addresses elsewhere", || {
        let answering = prober.answering();
        theirs.iter().all(|address| answering[address].as_ref().is_some_and(|who| who != "n1")).then_some(())
    });
    prober.assert_never_two("a daemon that hangs without a fence");
    lab.signal("n1", Signal::SIGCONT);
    lab.settled();
    let theirs = of(&lab.give_back("n1", 2), "n1");
    prober.settled(&lab, "the return", |_| true);
    drop(prober);

    let guard = lab.guard("n1");
    kill(guard, Signal::SIGSTOP).unwrap();
    lab.signal("n1", Signal::SIGSTOP);
    eventually("the kernel takes them off", || {
        let held = lab.held();
        theirs.iter().all(|address| held.get(address).is_none_or(|on| !on.contains("n1"))).then_some(())
    });
    eventually("the others have them", || {
        let held = lab.held();
        theirs.iter().all(|address| held.get(address).is_some_and(|on| on.len() == 1)).then_some(())
    });
    kill(guard, Signal::SIGCONT).unwrap();
    lab.signal("n1", Signal::SIGCONT);
    lab.settled();
}
