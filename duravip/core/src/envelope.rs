//! The wire format: who says it, to whose run, in which order, and a MAC over all of it.
//!
//! Replays are kept out without a clock. A message names the sender's run and number, and the run that it is meant for:
//! what was said to an earlier run of the receiver means nothing to this one. Only a *greeting* is valid for any run; it
//! carries no message, just the sender's run, and the answer to it is what carries trust on. Within a run a window of
//! 128 numbers admits reordering and nothing twice.
//!
//! ```text
//!  0  u8   version (1)         1  u8   kind: 0 greeting, 1 message, 2 bytes
//!  2  u64  sender             10  u64  sender's run      18  u64  number, +1 per datagram of the run
//! 26  u64  receiver           34  u64  receiver's run; 0 in a greeting
//! 42  …    postcard of the message; nothing in a greeting; what the shell likes in bytes (pieces of long messages)
//!  …  16   the first half of HMAC-SHA256 over everything before it
//! ```
//! Numbers are little-endian.

use std::collections::BTreeMap;

use hmac::{Hmac, Mac};
use sha2::Sha256;
use thiserror::Error;

use crate::ids::{Incarnation, MemberId};
use crate::message::Message;

/// The format's version.
pub const VERSION: u8 = 1;
const HEADER_BYTES: usize = 42;
const MAC_BYTES: usize = 16;
/// Messages in flight that may overtake each other; UDP in one segment reorders a handful.
const WINDOW: u64 = 128;

/// A shared key: the cluster key, or one derived from what two nodes agreed in TLS.
#[derive(Clone)]
pub struct Key([u8; 32]);

impl Key {
    /// From 32 bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(…)")
    }
}

/// Why a datagram was dropped.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Dropped {
    /// Not this format.
    #[error("{0} bytes are no message of version {VERSION}")]
    Format(usize),
    /// For somebody else.
    #[error("it is for {0}")]
    Receiver(MemberId),
    /// Forged, damaged, or under another key.
    #[error("what {0} is said to have sent has a wrong MAC")]
    Forged(MemberId),
    /// From a run that ended.
    #[error("{0} has a newer run")]
    OldRun(MemberId),
    /// Said to an earlier run of this member.
    #[error("{0} does not know this run yet")]
    ForEarlierRun(MemberId),
    /// Seen, or older than what could be told from seen.
    #[error("{0} said that before")]
    Replayed(MemberId),
    /// A body that is no message of this version.
    #[error("the message of {0} cannot be read")]
    Body(MemberId),
}

/// What a datagram held.
#[derive(Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "made once, handed on once, and gone")]
pub enum Opened {
    /// The sender has started, or forgot who this is: greet it back.
    Greeting(MemberId),
    /// A message, and the sender's run.
    Message(MemberId, Incarnation, Message),
    /// Bytes for the shell, and the sender's run.
    Bytes(MemberId, Incarnation, Vec<u8>),
}

/// One member's side of all conversations.
#[derive(Debug, Clone)]
pub struct Envelope {
    me: MemberId,
    run: Incarnation,
    key: Key,
    /// Keys agreed with single members; they replace the common one.
    own_keys: BTreeMap<MemberId, Key>,
    next: u64,
    peers: BTreeMap<MemberId, Peer>,
}

#[derive(Debug, Clone, Default)]
struct Peer {
    run: Incarnation,
    newest: u64,
    /// Bit n: `newest - n` was seen.
    seen: u128,
}

impl Envelope {
    /// For one run of a member.
    pub fn new(me: MemberId, run: Incarnation, key: Key) -> Self {
        Self { me, run, key, own_keys: BTreeMap::new(), next: 1, peers: BTreeMap::new() }
    }

    /// From here on this member is spoken to with a key of its own.
    pub fn set_key(&mut self, member: MemberId, key: Key) {
        self.own_keys.insert(member, key);
    }

    /// The newest run of a member that was heard.
    pub fn run_of(&self, member: MemberId) -> Option<Incarnation> {
        self.peers.get(&member).map(|peer| peer.run)
    }

    /// A greeting: for a member that was not heard yet, or that does not know this run.
    pub fn greet(&mut self, to: MemberId) -> Vec<u8> {
        self.write(0, to, Incarnation(0), &[])
    }

    /// A message; nothing if the receiver was not heard yet, and has to be greeted.
    pub fn seal(&mut self, to: MemberId, message: &Message) -> Option<Vec<u8>> {
        let run = self.peers.get(&to)?.run;
        let body = postcard::to_allocvec(message).ok()?;
        Some(self.write(1, to, run, &body))
    }

