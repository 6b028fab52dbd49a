//! Sends events to the `cidr` daemon of this machine. A crate of its own, so that programs which count need nothing but the standard
//! library.
//!
//! ```no_run
//! let mut sender = cidr_client::Sender::connect()?;
//! sender.add("spam", "10.79.18.1".parse().unwrap(), 3)?;
//! let sent = sender.finish()?;
//! assert_eq!(sent.refused, 0, "{}", sent.answer);
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! Events go out in batches: when [`BATCH_EVENTS`] wait, with [`Sender::flush`], or at the end. Whoever must never wait for the daemon
//! uses [`Datagrams`], which may lose what the daemon is too busy for. (docs/cidr-protocol.md has both on the wire.)

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// Events that wait before a batch is sent: 32 KiB at most for IPv4 with amounts.
pub const BATCH_EVENTS: usize = 4_096;
/// A datagram that no network cuts.
const DATAGRAM_BYTES: usize = 1_200;

/// Where the daemon takes events, as `$ECCLUSTER_RUN` says.
pub fn default_socket() -> PathBuf {
    let dir = std::env::var_os("ECCLUSTER_RUN").filter(|dir| !dir.is_empty());
    dir.map_or_else(|| PathBuf::from("/run/eccluster"), PathBuf::from).join("cidr-events.sock")
}

/// What the daemon made of everything that was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// Events that were counted.
    pub counted: u64,
    /// Batches that were not.
    pub refused: u64,
    /// The daemon's own words.
    pub answer: String,
}

/// A connection to the daemon.
#[derive(Debug)]
pub struct Sender {
    stream: UnixStream,
    events: Events,
}

impl Sender {
    /// Connects to the usual socket.
    pub fn connect() -> io::Result<Self> {
        Self::connect_at(&default_socket())
    }

    /// Connects to a socket elsewhere.
    pub fn connect_at(path: &Path) -> io::Result<Self> {
        Ok(Self { stream: UnixStream::connect(path)?, events: Events::default() })
    }

    /// Counts an event. It is sent with others; see [`Sender::flush`].
    pub fn add(&mut self, series: &str, address: IpAddr, amount: i32) -> io::Result<()> {
        self.events.add(series, address, amount)?;
        if self.events.number >= BATCH_EVENTS { self.flush() } else { Ok(()) }
    }

    /// Sends what waits.
    pub fn flush(&mut self) -> io::Result<()> {
        match self.events.take() {
            Some(batch) => self.stream.write_all(&batch),
            None => Ok(()),
        }
    }

    /// Sends what waits, and asks what became of everything.
    pub fn finish(mut self) -> io::Result<Sent> {
        self.flush()?;
        self.stream.shutdown(std::net::Shutdown::Write)?;
        let mut answer = String::new();
        self.stream.read_to_string(&mut answer)?;
        let words: Vec<&str> = answer.split_whitespace().collect();
        let after = |word: &str| {
            let at = words.iter().position(|found| *found == word)?;
            words.get(at + 1)?.trim_end_matches(':').parse().ok()
        };
        let counted =
            after("counted").ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "the daemon is gone"))?;
        let refused = after("refused").unwrap_or_default();
        Ok(Sent { counted, refused, answer: answer.trim_end().to_owned() })
    }
}

/// Sends events over UDP: never waits, and never knows.
#[derive(Debug)]
pub struct Datagrams {
    socket: UdpSocket,
    events: Events,
}

impl Datagrams {
    /// Sends to this address, usually `127.0.0.1:9000`.
    pub fn to(address: SocketAddr) -> io::Result<Self> {
        let any: SocketAddr = if address.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0; 8], 0).into() };
        let socket = UdpSocket::bind(any)?;
        socket.connect(address)?;
        Ok(Self { socket, events: Events::default() })
    }

    /// Counts an event. It is sent when a datagram is full; see [`Datagrams::flush`].
    pub fn add(&mut self, series: &str, address: IpAddr, amount: i32) -> io::Result<()> {
        if self.events.bytes + series.len() + 40 > DATAGRAM_BYTES {
            self.flush()?;
        }
        self.events.add(series, address, amount)
    }

    /// Sends what waits.
    pub fn flush(&mut self) -> io::Result<()> {
        match self.events.take() {
            Some(batch) => self.socket.send(&batch).map(drop),
            None => Ok(()),
        }
    }
}

