//! A configuration that comes from a real ecconfigd, and goes on without it.

use crate::lab::{Lab, eventually, possible};
use crate::prober::Prober;
use crate::{NONE, SETTINGS, moved_needlessly, of, v4_address, vips};

#[test]
fn with_ecconfigd_down_addresses_fail_over_and_daemons_restart_and_a_commit_counts_once_it_is_back() {
    if !possible() {
        return;
    }
    let mut lab = Lab::new(3, &format!("{SETTINGS}{}", vips(4, 2)));
    lab.serve();
    lab.start_all();
    let all_have_some = |after: &crate::lab::Owners| ["n1", "n2", "n3"].iter().all(|name| !of(after, name).is_empty());
    let prober = Prober::start(&lab, lab.settled().keys().copied());
    let held = prober.settled(&lab, "the start", all_have_some);
    let adopted = config_of(&lab, "n1");

    lab.kill_server();
    let victim = lab.leader();
    lab.kill(&victim);
    let after = prober.settled(&lab, "a crash without ecconfigd", |after| of(after, &victim).is_empty());
    assert_eq!(moved_needlessly(&held, &after, &victim), NONE, "only what {victim} had may move");
    lab.start(&victim);
    prober.settled(&lab, "a start from the last good configuration", all_have_some);
    // A power failure: nobody has a table any more, and nobody can be asked.
    for name in lab.names() {
        lab.kill(&name);
    }
    lab.start_all();
    prober.settled(&lab, "all start from the last good configuration", all_have_some);
    for name in lab.names() {
        assert_eq!(config_of(&lab, &name), adopted, "{name} has another configuration than the last good one");
    }

    let held = lab.settled();
    lab.start_server();
    let new = v4_address(100);
    lab.configure(&format!("{SETTINGS}{}[vip.\"{new}\"]\n", vips(4, 2)));
    lab.commit();
    let after = prober.settled(&lab, "the commit", |after| after.contains_key(&new));
    assert_eq!(moved_needlessly(&held, &after, ""), NONE);
    for name in lab.names() {
        assert_ne!(config_of(&lab, &name), adopted, "{name} still has the old configuration");
    }
}

/// The configuration in a member's table.
fn config_of(lab: &Lab, name: &str) -> serde_json::Value {
    eventually("the configuration", || {
        Some(lab.ask(name, "show")?["configuration"].clone()).filter(|known| !known.is_null())
    })
}
