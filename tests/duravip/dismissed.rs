//! A member that the configuration names no more.

use crate::lab::{Lab, eventually, possible};
use crate::prober::Prober;
use crate::{NONE, SETTINGS, moved_needlessly, of, vips};

#[test]
fn who_is_no_member_any_more_hands_over_what_it_has() {
    if !possible() {
        return;
    }
    let mut lab = Lab::new(4, &format!("{SETTINGS}rebalance = \"manual\"\n{}", vips(6, 2)));
    lab.start_all_with(1);
    let prober = Prober::start(&lab, lab.settled().keys().copied());
    let before = prober.settled(&lab, "the start", |_| true);
    let victim = lab.names().into_iter().find(|name| *name != lab.leader()).unwrap();
    let theirs = of(&before, &victim);
    lab.dismiss(&victim);
    eventually("its addresses elsewhere", || {
        let answering = prober.answering();
        theirs.iter().all(|address| answering[address].as_ref().is_some_and(|who| *who != victim)).then_some(())
    });
    // It was told to give them up; without a word it would have kept them until its lease ended.
    assert_eq!(lab.lapses(&victim), 0, "nobody spoke to {victim} any more");
    lab.stop(&victim);
    let after = prober.settled(&lab, "everything on three", |after| of(after, &victim).is_empty());
    assert_eq!(moved_needlessly(&before, &after, &victim), NONE);
}
