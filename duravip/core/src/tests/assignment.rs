//! The assignment's promises: nothing moves without need, balance within one unit, the same answer for every order of
//! the input, and reasons that agree with what is done.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use proptest::prelude::*;

use crate::assign::{Ability, Presence, Situation, Verdict, Why, units};
use crate::table::{Entry, Orders};
use crate::*;

fn v4(number: usize) -> IpAddr {
    IpAddr::from([10, 1, (number >> 8) as u8, number as u8])
}

fn spec(weights: &[u32], addresses: usize) -> Spec {
    let member = |(number, weight): (usize, &u32)| {
        let spec = MemberSpec { name: format!("n{number}"), weight: *weight, labels: BTreeSet::new(), witness: false };
        (MemberId(number as u64 + 1), spec)
    };
    Spec {
        members: weights.iter().enumerate().map(member).collect(),
        vips: (0..addresses).map(|number| (v4(number), VipSpec::default())).collect(),
        mature: Duration::from_secs(5),
        ..Spec::default()
    }
}

struct Case {
    spec: Spec,
    orders: Orders,
    entries: BTreeMap<IpAddr, Entry>,
    going: BTreeMap<IpAddr, MemberId>,
    here: Vec<bool>,
    report: Report,
}

impl Case {
    fn new(spec: Spec, here: Vec<bool>) -> Self {
        let entries = spec.vips.keys().map(|address| (*address, Entry::default())).collect();
        let (orders, going) = (Orders::default(), BTreeMap::new());
        Self { spec, orders, entries, going, here, report: Report { number: 1, ..Report::default() } }
    }

    fn own(&mut self, address: IpAddr, owner: Option<MemberId>) {
        self.entries.get_mut(&address).unwrap().owner = owner;
    }

    fn situation(&self) -> Situation<'_> {
        let ability = |(number, here): (usize, &bool)| Ability {
            id: MemberId(number as u64 + 1),
            presence: if *here { Presence::Here } else { Presence::Gone },
            leaving: false,
            ripe: true,
            report: Some(&self.report),
        };
        Situation {
            spec: &self.spec,
            orders: &self.orders,
            members: self.here.iter().enumerate().map(ability).collect(),
            entries: &self.entries,
            going: &self.going,
        }
    }

    /// Places everything; says how many addresses with a living owner moved.
    fn place(&mut self) -> usize {
        let units = units(&self.spec);
        let targets = self.situation().place(&units);
        let mut moved = 0;
        for (unit, target) in units.iter().zip(targets) {
            for address in &unit.addresses {
                let before = self.entries[address].owner;
                moved += usize::from(before.is_some_and(|b| self.here[b.0 as usize - 1]) && before != target.owner);
                self.own(*address, target.owner);
            }
        }
        moved
    }

    fn rebalance(&mut self, limit: usize) -> usize {
        let moves = self.situation().rebalance(&units(&self.spec), limit);
        for moved in &moves {
            assert_eq!(self.entries[&moved.lead].owner, Some(moved.from));
            self.own(moved.lead, Some(moved.to));
        }
        moves.len()
    }

    fn loads(&self) -> Vec<u64> {
        let owners = self.entries.values().filter_map(|entry| entry.owner);
        owners.fold(vec![0; self.here.len()], |mut loads, owner| {
            loads[owner.0 as usize - 1] += 1;
            loads
        })
    }
}

