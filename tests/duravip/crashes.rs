//! Daemons that die, hang, and come back.

use nix::sys::signal::{Signal, kill};

use crate::lab::{Lab, eventually, possible};
use crate::prober::Prober;
use crate::{NONE, SETTINGS, moved_needlessly, of, vips};

#[test]
fn the_addresses_of_a_dead_or_frozen_owner_move_and_nothing_else_does() {
    if !possible() {
        return;
    }
    let mut lab = Lab::new(3, &format!("{SETTINGS}rebalance = \"manual\"\n{}", vips(6, 3)));
    let owners = lab.start_all_with(2);
    let prober = Prober::start(&lab, owners.keys().copied());
    let mut owners = prober.settled(&lab, "the start", |_| true);

    // kill -9, once of the leader: the guard takes the addresses off, the others share them.
    for victim in [lab.leader(), lab.names().into_iter().find(|name| *name != lab.leader()).unwrap()] {
        assert!(!of(&owners, &victim).is_empty(), "{victim} has nothing to lose: {owners:?}");
        lab.kill(&victim);
        let after = prober.settled(&lab, "kill -9", |after| of(after, &victim).is_empty());
        assert_eq!(moved_needlessly(&owners, &after, &victim), NONE, "only what {victim} had may move");
        lab.start(&victim);
        lab.settled();
        lab.give_back(&victim, 1);
        owners = prober.settled(&lab, "the return", |_| true);
    }

    // A daemon that hangs is not dead, and its guard says nothing to the others: the lease's end is the word.
    let victim = lab.leader();
    lab.signal(&victim, Signal::SIGSTOP);
    eventually("the addresses of the frozen leader elsewhere", || {
        let answering = prober.answering();
        let elsewhere = answering.values().all(|who| who.as_ref().is_some_and(|who| *who != victim));
        elsewhere.then_some(())
    });
    prober.assert_never_two("SIGSTOP");
    lab.signal(&victim, Signal::SIGCONT);
    prober.settled(&lab, "peace after the thaw", |_| true);

    // Daemon and guard gone at once: nobody is left to take the addresses off, and the kernel's fence keeps them silent.
    let owners = lab.give_back(&victim, 1);
    let theirs = of(&owners, &victim);
    kill(lab.guard(&victim), Signal::SIGKILL).unwrap();
    lab.kill(&victim);
    eventually("the addresses of the dead machine elsewhere", || {
        let answering = prober.answering();
        theirs.iter().all(|address| answering[address].as_ref().is_some_and(|who| *who != victim)).then_some(())
    });
    let held = lab.held();
    let both = theirs.iter().filter(|address| held[*address].len() == 2).count();
    assert_eq!(both, theirs.len(), "the test means nothing if somebody took the addresses off: {held:?}");
    prober.assert_never_two("kill -9 of daemon and guard");
    // The next run takes off what is not its own any more, and lets none of it be heard meanwhile.
    lab.litter(&victim);
    lab.start(&victim);
    prober.settled(&lab, "the return without a guard", |_| true);
}
