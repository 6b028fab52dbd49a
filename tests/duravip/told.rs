//! What people are told: states, hooks for them, and what happened before a restart.

use std::collections::BTreeMap;
use std::fs;

use crate::lab::{Lab, eventually, possible};
use crate::{SETTINGS, v4_address};

/// The states of all addresses, as a machine shows them.
fn states(lab: &Lab, name: &str) -> Option<BTreeMap<String, String>> {
    let shown = lab.ask(name, "show")?;
    let vips = shown["vips"].as_array()?.iter();
    vips.map(|vip| Some((vip["address"].as_str()?.to_owned(), vip["state"].as_str()?.to_owned()))).collect()
}

#[test]
fn members_that_disagree_are_shown_and_told_to_hooks_and_a_restart_forgets_nothing() {
    if !possible() {
        return;
    }
    let [services, name, preference, agreed] = [0, 1, 2, 3].map(|number| v4_address(number).to_string());
    let mut lab = Lab::new(3, SETTINGS);
    let log = lab.file("n1", "hooks");
    let all = format!(
        "{SETTINGS}[vip.\"{services}\"]\n[vip.\"{name}\"]\nname = \"one\"\n[vip.\"{preference}\"]\npreference = \"n1\"\n\
         [vip.\"{agreed}\"]\n[hook]\nstate = [\"sh\", \"-c\", \"echo $EC_VIP_ADDRESS $EC_VIP_STATE >> {}\"]\n",
        log.display()
    );
    lab.configure(&all);
    let layer = format!(
        "[vip.\"{services}\"]\nservices = [\"smtp\"]\n[vip.\"{name}\"]\nname = \"other\"\n[vip.\"{preference}\"]\npreference = \"n2\"\n"
    );
    lab.layer("n2", &layer);
    for name in lab.names() {
        lab.start(&name);
    }
    let wanted: BTreeMap<String, String> =
        [(&services, "UNSAFE"), (&name, "BROKEN"), (&preference, "conflict"), (&agreed, "safe")]
            .map(|(address, state)| (address.clone(), state.to_owned()))
            .into();
    for machine in ["n1", "n2", "n3"] {
        eventually(&format!("states at {machine}"), || (states(&lab, machine)? == wanted).then_some(()));
    }
    let explained = lab.ask("n3", &format!("explain {preference}")).unwrap();
    assert!(explained["difference"].as_str().unwrap().contains("prefer"), "{explained}");
    // Nobody has what members call by two names; all else is owned, whatever else they disagree about.
    eventually("owners", || {
        let owners = lab.owners("n1")?;
        owners.iter().all(|(address, owner)| owner.is_none() == (address.to_string() == name)).then_some(())
    });
    lab.layer("n2", "");
    let safe: BTreeMap<String, String> = wanted.keys().map(|address| (address.clone(), "safe".to_owned())).collect();
    eventually("peace", || (states(&lab, "n1")? == safe).then_some(()));
    lab.settled();

    // Each change was told, in its order, by whoever led; a change of leader may tell one again.
    eventually("the hooks", || {
        let lines = fs::read_to_string(&log).unwrap_or_default();
        let told = |address: &String| -> Vec<&str> {
            let mut told: Vec<&str> =
                lines.lines().filter_map(|line| line.strip_prefix(&format!("{address} "))).collect();
            told.dedup();
            told
        };
        let whole = wanted.iter().all(|(address, state)| match state.as_str() {
            "safe" => told(address).is_empty(),
            state => told(address).ends_with(&[state, "safe"]),
        });
        whole.then_some(())
    });

    let told = |lab: &Lab| String::from_utf8(lab.duravip("n1", "history -n 500").stdout).unwrap();
    let before = told(&lab);
    let acquired = before.lines().find(|line| line.contains("acquire")).expect("n1 has had an address").to_owned();
    lab.kill("n1");
    lab.start("n1");
    lab.settled();
    let after = told(&lab);
    assert!(after.contains(&acquired), "{acquired} is forgotten:\n{after}");
    assert!(after.len() > before.len(), "the new run adds to it");
}