/// The least moves from these loads to any that no single move improves.
fn fewest_moves(loads: &[u64], weights: &[u64]) -> u64 {
    fn balanced(loads: &[u64], weights: &[u64]) -> bool {
        let pairs = (0..loads.len()).flat_map(|a| (0..loads.len()).map(move |b| (a, b)));
        pairs.into_iter().all(|(a, b)| a == b || loads[a] * weights[b] <= (loads[b] + 1) * weights[a])
    }
    let mut seen: BTreeSet<Vec<u64>> = [loads.to_vec()].into();
    let mut edge: Vec<Vec<u64>> = seen.iter().cloned().collect();
    for moves in 0.. {
        if edge.iter().any(|loads| balanced(loads, weights)) {
            return moves;
        }
        let mut next = Vec::new();
        for loads in edge {
            for a in (0..loads.len()).filter(|a| loads[*a] > 0) {
                for b in (0..loads.len()).filter(|b| *b != a) {
                    let mut after = loads.clone();
                    after[a] -= 1;
                    after[b] += 1;
                    if seen.insert(after.clone()) {
                        next.push(after);
                    }
                }
            }
        }
        edge = next;
    }
    0
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn without_constraints_the_balance_is_within_one(weights in proptest::collection::vec(1u32..5, 1..9), addresses in 0usize..200) {
        let mut case = Case::new(spec(&weights, addresses), vec![true; weights.len()]);
        case.place();
        let loads = case.loads();
        prop_assert_eq!(loads.iter().sum::<u64>(), addresses as u64);
        for (a, wa) in weights.iter().enumerate() {
            for (b, wb) in weights.iter().enumerate() {
                prop_assert!(a == b || loads[a] * u64::from(*wb) <= (loads[b] + 1) * u64::from(*wa), "{loads:?} of {weights:?}");
            }
        }
        prop_assert_eq!(case.rebalance(1000), 0, "what was placed needs no move");
    }

    #[test]
    fn a_death_moves_what_the_dead_had_and_spreads_it(members in 2usize..12, addresses in 1usize..300, dead in 0usize..12) {
        let dead = dead % members;
        let mut case = Case::new(spec(&vec![1; members], addresses), vec![true; members]);
        case.place();
        let before = case.loads();
        case.here[dead] = false;
        prop_assert_eq!(case.place(), 0, "nobody else moves");
        let after = case.loads();
        prop_assert_eq!(after[dead], 0);
        let gained: Vec<u64> = (0..members).filter(|m| *m != dead).map(|m| after[m] - before[m]).collect();
        prop_assert!(gained.iter().max().unwrap() - gained.iter().min().unwrap() <= 2, "{gained:?}");
        let spread: Vec<u64> = (0..members).filter(|m| *m != dead).map(|m| after[m]).collect();
        prop_assert!(spread.iter().max().unwrap() - spread.iter().min().unwrap() <= 1, "{spread:?}");
    }

    #[test]
    fn rebalancing_takes_the_fewest_moves(owners in proptest::collection::vec(0usize..3, 0..9), weights in proptest::collection::vec(1u32..3, 3)) {
        let mut case = Case::new(spec(&weights, owners.len()), vec![true; 3]);
        for (number, owner) in owners.iter().enumerate() {
            case.own(v4(number), Some(MemberId(*owner as u64 + 1)));
        }
        let weights: Vec<u64> = weights.iter().map(|weight| u64::from(*weight)).collect();
        let fewest = fewest_moves(&case.loads(), &weights);
        let moves = case.rebalance(1000) as u64;
        prop_assert_eq!(moves, fewest, "{:?} of {:?}", case.loads(), weights);
        prop_assert_eq!(case.rebalance(1000), 0, "it ends");
    }

    #[test]
    fn the_order_of_the_input_does_not_matter(
        owners in proptest::collection::vec(0u64..6, 1..40),
        here in proptest::collection::vec(any::<bool>(), 5),
        shuffle in any::<u64>(),
    ) {
        let mut case = Case::new(spec(&[1, 2, 1, 3, 1], owners.len()), here);
        for (number, owner) in owners.iter().enumerate() {
            case.own(v4(number), (*owner > 0).then_some(MemberId(*owner)).filter(|o| o.0 <= 5));
        }
        let units = units(&case.spec);
        let mut other = case.situation();
        let places = other.members.len();
        for place in 0..places {
            other.members.swap(place, (shuffle >> (place * 8)) as usize % places);
        }
        prop_assert_eq!(case.situation().place(&units), other.place(&units));
        prop_assert_eq!(case.situation().rebalance(&units, 7), other.rebalance(&units, 7));
    }

    #[test]
    fn reasons_agree_with_what_is_done(
        labels in proptest::collection::vec(0u8..3, 20),
        has in proptest::collection::vec(any::<[bool; 2]>(), 4),
        here in proptest::collection::vec(any::<bool>(), 4),
        failed in any::<bool>(),
        broken in 0usize..20,
    ) {
        let mut spec = spec(&[1; 4], 20);
        for (number, vip) in spec.vips.values_mut().enumerate() {
            vip.labels = (labels[number] > 0).then(|| format!("l{}", labels[number])).into_iter().collect();
            vip.checks = (number % 7 == 0).then(|| "c".to_owned()).into_iter().collect();
        }
        for (member, has) in spec.members.values_mut().zip(&has) {
            member.labels = (1..=2).filter(|l| has[*l - 1]).map(|l| format!("l{l}")).collect();
        }
        let mut case = Case::new(spec, here);
        case.report.failed = failed.then(|| "c".to_owned()).into_iter().collect();
        case.report.cannot = [(v4(broken), Cannot::NoInterface)].into();
        case.place();
        let situation = case.situation();
        let all = units(&case.spec);
        for (address, entry) in &case.entries {
            let why = crate::explain::explain(&situation, &all, *address).unwrap();
            let may: Vec<MemberId> =
                why.verdicts.iter().filter(|(_, verdict)| *verdict == Verdict::Candidate).map(|(id, _)| *id).collect();
            prop_assert_eq!(entry.owner.is_none(), may.is_empty());
            prop_assert!(entry.owner.is_none_or(|owner| may.contains(&owner)));
            prop_assert_eq!(why.target, entry.owner);
            prop_assert_eq!(why.why == Why::NoCandidate, may.is_empty());
        }
        for gone in 1..=4 {
            let changes = crate::explain::without(&situation, &all, MemberId(gone));
            prop_assert!(changes.iter().all(|change| change.from == Some(MemberId(gone))));
        }
    }
}

