//! Members that manage different, overlapping sets of addresses.

use crate::lab::{Lab, possible};
use crate::prober::Prober;
use crate::{SETTINGS, of, v4_address, vips};

#[test]
fn an_address_that_only_some_members_have_is_on_one_of_them_whoever_leads() {
    if !possible() {
        return;
    }
    let mut lab = Lab::new(3, &format!("{SETTINGS}{}", vips(2, 1)));
    let (some, one) = (v4_address(10), v4_address(11));
    for name in ["n1", "n2"] {
        lab.layer(name, &format!("[vip.\"{some}\"]\n"));
    }
    lab.layer("n3", &format!("[vip.\"{one}\"]\n"));
    lab.start_all();
    let placed = |owners: &crate::lab::Owners| {
        owners.len() == 5 && owners[&one] == "n3" && ["n1", "n2"].contains(&owners[&some].as_str())
    };
    let prober = Prober::start(&lab, lab.settled_with("all that anybody has", placed).keys().copied());

    // One that has an address led, then one that does not have it, and the other way round.
    for _ in 0..3 {
        let leader = lab.leader();
        lab.stop(&leader);
        lab.start(&leader);
        prober.settled(&lab, "another leader", placed);
        assert_ne!(lab.leader(), leader);
    }

    let explained = lab.ask("n1", &format!("explain {one}")).unwrap();
    assert_eq!(explained["members"]["n1"], "its configuration does not have it", "{explained}");
    let owner = lab.settled()[&some].clone();
    lab.kill(&owner);
    prober.settled(&lab, "the other one of the two", |after| {
        after[&some] != owner && after[&some] != "n3" && of(after, &owner).is_empty()
    });
}
