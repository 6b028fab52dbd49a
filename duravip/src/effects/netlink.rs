//! Netlink, as far as addresses, routes, links and nftables need it: messages are written one behind the other into one
//! buffer, sent with one call, and their answers matched by number.
//!
//! No crate: the ones in the field build one message at a time with an allocation per attribute, speak either rtnetlink
//! or nftables, and bring an executor. What is needed here is a header, attributes, and batches (docs/decisions/duravip.md).
//!
//! ```text
//! u32 length (all of it) · u16 type · u16 flags · u32 number · u32 port · the family's own header · attributes
//! attribute: u16 length (with these four bytes) · u16 type · value, padded to four bytes
//! ```

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket,
    sockopt,
};

/// A request.
pub const REQUEST: u16 = 1;
/// An answer is wanted.
pub const ACK: u16 = 4;
/// Fail if it is there.
pub const EXCLUSIVE: u16 = 0x200;
/// Make it if it is not there.
pub const CREATE: u16 = 0x400;
/// Behind what is there.
pub const APPEND: u16 = 0x800;
/// Replace what is there (the same bit as a dump's root flag, in requests that change something).
pub const REPLACE: u16 = 0x100;
/// Everything there is.
pub const DUMP: u16 = 0x300;

const HEADER_BYTES: usize = 16;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// What is listed changed meanwhile: entries may be missing, or be there twice.
const DUMP_INTERRUPTED: u16 = 0x10;
/// How often a list is asked for that changes while it is made.
const DUMPS: usize = 3;
/// An attribute that holds attributes.
const NESTED: u16 = 0x8000;
/// Answers to a batch, and a burst of events: the kernel drops what does not fit, and says so.
const RECEIVE_BYTES: usize = 4 << 20;

/// Messages in one buffer.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    /// Where each message begins.
    starts: Vec<usize>,
    /// How many messages go out with one call; all, if it does not say.
    at_once: Option<usize>,
}

impl Batch {
    /// Sends so many messages with each call. The kernel works off a call's messages without letting anybody else have the
    /// processor or its locks: where one message takes long, many of them would keep heartbeats waiting.
    pub fn in_pieces(&mut self, at_once: usize) {
        self.at_once = Some(at_once.max(1));
    }

    /// Begins the next message. The writer ends it when it is dropped.
    pub fn message(&mut self, kind: u16, flags: u16, family_header: &[u8]) -> Attributes<'_> {
        let start = self.bytes.len();
        self.starts.push(start);
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend([0; 8]);
        self.bytes.extend(family_header);
        pad(&mut self.bytes);
        Attributes { bytes: &mut self.bytes, start }
    }

    /// How many messages there are.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// Writes the attributes of a message; fixes its length at the end.
#[derive(Debug)]
pub struct Attributes<'a> {
    bytes: &'a mut Vec<u8>,
    start: usize,
}

impl Attributes<'_> {
    /// An attribute with a plain value.
    pub fn put(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = (value.len() + 4) as u16;
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        pad(self.bytes);
        self
    }

    /// A number in the machine's order (rtnetlink).
    pub fn number(&mut self, kind: u16, value: u32) -> &mut Self {
        self.put(kind, &value.to_ne_bytes())
    }

    /// A number in network order (nftables).
    pub fn number_be(&mut self, kind: u16, value: u32) -> &mut Self {
        self.put(kind, &value.to_be_bytes())
    }

    /// A text with its closing zero.
    pub fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.put(kind, &bytes)
    }

    /// An attribute that holds attributes.
    pub fn nest(&mut self, kind: u16, inner: impl FnOnce(&mut Attributes<'_>)) -> &mut Self {
        let start = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend((kind | NESTED).to_ne_bytes());
        // The inner writer must not fix a message's length: it gets one of its own that is forgotten.
        let mut inside = std::mem::ManuallyDrop::new(Attributes { bytes: self.bytes, start });
        inner(&mut inside);
        let length = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }
}

impl Drop for Attributes<'_> {
    fn drop(&mut self) {
        let length = (self.bytes.len() - self.start) as u32;
        self.bytes[self.start..self.start + 4].copy_from_slice(&length.to_ne_bytes());
    }
}

/// A message from the kernel.
#[derive(Debug, Clone)]
pub struct Received {
    /// Its type.
    pub kind: u16,
    /// What follows the netlink header.
    pub payload: Vec<u8>,
    /// The list that it is a part of changed while it was made.
    torn: bool,
}