#[test]
fn preference_then_follow_then_balance() {
    let mut spec = spec(&[1, 1, 1], 7);
    spec.vips.get_mut(&v4(0)).unwrap().placement = Placement::Preferred(MemberId(3));
    spec.vips.get_mut(&v4(1)).unwrap().placement = Placement::Follows(v4(0));
    spec.vips.get_mut(&v4(2)).unwrap().placement = Placement::Follows(v4(0));
    let mut case = Case::new(spec, vec![true; 3]);
    case.place();
    for number in 0..3 {
        assert_eq!(case.entries[&v4(number)].owner, Some(MemberId(3)));
    }
    assert_eq!(case.loads(), [2, 2, 3], "the rest goes around them");
    case.here[2] = false;
    assert_eq!(case.place(), 0);
    assert_eq!(case.entries[&v4(0)].owner, case.entries[&v4(1)].owner);
    case.here[2] = true;
    let moves = case.situation().rebalance(&units(&case.spec), 1);
    assert_eq!(moves.len(), 1, "a unit moves whole even where the batch is smaller");
    assert_eq!((moves[0].to, moves[0].why), (MemberId(3), Why::Preferred));
    case.orders.pins.insert(v4(0), MemberId(1));
    case.place();
    assert_eq!(case.entries[&v4(2)].owner, Some(MemberId(1)), "an operator's word is before the preference");
    assert!(case.situation().rebalance(&units(&case.spec), 9).iter().all(|moved| moved.lead != v4(0)));
}

#[test]
fn an_unripe_member_gets_only_what_nobody_else_may_have() {
    let mut case = Case::new(spec(&[1, 1, 1], 9), vec![true, true, false]);
    case.place();
    case.here[2] = true;
    let all = units(&case.spec);
    let mut situation = case.situation();
    situation.members[2].ripe = false;
    assert!(situation.rebalance(&all, 99).is_empty(), "nothing goes back before its time, nor around it");
    situation.members[0].presence = Presence::Gone;
    assert!(situation.place(&all).iter().all(|target| target.owner != Some(MemberId(3))));
    situation.members[1].presence = Presence::Gone;
    assert!(situation.place(&all).iter().all(|target| target.owner == Some(MemberId(3))));
}

#[test]
fn ten_thousand_addresses_on_thirty_two_members() {
    let mut case = Case::new(spec(&[1; 32], 10_240), vec![true; 32]);
    case.place();
    assert!(case.loads().iter().all(|load| *load == 320));
    case.here[4] = false;
    let before = std::time::Instant::now();
    assert_eq!(case.place(), 0);
    println!("placing took {:?}", before.elapsed());
    assert!(case.loads().iter().all(|load| *load == 0 || (330..=331).contains(load)));
    case.here[4] = true;
    let before = std::time::Instant::now();
    let mut moved = 0;
    loop {
        let batch = case.rebalance(64);
        moved += batch;
        if batch == 0 {
            break;
        }
    }
    println!("rebalancing took {:?}", before.elapsed());
    assert_eq!(moved, 320 - 1 + usize::from(case.loads()[4] == 320), "{:?}", case.loads());
}
