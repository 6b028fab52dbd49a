//! Protocol v2: one command per request (gitprotocol-v2(5)).

use super::super::negotiate::Common;
use super::super::packet::{Bands, Packet};
use super::super::shallow::{self, Deepen};
use super::super::{Error, Result, printable};
use super::session::{PackOptions, PackRequest, Session, parse_id, parse_number, push_limited};
use super::{Answer, Request, Served, ServedKind, advertisement};
use crate::Oid;

#[derive(Clone, Copy)]
enum Command {
    LsRefs,
    Fetch,
}

pub(super) fn serve(session: &Session<'_>, request: &mut Request<'_>, answer: &mut Answer<'_>) -> Result<Served> {
    match read_command(request)? {
        None => Ok(Served::default()),
        Some((Command::LsRefs, has_arguments)) => {
            let arguments = read_ls_refs(session, request, has_arguments)?;
            ls_refs(session, &arguments, answer)?;
            Ok(Served { kind: ServedKind::Refs, ..Served::default() })
        }
        Some((Command::Fetch, has_arguments)) => {
            let arguments = read_fetch(session, request, has_arguments)?;
            fetch(session, arguments, answer)
        }
    }
}

/// The command and the capabilities that come with it; whether arguments follow. `None` for a lone flush.
fn read_command(request: &mut Request<'_>) -> Result<Option<(Command, bool)>> {
    let mut command = None;
    let mut first = true;
    loop {
        let has_arguments = match request.next()? {
            None if first => return Ok(None),
            None => return Err(Error::malformed("it ends before its flush")),
            Some(Packet::Flush) if first => return Ok(None),
            Some(Packet::Flush) => false,
            Some(Packet::Delim) => true,
            Some(Packet::ResponseEnd) => return Err(Error::malformed("a response end in a request")),
            Some(Packet::Line(line)) => {
                read_capability(line, &mut command)?;
                first = false;
                continue;
            }
        };
        let command = command.ok_or_else(|| Error::malformed("no command requested"))?;
        return Ok(Some((command, has_arguments)));
    }
}

fn read_capability(line: &[u8], command: &mut Option<Command>) -> Result<()> {
    let (key, value) = match line.iter().position(|byte| *byte == b'=') {
        Some(at) => (&line[..at], &line[at + 1..]),
        None => (line, &b""[..]),
    };
    match key {
        b"command" if command.is_some() => Err(Error::malformed("more than one command")),
        b"command" => {
            *command = Some(match value {
                b"ls-refs" => Command::LsRefs,
                b"fetch" => Command::Fetch,
                other => return Err(Error::malformed(format!("invalid command “{}”", printable(other)))),
            });
            Ok(())
        }
        b"object-format" if value != b"sha1" => {
            Err(Error::malformed(format!("object format “{}”; this repository has sha1", printable(value))))
        }
        b"agent" | b"object-format" | b"server-option" | b"session-id" => Ok(()),
        _ => Err(Error::malformed(format!("unknown capability “{}”", printable(line)))),
    }
}

/// Calls `each` for every argument.
fn arguments(request: &mut Request<'_>, has_arguments: bool, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    if !has_arguments {
        return Ok(());
    }
    loop {
        match request.next()? {
            Some(Packet::Line(line)) => each(line)?,
            Some(Packet::Flush) => return Ok(()),
            Some(_) => return Err(Error::malformed("expected a flush after the arguments")),
            None => return Err(Error::malformed("it ends before its flush")),
        }
    }
}

#[derive(Default)]
struct LsRefs {
    peel: bool,
    symrefs: bool,
    unborn: bool,
    /// Empty: everything.
    prefixes: Vec<Vec<u8>>,
}

fn read_ls_refs(session: &Session<'_>, request: &mut Request<'_>, has_arguments: bool) -> Result<LsRefs> {
    let mut found = LsRefs::default();
    let mut all = false;
    arguments(request, has_arguments, |line| {
        match line {
            b"peel" => found.peel = true,
            b"symrefs" => found.symrefs = true,
            b"unborn" => found.unborn = true,
            _ => match line.strip_prefix(b"ref-prefix ") {
                // With very many prefixes everything is listed: the client must cope, and we need not keep them.
                Some(_) if found.prefixes.len() >= session.limits.max_ref_prefixes => all = true,
                Some(prefix) => found.prefixes.push(prefix.to_vec()),
                None => return Err(Error::malformed(format!("unexpected line in ls-refs: “{}”", printable(line)))),
            },
        }
        Ok(())
    })?;
    if all {
        found.prefixes.clear();
    }
    Ok(found)
}

