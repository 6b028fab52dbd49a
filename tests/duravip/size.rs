//! Many addresses: tables that fit no datagram, and work that must not delay a heartbeat.

use crate::lab::{Lab, possible};
use crate::prober::Prober;
use crate::{NONE, SETTINGS, moved_needlessly, of, v4_address, vips};

/// As many as there may be.
const MANY: usize = 10_240;
/// One in so many is asked for all the time: questions for all of them would be what the test measures.
const ASKED: usize = 320;

#[test]
fn as_many_addresses_as_there_may_be_move_as_routes_and_no_lease_lapses() {
    moves("route");
}

#[test]
fn as_many_addresses_as_there_may_be_move_between_devices_and_no_lease_lapses() {
    moves("spread");
}

fn moves(plumb: &str) {
    if !possible() {
        return;
    }
    let settings = format!("{SETTINGS}plumb = \"{plumb}\"\nrebalance = \"manual\"\n");
    let mut lab = Lab::new(3, &format!("{settings}{}", vips(MANY, 0)));
    let owners = lab.start_all_with(MANY / 3 - 1);
    assert_eq!(owners.len(), MANY);
    let prober = Prober::start(&lab, (0..MANY).step_by(ASKED).map(v4_address));
    prober.settled(&lab, "the start", |_| true);
    let victim = lab.names().into_iter().find(|name| *name != lab.leader()).unwrap();
    let term = lab.ask(&lab.leader(), "members").unwrap()["term"].clone();
    let survivors: Vec<String> = lab.names().into_iter().filter(|name| *name != victim).collect();
    lab.kill(&victim);
    let after = prober.settled(&lab, "everything on two", |after| of(after, &victim).is_empty());
    assert_eq!(moved_needlessly(&owners, &after, &victim), NONE);
    lab.start(&victim);
    lab.settled();
    lab.give_back(&victim, MANY / 3 - 1);
    prober.settled(&lab, "many addresses", |_| true);
    assert_eq!(lab.ask(&lab.leader(), "members").unwrap()["term"], term, "the work cost the leader its office");
    for name in survivors {
        assert_eq!(lab.lapses(&name), 0, "the work cost {name} its lease");
    }
}
