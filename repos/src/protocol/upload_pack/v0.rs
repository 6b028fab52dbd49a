//! Protocol v0 and v1 over HTTP: the whole conversation so far in every request (gitprotocol-pack(5), "Packfile
//! Negotiation", with the stateless rules of gitprotocol-http(5)).

use super::super::negotiate::Common;
use super::super::packet::{Bands, Packet};
use super::super::shallow::{self, Deepen, Edges};
use super::super::{Error, Result, printable};
use super::session::{PackOptions, PackRequest, Session, parse_id, parse_number, push_limited};
use super::{Answer, Request, Served, ServedKind, v2};
use crate::Oid;

/// How detailed the client wants its offers acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum MultiAck {
    #[default]
    None,
    Plain,
    Detailed,
}

/// What the client needs: everything before the first flush.
#[derive(Default)]
struct Needs {
    wants: Vec<Oid>,
    shallow: Vec<Oid>,
    deepen: Deepen,
    options: PackOptions,
    multi_ack: MultiAck,
    no_done: bool,
    side_band: bool,
    side_band_64k: bool,
}

pub(super) fn serve(session: &Session<'_>, request: &mut Request<'_>, answer: &mut Answer<'_>) -> Result<Served> {
    let needs = read_needs(session, request)?;
    if needs.wants.is_empty() {
        return Ok(Served::default());
    }
    session.check_wants(&needs.wants)?;
    let edges = shallow::edges(&session.objects, &needs.wants, &needs.shallow, &needs.deepen, || session.tips())?;
    if needs.deepen.is_asked() {
        write_edges(&edges, answer)?;
    }
    let mut common = Common::new(&session.objects, &needs.wants);
    if !negotiate(session, &needs, request, &mut common, answer)? {
        return Ok(Served { kind: ServedKind::Negotiation, ..Served::default() });
    }
    let bands = match (needs.side_band_64k, needs.side_band) {
        (true, _) => Bands::Large,
        (false, true) => Bands::Small,
        (false, false) => Bands::None,
    };
    let request = PackRequest { wants: needs.wants, haves: common.ids, edges, options: needs.options };
    session.send_pack(request, answer, bands)
}

fn read_needs(session: &Session<'_>, request: &mut Request<'_>) -> Result<Needs> {
    let limits = session.limits;
    let mut needs = Needs::default();
    loop {
        let line = match request.next()? {
            Some(Packet::Line(line)) => line,
            Some(Packet::Flush) => break,
            Some(_) => return Err(Error::malformed("a packet of protocol v2 in a request of v0")),
            None if needs.wants.is_empty() => break,
            None => return Err(Error::malformed("it ends before the flush after its wants")),
        };
        let (key, value) = match line.iter().position(|byte| *byte == b' ') {
            Some(at) => (&line[..at], &line[at + 1..]),
            None => (line, &b""[..]),
        };
        match key {
            b"want" => {
                let (id, capabilities) = value.split_at(value.len().min(40));
                if needs.wants.is_empty() {
                    read_capabilities(capabilities, &mut needs)?;
                } else if !capabilities.is_empty() {
                    return Err(Error::malformed(format!("more than an id in “{}”", printable(line))));
                }
                push_limited(&mut needs.wants, parse_id(line, id)?, limits.max_wants, "too many wants")?;
            }
            b"shallow" => {
                push_limited(
                    &mut needs.shallow,
                    parse_id(line, value)?,
                    limits.max_shallow,
                    "too many shallow commits",
                )?;
            }
            b"deepen" => needs.deepen.depth = v2::parse_depth(line, value)?,
            b"deepen-since" => needs.deepen.since_s = Some(parse_number(line, value)?),
            b"deepen-not" => {
                let id = session.resolve(value)?;
                push_limited(&mut needs.deepen.not, id, limits.max_wants, "too many deepen-not")?;
            }
            _ => return Err(Error::malformed(format!("expected a want, got “{}”", printable(line)))),
        }
    }
    needs.deepen.check()?;
    Ok(needs)
}

