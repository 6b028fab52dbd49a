//! What operators order, as far as the leader can say at once. The rest is the plan's.

use std::net::IpAddr;

use super::plan::situation;
use super::{Group, Role};
use crate::assign::Verdict;
use crate::ids::MemberId;
use crate::message::{Answer, Order};
use crate::time::Time;

impl Group {
    /// Takes an order; nothing if this member does not lead.
    pub(crate) fn order(&mut self, now: Time, order: &Order) -> Option<Answer> {
        let refused = match order {
            Order::Move(address, to) => self.order_move(now, *address, *to)?,
            Order::Unpin(address) => {
                let lead = self.unit_of(*address)?;
                self.header_mut()?
                    .pins
                    .remove(&lead.unwrap_or(*address))
                    .is_none()
                    .then(|| format!("{address} is not pinned"))
            }
            Order::Drain(member) | Order::Undrain(member) if !self.table.spec.members.contains_key(member) => {
                Some(format!("{member} is not a member"))
            }
            Order::Drain(member) => {
                self.header_mut()?.drained.insert(*member);
                None
            }
            Order::Undrain(member) => {
                self.header_mut()?.drained.remove(member);
                None
            }
            Order::Rebalance => {
                let Role::Leader(lead) = &mut self.role else { return None };
                lead.rebalance_ordered = true;
                None
            }
            Order::Take(address) => self.order_take(*address)?,
            Order::Announce => {
                self.header_mut()?.announce += 1;
                None
            }
        };
        let Role::Leader(lead) = &mut self.role else { return None };
        lead.dirty = true;
        let next = crate::ids::Version { term: lead.term, step: self.table.version.step + 1 };
        Some(refused.map_or(Answer::Done(next), Answer::Refused))
    }

    /// The orders in the table, if this member may change them. The plan sees the change and makes a version of it.
    fn header_mut(&mut self) -> Option<&mut crate::table::Orders> {
        let Role::Leader(lead) = &mut self.role else { return None };
        Some(lead.orders.get_or_insert_with(|| self.table.header.orders.clone()))
    }

    /// The lead of the unit that an address belongs to.
    fn unit_of(&self, address: IpAddr) -> Option<Option<IpAddr>> {
        let units = &self.lead()?.units;
        Some(units.iter().find(|unit| unit.addresses.contains(&address)).map(|unit| unit.lead))
    }

    fn order_move(&mut self, now: Time, address: IpAddr, to: MemberId) -> Option<Option<String>> {
        let Some(lead) = self.unit_of(address)? else {
            return Some(Some(format!("{address} is not managed")));
        };
        let verdict = {
            let office = self.lead()?;
            let situation = situation(now, self.me, office, &self.table);
            let member = situation.members.iter().find(|member| member.id == to);
            member.map(|member| situation.verdict(member, lead))
        };
        match verdict {
            Some(Verdict::Candidate) => {
                self.header_mut()?.pins.insert(lead, to);
                Some(None)
            }
            Some(other) => Some(Some(format!("{to} cannot have {lead}: {other:?}"))),
            None => Some(Some(format!("{to} is not a member"))),
        }
    }

    fn order_take(&mut self, address: IpAddr) -> Option<Option<String>> {
        let Role::Leader(lead) = &mut self.role else { return None };
        if self.table.entries.get(&address).is_none_or(|entry| entry.conflict.is_none()) {
            return Some(Some(format!("{address} is in no conflict")));
        }
        lead.take.insert(address);
        Some(None)
    }
}
