//! Slows down whoever guesses: failed logins per address are counted in a leaky bucket.
//!
//! [`BURST`] failures are free (a person mistypes, a script has an old password), after that one guess per [`LEAK`]. Only failures
//! count and only callers without cached credentials are asked, so that one guesser behind a shared address does not lock out the rest
//! who are known already. An IPv6 network of 64 bits counts as one address. The table is bounded.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Failures that cost nothing.
const BURST: u32 = 10;
/// How long it takes until one failure is forgotten.
const LEAK: Duration = Duration::from_secs(6);
/// Addresses remembered, at some 50 bytes each. At the bound the one with the oldest failure is forgotten.
const MAX_ADDRESSES: usize = 10_000;

/// The table of failures.
#[derive(Default)]
pub struct Throttle {
    /// Address → the moment at which all its failures will be forgotten.
    full_until: Mutex<HashMap<IpAddr, Instant>>,
}

impl Throttle {
    /// How long this address has to wait before the next try, if it has to.
    pub fn wait(&self, address: IpAddr, now: Instant) -> Option<Duration> {
        let table = self.full_until.lock().expect("no code panics while it holds this lock");
        let owed = table.get(&network(address))?.saturating_duration_since(now);
        let allowed = LEAK * (BURST - 1);
        (owed > allowed).then(|| owed - allowed)
    }

    /// Counts one failure.
    pub fn failed(&self, address: IpAddr, now: Instant) {
        let mut table = self.full_until.lock().expect("no code panics while it holds this lock");
        let address = network(address);
        if table.len() >= MAX_ADDRESSES && !table.contains_key(&address) {
            make_room(&mut table, now);
        }
        let until = table.entry(address).or_insert(now);
        *until = (*until).max(now) + LEAK;
        // The debt is capped: after the last of a million guesses, the owner of the address waits a minute and not a year.
        *until = (*until).min(now + LEAK * BURST);
    }
}

fn make_room(table: &mut HashMap<IpAddr, Instant>, now: Instant) {
    table.retain(|_, until| *until > now);
    if table.len() >= MAX_ADDRESSES
        && let Some(oldest) = table.iter().min_by_key(|(_, until)| **until).map(|(address, _)| *address)
    {
        table.remove(&oldest);
    }
}

/// What counts as one address: an IPv4 address or an IPv6 /64.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn guessing_gets_slow_and_is_forgiven() {
        let (throttle, now) = (Throttle::default(), Instant::now());
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        for _ in 0..BURST {
            assert_eq!(throttle.wait(address, now), None);
            throttle.failed(address, now);
        }
        assert_eq!(throttle.wait(address, now), Some(LEAK));
        assert_eq!(throttle.wait("192.0.2.2".parse().unwrap(), now), None, "others are not concerned");
        assert_eq!(throttle.wait(address, now + LEAK), None);
        for _ in 0..1000 {
            throttle.failed(address, now);
        }
        assert_eq!(throttle.wait(address, now), Some(LEAK), "the debt is capped");
    }

    #[test]
    fn an_ipv6_network_is_one_address_and_a_mapped_one_is_ipv4() {
        let parse = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(network(parse("2001:db8::1")), network(parse("2001:db8::ffff:1:2:3")));
        assert_ne!(network(parse("2001:db8::1")), network(parse("2001:db8:0:1::1")));
        assert_eq!(network(parse("::ffff:192.0.2.1")), parse("192.0.2.1"));
    }

    #[test]
    fn the_table_is_bounded() {
        let (throttle, now) = (Throttle::default(), Instant::now());
        for number in 0..MAX_ADDRESSES as u32 + 5 {
            throttle.failed(IpAddr::from(number.to_be_bytes()), now);
        }
        assert_eq!(throttle.full_until.lock().unwrap().len(), MAX_ADDRESSES);
    }
}
