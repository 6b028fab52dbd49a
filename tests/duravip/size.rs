//! Many addresses: tables that fit no datagram, and work that must not delay a heartbeat.

use crate::lab::{Lab, possible};
use crate::prober::Prober;
use crate::{NONE, SETTINGS, moved_needlessly, of, v4_address, vips};

const MANY: usize = 1500;

#[test]
fn many_addresses_move_at_once_and_no_heartbeat_is_missed() {
    if !possible() {
        return;
    }
    let mut lab = Lab::new(3, &format!("{SETTINGS}rebalance = \"manual\"\n{}", vips(MANY, 0)));
    let owners = lab.start_all_with(MANY / 3 - 1);
    assert_eq!(owners.len(), MANY);
    let prober = Prober::start(&lab, (0..MANY).step_by(50).map(v4_address));
    prober.settled(&lab, "the start", |_| true);
    let victim = lab.names().into_iter().find(|name| *name != lab.leader()).unwrap();
    let term = lab.ask(&lab.leader(), "members").unwrap()["term"].clone();
    lab.kill(&victim);
    let after = prober.settled(&lab, "everything on two", |after| of(after, &victim).is_empty());
    assert_eq!(moved_needlessly(&owners, &after, &victim), NONE);
    lab.start(&victim);
    lab.settled();
    lab.give_back(&victim, MANY / 3 - 1);
    prober.settled(&lab, "many addresses", |_| true);
    assert_eq!(lab.ask(&lab.leader(), "members").unwrap()["term"], term, "the work cost the leader its office");
}