fn ls_refs(session: &Session<'_>, wanted: &LsRefs, answer: &mut Answer<'_>) -> Result<()> {
    let matches = |name: &str| {
        wanted.prefixes.is_empty() || wanted.prefixes.iter().any(|prefix| name.as_bytes().starts_with(prefix))
    };
    let shown = session.shown;
    let out = &mut answer.out;
    if matches("HEAD") {
        let target = if wanted.symrefs { format!(" symref-target:{}", shown.head) } else { String::new() };
        match shown.refs.get(shown.head) {
            Some(id) => out.text(format!("{id} HEAD{target}"))?,
            None if wanted.unborn && wanted.symrefs => out.text(format!("unborn HEAD{target}"))?,
            None => {}
        }
    }
    for (name, id) in shown.refs.iter().filter(|(name, _)| matches(name.as_str())) {
        let peeled = if wanted.peel { advertisement::peeled(&session.objects, name, *id)? } else { None };
        match peeled {
            Some(peeled) => out.text(format!("{id} {name} peeled:{peeled}"))?,
            None => out.text(format!("{id} {name}"))?,
        }
    }
    out.flush_packet()
}

#[derive(Default)]
struct Fetch {
    wants: Vec<Oid>,
    haves: Vec<Oid>,
    shallow: Vec<Oid>,
    deepen: Deepen,
    done: bool,
    wait_for_done: bool,
    options: PackOptions,
}

fn read_fetch(session: &Session<'_>, request: &mut Request<'_>, has_arguments: bool) -> Result<Fetch> {
    let limits = session.limits;
    let mut found = Fetch::default();
    arguments(request, has_arguments, |line| {
        let (key, value) = match line.iter().position(|byte| *byte == b' ') {
            Some(at) => (&line[..at], Some(&line[at + 1..])),
            None => (line, None),
        };
        match (key, value) {
            (b"want", Some(id)) => {
                push_limited(&mut found.wants, parse_id(line, id)?, limits.max_wants, "too many wants")?
            }
            (b"have", Some(id)) => {
                push_limited(&mut found.haves, parse_id(line, id)?, limits.max_haves, "too many haves")?
            }
            (b"shallow", Some(id)) => {
                push_limited(&mut found.shallow, parse_id(line, id)?, limits.max_shallow, "too many shallow commits")?;
            }
            (b"deepen", Some(depth)) => found.deepen.depth = parse_depth(line, depth)?,
            (b"deepen-since", Some(time_s)) => found.deepen.since_s = Some(parse_number(line, time_s)?),
            (b"deepen-not", Some(name)) => {
                let id = session.resolve(name)?;
                push_limited(&mut found.deepen.not, id, limits.max_wants, "too many deepen-not")?;
            }
            (b"deepen-relative", None) => found.deepen.relative = true,
            (b"done", None) => found.done = true,
            (b"wait-for-done", None) => found.wait_for_done = true,
            // Thin packs are allowed to us, not demanded.
            (b"thin-pack", None) => {}
            (b"no-progress", None) => found.options.no_progress = true,
            (b"include-tag", None) => found.options.include_tag = true,
            (b"ofs-delta", None) => found.options.ofs_delta = true,
            _ => return Err(Error::malformed(format!("unexpected line in fetch: “{}”", printable(line)))),
        }
        Ok(())
    })?;
    found.deepen.check()?;
    Ok(found)
}

pub(super) fn parse_depth(line: &[u8], depth: &[u8]) -> Result<u32> {
    match parse_number::<u32>(line, depth)? {
        0 => Err(Error::malformed(format!("invalid depth in “{}”", printable(line)))),
        depth => Ok(depth.min(shallow::INFINITE_DEPTH)),
    }
}

fn fetch(session: &Session<'_>, request: Fetch, answer: &mut Answer<'_>) -> Result<Served> {
    let negotiated = Ok(Served { kind: ServedKind::Negotiation, ..Served::default() });
    if request.wants.is_empty() && !request.wait_for_done {
        return negotiated;
    }
    session.check_wants(&request.wants)?;
    let mut common = Common::new(&session.objects, &request.wants);
    for id in &request.haves {
        common.offer(*id)?;
    }
    if !request.haves.is_empty() && !request.done && !acknowledge(&mut common, request.wait_for_done, answer)? {
        return negotiated;
    }
    if request.wants.is_empty() {
        answer.out.flush_packet()?;
        return negotiated;
    }
    let edges = shallow::edges(&session.objects, &request.wants, &request.shallow, &request.deepen, || session.tips())?;
    if request.deepen.is_asked() || !request.shallow.is_empty() {
        answer.out.text("shallow-info")?;
        for id in &edges.shallow {
            answer.out.text(format!("shallow {id}"))?;
        }
        for id in &edges.unshallow {
            answer.out.text(format!("unshallow {id}"))?;
        }
        answer.out.delim()?;
    }
    answer.out.text("packfile")?;
    let request = PackRequest { wants: request.wants, haves: common.ids, edges, options: request.options };
    session.send_pack(request, answer, Bands::Large)
}

/// The section `acknowledgments`; true if the pack follows.
fn acknowledge(common: &mut Common<'_>, wait_for_done: bool, answer: &mut Answer<'_>) -> Result<bool> {
    let out = &mut answer.out;
    out.text("acknowledgments")?;
    if common.ids.is_empty() {
        out.text("NAK")?;
    }
    for id in &common.ids {
        out.text(format!("ACK {id}"))?;
    }
    let ready = !wait_for_done && common.is_enough()?;
    if ready {
        out.text("ready")?;
        out.delim()?;
    } else {
        out.flush_packet()?;
    }
    Ok(ready)
}
