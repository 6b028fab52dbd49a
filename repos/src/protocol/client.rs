//! A small client of protocol v2, for the node agent.
//!
//! An agent knows which commit it wants, because the watch told it, and which one it has. So it needs one request and no
//! advertisement: [`fetch_request`] makes the body of `POST git-upload-pack` (with the header `Git-Protocol: version=2`),
//! [`read_fetch_response`] takes the answer into a store. Where names must be resolved first, [`ls_refs_request`] and
//! [`read_ls_refs_response`] do it in one request more. Negotiation in several rounds is left out: what we have is
//! offered with `done`.

use std::io::{self, Read};

use gix_packetline::Channel;

use super::packet::{Packet, PacketReader, PacketWriter, clip};
use super::{AGENT, Error, printable};
use crate::{Oid, PackId, PackLimits, RefMap, RefName, Store};

/// Everything but the pack: a hundred thousand references.
const MAX_ANSWER_BYTES: u64 = 32 << 20;

/// What to fetch.
#[derive(Debug, Clone, Default)]
pub struct FetchRequest<'a> {
    /// The commits that are wanted.
    pub wants: &'a [Oid],
    /// Commits that are here with all that they reach (down to `shallow`). What the server does not know it ignores.
    pub haves: &'a [Oid],
    /// Commits whose parents are not here.
    pub shallow: &'a [Oid],
    /// Fetch only so many commits of history; none, or 0, for all of it.
    pub depth: Option<u32>,
    /// Ask for annotated tags that point at what is fetched.
    pub include_tag: bool,
}

/// What a fetch brought.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fetched {
    /// The installed pack; `None` if nothing was missing.
    pub pack: Option<PackId>,
    /// Objects received.
    pub objects: u32,
    /// Commits whose parents the server held back: to be remembered and sent as `shallow` the next time.
    pub shallow: Vec<Oid>,
    /// Commits that are no longer shallow.
    pub unshallow: Vec<Oid>,
}

/// The answer to `ls-refs`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RemoteRefs {
    /// The references.
    pub refs: RefMap,
    /// What annotated tags come to, by the reference's name.
    pub peeled: RefMap,
    /// What `HEAD` is a symbolic reference to, born or not.
    pub head: Option<String>,
}

