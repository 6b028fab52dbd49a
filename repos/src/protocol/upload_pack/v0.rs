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

/// Acknowledges what the client offers; true if the pack follows, false if the client is to ask again.
fn negotiate(
    session: &Session<'_>,
    needs: &Needs,
    request: &mut Request<'_>,
    common: &mut Common<'_>,
    answer: &mut Answer<'_>,
) -> Result<bool> {
    let out = &mut answer.out;
    let (mut last_common, mut got_common, mut got_other, mut sent_ready) = (None, false, false, false);
    let mut offers = 0;
    let mut first = true;
    loop {
        let line = match request.next()? {
            Some(Packet::Line(line)) => line,
            // The client only asked how its history is to end.
            None if first => return Ok(false),
            None | Some(_) => {
                if needs.multi_ack == MultiAck::Detailed && got_common && !got_other && common.is_enough()? {
                    sent_ready = true;
                    out.text(format!("ACK {} ready", last_common.unwrap_or(Oid::NULL)))?;
                }
                if common.ids.is_empty() || needs.multi_ack != MultiAck::None {
                    out.text("NAK")?;
                }
                if needs.no_done && sent_ready {
                    out.text(format!("ACK {}", last_common.unwrap_or(Oid::NULL)))?;
                    return Ok(true);
                }
                return Ok(false);
            }
        };
        first = false;
        if line == b"done" {
            match last_common {
                Some(id) if needs.multi_ack != MultiAck::None => out.text(format!("ACK {id}"))?,
                Some(_) => {}
                None => out.text("NAK")?,
            }
            return Ok(true);
        }
        let Some(id) = line.strip_prefix(b"have ") else {
            return Err(Error::malformed(format!("expected a have or done, got “{}”", printable(line))));
        };
        let id = parse_id(line, id)?;
        offers += 1;
        if offers > session.limits.max_haves {
            return Err(Error::TooLarge { what: "too many haves", limit: session.limits.max_haves as u64 });
        }
        let is_first_common = common.ids.is_empty();
        if common.offer(id)? {
            got_common = true;
            last_common = Some(id);
            match needs.multi_ack {
                MultiAck::Detailed => out.text(format!("ACK {id} common"))?,
                MultiAck::Plain => out.text(format!("ACK {id} continue"))?,
                MultiAck::None if is_first_common => out.text(format!("ACK {id}"))?,
                MultiAck::None => {}
            }
        } else {
            got_other = true;
            if needs.multi_ack != MultiAck::None && common.is_enough()? {
                let word = if needs.multi_ack == MultiAck::Detailed { "ready" } else { "continue" };
                sent_ready |= needs.multi_ack == MultiAck::Detailed;
                out.text(format!("ACK {id} {word}"))?;
            }
        }
    }
}
