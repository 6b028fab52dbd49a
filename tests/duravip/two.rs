//! Two members and no witness: what each way of doing without a majority promises, on real machines.

use crate::lab::{Lab, eventually, ip, possible};
use crate::prober::Prober;
use crate::{SETTINGS, of, vips};

/// Two machines that know a gateway, the host outside.
fn two(no_quorum: &str) -> Lab {
    let mut lab = Lab::new(2, &format!("{SETTINGS}no_quorum = \"{no_quorum}\"\n{}", vips(3, 1)));
    for name in lab.names() {
        ip(&format!("-n {} route add default via 10.77.0.1 dev eth0", lab.machine(&name).namespace));
    }
    lab.start_all();
    lab
}

/// Waits until the machine serves without a majority.
fn serves_apart(lab: &Lab, name: &str) {
    eventually(&format!("{name} on its own"), || {
        (lab.ask(name, "members")?["two_owners_possible"] == true).then_some(())
    });
}

#[test]
fn with_probes_the_survivor_takes_what_nobody_answers_for_and_never_what_the_other_has() {
    if !possible() {
        return;
    }
    let mut lab = two("probe");
    let both = |lab: &Lab| {
        let names = lab.names();
        move |after: &crate::lab::Owners| names.iter().all(|name| !of(after, name).is_empty())
    };
    let prober = Prober::start(&lab, lab.settled().keys().copied());
    let before = prober.settled(&lab, "the start", both(&lab));

    // They hear each other no more, and each still answers on the segment: nobody takes anything.
    for name in ["n1", "n2"] {
        lab.mute(name, true);
    }
    for name in ["n1", "n2"] {
        serves_apart(&lab, name);
        eventually("a look at what the other has", || {
            let history = lab.duravip(name, "history");
            String::from_utf8_lossy(&history.stdout).contains("is answered for by").then_some(())
        });
    }
    let answers: Vec<_> = prober.answering().into_iter().collect();
    assert_eq!(answers, before.iter().map(|(at, owner)| (*at, Some(owner.clone()))).collect::<Vec<_>>());
    prober.assert_never_two("two that do not hear each other");
    for name in ["n1", "n2"] {
        lab.mute(name, false);
    }
    prober.settled(&lab, "the end of the silence", both(&lab));

    // One that is alone on the segment with its addresses, and clients behind its cable no more, has nothing.
    lab.cable("n1", false);
    eventually("everything on n2", || {
        prober.answering().values().all(|who| who.as_deref() == Some("n2")).then_some(())
    });
    eventually("nothing on n1", || lab.held().values().all(|holders| !holders.contains("n1")).then_some(()));
    lab.cable("n1", true);
    prober.settled(&lab, "the cable's return", both(&lab));

    lab.kill("n1");
    prober.settled(&lab, "the survivor", |after| of(after, "n2").len() == after.len());
    lab.start("n1");
    prober.settled(&lab, "the return", both(&lab));
}

#[test]
fn who_wants_answers_on_both_sides_of_a_cut_gets_them_and_one_owner_after_it() {
    if !possible() {
        return;
    }
    let lab = two("serve");
    let many = lab.settled().len();
    lab.isolate(&["n1", "n2"], true);
    for name in ["n1", "n2"] {
        serves_apart(&lab, name);
        eventually(&format!("everything on {name}"), || {
            let held = lab.held();
            (held.values().filter(|holders| holders.contains(name)).count() == many).then_some(())
        });
        let shown = lab.duravip(name, "show");
        let shown = String::from_utf8_lossy(&shown.stdout);
        assert!(shown.contains("two owners possible"), "{shown}");
    }
    lab.isolate(&["n1", "n2"], false);
    // Who looks from here on sees one owner, and the last word on the segment is that owner's.
    let owners = lab.settled();
    let prober = Prober::start(&lab, owners.keys().copied());
    prober.settled_and_announced(&lab, "the heal", |after| ["n1", "n2"].iter().all(|name| !of(after, name).is_empty()));
    assert_eq!(lab.ask("n1", "show").unwrap()["two_owners_possible"], false);
}
