//! Many addresses: tables that fit no datagram, and work that must not delay a heartbeat.

use crate::lab::{Lab, eventually, possible};
use crate::prober::Prober;
use crate::{NONE, SETTINGS, moved_needlessly, of, v4_address, vips};

const MANY: usize = 1500;

#[test]
fn many_addresses_move_at_once_and_no_heartbeat_is_missed() {
    if !possible() {
        return;
    }
    let mut lab = Lab::new(3, &format!("{SETTINGS}rebalance = \"manual\"\n{}", vips(MANY, 0)));
    lab.start_all();
    let owners = lab.settled();
    assert_eq!(owners.len(), MANY);
    let shares: Vec<usize> = lab.names().iter().map(|name| of(&owners, name).len()).collect();
    assert!(shares.iter().all(|share| *share >= MANY / 3 - 1), "{shares:?}");
    let prober = Prober::start(&lab, (0..MANY).step_by(50).map(v4_address));
    eventually("the owners' answers", || prober.agrees_with(&owners).then_some(()));
    let victim = lab.names().into_iter().find(|name| *name != lab.leader()).unwrap();
    let term = lab.ask(&lab.leader(), "members").unwrap()["term"].clone();
    lab.kill(&victim);
    let after = lab.settled_with("everything on two", |after| of(after, &victim).is_empty());
    assert_eq!(moved_needlessly(&owners, &after, &victim), NONE);
    eventually("the survivors' answers", || prober.agrees_with(&after).then_some(()));
    lab.start(&victim);
    lab.settled();
    let back = lab.give_back(&victim, MANY / 3 - 1);
    eventually("the owners' answers after the return", || prober.agrees_with(&back).then_some(()));
    prober.assert_never_two("many addresses");
    assert_eq!(lab.ask(&lab.leader(), "members").unwrap()["term"], term, "the work cost the leader its office");
}
