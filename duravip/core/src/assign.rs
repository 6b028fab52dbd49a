//! Who should own what: a pure function of the situation, the same for planning, for `explain` and for `simulate`.
//!
//! Two questions, kept apart because their answers cost differently. *Placing* answers for addresses that have no owner
//! who may keep them: at once, and nothing else moves. *Rebalancing* looks for moves that nothing forces: addresses back
//! to their preferred member, then from the fullest to the emptiest, each strictly better than leaving it, so that it
//! ends and never moves more than the imbalance. Addresses that follow one another are one unit and move in one step.
//!
//! Ties are broken by id and address, never by the order of the input.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::config::{MemberSpec, Placement, Spec, VipSpec};
use crate::ids::MemberId;
use crate::message::{Cannot, Difference, Report};
use crate::table::{Entry, Orders};

/// A member, as far as placing is concerned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ability<'a> {
    /// Who.
    pub id: MemberId,
    /// Whether it is there.
    pub presence: Presence,
    /// It wants to leave.
    pub leaving: bool,
    /// It has been there long enough for addresses to go back to it.
    pub ripe: bool,
    /// What it said it can do.
    pub report: Option<&'a Report>,
}

/// Whether a member is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Presence {
    /// It acknowledges heartbeats.
    Here,
    /// It is silent, and its lease may still run: what it has cannot be given away yet.
    Limbo,
    /// It is gone.
    Gone,
}

/// What a member is to an address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It may own it.
    Candidate,
    /// It is not there.
    Absent,
    /// It has not said yet what it can do.
    Unreported,
    /// The configuration does not name it.
    NoMember,
    /// It votes only.
    Witness,
    /// An operator drained it, or it is leaving.
    Draining,
    /// It lacks this label.
    Label(String),
    /// It fails this check.
    Check(String),
    /// It cannot serve it.
    Cannot(Cannot),
}

/// What placing works on.
#[derive(Clone, Debug)]
pub struct Situation<'a> {
    /// The configuration.
    pub spec: &'a Spec,
    /// What operators said.
    pub orders: &'a Orders,
    /// The members, by id.
    pub members: Vec<Ability<'a>>,
    /// The table as it is.
    pub entries: &'a BTreeMap<IpAddr, Entry>,
    /// Where units are on their way to; they count as being there.
    pub going: &'a BTreeMap<IpAddr, MemberId>,
}

/// Addresses that live together, under the one that the others follow.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Unit {
    /// The address that is placed.
    pub lead: IpAddr,
    /// The lead and its followers.
    pub addresses: Vec<IpAddr>,
}

/// Where a unit belongs, and why.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Target {
    /// Who should own it.
    pub owner: Option<MemberId>,
    /// Why.
    pub why: Why,
}

/// Why a unit belongs where it does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// An operator moved it there.
    Pinned,
    /// The configuration prefers that member.
    Preferred,
    /// It is there, and nothing asks for a move.
    Stays,
    /// Its owner is silent, and may still have it.
    Limbo,
    /// That member had the least for its weight.
    Balance,
    /// Nobody may have it.
    NoCandidate,
    /// Somebody outside answers for it.
    Conflict,
    /// Members disagree about its name.
    Broken,
}

/// A move that nothing forces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Move {
    /// The unit's lead.
    pub lead: IpAddr,
    /// Where it is.
    pub from: MemberId,
    /// Where it should be.
    pub to: MemberId,
    /// Why.
    pub why: Why,
}

/// Groups the addresses by whom they follow.
pub fn units(spec: &Spec) -> Vec<Unit> {
    let mut units: BTreeMap<IpAddr, Vec<IpAddr>> = BTreeMap::new();
    for (address, vip) in &spec.vips {
        let lead = match vip.placement {
            Placement::Follows(lead) if spec.vips.contains_key(&lead) => lead,
            _ => *address,
        };
        let unit = units.entry(lead).or_insert_with(|| vec![lead]);
        if lead != *address {
            unit.push(*address);
        }
    }
    units.into_iter().map(|(lead, addresses)| Unit { lead, addresses }).collect()
}

