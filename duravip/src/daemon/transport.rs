//! Messages between members: one UDP datagram each, and pieces where one does not hold them.
//!
//! A table of 10,240 addresses is half a megabyte. It travels compressed, in pieces that fit every network's frames; each is
//! sealed by itself. What loses a piece is lost whole and sent again by the protocol, as every message is. Not over TCP:
//! a table that a majority must have before addresses move would wait for handshakes and retransmission timers.
//!
//! ```text
//! piece (the bytes inside an envelope of kind 2): u32 number · u16 index · u16 count · a part of the whole
//! whole: u32 bytes when uncompressed · LZ4 block · of postcard of Bulk                   (numbers little-endian)
//! ```

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use duravip_core::envelope::{Dropped, Envelope, Key, Opened};
use duravip_core::{Body, Incarnation, MemberId, Message, Time};
use nix::sys::socket::{setsockopt, sockopt};
use serde::{Deserialize, Serialize};

/// The longest datagram: what IPv6 promises to carry whole, without its and UDP's headers.
const DATAGRAM_BYTES: usize = 1232;
/// Of a piece, what is left for its part.
const PART_BYTES: usize = 1152;
/// The longest whole that is put together: a table of 10,240 addresses with long names is a tenth.
const WHOLE_BYTES: usize = 16 << 20;
/// Wholes under way from one member: a table, a report and an answer may overlap. The oldest goes first.
const UNDER_WAY: usize = 4;
/// A burst of tables to 32 members, or from as many, waits here.
const SOCKET_BYTES: usize = 8 << 20;
/// Places of members, former ones among them: as many as there may be, twice over.
const PLACES: usize = 128;
/// Two members that greet each other stop after this.
const GREET_AGAIN: Duration = Duration::from_millis(200);

/// What may be long.
#[derive(Debug, Serialize, Deserialize)]
#[allow(clippy::large_enum_variant, reason = "made once, handed on once, and gone")]
pub enum Bulk {
    /// A message of the protocol.
    Message(Message),
    /// A question to another daemon, with its number.
    Query(u64, Vec<u8>),
    /// The answer to it.
    Reply(u64, Vec<u8>),
}

/// What was heard.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "made once, handed on once, and gone")]
pub enum Heard {
    /// For the core.
    Message(MemberId, Incarnation, Message),
    /// A question of another daemon.
    Query(MemberId, u64, Vec<u8>),
    /// An answer.
    Reply(MemberId, u64, Vec<u8>),
}

/// Counts for the metrics.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Datagrams sent.
    pub sent: u64,
    /// Datagrams that were genuine and new.
    pub received: u64,
    /// Datagrams that were not.
    pub dropped: u64,
}

/// The socket, and who is behind it.
#[derive(Debug)]
pub struct Transport {
    socket: UdpSocket,
    envelope: Envelope,
    peers: BTreeMap<MemberId, SocketAddr>,
    greeted: BTreeMap<MemberId, (Time, Option<Incarnation>)>,
    // Bounded by UNDER_WAY for each member.
    under_way: BTreeMap<MemberId, Vec<Pieces>>,
    next_whole: u32,
    /// The last message that was too long for a datagram, packed: a table goes to many members, and packing takes longest.
    packed: Option<(Message, Arc<[u8]>)>,
    /// What happened so far.
    pub counts: Counts,
}

#[derive(Debug)]
struct Pieces {
    number: u32,
    parts: Vec<Option<Vec<u8>>>,
    missing: usize,
}

