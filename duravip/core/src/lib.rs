//! DuraVIP's core: who is there, who may own which address, and when.
//!
//! A member is a state machine ([`Member`]): an [`Event`] and the time go in, [`Action`]s come out. It reads no clock,
//! opens no socket, and draws random numbers from a seed, so that a test can be any network, any clock and any crash,
//! and a failing run can be had again.
//!
//! The protocol is one view backed by a majority, with time leases for the whole cluster; `group` has its rules and
//! why they suffice, `member` stands between them and the network, `assign` decides who should own what, `envelope`
//! seals messages. What the shell owes the core is in `docs/decisions/duravip.md`.

mod action;
mod apart;
pub mod assign;
mod config;
mod electorate;
pub mod envelope;
mod explain;
mod group;
mod holds;
mod ids;
mod member;
mod message;
mod rules;
mod table;
mod time;

pub use action::{Action, Event, Notice, Stored};
pub use config::{
    Config, ConfigError, MAX_MEMBERS, MemberSpec, NoQuorum, Placement, Rebalance, Spec, Timing, TimingError, VipSpec,
    number_members,
};
pub use electorate::Electorate;
pub use explain::{Change, Explanation, Trouble};
pub use ids::{ConfigId, Incarnation, MemberId, Term, Version};
pub use member::{Known, Member, Start};
pub use message::{
    Ack, Answer, Beat, Body, Candidacy, Cannot, Difference, GroupTag, Message, Order, Refusal, Report, Standing,
};
pub use table::{Entry, Header, Orders, Seen, Table, Update};
pub use time::Time;

#[cfg(test)]
mod tests;
