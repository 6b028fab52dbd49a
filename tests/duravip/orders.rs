//! What people want: ends, moves, drains, reloads; and what people do by hand.

use std::fs;

use crate::lab::{Lab, ip, possible};
use crate::prober::Prober;
use crate::{NONE, SETTINGS, moved_needlessly, of, v4_address, vips};

#[test]
fn what_is_done_on_purpose_has_one_owner_at_every_moment() {
    if !possible() {
        return;
    }
    let mut lab = Lab::new(3, &format!("{SETTINGS}{}", vips(5, 2)));
    let log = lab.file("n1", "hooks");
    let hook = |event: &str| {
        format!(
            "{event} = [\"sh\", \"-c\", \"echo $EC_VIP_EVENT $EC_VIP_ADDRESS $EC_VIP_INTERFACE >> {}\"]\n",
            log.display()
        )
    };
    let hooks = format!("[hook]\n{}{}", hook("acquired"), hook("released"));
    lab.configure(&format!("{SETTINGS}{}{hooks}", vips(5, 2)));
    ip(&format!("-n {} addr add 10.77.250.9/32 dev eth0", lab.machine("n1").namespace));
    lab.start_all();
    let owners = lab.settled_with("shares", |owners| lab.names().iter().all(|name| !of(owners, name).is_empty()));
    let prober = Prober::start(&lab, owners.keys().copied());
    let owners = prober.settled(&lab, "the start", |after| *after == owners);

    // A move sticks, and moves one address.
    let address = of(&owners, "n1")[0];
    lab.order("n3", &format!("move {address} to n2"));
    let after = prober.settled(&lab, "the move", |after| after[&address] == "n2");
    let others: Vec<_> =
        owners.iter().filter(|(other, owner)| **other != address && after[*other] != **owner).collect();
    assert!(others.len() <= 1, "the balance answers a move with one at most: {others:?}");
    lab.order("n1", "drain n2");
    prober.settled(&lab, "the drain", |after| of(after, "n2").is_empty());
    lab.order("n1", "undrain n2");
    prober.settled(&lab, "the end of the drain", |after| after[&address] == "n2");
    lab.order("n1", &format!("unpin {address}"));

    // By hand: what is ours comes back, what is not stays.
    let mine = *of(&lab.settled(), "n1").iter().find(|address| address.is_ipv4()).unwrap();
    ip(&format!("-n {} addr del {mine}/32 dev eth0", lab.machine("n1").namespace));
    prober.settled(&lab, "the address that was deleted by hand", |after| after[&mine] == "n1");

    // A planned end hands over; the daemon says so by ending well, and leaves nothing of itself.
    for victim in [lab.leader(), "n2".to_owned()] {
        let before = lab.settled();
        lab.stop(&victim);
        let after = prober.settled(&lab, "the planned end", |after| of(after, &victim).is_empty());
        assert_eq!(moved_needlessly(&before, &after, &victim), NONE);
        lab.start(&victim);
        prober.settled(&lab, "the return", |after| !of(after, &victim).is_empty());
    }

    // A reload in the middle of a failover: one address less, one more, and the rest as if nothing had been.
    let before = lab.settled();
    lab.kill("n3");
    let new = v4_address(100);
    let fewer = vips(5, 2).replace(&format!("[vip.\"{}\"]\n", v4_address(4)), &format!("[vip.\"{new}\"]\n"));
    lab.configure(&format!("{SETTINGS}{fewer}{hooks}"));
    let after = lab.settled_with("the reload", |after| after.contains_key(&new) && !after.contains_key(&v4_address(4)));
    let mut before = before;
    before.remove(&v4_address(4));
    assert_eq!(moved_needlessly(&before, &after, "n3"), NONE);
    prober.assert_never_two("the reload");
    assert!(lab.held()[&"10.77.250.9".parse().unwrap()].contains("n1"), "the node's own address was touched");

    // Hooks ran, in turn for each address.
    let lines = fs::read_to_string(&log).unwrap();
    for address in owners.keys() {
        let events: Vec<&str> = lines.lines().filter(|line| line.contains(&format!(" {address} eth0"))).collect();
        assert!(!events.is_empty(), "no hook ran for {address}:\n{lines}");
    }
    let shown = lab.duravip("n1", "history");
    assert!(String::from_utf8_lossy(&shown.stdout).contains("acquire"), "{shown:?}");
    let explained = lab.ask("n2", &format!("explain {new}")).unwrap();
    assert_eq!(explained["address"], new.to_string());
    assert!(lab.ask("n2", "simulate --without n1").unwrap()["moves"].as_array().is_some_and(|moves| !moves.is_empty()));
    let unknown = lab.duravip("n1", "move 10.9.9.9 to n1");
    assert!(!unknown.status.success(), "an address that is not managed was moved");
}