impl Transport {
    /// On a bound socket.
    pub fn new(socket: UdpSocket, envelope: Envelope) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        // Without the privilege the system's limit has to do.
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &SOCKET_BYTES);
        let _ = setsockopt(&socket, sockopt::SndBufForce, &SOCKET_BYTES);
        Ok(Self {
            socket,
            envelope,
            peers: BTreeMap::new(),
            greeted: BTreeMap::new(),
            under_way: BTreeMap::new(),
            next_whole: 1,
            packed: None,
            counts: Counts::default(),
        })
    }

    /// Where the members are now. Who is new is greeted at once: followers have nothing to say to each other until their
    /// leader dies, and an election must not begin with getting to know each other.
    pub fn set_peers(&mut self, now: Time, peers: BTreeMap<MemberId, SocketAddr>) {
        let before = std::mem::replace(&mut self.peers, peers);
        let news = self.peers.iter().filter(|(member, place)| before.get(member) != Some(place));
        let news: Vec<MemberId> = news.map(|(member, _)| *member).collect();
        // Who is no member any more is told so by the protocol, and hands over: without a word it would answer until its
        // lease ends, and the others would wait for that.
        for (member, place) in before {
            if self.peers.len() < PLACES {
                self.peers.entry(member).or_insert(place);
            }
        }
        for member in news {
            self.greet(now, member);
        }
    }

    /// A key that was agreed with one member.
    pub fn set_key(&mut self, now: Time, member: MemberId, key: Key) {
        self.envelope.set_key(member, key);
        self.greeted.remove(&member);
        self.greet(now, member);
    }

    /// Sends a message of the protocol. A member that was not heard yet is greeted instead: the message would mean
    /// nothing to it, and the protocol says everything again.
    pub fn send(&mut self, now: Time, to: MemberId, message: &Message) {
        let known = self.packed.as_ref().filter(|(last, _)| last == message);
        if let Some(packed) = known.map(|(_, packed)| packed.clone()) {
            return self.send_packed(now, to, &packed);
        }
        // To seal half a megabyte only to see that it is too long takes a while.
        if !is_long(message) {
            match self.envelope.seal(to, message) {
                None => return self.greet(now, to),
                Some(datagram) if datagram.len() <= DATAGRAM_BYTES => return self.put(to, &datagram),
                Some(_) => {}
            }
        }
        if let Some(packed) = pack(&Bulk::Message(message.clone())) {
            self.send_packed(now, to, &packed);
            self.packed = Some((message.clone(), packed));
        }
    }

    /// Sends what may be long.
    pub fn send_long(&mut self, now: Time, to: MemberId, bulk: &Bulk) {
        if let Some(packed) = pack(bulk) {
            self.send_packed(now, to, &packed);
        }
    }

    fn send_packed(&mut self, now: Time, to: MemberId, whole: &[u8]) {
        let number = self.next_whole;
        self.next_whole = self.next_whole.wrapping_add(1);
        let count = whole.len().div_ceil(PART_BYTES);
        for (index, part) in whole.chunks(PART_BYTES).enumerate() {
            let mut piece = number.to_le_bytes().to_vec();
            piece.extend((index as u16).to_le_bytes());
            piece.extend((count as u16).to_le_bytes());
            piece.extend(part);
            match self.envelope.seal_bytes(to, &piece) {
                Some(datagram) => self.put(to, &datagram),
                None => return self.greet(now, to),
            }
        }
    }

    /// The last words of this run, for the guard to send: one for each member that was heard.
    pub fn last_words(&self, message: &Message) -> Vec<(SocketAddr, Vec<u8>)> {
        let words =
            self.peers.iter().filter_map(|(member, place)| Some((*place, self.envelope.seal_last(*member, message)?)));
        words.collect()
    }

    /// The runs of the members that were heard; last words depend on them.
    pub fn runs(&self) -> Vec<(MemberId, Incarnation)> {
        self.peers.keys().filter_map(|member| Some((*member, self.envelope.run_of(*member)?))).collect()
    }

    /// The next thing heard, if any. Every datagram counts, believed or not: who sends rubbish without a pause must not keep
    /// the loop from its heartbeats.
    pub fn receive(&mut self, now: Time, budget: &mut usize) -> Option<Heard> {
        let mut buffer = [0; 65_536];
        while *budget > 0 {
            *budget -= 1;
            let (length, _) = match self.socket.recv_from(&mut buffer) {
                Ok(received) => received,
                // A member's machine said that nobody listens there; it is the next call that may have something.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                Err(_) => return None,
            };
            match self.envelope.open(&buffer[..length]) {
                Ok(opened) => {
                    self.counts.received += 1;
                    if let Some(heard) = self.take(now, opened) {
                        return Some(heard);
                    }
                }
                Err(dropped) => {
                    self.counts.dropped += 1;
                    tracing::debug!(%dropped, "datagram dropped");
                    if let Dropped::ForEarlierRun(from) = dropped {
                        self.greet(now, from);
                    }
                }
            }
        }
        None
    }

    fn take(&mut self, now: Time, opened: Opened) -> Option<Heard> {
        match opened {
            Opened::Greeting(from) => {
                self.greet(now, from);
                None
            }
            Opened::Message(from, run, message) => Some(Heard::Message(from, run, message)),
            Opened::Bytes(from, run, piece) => match self.put_together(from, &piece)? {
                Bulk::Message(message) => Some(Heard::Message(from, run, message)),
                Bulk::Query(number, bytes) => Some(Heard::Query(from, number, bytes)),
                Bulk::Reply(number, bytes) => Some(Heard::Reply(from, number, bytes)),
            },
        }
    }

    fn put_together(&mut self, from: MemberId, piece: &[u8]) -> Option<Bulk> {
        let (head, part) = piece.split_at_checked(8)?;
        let number = u32::from_le_bytes(head[..4].try_into().ok()?);
        let index = usize::from(u16::from_le_bytes(head[4..6].try_into().ok()?));
        let count = usize::from(u16::from_le_bytes(head[6..8].try_into().ok()?));
        if index >= count || count * PART_BYTES > WHOLE_BYTES {
            return None;
        }
        let under_way = self.under_way.entry(from).or_default();
        if !under_way.iter().any(|pieces| pieces.number == number) {
            if under_way.len() == UNDER_WAY {
                under_way.remove(0);
            }
            under_way.push(Pieces { number, parts: vec![None; count], missing: count });
        }
        let at = under_way.iter().position(|pieces| pieces.number == number)?;
        let pieces = &mut under_way[at];
        let place = pieces.parts.get_mut(index)?;
        if place.replace(part.to_vec()).is_none() {
            pieces.missing -= 1;
        }
        if pieces.missing > 0 {
            return None;
        }
        let whole = under_way.remove(at).parts.into_iter().flatten().flatten().collect::<Vec<u8>>();
        let size = u32::from_le_bytes(whole.get(..4)?.try_into().ok()?) as usize;
        if size > WHOLE_BYTES {
            return None;
        }
        postcard::from_bytes(&lz4_flex::block::decompress_size_prepended(&whole).ok()?).ok()
    }

    /// Says who this is and in which run. Answered once for each run that the other side shows, and rarely besides.
    fn greet(&mut self, now: Time, to: MemberId) {
        let run = self.envelope.run_of(to);
        let again = self.greeted.get(&to).is_some_and(|(at, then)| *then == run && now.since(*at) < GREET_AGAIN);
        if !again {
            self.greeted.insert(to, (now, run));
            let greeting = self.envelope.greet(to);
            self.put(to, &greeting);
        }
    }

    fn put(&mut self, to: MemberId, datagram: &[u8]) {
        let Some(place) = self.peers.get(&to) else { return };
        match self.socket.send_to(datagram, place) {
            Ok(_) => self.counts.sent += 1,
            // Unreachable, full, refused: the protocol's silence says it better.
            Err(error) => tracing::trace!(%error, %place, "datagram not sent"),
        }
    }
}

