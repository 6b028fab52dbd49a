//! What members say to each other. Beats and acknowledgements are small whatever the number of addresses: they carry
//! versions; tables and reports travel only when they are new to the receiver.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::electorate::Electorate;
use crate::ids::{ConfigId, Incarnation, MemberId, Term, Version};
use crate::table::Update;

/// Which group a message belongs to: the whole cluster, or a part of it that serves without a majority.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum GroupTag {
    /// All voters.
    Cluster,
    /// The part with this number, a hash of its members.
    Part(u64),
}

/// A message, without sender and authentication: the envelope has those.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[allow(clippy::large_enum_variant, reason = "made once, handed on once, and gone")]
pub enum Message {
    /// Part of a group's protocol.
    Group(GroupTag, Body),
    /// The sender's run is over and everything it had is off the network. Said by itself at a planned end, by its
    /// guard after a crash.
    Gone(Incarnation),
    /// Sent while the cluster has no leader and parts may serve: whom the sender hears.
    Hello(BTreeSet<MemberId>),
    /// An operator's order, forwarded to the leader.
    Order(u64, Order),
    /// What became of it.
    Answer(u64, Answer),
}

/// The protocol of a group.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[allow(clippy::large_enum_variant, reason = "made once, handed on once, and gone")]
pub enum Body {
    /// Would you elect me? Asked first, so that a member that cannot hear never disturbs the rest.
    MayI(Candidacy),
    /// The answer.
    YouMay {
        /// The round of the question.
        round: u64,
        /// The highest term the sender knows.
        term: u64,
        /// What stands against it.
        refusal: Option<Refusal>,
    },
    /// Elect me in this term.
    Elect {
        /// The term's number.
        term: u64,
        /// The candidate.
        candidacy: Candidacy,
    },
    /// I do, and promise to elect nobody else for a while.
    Elected {
        /// The term's number.
        term: u64,
        /// Which table the voter has.
        have: Version,
        /// A promise to another leader was void (that leader is known to be gone) or never counted: leases from it may
        /// run longer than the new leader would assume.
        early: bool,
    },
    /// The leader lives.
    Beat(Beat),
    /// The member lives.
    Ack(Ack),
    /// A newer table.
    Table(Term, Update),
    /// What a member can do.
    Report(Term, Arc<Report>),
    /// A beat of a term that the receiver left behind: the leader stands again in a higher one.
    Stale {
        /// The receiver's term.
        term: u64,
    },
}

/// Who stands for election.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Candidacy {
    /// Tells rounds of asking apart.
    pub round: u64,
    /// Its table.
    pub have: Version,
    /// Whose votes it counts (kept on disk, unlike the table). A voter that knows older voters takes these over.
    pub voters: Electorate,
    /// The version that said so.
    pub voters_since: Version,
    /// How long it asks the voters to elect nobody else.
    pub promise: Duration,
}

/// Why a voter would not elect.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[allow(clippy::large_enum_variant, reason = "made once, handed on once, and gone")]
pub enum Refusal {
    /// It is promised to another, or silent after its start, for so long.
    Wait(Duration),
    /// Its table is newer.
    Behind,
    /// It knows of newer voters, since this version. Tables are lost in crashes, voters are not. The candidate takes them over, as it would have from the leader of that version.
    Voters(Electorate, Version),
}

/// A heartbeat.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Beat {
    /// The leadership.
    pub term: Term,
    /// Counts beats.
    pub number: u64,
    /// The leader's table.
    pub table: Version,
    /// What a majority has.
    pub commit: Version,
    /// The last acknowledgement of this member that the leader heard; its lease runs from when it sent that.
    pub heard: Option<u64>,
    /// For so long.
    pub lease: Duration,
    /// For so long the member, if it is a voter and acknowledges, elects nobody else.
    pub promise: Duration,
    /// The number of the member's report that the leader has.
    pub report: u64,
}

/// An acknowledgement.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Ack {
    /// The leadership.
    pub term: Term,
    /// The newest beat heard.
    pub beat: u64,
    /// Counts acknowledgements of this run.
    pub number: u64,
    /// How the member stands.
    pub standing: Standing,
}

/// How a member stands to the table.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Standing {
    /// Its table.
    pub have: Version,
    /// Everything it has on the network is its own according to this version: all else is released, off the interface.
    pub applied: Version,
    /// Everything that is its own according to this version is on the network, or reported as impossible.
    pub plumbed: Version,
    /// The number of its report.
    pub report: u64,
    /// It wants to leave.
    pub leaving: bool,
}

impl Standing {
    /// Nothing yet.
    pub const NONE: Self =
        Self { have: Version::ZERO, applied: Version::ZERO, plumbed: Version::ZERO, report: 0, leaving: false };
}

/// What a member can do, sent when it changes.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Counts reports of this run; 0 is none.
    pub number: u64,
    /// The configuration it has.
    pub config: ConfigId,
    /// Addresses of the table that it cannot serve.
    pub cannot: BTreeMap<IpAddr, Cannot>,
    /// Checks that fail.
    pub failed: BTreeSet<String>,
    /// Addresses of the table that its configuration describes otherwise.
    pub differs: BTreeMap<IpAddr, Difference>,
}

/// Why a member cannot serve an address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Cannot {
    /// Its configuration does not have it: it lacks that commit.
    Unknown,
    /// The interface is missing or down.
    NoInterface,
    /// The interface has no address in the block.
    NoSubnet,
    /// It is the node's own main address.
    OwnAddress,
    /// The kernel refused it.
    Refused,
    /// Somebody outside the cluster answers for it.
    Conflict,
}

/// How two configurations disagree about an address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Difference {
    /// Which services live on it: UNSAFE, still managed.
    Services,
    /// Which name belongs to it: BROKEN, refused.
    Name,
    /// Which member it prefers: it is placed as if it preferred none.
    Preference,
}

/// What an operator wants.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Order {
    /// Moves an address and keeps it there.
    Move(IpAddr, MemberId),
    /// Lets an address go where the balance wants it.
    Unpin(IpAddr),
    /// Takes all addresses from a member.
    Drain(MemberId),
    /// Lets a member have addresses again.
    Undrain(MemberId),
    /// Gives addresses back now.
    Rebalance,
    /// Takes an address although somebody else answers for it.
    Take(IpAddr),
    /// Announces everything again.
    Announce,
}

/// What became of an order.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Answer {
    /// It is in the table of this version.
    Done(Version),
    /// It is not.
    Refused(String),
    /// There is no leader to ask.
    NoLeader,
}
