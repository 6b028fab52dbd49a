//! What comes in and what goes out. The shell's loop is: read the clock once, hand in one event, carry the actions out
//! in their order. `Persist` stands before every message that depends on it; if it fails, the shell stops.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::config::{Config, Timing};
use crate::electorate::Electorate;
use crate::ids::{Incarnation, MemberId, Term, Version};
use crate::message::{Answer, Cannot, Message, Order};
use crate::table::Orders;
use crate::time::Time;

/// Something happened.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
#[allow(clippy::large_enum_variant, reason = "made once, handed on once, and gone")]
pub enum Event {
    /// The time that `wake_at` asked for has come.
    Tick,
    /// An authenticated message of a member's run.
    Message(MemberId, Incarnation, Message),
    /// A new configuration.
    Config(Arc<Config>),
    /// These addresses are on the network.
    Plumbed(Vec<IpAddr>),
    /// These are off the network: this node answers for them no more.
    Unplumbed(Vec<IpAddr>),
    /// The kernel would not take these; they are off the network.
    PlumbFailed(Vec<IpAddr>),
    /// Somebody took these off the interface behind our back.
    Lost(Vec<IpAddr>),
    /// Whether somebody else answers for these addresses. All that were asked for together in one event: thousands of
    /// single ones would each make the table be looked through.
    Probed(Vec<(IpAddr, bool)>),
    /// All addresses that cannot be served here, with the reason.
    Unable(BTreeMap<IpAddr, Cannot>),
    /// All checks that fail here.
    Failing(BTreeSet<String>),
    /// Two members without a witness: this node's carrier is up, and some other station answered just now.
    NetworkSeen,
    /// An operator's order, with a number that its answer will carry.
    Order(u64, Order),
    /// This member is to leave.
    Leave,
}

/// To be done.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
#[allow(clippy::large_enum_variant, reason = "made once, handed on once, and gone")]
pub enum Action {
    /// Sync this to disk before anything that follows.
    Persist(Arc<Stored>),
    /// Send this.
    Send(MemberId, Message),
    /// The lease runs until then: the kernel's fence stays open for so long and no longer.
    Lease(Time),
    /// Put these on the network, announce them, then say `Plumbed`.
    Plumb(Vec<IpAddr>),
    /// Take these off, then say `Unplumbed`.
    Unplumb(Vec<IpAddr>),
    /// Find out whether somebody else answers for these, then say `Probed`.
    Probe(Vec<IpAddr>),
    /// Announce these again.
    Announce(Vec<IpAddr>),
    /// What became of an order.
    Answer(u64, Answer),
    /// For history, metrics and people.
    Notice(Notice),
    /// This member has left and may end.
    Left,
}

/// What is worth telling.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Notice {
    /// This member was elected.
    Leading(Term),
    /// This member leads no more.
    Deposed(Term),
    /// This member follows another leader now.
    Following(Term),
    /// The lease ended without renewal.
    Lapsed,
    /// A part without a majority serves: two owners are possible.
    ServingApart(BTreeSet<MemberId>),
    /// The part rejoined the cluster.
    Rejoined,
    /// Two members lead in one term: a majority has lost its disks. Must never be seen.
    TwoLeaders(Term),
}

/// What must survive a crash.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Stored {
    /// This run.
    pub incarnation: Incarnation,
    /// The highest term this voter took part in.
    pub term: u64,
    /// Whom it elected there.
    pub voted: Option<MemberId>,
    /// Who votes.
    pub electorate: Electorate,
    /// The table version that said so.
    pub electorate_version: Version,
    /// What operators said.
    pub orders: Orders,
    /// The longest times that a promise may have been given by.
    pub longest: Option<Timing>,
}