/// Whether a message certainly needs more than a datagram.
fn is_long(message: &Message) -> bool {
    matches!(message, Message::Group(_, Body::Table(_, update)) if update.entries.len() > DATAGRAM_BYTES / 8)
}

fn pack(bulk: &Bulk) -> Option<Arc<[u8]>> {
    Some(lz4_flex::block::compress_prepend_size(&postcard::to_allocvec(bulk).ok()?).into())
}

impl AsFd for Transport {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::time::Instant;

    fn pair() -> (Transport, Transport) {
        let sockets = [0; 2].map(|_| UdpSocket::bind("127.0.0.1:0").unwrap());
        let places = [0, 1].map(|number| sockets[number].local_addr().unwrap());
        let mut made = sockets.into_iter().enumerate().map(|(number, socket)| {
            let me = MemberId(number as u64 + 1);
            let envelope = Envelope::new(me, Incarnation(5), Key::new([7; 32]));
            let mut transport = Transport::new(socket, envelope).unwrap();
            transport.set_peers(Time::from_millis(1), [(MemberId(2 - number as u64), places[1 - number])].into());
            transport
        });
        (made.next().unwrap(), made.next().unwrap())
    }

    fn hear(transport: &mut Transport, now: Time) -> Option<Heard> {
        transport.receive(now, &mut 1000)
    }