/// Why a fetch failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The server refused, in these words.
    #[error("the server refused: {0}")]
    Refused(String),
    /// The server broke the protocol, or something in between broke the answer.
    #[error("the server's answer is not understood: {0}")]
    Malformed(String),
    /// The answer could not be read to its end.
    #[error("reading the server's answer failed")]
    Io(#[source] std::io::Error),
    /// The pack could not be taken.
    #[error("the received pack could not be taken")]
    Store(#[source] crate::Error),
}

type Result<T, E = ClientError> = std::result::Result<T, E>;

impl From<Error> for ClientError {
    /// For errors in the framing of an answer.
    fn from(error: Error) -> Self {
        match error {
            Error::Io { source, .. } => ClientError::Io(source),
            Error::Malformed(what) => ClientError::Malformed(what),
            other => ClientError::Malformed(other.to_string()),
        }
    }
}

/// The body of a request that lists references with one of these prefixes (all, without any).
pub fn ls_refs_request(prefixes: &[&str]) -> Vec<u8> {
    let mut lines: Vec<String> = ["peel", "symrefs", "unborn"].map(String::from).into();
    // No reference is longer, and a shorter prefix only lists more.
    lines.extend(prefixes.iter().map(|prefix| format!("ref-prefix {}", clip(prefix, 1000))));
    command("ls-refs", &lines)
}

/// The body of a request for a pack.
pub fn fetch_request(request: &FetchRequest<'_>) -> Vec<u8> {
    let mut lines: Vec<String> = ["thin-pack", "no-progress", "ofs-delta"].map(String::from).into();
    if request.include_tag {
        lines.push("include-tag".into());
    }
    lines.extend(request.shallow.iter().map(|id| format!("shallow {id}")));
    if let Some(depth) = request.depth.filter(|depth| *depth > 0) {
        lines.push(format!("deepen {depth}"));
    }
    lines.extend(request.wants.iter().map(|id| format!("want {id}")));
    lines.extend(request.haves.iter().map(|id| format!("have {id}")));
    lines.push("done".into());
    command("fetch", &lines)
}

fn command(name: &str, lines: &[String]) -> Vec<u8> {
    let mut out = PacketWriter::new(Vec::new());
    let written = (|| {
        out.text(format!("command={name}"))?;
        out.text(format!("agent={AGENT}"))?;
        out.text("object-format=sha1")?;
        out.delim()?;
        for line in lines {
            out.text(line)?;
        }
        out.flush_packet()
    })();
    written.expect("memory takes everything, and no line is near the limit of a packet");
    std::mem::take(out.inner())
}

/// Reads the answer to [`ls_refs_request`].
pub fn read_ls_refs_response(answer: &mut dyn Read) -> Result<RemoteRefs> {
    let mut answer = PacketReader::new(answer, MAX_ANSWER_BYTES);
    let mut found = RemoteRefs::default();
    loop {
        match answer.next()? {
            Some(Packet::Line(line)) => {
                refuse_error(line)?;
                let text = std::str::from_utf8(line).map_err(|_| not_understood(line))?;
                read_ref(text, &mut found).ok_or_else(|| not_understood(line))?;
            }
            Some(Packet::Flush) => return Ok(found),
            Some(_) => return Err(ClientError::Malformed("a delimiter in the list of references".into())),
            None => return Err(ClientError::Malformed("it ends before its flush".into())),
        }
    }
}

/// `<id or unborn> <name>[ symref-target:<name>][ peeled:<id>]`
fn read_ref(line: &str, found: &mut RemoteRefs) -> Option<()> {
    let mut words = line.split(' ');
    let (id, name) = (words.next()?, words.next()?);
    if name == "HEAD" {
        found.head = words.find_map(|word| word.strip_prefix("symref-target:")).map(String::from);
        return Some(());
    }
    let name = RefName::try_from(name).ok()?;
    if let Some(peeled) = words.find_map(|word| word.strip_prefix("peeled:")) {
        found.peeled.insert(name.clone(), peeled.parse().ok()?);
    }
    found.refs.insert(name, id.parse().ok()?);
    Some(())
}

/// Reads the answer to [`fetch_request`] and installs its pack into `store`. `progress` is given what the server has to
/// say, in pieces of lines.
pub fn read_fetch_response(
    answer: &mut dyn Read,
    store: &Store,
    limits: &PackLimits,
    progress: &mut dyn FnMut(&str),
) -> Result<Fetched> {
    let mut answer = PacketReader::new(answer, limits.max_bytes.saturating_add(MAX_ANSWER_BYTES));
    let mut fetched = Fetched::default();
    while !read_section(&mut answer, &mut fetched)? {}

    let mut pack = PackStream { answer: &mut answer, progress, data: Vec::new(), at: 0, ended: false, failure: None };
    let mut quarantine = store.quarantine().map_err(ClientError::Store)?;
    let received = quarantine.receive(&mut pack, limits);
    if let Some(failure) = pack.failure.take() {
        return Err(failure);
    }
    let received = received.map_err(|error| ClientError::Store(error.into()))?;
    // What the server says after the pack may still be that it failed.
    if let Err(source) = io::copy(&mut pack, &mut io::sink()) {
        return Err(pack.failure.take().unwrap_or(ClientError::Io(source)));
    }
    fetched.objects = received.objects;
    if let Some(path) = &received.pack_path {
        fetched.pack = Some(store.install_pack_file(path).map_err(ClientError::Store)?);
    }
    Ok(fetched)
}

/// Reads one section before the pack; true when the pack follows.
fn read_section(answer: &mut PacketReader<&mut dyn Read>, fetched: &mut Fetched) -> Result<bool> {
    let is_shallow = match answer.next()? {
        Some(Packet::Line(b"packfile")) => return Ok(true),
        Some(Packet::Line(b"shallow-info")) => true,
        Some(Packet::Line(b"acknowledgments")) => false,
        Some(Packet::Line(line)) => {
            refuse_error(line)?;
            return Err(not_understood(line));
        }
        Some(_) => return Err(ClientError::Malformed("no pack in it".into())),
        None => return Err(ClientError::Malformed("it ends before the pack".into())),
    };
    loop {
        let line = match answer.next()? {
            Some(Packet::Line(line)) => line,
            Some(Packet::Delim) => return Ok(false),
            Some(_) | None => return Err(ClientError::Malformed("it ends before the pack".into())),
        };
        refuse_error(line)?;
        if is_shallow {
            read_edge(line, fetched).ok_or_else(|| not_understood(line))?;
        }
    }
}

fn read_edge(line: &[u8], fetched: &mut Fetched) -> Option<()> {
    let (word, id) = std::str::from_utf8(line).ok()?.split_once(' ')?;
    let list = match word {
        "shallow" => &mut fetched.shallow,
        "unshallow" => &mut fetched.unshallow,
        _ => return None,
    };
    list.push(id.parse().ok()?);
    Some(())
}

/// The server's `ERR <text>`, which may come instead of any line.
fn refuse_error(line: &[u8]) -> Result<()> {
    match line.strip_prefix(b"ERR ") {
        Some(text) => Err(ClientError::Refused(String::from_utf8_lossy(text).trim().into())),
        None => Ok(()),
    }
}

fn not_understood(line: &[u8]) -> ClientError {
    ClientError::Malformed(format!("“{}”", printable(line)))
}

/// The pack out of the side-band.
struct PackStream<'a, 'b> {
    answer: &'a mut PacketReader<&'b mut dyn Read>,
    progress: &'a mut dyn FnMut(&str),
    data: Vec<u8>,
    at: usize,
    ended: bool,
    /// Why reading failed, better than an I/O error can say it.
    failure: Option<ClientError>,
}

impl PackStream<'_, '_> {
    /// Reads packets until there is data or the end.
    fn fill(&mut self) -> Result<()> {
        const DATA: u8 = Channel::Data as u8;
        const PROGRESS: u8 = Channel::Progress as u8;
        const ERROR: u8 = Channel::Error as u8;
        while self.at == self.data.len() && !self.ended {
            match self.answer.next_raw()? {
                Some(Packet::Line([DATA, data @ ..])) => {
                    self.data.clear();
                    self.data.extend_from_slice(data);
                    self.at = 0;
                }
                Some(Packet::Line([PROGRESS, text @ ..])) => (self.progress)(&String::from_utf8_lossy(text)),
                Some(Packet::Line([ERROR, text @ ..])) => {
                    return Err(ClientError::Refused(String::from_utf8_lossy(text).trim().into()));
                }
                Some(Packet::Line(line)) => {
                    refuse_error(line)?;
                    return Err(not_understood(line));
                }
                Some(Packet::Flush) => self.ended = true,
                Some(_) => return Err(ClientError::Malformed("a delimiter in the pack".into())),
                None => return Err(ClientError::Malformed("it ends within the pack".into())),
            }
        }
        Ok(())
    }
}

impl Read for PackStream<'_, '_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if let Err(failure) = self.fill() {
            let text = failure.to_string();
            self.failure = Some(failure);
            return Err(io::Error::other(text));
        }
        let rest = &self.data[self.at..];
        let count = rest.len().min(buf.len());
        buf[..count].copy_from_slice(&rest[..count]);
        self.at += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn id(digit: &str) -> Oid {
        digit.repeat(40).parse().unwrap()
    }

    #[test]
    fn requests() {
        let request = FetchRequest {
            wants: &[id("1")],
            haves: &[id("2")],
            shallow: &[id("3")],
            depth: Some(1),
            include_tag: false,
        };
        let text = String::from_utf8(fetch_request(&request)).unwrap();
        let agent = format!("agent={AGENT}\n");
        let expected = format!(
            "0012command=fetch\n{:04x}{agent}0017object-format=sha1\n0001000ethin-pack\n0010no-progress\n000eofs-delta\n0035shallow {}\n000ddeepen 1\n0032want {}\n0032have {}\n0009done\n0000",
            agent.len() + 4,
            id("3"),
            id("1"),
            id("2"),
        );
        assert_eq!(text, expected);
        let text = String::from_utf8(ls_refs_request(&["refs/heads/"])).unwrap();
        assert!(text.ends_with("0009peel\n000csymrefs\n000bunborn\n001bref-prefix refs/heads/\n0000"), "{text}");
    }

    fn lines(lines: &[&str], end: &str) -> Vec<u8> {
        let mut out: Vec<u8> =
            lines.iter().flat_map(|line| format!("{:04x}{line}", line.len() + 4).into_bytes()).collect();
        out.extend_from_slice(end.as_bytes());
        out
    }

    #[test]
    fn lists_of_references() {
        let (a, b) = (id("1"), id("2"));
        let answer = lines(
            &[
                &format!("{a} HEAD symref-target:refs/heads/main\n"),
                &format!("{a} refs/heads/main\n"),
                &format!("{b} refs/tags/v1 peeled:{a}\n"),
            ],
            "0000",
        );
        let found = read_ls_refs_response(&mut &answer[..]).unwrap();
        assert_eq!(found.head.as_deref(), Some("refs/heads/main"));
        assert_eq!(found.refs.values().copied().collect::<Vec<_>>(), [a, b]);
        assert_eq!(found.peeled.values().copied().collect::<Vec<_>>(), [a]);

        let unborn = lines(&["unborn HEAD symref-target:refs/heads/main\n"], "0000");
        assert_eq!(read_ls_refs_response(&mut &unborn[..]).unwrap().head.as_deref(), Some("refs/heads/main"));
    }

    #[test]
    fn refusals_carry_the_servers_words() {
        let answer = lines(&["ERR upload-pack: not our ref x\n"], "");
        let error = read_ls_refs_response(&mut &answer[..]).unwrap_err();
        assert!(matches!(&error, ClientError::Refused(text) if text == "upload-pack: not our ref x"), "{error:?}");
        let mut body = &answer[..];
        let error = read_section(&mut PacketReader::new(&mut body as &mut dyn Read, 1000), &mut Fetched::default())
            .unwrap_err();
        assert!(matches!(error, ClientError::Refused(_)), "{error:?}");
    }

    #[test]
    fn the_side_band_is_taken_apart() {
        let answer = lines(&["\u{1}PA", "\u{2}half ", "\u{2}done\n", "\u{1}CK"], "0000");
        let mut body = &answer[..];
        let mut reader = PacketReader::new(&mut body as &mut dyn Read, 1000);
        let mut said = String::new();
        let mut progress = |text: &str| said.push_str(text);
        let mut stream = PackStream {
            answer: &mut reader,
            progress: &mut progress,
            data: Vec::new(),
            at: 0,
            ended: false,
            failure: None,
        };
        let mut data = String::new();
        stream.read_to_string(&mut data).unwrap();
        assert_eq!((data.as_str(), said.as_str()), ("PACK", "half done\n"));

        let answer = lines(&["\u{1}PA", "\u{3}out of order\n"], "0000");
        let mut body = &answer[..];
        let mut reader = PacketReader::new(&mut body as &mut dyn Read, 1000);
        let mut progress = |_: &str| {};
        let mut stream = PackStream {
            answer: &mut reader,
            progress: &mut progress,
            data: Vec::new(),
            at: 0,
            ended: false,
            failure: None,
        };
        assert!(stream.read_to_end(&mut Vec::new()).is_err());
        assert!(matches!(stream.failure, Some(ClientError::Refused(text)) if text == "out of order"));
    }
}
