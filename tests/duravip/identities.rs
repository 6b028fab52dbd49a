//! Members that know each other by their nodes' certificates, without a key that all of them have.

use crate::lab::{Lab, eventually, possible};
use crate::prober::Prober;
use crate::{SETTINGS, of, vips};

#[test]
fn members_with_identities_keep_addresses_and_a_stranger_is_not_believed() {
    if !possible() {
        return;
    }
    let mut lab = Lab::new(3, &format!("{SETTINGS}{}", vips(4, 2)));
    lab.certify(&["n1", "n2", "n3"]);
    lab.start_all();
    let prober = Prober::start(&lab, lab.settled().keys().copied());
    prober.settled(&lab, "the start", |after| lab.names().iter().all(|name| !of(after, name).is_empty()));

    // A crash, and a return: the new run agrees on new keys.
    let victim = lab.leader();
    lab.kill(&victim);
    prober.settled(&lab, "without its leader", |after| of(after, &victim).is_empty());
    lab.start(&victim);
    prober.settled(&lab, "with all three", |after| !of(after, &victim).is_empty());

    // The same name with a certificate of somebody else's cluster is not that node.
    let victim = lab.names().into_iter().find(|name| *name != lab.leader()).unwrap();
    lab.stop(&victim);
    lab.certify(&[&victim]);
    lab.start(&victim);
    eventually("the stranger's complaint", || lab.log(&victim).contains("no key with").then_some(()));
    eventually("the rest serve everything", || {
        let answering = prober.answering();
        answering.values().all(|who| who.as_ref().is_some_and(|who| *who != victim)).then_some(())
    });
    assert!(lab.held().values().all(|on| !on.contains(&victim)), "a stranger has addresses");
    prober.assert_never_two("a stranger");
}