impl Received {
    /// The attributes behind a family header of this size; of several of one type the last counts.
    pub fn attributes(&self, family_header_bytes: usize) -> BTreeMap<u16, &[u8]> {
        attributes(self.payload.get(family_header_bytes.next_multiple_of(4)..).unwrap_or_default())
    }
}

/// Reads attributes; what is cut off ends the list.
pub fn attributes(mut bytes: &[u8]) -> BTreeMap<u16, &[u8]> {
    let mut found = BTreeMap::new();
    while let Some((length, kind)) = header_of(bytes) {
        let Some(value) = bytes.get(4..length) else { break };
        found.insert(kind & !NESTED, value);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

fn header_of(bytes: &[u8]) -> Option<(usize, u16)> {
    let length = u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?);
    let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?);
    (length >= 4).then_some((usize::from(length), kind))
}

/// A number of four bytes in the machine's order.
pub fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.get(..4)?.try_into().ok()?))
}

/// A netlink socket.
#[derive(Debug)]
pub struct Socket {
    socket: OwnedFd,
    next: u32,
    buffer: Vec<u8>,
    torn: bool,
}

impl Socket {
    /// A socket of a netlink family, subscribed to these groups (a bit each).
    pub fn open(family: SockProtocol, groups: u32) -> io::Result<Self> {
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, family)?;
        // Needs CAP_NET_ADMIN, as everything here; without it the requests will say so better.
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BYTES);
        let _ = setsockopt(&socket, sockopt::SndBufForce, &RECEIVE_BYTES);
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        Ok(Self { socket, next: 1, buffer: vec![0; 64 << 10], torn: false })
    }

    /// Sends a batch and gathers an answer for each of its messages: those that asked for one, and those that failed. The
    /// kernel works while the call to send lasts, so that every answer is there when it returns.
    pub fn run(&mut self, mut batch: Batch) -> io::Result<Vec<Result<(), Errno>>> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let first = self.send(&mut batch)?;
        let mut results = vec![Ok(()); batch.len()];
        while let Some(received) = self.receive_now()? {
            for (number, message) in received {
                let index = number.wrapping_sub(first) as usize;
                if message.kind == ERROR && index < results.len() {
                    results[index] = error_of(&message.payload);
                }
            }
        }
        Ok(results)
    }

    /// Sends a batch that stands or falls as a whole; the first failure is the error.
    pub fn run_all(&mut self, batch: Batch) -> io::Result<()> {
        for result in self.run(batch)? {
            result?;
        }
        Ok(())
    }

    /// Asks for everything of a kind, again where that changed meanwhile. [`Socket::is_torn`] says whether it did each time.
    pub fn dump(&mut self, kind: u16, family_header: &[u8]) -> io::Result<Vec<Received>> {
        for _ in 1..DUMPS {
            let all = self.dump_once(kind, family_header)?;
            if !self.torn {
                return Ok(all);
            }
        }
        self.dump_once(kind, family_header)
    }

    /// Whether the last list that was asked for may lack something, or have something twice, because it changed too fast.
    pub fn is_torn(&self) -> bool {
        self.torn
    }

    fn dump_once(&mut self, kind: u16, family_header: &[u8]) -> io::Result<Vec<Received>> {
        self.torn = false;
        let mut batch = Batch::default();
        batch.message(kind, REQUEST | DUMP, family_header);
        let first = self.send(&mut batch)?;
        let mut all = Vec::new();
        loop {
            for (number, message) in self.receive(MsgFlags::empty())? {
                self.torn |= number == first && message.torn;
                match message.kind {
                    _ if number != first => {}
                    DONE => return Ok(all),
                    ERROR => error_of(&message.payload)?,
                    _ => all.push(message),
                }
            }
        }
    }

    /// Events that have come. `ENOBUFS` says that some were lost.
    pub fn events(&mut self) -> io::Result<Vec<Received>> {
        let mut all = Vec::new();
        while let Some(received) = self.receive_now()? {
            all.extend(received.into_iter().map(|(_, message)| message));
        }
        Ok(all)
    }

    fn send(&mut self, batch: &mut Batch) -> io::Result<u32> {
        let first = self.next;
        for start in &batch.starts {
            batch.bytes[start + 8..start + 12].copy_from_slice(&self.next.to_ne_bytes());
            self.next = self.next.wrapping_add(1);
        }
        let ends = batch.starts.iter().copied().skip(1).chain([batch.bytes.len()]).collect::<Vec<_>>();
        let mut begin = 0;
        for piece in ends.chunks(batch.at_once.unwrap_or(ends.len())) {
            let end = piece[piece.len() - 1];
            send(self.socket.as_raw_fd(), &batch.bytes[begin..end], MsgFlags::empty())?;
            begin = end;
        }
        Ok(first)
    }

    fn receive_now(&mut self) -> io::Result<Option<Vec<(u32, Received)>>> {
        match self.receive(MsgFlags::MSG_DONTWAIT) {
            Ok(messages) => Ok(Some(messages)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn receive(&mut self, flags: MsgFlags) -> io::Result<Vec<(u32, Received)>> {
        let length = loop {
            match recv(self.socket.as_raw_fd(), &mut self.buffer, flags) {
                Err(Errno::EINTR) => {}
                result => break result?,
            }
        };
        Ok(split(&self.buffer[..length]))
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn split(mut bytes: &[u8]) -> Vec<(u32, Received)> {
    let mut messages = Vec::new();
    while let Some(length) = bytes.get(..4).and_then(number).map(|length| length as usize) {
        let Some(message) = bytes.get(..length).filter(|message| message.len() >= HEADER_BYTES) else { break };
        let kind = u16::from_ne_bytes([message[4], message[5]]);
        let torn = u16::from_ne_bytes([message[6], message[7]]) & DUMP_INTERRUPTED != 0;
        let own_number = number(&message[8..12]).unwrap_or_default();
        messages.push((own_number, Received { kind, payload: message[HEADER_BYTES..].to_vec(), torn }));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    messages
}

fn error_of(payload: &[u8]) -> Result<(), Errno> {
    match number(payload).unwrap_or_default() as i32 {
        0 => Ok(()),
        code => Err(Errno::from_raw(-code)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn messages_and_attributes_are_laid_out_as_the_kernel_reads_them() {
        let mut batch = Batch::default();
        batch.message(20, REQUEST, &[2, 32, 0, 0]).put(1, &[10, 0, 0, 1]).nest(5, |inner| {
            inner.text(1, "ab").number_be(2, 7);
        });
        batch.message(21, REQUEST | ACK, &[]);
        assert_eq!(batch.len(), 2);
        let messages = split(&batch.bytes);
        assert_eq!(messages.iter().map(|(_, message)| message.kind).collect::<Vec<_>>(), [20, 21]);
        let first = messages[0].1.attributes(4);
        assert_eq!(first[&1], [10, 0, 0, 1]);
        let inner = attributes(first[&5]);
        assert_eq!((inner[&1], inner[&2]), (&b"ab\0"[..], &[0, 0, 0, 7][..]));
        assert_eq!(batch.bytes.len() % 4, 0);
    }

    #[test]
    fn cut_off_messages_end_the_reading() {
        assert!(split(&[200, 0, 0, 0, 1, 2]).is_empty());
        assert!(attributes(&[9, 0, 1, 0, 5]).is_empty());
        assert!(attributes(&[0, 0, 1, 0]).is_empty(), "a length of nothing must not loop");
    }

    #[test]
    fn the_kernel_answers() {
        let mut socket = Socket::open(SockProtocol::NetlinkRoute, 0).unwrap();
        // RTM_GETLINK with ifinfomsg
        let links = socket.dump(18, &[0; 16]).unwrap();
        let names: Vec<_> =
            links.iter().filter_map(|link| link.attributes(16).get(&3).map(|name| name.to_vec())).collect();
        assert!(names.contains(&b"lo\0".to_vec()), "{names:?}");
        let mut batch = Batch::default();
        // RTM_DELADDR of an address that no interface has.
        batch.message(21, REQUEST | ACK, &[2, 32, 0, 0, 1, 0, 0, 0]).put(2, &[203, 0, 113, 77]);
        let results = socket.run(batch).unwrap();
        assert!(matches!(results[..], [Err(Errno::EADDRNOTAVAIL | Errno::EPERM)]), "{results:?}");
        // In pieces every message keeps its answer.
        let mut batch = Batch::default();
        for last in 0..20 {
            let known: &[u8] = if last % 3 == 0 { &[203, 0, 113] } else { &[] };
            batch.message(21, REQUEST | ACK, &[2, 32, 0, 0, 1, 0, 0, 0]).put(2, &[known, &[last]].concat());
        }
        batch.in_pieces(8);
        let results = socket.run(batch).unwrap();
        assert_eq!(results.len(), 20);
        for (last, result) in results.iter().enumerate() {
            let absent = matches!(result, Err(Errno::EADDRNOTAVAIL | Errno::EPERM));
            assert!(result.is_err() && (absent || last % 3 != 0), "{last}: {result:?}");
        }
    }
}
