//! Two members, and the vote of a machine that belongs to another subcluster.

use std::time::{Duration, Instant};

use crate::lab::{Lab, possible};
use crate::prober::Prober;
use crate::{SETTINGS, of, vips};

/// At its first start such a witness is silent for a minute, since it cannot know how long the others' leases are. Far more
/// than that ends a hopeless wait.
const PATIENCE: Duration = Duration::from_secs(150);

#[test]
fn a_witness_of_another_subcluster_keeps_two_members_going() {
    if !possible() {
        return;
    }
    let mut lab = Lab::new(3, &format!("{SETTINGS}{}", vips(3, 1)));
    lab.stranger("n3");
    for name in ["n3", "n1", "n2"] {
        lab.start(name);
    }
    let begun = Instant::now();
    while !is_present(&lab, "n3") {
        assert!(begun.elapsed() < PATIENCE, "the witness is not there\n{}", lab.logs());
        std::thread::sleep(Duration::from_millis(200));
    }
    let both = |after: &crate::lab::Owners| ["n1", "n2"].iter().all(|name| !of(after, name).is_empty());
    let prober = Prober::start(&lab, lab.settled().keys().copied());
    prober.settled(&lab, "all three", both);

    // The leader's crash, which the witness has to vote about; then its restart, of which it remembers what it needs.
    for victim in [lab.leader(), "n2".to_owned(), "n1".to_owned()] {
        let victim = if victim == "n3" { "n1".to_owned() } else { victim };
        let survivor = if victim == "n1" { "n2" } else { "n1" };
        lab.kill(&victim);
        prober.settled(&lab, "the survivor", |after| of(after, survivor).len() == after.len());
        lab.start(&victim);
        prober.settled(&lab, "both", both);
        lab.kill("n3");
        lab.start("n3");
        prober.settled(&lab, "the witness's restart", both);
    }
    let members = lab.ask("n3", "members").unwrap();
    assert!(lab.held().values().all(|on| !on.contains("n3")), "a witness has addresses: {members}");
}

/// Whether n1 has a witness of this name in its view.
fn is_present(lab: &Lab, name: &str) -> bool {
    let members = lab.ask("n1", "members").unwrap_or_default();
    let mut members = members["members"].as_array().into_iter().flatten();
    members.any(|member| member["name"] == name && member["present"] == true && member["witness"] == true)
}