fn read_capabilities(text: &[u8], needs: &mut Needs) -> Result<()> {
    for capability in text.split(|byte| *byte == b' ') {
        match capability {
            b"multi_ack_detailed" => needs.multi_ack = MultiAck::Detailed,
            b"multi_ack" if needs.multi_ack == MultiAck::None => needs.multi_ack = MultiAck::Plain,
            b"no-done" => needs.no_done = true,
            b"side-band" => needs.side_band = true,
            b"side-band-64k" => needs.side_band_64k = true,
            b"ofs-delta" => needs.options.ofs_delta = true,
            b"no-progress" => needs.options.no_progress = true,
            b"include-tag" => needs.options.include_tag = true,
            b"deepen-relative" => needs.deepen.relative = true,
            other => match other.strip_prefix(b"object-format=") {
                None | Some(b"sha1") => {}
                Some(format) => {
                    return Err(Error::malformed(format!(
                        "object format “{}”; this repository has sha1",
                        printable(format)
                    )));
                }
            },
        }
    }
    Ok(())
}

fn write_edges(edges: &Edges, answer: &mut Answer<'_>) -> Result<()> {
    for id in &edges.shallow {
        answer.out.text(format!("shallow {id}"))?;
    }
    for id in &edges.unshallow {
        answer.out.text(format!("unshallow {id}"))?;
    }
    answer.out.flush_packet()
}

/// One round of offers, and what came of it so far.
struct Round<'a, 'b> {
    needs: &'a Needs,
    common: &'a mut Common<'b>,
    last_common: Option<Oid>,
    got_other: bool,
    sent_ready: bool,
}

/// Acknowledges what the client offers; true if the pack follows, false if the client is to ask again.
fn negotiate(
    session: &Session<'_>,
    needs: &Needs,
    request: &mut Request<'_>,
    common: &mut Common<'_>,
    answer: &mut Answer<'_>,
) -> Result<bool> {
    let mut round = Round { needs, common, last_common: None, got_other: false, sent_ready: false };
    let mut lines = 0;
    loop {
        let line = match request.next()? {
            Some(Packet::Line(line)) => line,
            // The client only asked where its history is to end.
            None if lines == 0 => return Ok(false),
            None | Some(_) => return round.end(answer),
        };
        if line == b"done" {
            return round.done(answer);
        }
        let Some(id) = line.strip_prefix(b"have ") else {
            return Err(Error::malformed(format!("expected a have or done, got “{}”", printable(line))));
        };
        let id = parse_id(line, id)?;
        lines += 1;
        if lines > session.limits.max_haves {
            return Err(Error::TooLarge { what: "too many haves", limit: session.limits.max_haves as u64 });
        }
        round.offer(id, answer)?;
    }
}

impl Round<'_, '_> {
    fn offer(&mut self, id: Oid, answer: &mut Answer<'_>) -> Result<()> {
        let is_first = self.common.ids.is_empty();
        if self.common.offer(id)? {
            self.last_common = Some(id);
            return match self.needs.multi_ack {
                MultiAck::Detailed => answer.out.text(format!("ACK {id} common")),
                MultiAck::Plain => answer.out.text(format!("ACK {id} continue")),
                MultiAck::None if is_first => answer.out.text(format!("ACK {id}")),
                MultiAck::None => Ok(()),
            };
        }
        self.got_other = true;
        // An id that we do not know is acknowledged only to make the client stop offering.
        match self.needs.multi_ack {
            MultiAck::Detailed if self.common.is_enough()? => {
                self.sent_ready = true;
                answer.out.text(format!("ACK {id} ready"))
            }
            MultiAck::Plain if self.common.is_enough()? => answer.out.text(format!("ACK {id} continue")),
            _ => Ok(()),
        }
    }

    /// The offers end, and the client waits.
    fn end(mut self, answer: &mut Answer<'_>) -> Result<bool> {
        let is_detailed = self.needs.multi_ack == MultiAck::Detailed;
        if let Some(last) = self.last_common
            && is_detailed
            && !self.got_other
            && self.common.is_enough()?
        {
            self.sent_ready = true;
            answer.out.text(format!("ACK {last} ready"))?;
        }
        if self.common.ids.is_empty() || self.needs.multi_ack != MultiAck::None {
            answer.out.text("NAK")?;
        }
        match self.last_common {
            Some(last) if self.needs.no_done && self.sent_ready => {
                answer.out.text(format!("ACK {last}"))?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// The client has heard enough.
    fn done(self, answer: &mut Answer<'_>) -> Result<bool> {
        match self.last_common {
            Some(last) if self.needs.multi_ack != MultiAck::None => answer.out.text(format!("ACK {last}"))?,
            Some(_) => {}
            None => answer.out.text("NAK")?,
        }
        Ok(true)
    }
}