/// Events by series and family.
#[derive(Debug, Default)]
struct Events {
    sections: BTreeMap<(String, bool), (Vec<u8>, Vec<u8>)>,
    number: usize,
    bytes: usize,
}

impl Events {
    fn add(&mut self, series: &str, address: IpAddr, amount: i32) -> io::Result<()> {
        let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if !(1..=63).contains(&series.len()) || !series.bytes().all(good) || series.starts_with(['-', '.']) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{series:?} is no name of a series")));
        }
        let section = self.sections.entry((series.to_owned(), address.is_ipv6()));
        let (addresses, amounts) = section.or_insert_with(|| {
            self.bytes += 6 + series.len();
            Default::default()
        });
        let before = addresses.len();
        match address {
            IpAddr::V4(address) => addresses.extend(address.octets()),
            IpAddr::V6(address) => addresses.extend(address.octets()),
        }
        amounts.extend(amount.to_le_bytes());
        self.bytes += addresses.len() - before + 4;
        self.number += 1;
        Ok(())
    }

    /// The batch; none without events.
    fn take(&mut self) -> Option<Vec<u8>> {
        const IPV6: u8 = 1;
        const AMOUNTS: u8 = 2;
        let Self { sections, bytes, number } = std::mem::take(self);
        if number == 0 {
            return None;
        }
        let mut batch = b"ECB1".to_vec();
        batch.extend((bytes as u32).to_le_bytes());
        for ((series, is_v6), (addresses, amounts)) in sections {
            batch.push(AMOUNTS | if is_v6 { IPV6 } else { 0 });
            batch.push(series.len() as u8);
            batch.extend(series.as_bytes());
            batch.extend(((amounts.len() / 4) as u32).to_le_bytes());
            batch.extend(addresses);
            batch.extend(amounts);
        }
        Some(batch)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_batch_as_the_protocol_has_it() {
        let mut events = Events::default();
        events.add("spam", "10.0.0.1".parse().unwrap(), 3).unwrap();
        events.add("spam", "10.0.0.2".parse().unwrap(), -1).unwrap();
        assert!(events.add("no name", "10.0.0.2".parse().unwrap(), 1).is_err());
        let batch = events.take().unwrap();
        assert_eq!(batch, b"ECB1\x1a\0\0\0\x02\x04spam\x02\0\0\0\x0a\0\0\x01\x0a\0\0\x02\x03\0\0\0\xff\xff\xff\xff");
        assert_eq!(events.take(), None);
    }

    #[test]
    fn the_daemons_answer_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let daemon = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut got = Vec::new();
            stream.read_to_end(&mut got).unwrap();
            stream.write_all(b"counted 5000 refused 1: why\n").unwrap();
            got.len()
        });
        let mut sender = Sender::connect_at(&path).unwrap();
        for _ in 0..5_000 {
            sender.add("spam", "2001:db8::1".parse().unwrap(), 1).unwrap();
        }
        let sent = sender.finish().unwrap();
        assert_eq!((sent.counted, sent.refused), (5_000, 1));
        assert_eq!(daemon.join().unwrap(), 2 * (8 + 10) + 5_000 * 20);
    }

    #[test]
    fn datagrams_stay_small() {
        let daemon = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut sender = Datagrams::to(daemon.local_addr().unwrap()).unwrap();
        for number in 0..300_u32 {
            sender.add("spam", IpAddr::V4(number.into()), 1).unwrap();
        }
        sender.flush().unwrap();
        let (mut buffer, mut events) = ([0; 2_000], 0);
        while events < 300 {
            let bytes = daemon.recv(&mut buffer).unwrap();
            assert!(
                bytes <= DATAGRAM_BYTES && bytes == 8 + u32::from_le_bytes(buffer[4..8].try_into().unwrap()) as usize
            );
            events += (bytes - 18) / 8;
        }
    }
}
