//! Networks that break: cables, switches, and links that carry one way only.

use crate::lab::{Lab, eventually, possible};
use crate::prober::Prober;
use crate::{SETTINGS, of, vips};

#[test]
fn a_member_that_is_cut_off_falls_silent_and_comes_back() {
    if !possible() {
        return;
    }
    let mut lab = Lab::new(3, &format!("{SETTINGS}{}", vips(5, 2)));
    lab.start_all();
    let prober = Prober::start(&lab, lab.settled().keys().copied());
    prober.settled(&lab, "the start", |_| true);
    let without = |victim: &str| {
        eventually("the addresses elsewhere", || {
            let answering = prober.answering();
            answering.values().all(|who| who.as_ref().is_some_and(|who| who != victim)).then_some(())
        });
    };
    let healed = |lab: &Lab, victim: &str| {
        // The owners' announcements are the last ones, or hosts on the other side believe who was the owner there.
        prober.settled_and_announced(lab, "addresses on all three", |after| !of(after, victim).is_empty());
    };

    let victim = lab.leader();
    lab.cable(&victim, false);
    without(&victim);
    lab.cable(&victim, true);
    healed(&lab, &victim);

    // Members that hear each other no more, and clients that reach them all: only a majority may answer, and there is none.
    lab.isolate(&["n1", "n2", "n3"], true);
    eventually("silence without a majority", || prober.answering().values().all(Option::is_none).then_some(()));
    lab.isolate(&["n1", "n2", "n3"], false);
    healed(&lab, "n1");

    // What the leader says is lost, and it hears the others: it must not lead on in its own mind.
    let victim = lab.leader();
    lab.mute(&victim, true);
    without(&victim);
    prober.assert_never_two("one way");
    lab.mute(&victim, false);
    healed(&lab, &victim);
}

#[test]
fn two_members_and_a_witness_keep_going_and_somebody_elses_address_is_left_alone() {
    if !possible() {
        return;
    }
    let mut lab = Lab::new(3, &format!("{SETTINGS}{}", vips(3, 1)));
    lab.witness("n3");
    let taken = crate::v4_address(1);
    crate::lab::ip(&format!("-n {} addr add {taken}/32 dev eth0", lab.outside()));
    for name in lab.names() {
        lab.start(&name);
    }
    let state = |lab: &Lab| {
        let shown = lab.ask("n1", "show")?;
        let vip = shown["vips"].as_array()?.iter().find(|vip| vip["address"] == taken.to_string())?.clone();
        (vip["state"] == "conflict").then_some(vip)
    };
    let vip = eventually("the conflict", || state(&lab));
    assert!(vip["owner"].is_null(), "{vip}");
    crate::lab::ip(&format!("-n {} addr del {taken}/32 dev eth0", lab.outside()));
    lab.order("n1", &format!("take {taken}"));
    let owners = lab.settled();
    assert!(of(&owners, "n3").is_empty(), "a witness owns nothing: {owners:?}");
    let prober = Prober::start(&lab, owners.keys().copied());
    prober.settled(&lab, "the start", |_| true);
    lab.kill("n1");
    prober.settled(&lab, "everything on n2", |after| of(after, "n2").len() == after.len());
}
