//! The effects on a real kernel: each test in a network namespace of its own, with a cable both of whose ends are there.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};

use super::announce::{Sender, frames};
use super::events::Events;
use super::fence::Fence;
use super::interfaces::Interface;
use super::plumbing::{Mode, Plumbing, Seat};
use super::probe::{Ear, probe};

const V4: &str = "10.1.1.1";
const V6: &str = "fd00:1::1";

/// Runs a test in a new network namespace with the cable `lan`–`far`; skips it, with words, where that is not allowed.
fn on_a_cable(test: impl FnOnce(&mut Plumbing)) {
    // The namespace is the thread's; every test has a thread of its own.
    if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
        eprintln!("skipped: no network namespace ({error})");
        return;
    }
    ip("link set lo up");
    ip("link add name lan type veth peer name far");
    ip("link set lan up");
    ip("link set far up");
    ip("addr add 10.1.1.100/24 dev lan");
    let mut plumbing = Plumbing::open().unwrap();
    wait("the carrier", || plumbing.look().unwrap()["lan"].up);
    test(&mut plumbing);
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

fn wait(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn seat(address: &str, mode: Mode) -> (IpAddr, Seat) {
    let address: IpAddr = address.parse().unwrap();
    let prefix_length = if address.is_ipv4() { 32 } else { 128 };
    (address, Seat { interface: "lan".into(), prefix_length, mode, device: 0 })
}

fn interface(plumbing: &Plumbing, name: &str) -> Interface {
    plumbing.interfaces()[name].clone()
}

/// Who answers for both addresses, asked from the other end of the cable.
fn answering(plumbing: &Plumbing) -> BTreeSet<IpAddr> {
    let asked = [V4, V6].map(|address| address.parse().unwrap()).into();
    probe(&interface(plumbing, "far"), &asked).unwrap().into_keys().collect()
}

#[test]
fn addresses_answer_in_every_mode_and_leave_no_trace() {
    on_a_cable(|plumbing| {
        let before = plumbing.ours().unwrap().unwrap();
        assert!(before.is_empty(), "{before:?}");
        for mode in [Mode::Address, Mode::Spread, Mode::Route] {
            let wanted = [seat(V4, mode), seat(V6, mode)];
            let placed: Vec<_> = plumbing.put(&wanted).unwrap().into_iter().map(Result::unwrap).collect();
            assert_eq!(answering(plumbing).len(), 2, "{mode:?}");
            let again = plumbing.put(&wanted).unwrap();
            assert!(again.iter().all(Result::is_ok), "put twice in mode {mode:?}: {again:?}");
            assert_eq!(plumbing.ours().unwrap().unwrap().len(), 2, "{mode:?}");
            let placed: Vec<_> = wanted.iter().map(|(address, _)| *address).zip(placed).collect();
            plumbing.take(&placed).unwrap();
            assert_eq!(answering(plumbing).len(), 0, "{mode:?}");
            plumbing.take(&placed).unwrap();
        }
        // A crash leaves addresses behind, and a device; the node's own address is not ours to touch.
        assert!(plumbing.put(&[seat(V4, Mode::Spread), seat(V6, Mode::Address)]).unwrap().iter().all(Result::is_ok));
        let mut next_run = Plumbing::open().unwrap();
        assert_eq!(next_run.clear().unwrap(), 2);
        let left = next_run.look().unwrap();
        assert!(left.keys().all(|name| !name.starts_with("ecvip")), "{left:?}");
        assert_eq!(left["lan"].own.iter().filter(|(own, _)| own.is_ipv4()).count(), 1);
        let own = next_run.put(&[seat("10.1.1.100", Mode::Address)]).unwrap();
        assert!(own[0].is_err(), "the node's main address was taken for a managed one");
    });
}

#[test]
fn what_somebody_else_put_on_is_neither_ours_nor_taken_off() {
    on_a_cable(|plumbing| {
        // After the last look: this program does not know of them.
        ip(&format!("addr add {V4}/32 dev lan"));
        ip(&format!("addr add {V6}/128 dev lan nodad"));
        for mode in [Mode::Address, Mode::Route] {
            let wanted = [seat(V4, mode), seat(V6, mode), seat("10.1.1.7", mode)];
            let outcome = plumbing.put(&wanted).unwrap();
            assert_eq!(outcome.iter().map(Result::is_ok).collect::<Vec<_>>(), [false, false, true], "{outcome:?}");
            // As after an error, when nobody knows what is on.
            plumbing.take_ours(&wanted.map(|(address, _)| address)).unwrap();
            assert!(plumbing.ours().unwrap().unwrap().is_empty(), "{mode:?}");
            assert_eq!(answering(plumbing).len(), 2, "{mode:?}: the other's addresses are gone");
        }
    });
}

#[test]
fn a_segment_that_never_falls_silent_holds_nobody_up() {
    on_a_cable(|plumbing| {
        let mut ear = Ear::open_for_arp(&interface(plumbing, "far")).unwrap();
        let lan = interface(plumbing, "lan");
        let frame = frames(lan.mac.unwrap(), V4.parse().unwrap(), None).remove(0);
        assert_eq!(Sender::default().send(lan.index, &vec![frame; 250]).unwrap(), 250);
        let mut heard = Vec::new();
        wait("all that was said", || {
            let some = ear.claims().unwrap().len();
            heard.push(some);
            heard.iter().sum::<usize>() >= 200
        });
        assert!(heard.iter().all(|some| *some <= 128), "{heard:?} at once");
    });
}

#[test]
fn a_fence_without_a_lease_lets_nothing_through() {
    on_a_cable(|plumbing| {
        let mut fence = Fence::open().unwrap();
        fence.build().unwrap();
        fence.build().unwrap();
        let both = BTreeSet::from([V4, V6].map(|address| address.parse().unwrap()));
        fence.cover(&both).unwrap();
        fence.enclose("lan").unwrap();
        fence.enclose("lan").unwrap();
        assert!(plumbing.put(&[seat(V4, Mode::Address), seat(V6, Mode::Address)]).unwrap().iter().all(Result::is_ok));
        assert!(answering(plumbing).is_empty(), "closed from the start");
        let a = interface(plumbing, "lan");
        let mut ear = Ear::open(&interface(plumbing, "far")).unwrap();
        let mut heard = |fence: &mut Fence, open: bool| {
            if open {
                fence.open_for(Duration::from_secs(60)).unwrap()
            } else {
                fence.close().unwrap()
            }
            let all: Vec<_> = both.iter().flat_map(|address| frames(a.mac.unwrap(), *address, None)).collect();
            Sender::default().send(a.index, &all).unwrap();
            let mut heard = 0;
            ear.listen(Instant::now() + Duration::from_millis(50), |claim| {
                heard += u32::from(both.contains(&claim.address));
                true
            })
            .unwrap();
            heard
        };
        assert_eq!(heard(&mut fence, false), 0, "announced through a closed fence");
        assert_eq!(heard(&mut fence, true), 3, "two ARP packets and an advertisement");
        assert_eq!(answering(plumbing), both);
        // A lease ends by itself, with no process involved.
        fence.open_for(Duration::from_millis(400)).unwrap();
        wait("the end of the lease", || answering(plumbing).is_empty());
        fence.open_for(Duration::from_secs(60)).unwrap();
        assert_eq!(answering(plumbing), both);
        let first = both.iter().take(1).copied().collect();
        fence.uncover(&first).unwrap();
        fence.close().unwrap();
        assert_eq!(answering(plumbing), first, "only what is covered is silenced");
        fence.remove().unwrap();
        assert_eq!(answering(plumbing), both);
        fence.remove().unwrap();
    });
}

#[test]
fn what_somebody_else_does_is_told() {
    on_a_cable(|plumbing| {
        let mut events = Events::open().unwrap();
        assert!(plumbing.put(&[seat(V4, Mode::Address), seat(V6, Mode::Address)]).unwrap().iter().all(Result::is_ok));
        assert!(plumbing.put(&[seat("10.1.1.2", Mode::Route)]).unwrap().iter().all(Result::is_ok));
        let index = interface(plumbing, "lan").index;
        let mut removed = BTreeSet::new();
        ip(&format!("addr del {V4}/32 dev lan"));
        ip(&format!("addr del {V6}/128 dev lan"));
        ip("route del local 10.1.1.2 dev lan table local proto 236");
        wait("three removals", || {
            removed.extend(events.take().unwrap().removed);
            removed.len() == 3
        });
        assert!(removed.iter().all(|(_, at)| *at == index), "{removed:?}");
        ip("link set far down");
        wait("the lost carrier", || events.take().unwrap().look_again && !plumbing.look().unwrap()["lan"].up);
    });
}
