//! Many addresses: tables that fit no datagram, and work that must not delay a heartbeat.

use std::net::IpAddr;

use crate::lab::{Lab, possible};
use crate::prober::Prober;
use crate::{NONE, SETTINGS, moved_needlessly, of, v4_address};

/// As many as there may be.
const MANY: usize = 10_240;
/// What an IPv6 address costs the kernel grows with their number: all that there may be take four times as long, and were tried
/// by hand (docs/performance.md).
const MANY_V6: usize = 4096;
/// One in so many is asked for all the time: questions for all of them would be what the test measures.
const ASKED: usize = 320;

#[test]
fn as_many_addresses_as_there_may_be_move_as_routes_and_no_lease_lapses() {
    moves("route", MANY, v4_address);
}

#[test]
fn as_many_addresses_as_there_may_be_move_between_devices_and_no_lease_lapses() {
    moves("spread", MANY, v4_address);
}

#[test]
fn thousands_of_ipv6_addresses_move_and_no_lease_lapses() {
    // All have the same last 24 bits, as docs/duravip.md says: one multicast group to join.
    moves("auto", MANY_V6, |number| IpAddr::from([0xFD77, 0, 0, 0, 1, number as u16, 1, 1]));
}

fn moves(plumb: &str, many: usize, address: impl Fn(usize) -> IpAddr) {
    if !possible() {
        return;
    }
    let settings = format!("{SETTINGS}plumb = \"{plumb}\"\nrebalance = \"manual\"\n");
    let vips: String = (0..many).map(|number| format!("[vip.\"{}\"]\n", address(number))).collect();
    let mut lab = Lab::new(3, &format!("{settings}{vips}"));
    let owners = lab.start_all_with(many / 3 - 1);
    assert_eq!(owners.len(), many);
    let prober = Prober::start(&lab, (0..many).step_by(ASKED).map(&address));
    prober.settled(&lab, "the start", |_| true);
    let victim = lab.names().into_iter().find(|name| *name != lab.leader()).unwrap();
    let term = lab.ask(&lab.leader(), "members").unwrap()["term"].clone();
    let survivors: Vec<String> = lab.names().into_iter().filter(|name| *name != victim).collect();
    lab.kill(&victim);
    let after = prober.settled(&lab, "everything on two", |after| of(after, &victim).is_empty());
    assert_eq!(moved_needlessly(&owners, &after, &victim), NONE);
    lab.start(&victim);
    lab.settled();
    lab.give_back(&victim, many / 3 - 1);
    prober.settled(&lab, "many addresses", |_| true);
    assert_eq!(lab.ask(&lab.leader(), "members").unwrap()["term"], term, "the work cost the leader its office");
    for name in survivors {
        assert_eq!(lab.lapses(&name), 0, "the work cost {name} its lease");
    }
}