    fn wait_for(a: &mut Transport, b: &mut Transport, mut say: impl FnMut(&mut Transport)) -> Heard {
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut now = Time::from_millis(1);
        loop {
            assert!(Instant::now() < deadline, "nothing arrived");
            say(a);
            now = now + Duration::from_millis(300);
            if let Some(heard) = hear(b, now) {
                return heard;
            }
            assert!(hear(a, now).is_none());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn greetings_come_first_and_do_not_go_on_for_ever() {
        let (mut a, mut b) = pair();
        let gone = Message::Gone(Incarnation(1));
        let heard = wait_for(&mut a, &mut b, |a| a.send(Time::from_millis(1), MemberId(2), &gone));
        assert!(matches!(heard, Heard::Message(MemberId(1), Incarnation(5), Message::Gone(_))), "{heard:?}");
        let still = Time::from_millis(900_000);
        let before = a.counts.sent + b.counts.sent;
        a.greet(still, MemberId(2));
        for _ in 0..50 {
            std::thread::sleep(Duration::from_millis(1));
            hear(&mut a, still);
            hear(&mut b, still);
        }
        let greetings = a.counts.sent + b.counts.sent - before;
        assert!(greetings <= 3, "{greetings} greetings");
    }

    #[test]
    fn members_know_each_other_before_they_have_anything_to_say() {
        let (mut a, mut b) = pair();
        let deadline = Instant::now() + Duration::from_secs(20);
        while a.runs().is_empty() || b.runs().is_empty() {
            assert!(Instant::now() < deadline, "{:?} {:?}", a.runs(), b.runs());
            // The time does not go on: nothing is said again.
            assert!(hear(&mut a, Time::from_millis(1)).is_none() && hear(&mut b, Time::from_millis(1)).is_none());
        }
        // A new run of one of them: the other's first message to it is understood.
        let socket = b.socket.try_clone().unwrap();
        let mut b = Transport::new(socket, Envelope::new(MemberId(2), Incarnation(6), Key::new([7; 32]))).unwrap();
        b.set_peers(Time::from_millis(1), [(MemberId(1), a.socket.local_addr().unwrap())].into());
        while a.runs() != [(MemberId(2), Incarnation(6))] {
            assert!(Instant::now() < deadline, "{:?}", a.runs());
            assert!(hear(&mut a, Time::from_millis(1)).is_none());
        }
        a.send(Time::from_millis(1), MemberId(2), &Message::Gone(Incarnation(1)));
        loop {
            assert!(Instant::now() < deadline, "the message did not arrive");
            if let Some(heard) = hear(&mut b, Time::from_millis(1)) {
                assert!(matches!(heard, Heard::Message(MemberId(1), _, Message::Gone(_))), "{heard:?}");
                break;
            }
        }
    }

    #[test]
    fn rubbish_takes_its_turn_like_everything_else() {
        let (a, mut b) = pair();
        let place = b.socket.local_addr().unwrap();
        // As many as wait in a socket's buffer for sure.
        (0..200).for_each(|number| drop(a.socket.send_to(&[number; 100], place)));
        let deadline = Instant::now() + Duration::from_secs(20);
        while b.counts.dropped < 200 {
            let before = b.counts.dropped;
            let mut budget = 64;
            assert!(b.receive(Time::from_millis(1), &mut budget).is_none());
            assert!(b.counts.dropped - before <= 64, "{} at once", b.counts.dropped - before);
            assert!(Instant::now() < deadline, "{} of 200 arrived", b.counts.dropped);
        }
    }

    #[test]
    fn who_is_no_member_any_more_still_hears_what_it_has_to_give_up() {
        let (mut a, mut b) = pair();
        let gone = Message::Gone(Incarnation(1));
        wait_for(&mut a, &mut b, |a| a.send(Time::from_millis(1), MemberId(2), &gone));
        a.set_peers(Time::from_millis(1), BTreeMap::new());
        let heard = wait_for(&mut a, &mut b, |a| a.send(Time::from_millis(1), MemberId(2), &gone));
        assert!(matches!(heard, Heard::Message(MemberId(1), ..)), "{heard:?}");
    }

    #[test]
    fn what_is_long_arrives_whole() {
        let (mut a, mut b) = pair();
        let long: Vec<u8> =
            (0..300_000_u32).flat_map(|number| (number.wrapping_mul(2_654_435_761) >> 9).to_le_bytes()).collect();
        let heard =
            wait_for(&mut a, &mut b, |a| a.send_long(Time::from_millis(1), MemberId(2), &Bulk::Query(4, long.clone())));
        assert!(matches!(heard, Heard::Query(MemberId(1), 4, bytes) if bytes == long));
    }

    #[test]
    fn pieces_may_come_in_any_order_and_nonsense_is_dropped() {
        let (_, mut b) = pair();
        let plain = postcard::to_allocvec(&Bulk::Reply(3, vec![1, 2, 3])).unwrap();
        let whole = lz4_flex::block::compress_prepend_size(&plain);
        let piece = |index: u16, count: u16, part: &[u8]| {
            [&9_u32.to_le_bytes()[..], &index.to_le_bytes(), &count.to_le_bytes(), part].concat()
        };
        let (first, second) = whole.split_at(4);
        assert!(b.put_together(MemberId(1), &piece(1, 2, second)).is_none());
        assert!(b.put_together(MemberId(1), &piece(1, 2, second)).is_none(), "the same piece twice is one");
        assert!(matches!(b.put_together(MemberId(1), &piece(0, 2, first)), Some(Bulk::Reply(3, _))));
        for nonsense in
            [&[1, 2][..], &piece(5, 2, b"x"), &piece(0, 0, b"x"), &piece(0, u16::MAX, b"x"), &piece(0, 1, &[0xFF; 20])]
        {
            assert!(b.put_together(MemberId(1), nonsense).is_none());
        }
    }
}