    /// Bytes for the other shell; nothing if the receiver was not heard yet.
    pub fn seal_bytes(&mut self, to: MemberId, bytes: &[u8]) -> Option<Vec<u8>> {
        let run = self.peers.get(&to)?.run;
        Some(self.write(2, to, run, bytes))
    }

    /// The last message of this run, for whoever speaks after it has ended: nothing with a number of this run is heard
    /// after it.
    pub fn seal_last(&self, to: MemberId, message: &Message) -> Option<Vec<u8>> {
        let mut last = Self { next: u64::MAX, ..self.clone() };
        let run = self.peers.get(&to)?.run;
        Some(last.write(1, to, run, &postcard::to_allocvec(message).ok()?))
    }

    /// Reads a datagram; what is not genuine, new and meant for this run is dropped.
    pub fn open(&mut self, bytes: &[u8]) -> Result<Opened, Dropped> {
        let fields = Fields::read(bytes).ok_or(Dropped::Format(bytes.len()))?;
        if fields.to != self.me {
            return Err(Dropped::Receiver(fields.to));
        }
        let signed = &bytes[..bytes.len() - MAC_BYTES];
        let genuine = self.mac(fields.from, signed).verify_truncated_left(&bytes[bytes.len() - MAC_BYTES..]).is_ok();
        if !genuine {
            return Err(Dropped::Forged(fields.from));
        }
        let greeting = fields.kind == 0;
        if !greeting && fields.to_run != self.run {
            return Err(Dropped::ForEarlierRun(fields.from));
        }
        self.admit(fields.from, fields.from_run, fields.number)?;
        if greeting {
            return Ok(Opened::Greeting(fields.from));
        }
        let body = &signed[HEADER_BYTES..];
        if fields.kind == 2 {
            return Ok(Opened::Bytes(fields.from, fields.from_run, body.to_vec()));
        }
        let message = postcard::from_bytes(body).map_err(|_| Dropped::Body(fields.from))?;
        Ok(Opened::Message(fields.from, fields.from_run, message))
    }

    /// Whether a member was heard and can be written to.
    pub fn knows(&self, member: MemberId) -> bool {
        self.peers.contains_key(&member)
    }

    fn write(&mut self, kind: u8, to: MemberId, to_run: Incarnation, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len() + MAC_BYTES);
        bytes.extend([VERSION, kind]);
        for number in [self.me.0, self.run.0, self.next, to.0, to_run.0] {
            bytes.extend(number.to_le_bytes());
        }
        self.next = self.next.saturating_add(1);
        bytes.extend(body);
        let mac = self.mac(to, &bytes).finalize().into_bytes();
        bytes.extend(&mac[..MAC_BYTES]);
        bytes
    }

    fn mac(&self, other: MemberId, bytes: &[u8]) -> Hmac<Sha256> {
        let key = self.own_keys.get(&other).unwrap_or(&self.key);
        let mut mac: Hmac<Sha256> = Mac::new_from_slice(&key.0).expect("HMAC takes keys of any length");
        mac.update(bytes);
        mac
    }

    fn admit(&mut self, from: MemberId, run: Incarnation, number: u64) -> Result<(), Dropped> {
        let peer = self.peers.entry(from).or_default();
        if run < peer.run {
            return Err(Dropped::OldRun(from));
        }
        if run > peer.run {
            *peer = Peer { run, newest: 0, seen: 0 };
        }
        if number > peer.newest {
            let ahead = number - peer.newest;
            peer.seen = if ahead >= WINDOW { 0 } else { peer.seen << ahead };
            peer.newest = number;
        }
        let behind = peer.newest - number;
        if behind >= WINDOW || peer.seen >> behind & 1 == 1 {
            return Err(Dropped::Replayed(from));
        }
        peer.seen |= 1 << behind;
        Ok(())
    }
}

struct Fields {
    kind: u8,
    from: MemberId,
    from_run: Incarnation,
    number: u64,
    to: MemberId,
    to_run: Incarnation,
}

impl Fields {
    fn read(bytes: &[u8]) -> Option<Self> {
        let sound = bytes.len() >= HEADER_BYTES + MAC_BYTES && bytes[0] == VERSION && bytes[1] <= 2;
        let number = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        sound.then_some(())?;
        Some(Self {
            kind: bytes[1],
            from: MemberId(number(2)?),
            from_run: Incarnation(number(10)?),
            number: number(18)?,
            to: MemberId(number(26)?),
            to_run: Incarnation(number(34)?),
        })
    }
}