impl Situation<'_> {
    /// What a member is to an address.
    pub fn verdict(&self, member: &Ability<'_>, address: IpAddr) -> Verdict {
        self.member_verdict(member).unwrap_or_else(|| self.address_verdict(member, address))
    }

    /// A member that a new leader has not heard what it can do keeps what it has until it says so.
    fn is_in_limbo(&self, index: usize) -> bool {
        let member = &self.members[index];
        let silent = member.presence == Presence::Here && self.member_verdict(member) == Some(Verdict::Unreported);
        member.presence == Presence::Limbo || silent
    }

    /// What stands against a member whatever the address.
    fn member_verdict(&self, member: &Ability<'_>) -> Option<Verdict> {
        let Some(spec) = self.spec.members.get(&member.id) else {
            return Some(Verdict::NoMember);
        };
        if spec.witness {
            return Some(Verdict::Witness);
        }
        if member.presence != Presence::Here {
            return Some(Verdict::Absent);
        }
        if member.leaving || self.orders.drained.contains(&member.id) {
            return Some(Verdict::Draining);
        }
        member.report.is_none().then_some(Verdict::Unreported)
    }

    fn address_verdict(&self, member: &Ability<'_>, address: IpAddr) -> Verdict {
        let (Some(spec), Some(vip), Some(report)) =
            (self.spec.members.get(&member.id), self.spec.vips.get(&address), member.report)
        else {
            return Verdict::Unreported;
        };
        fit(spec, report, vip, address)
    }

    /// Whether members that are there disagree about the address.
    pub fn difference(&self, address: IpAddr) -> Option<Difference> {
        let said = self.members.iter().filter(|member| member.presence == Presence::Here);
        let differs = said.filter_map(|member| member.report?.differs.get(&address).copied());
        differs.max_by_key(|difference| match difference {
            Difference::Name => 2,
            Difference::Services => 1,
            Difference::Preference => 0,
        })
    }

    /// Where every unit belongs, without moves that nothing forces.
    pub fn place(&self, units: &[Unit]) -> Vec<Target> {
        Board::new(self, units).place()
    }

    /// Moves that nothing forces, the more urgent first, of at most `limit` addresses (but at least one unit).
    pub fn rebalance(&self, units: &[Unit], limit: usize) -> Vec<Move> {
        let mut board = Board::new(self, units);
        let targets = board.place();
        board.rebalance(&targets, limit)
    }
}

/// What a member that may own something is to an address.
fn fit(member: &MemberSpec, report: &Report, vip: &VipSpec, address: IpAddr) -> Verdict {
    if let Some(label) = vip.labels.iter().find(|label| !member.labels.contains(*label)) {
        return Verdict::Label(label.clone());
    }
    if !report.failed.is_empty()
        && let Some(check) = vip.checks.iter().find(|check| report.failed.contains(*check))
    {
        return Verdict::Check(check.clone());
    }
    match report.cannot.get(&address) {
        Some(cannot) => Verdict::Cannot(*cannot),
        None => Verdict::Candidate,
    }
}

/// The situation in numbers: members by index, eligibility as bits.
struct Board<'a> {
    situation: &'a Situation<'a>,
    units: Vec<Cell<'a>>,
    /// Addresses per member.
    load: Vec<u64>,
    weight: Vec<u64>,
    /// Bits of the members that are ripe.
    ripe: u64,
    /// Bits of the members that may own anything.
    able: u64,
    /// Those members.
    fits: Vec<(usize, &'a MemberSpec, &'a Report)>,
}

struct Cell<'a> {
    unit: &'a Unit,
    size: u64,
    /// Bits of the members that may own it.
    eligible: u64,
    current: Option<usize>,
    /// Its owner is in limbo.
    limbo: bool,
    refused: Option<Why>,
    pin: Option<usize>,
    preference: Option<usize>,
}

fn has(bits: u64, index: usize) -> bool {
    bits >> index & 1 == 1
}

impl<'a> Board<'a> {
    fn new(situation: &'a Situation<'a>, units: &'a [Unit]) -> Self {
        let index: BTreeMap<MemberId, usize> =
            situation.members.iter().enumerate().map(|(index, member)| (member.id, index)).collect();
        let able = |member: &Ability<'_>| situation.member_verdict(member).is_none();
        let fits = situation.members.iter().enumerate().filter(|(_, member)| able(member));
        let bits = |yes: &dyn Fn(usize) -> bool| {
            (0..situation.members.len()).filter(|index| yes(*index)).fold(0, |bits, index| bits | 1 << index)
        };
        let differs = situation.members.iter().any(|member| member.report.is_some_and(|r| !r.differs.is_empty()));
        let mut board = Self {
            situation,
            units: Vec::with_capacity(units.len()),
            load: vec![0; situation.members.len()],
            weight: situation
                .members
                .iter()
                .map(|member| situation.spec.members.get(&member.id).map_or(0, |spec| u64::from(spec.weight)))
                .collect(),
            ripe: bits(&|index| situation.members[index].ripe),
            able: bits(&|index| able(&situation.members[index])),
            fits: fits
                .filter_map(|(index, member)| Some((index, situation.spec.members.get(&member.id)?, member.report?)))
                .collect(),
        };
        for unit in units {
            let cell = board.cell(unit, &index, differs);
            if let Some(current) = cell.current {
                board.load[current] += cell.size;
            }
            board.units.push(cell);
        }
        board
    }

