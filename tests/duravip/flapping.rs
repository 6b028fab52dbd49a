//! A member that comes and goes: take-overs are never put off, addresses go back later each time.

use std::time::{Duration, Instant};

use crate::lab::{Lab, possible};
use crate::{SETTINGS, of, vips};

#[test]
fn who_comes_and_goes_is_given_addresses_back_later_each_time() {
    if !possible() {
        return;
    }
    let mut lab = Lab::new(3, &format!("{SETTINGS}{}", vips(4, 0)));
    lab.start_all();
    let victim = lab.names().into_iter().find(|name| *name != lab.leader()).unwrap();
    for departures in 1..=3_u32 {
        lab.kill(&victim);
        lab.settled_with("everything on the others", |after| of(after, &victim).is_empty());
        let back = Instant::now();
        lab.start(&victim);
        lab.settled_with("addresses given back", |after| !of(after, &victim).is_empty());
        // Half a second at first, twice as long with each departure. A busy machine only makes it longer.
        let least = Duration::from_millis(500) * (1 << (departures - 1));
        assert!(back.elapsed() >= least, "given back after {:?}, departure {departures}", back.elapsed());
        let shown = lab.ask(&lab.leader(), "members").unwrap();
        let member = shown["members"].as_array().unwrap().iter().find(|member| member["name"] == *victim).unwrap();
        assert_eq!(member["departures"], departures, "{shown}");
    }
}