    fn cell(&self, unit: &'a Unit, index: &BTreeMap<MemberId, usize>, differs: bool) -> Cell<'a> {
        let situation = self.situation;
        let entry = situation.entries.get(&unit.lead);
        let owner = entry.and_then(|entry| entry.owner).or_else(|| situation.going.get(&unit.lead).copied());
        let current = owner.and_then(|owner| index.get(&owner).copied());
        let difference = if differs { situation.difference(unit.lead) } else { None };
        let preference = match situation.spec.vips.get(&unit.lead).map(|vip| vip.placement) {
            Some(Placement::Preferred(member)) if difference != Some(Difference::Preference) => {
                index.get(&member).copied()
            }
            _ => None,
        };
        let refused = if entry.is_some_and(|entry| entry.conflict.is_some()) {
            Some(Why::Conflict)
        } else if difference == Some(Difference::Name) {
            Some(Why::Broken)
        } else {
            None
        };
        Cell {
            unit,
            size: unit.addresses.len() as u64,
            eligible: self.eligible(unit),
            limbo: current.is_some_and(|current| situation.is_in_limbo(current)),
            current,
            refused,
            pin: situation.orders.pins.get(&unit.lead).and_then(|member| index.get(member).copied()),
            preference,
        }
    }

    /// Who may own all of a unit; if nobody can, who may own the lead: a follower that cannot be there stays behind.
    fn eligible(&self, unit: &Unit) -> u64 {
        let may = |address: &IpAddr| {
            let Some(vip) = self.situation.spec.vips.get(address) else { return 0 };
            let fits =
                self.fits.iter().filter(|(_, spec, report)| fit(spec, report, vip, *address) == Verdict::Candidate);
            fits.fold(0, |bits, (index, ..)| bits | 1 << index)
        };
        let lead = may(&unit.lead);
        let all = unit.addresses.iter().skip(1).fold(lead, |bits, address| bits & may(address));
        if all == 0 { lead } else { all }
    }

    fn place(&mut self) -> Vec<Target> {
        let mut targets: Vec<Option<Target>> = vec![None; self.units.len()];
        let mut open = Vec::new();
        for (number, target) in targets.iter_mut().enumerate() {
            *target = self.settled(number);
            match target {
                Some(target) => self.go(number, target.owner),
                None => open.push(number),
            }
        }
        // Those with the fewest places to go choose first, the large before the small, or they find them full.
        open.sort_by_key(|number| {
            let cell = &self.units[*number];
            (cell.eligible.count_ones(), std::cmp::Reverse(cell.size), cell.unit.lead)
        });
        for number in open {
            let owner = self.emptiest(number).map(|index| self.situation.members[index].id);
            self.go(number, owner);
            let why = if owner.is_some() { Why::Balance } else { Why::NoCandidate };
            targets[number] = Some(Target { owner, why });
        }
        targets.into_iter().flatten().collect()
    }

    /// Where a unit belongs if that needs no choice.
    fn settled(&self, number: usize) -> Option<Target> {
        let cell = &self.units[number];
        let id = |index: usize| Some(self.situation.members[index].id);
        if let Some(why) = cell.refused {
            return Some(Target { owner: None, why });
        }
        if cell.limbo {
            return Some(Target { owner: cell.current.and_then(id), why: Why::Limbo });
        }
        let may = |index: &Option<usize>| index.filter(|index| has(cell.eligible, *index));
        if let Some(pin) = may(&cell.pin) {
            return Some(Target { owner: id(pin), why: Why::Pinned });
        }
        let preferred = may(&cell.preference);
        match (may(&cell.current), preferred) {
            (Some(current), Some(preferred)) if current == preferred => {
                Some(Target { owner: id(current), why: Why::Preferred })
            }
            (Some(current), _) => Some(Target { owner: id(current), why: Why::Stays }),
            (None, Some(preferred)) => Some(Target { owner: id(preferred), why: Why::Preferred }),
            (None, None) => None,
        }
    }

    fn go(&mut self, number: usize, to: Option<MemberId>) {
        let to = to.and_then(|to| self.situation.members.iter().position(|member| member.id == to));
        let cell = &mut self.units[number];
        if let Some(from) = std::mem::replace(&mut cell.current, to) {
            self.load[from] -= cell.size;
        }
        if let Some(to) = to {
            self.load[to] += cell.size;
        }
    }

    /// The eligible member with the least for its weight once it had the unit; a ripe one if there is any.
    fn emptiest(&self, number: usize) -> Option<usize> {
        let cell = &self.units[number];
        let ripe = cell.eligible & self.ripe;
        let among = if ripe == 0 { cell.eligible } else { ripe };
        (0..self.load.len()).filter(|index| has(among, *index)).min_by(|a, b| {
            let full = |index: &usize, other: &usize| (self.load[*index] + cell.size) * self.weight[*other];
            full(a, b).cmp(&full(b, a)).then_with(|| self.id(*a).cmp(&self.id(*b)))
        })
    }

    fn id(&self, index: usize) -> MemberId {
        self.situation.members[index].id
    }

    fn rebalance(&mut self, targets: &[Target], limit: usize) -> Vec<Move> {
        let mut moves = Vec::new();
        let mut budget = limit as u64;
        for (number, target) in targets.iter().enumerate() {
            let cell = &self.units[number];
            let Some(preferred) = cell.preference.filter(|index| has(cell.eligible & self.ripe, *index)) else {
                continue;
            };
            if target.why == Why::Stays && cell.current != Some(preferred) {
                if !self.spend(&mut budget, number, limit) {
                    return moves;
                }
                moves.extend(self.shift(number, preferred, Why::Preferred));
            }
        }
        // A member that is not ripe yet will need some too: balancing without it would move some addresses twice.
        if self.able & !self.ripe == 0 {
            self.balance(targets, &mut budget, limit, &mut moves);
        }
        moves
    }

    /// Whether another unit fits into the batch. The first one always does.
    fn spend(&self, budget: &mut u64, number: usize, limit: usize) -> bool {
        let size = self.units[number].size;
        if *budget < size && *budget < limit as u64 {
            return false;
        }
        *budget = budget.saturating_sub(size);
        true
    }

    fn shift(&mut self, number: usize, to: usize, why: Why) -> Option<Move> {
        let cell = &self.units[number];
        let moved = Move { lead: cell.unit.lead, from: self.id(cell.current?), to: self.id(to), why };
        self.go(number, Some(moved.to));
        Some(moved)
    }

    fn balance(&mut self, targets: &[Target], budget: &mut u64, limit: usize, moves: &mut Vec<Move>) {
        let mut movable: Vec<Vec<usize>> = vec![Vec::new(); self.load.len()];
        for (number, target) in targets.iter().enumerate().rev() {
            let cell = &self.units[number];
            let bound = cell.preference.is_some_and(|preferred| cell.current == Some(preferred));
            if let Some(current) = cell.current
                && !bound
                && matches!(target.why, Why::Stays | Why::Balance)
            {
                movable[current].push(number);
            }
        }
        while let Some((donor, slot, receiver)) = self.best_move(&movable) {
            let number = movable[donor][slot];
            if !self.spend(budget, number, limit) {
                return;
            }
            movable[donor].remove(slot);
            moves.extend(self.shift(number, receiver, Why::Balance));
        }
    }

    /// From the fullest member that can give to the emptiest that can take, if that is better than leaving it.
    fn best_move(&self, movable: &[Vec<usize>]) -> Option<(usize, usize, usize)> {
        let mut donors: Vec<usize> = (0..self.load.len()).filter(|index| !movable[*index].is_empty()).collect();
        donors.sort_by(|a, b| {
            (self.load[*b] * self.weight[*a])
                .cmp(&(self.load[*a] * self.weight[*b]))
                .then_with(|| self.id(*a).cmp(&self.id(*b)))
        });
        let mut receivers: Vec<usize> =
            (0..self.load.len()).filter(|index| has(self.able & self.ripe, *index)).collect();
        receivers.sort_by(|a, b| {
            ((self.load[*a] + 1) * self.weight[*b])
                .cmp(&((self.load[*b] + 1) * self.weight[*a]))
                .then_with(|| self.id(*a).cmp(&self.id(*b)))
        });
        for donor in donors {
            for receiver in receivers.iter().copied().filter(|receiver| *receiver != donor) {
                // From the back: units are kept in falling order, so the lowest address goes first.
                let slot = movable[donor].iter().rposition(|number| {
                    let cell = &self.units[*number];
                    has(cell.eligible, receiver) && self.better(donor, receiver, cell.size)
                });
                if let Some(slot) = slot {
                    return Some((donor, slot, receiver));
                }
            }
        }
        None
    }

    /// Whether the receiver, with the unit, has less for its weight than the donor has now.
    fn better(&self, donor: usize, receiver: usize, size: u64) -> bool {
        (self.load[receiver] + size) * self.weight[donor] < self.load[donor] * self.weight[receiver]
    }
}
