//! The side of the server that pushes talk to (gitprotocol-pack(5), "Pushing Data To a Server").
//!
//! Three steps, because the decision lies in the middle and is not made here: [`read`] parses the request and streams
//! its pack into a quarantine, the caller decides about each reference (and about all of them, if the push is atomic),
//! [`report`] tells the client. Nothing becomes visible by what this module does.

use std::collections::HashSet;
use std::io::{self, BufWriter, Read, Write};

use super::packet::{BandWriter, Bands, Packet, PacketReader, PacketWriter};
use super::{AGENT, Advertised, Error, Result, Version, printable};
use crate::{Oid, PackError, PackLimits, Quarantine, Received, RefName, Store};

/// What one push may bring.
#[derive(Debug, Clone)]
pub struct ReceiveLimits {
    /// References changed by one push. All of them go into one entry of the log.
    pub max_commands: usize,
    /// The part of the request before the pack.
    pub max_command_bytes: u64,
    /// `shallow` lines of a push from a shallow clone.
    pub max_shallow: usize,
    /// The pack.
    pub pack: PackLimits,
}

impl Default for ReceiveLimits {
    fn default() -> Self {
        ReceiveLimits {
            max_commands: 10_000,
            max_command_bytes: 4 << 20,
            max_shallow: 10_000,
            pack: PackLimits::default(),
        }
    }
}

/// One reference that a push wants changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefCommand {
    /// The reference.
    pub name: RefName,
    /// What the client believes it points to; [`Oid::NULL`] if it is to be created.
    pub old: Oid,
    /// What it is to point to; [`Oid::NULL`] if it is to be deleted.
    pub new: Oid,
}

impl RefCommand {
    /// True if the reference is to be deleted.
    pub fn is_delete(&self) -> bool {
        self.new.is_null()
    }

    /// True if the reference is to be created.
    pub fn is_create(&self) -> bool {
        self.old.is_null()
    }
}

/// What a client can do and wants, as far as it matters for its push.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PushCapabilities {
    /// It wants to be told what happened.
    pub report_status: bool,
    /// All references change or none does.
    pub atomic: bool,
    /// It wants no progress.
    pub quiet: bool,
    /// It can show `remote:` lines.
    pub side_band: bool,
    /// What it calls itself, such as `git/2.47.3`.
    pub agent: Option<String>,
}

/// A push whose pack waits in a quarantine.
pub struct Push {
    /// What is to change, in the client's order; never two of the same name. Empty for a request that only tries
    /// the credentials.
    pub commands: Vec<RefCommand>,
    /// What the client can do.
    pub capabilities: PushCapabilities,
    /// The objects of the push. Absent if it only deletes.
    pub quarantine: Option<Quarantine>,
    /// What came into the quarantine, or why it could not be taken: then the push has failed, and
    /// [`Outcome::unpack_failed`] reports it.
    pub received: Result<Option<Received>, String>,
}

/// What became of one reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RefOutcome {
    /// It is changed.
    Done,
    /// It is not, for this reason: a few words, shown as `! [remote rejected] main -> main (REASON)`.
    Refused(String),
}

/// What became of a push.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outcome {
    /// Why the pack was not taken, if it was not.
    pub unpack_error: Option<String>,
    /// One for each command, in the same order.
    pub refs: Vec<RefOutcome>,
    /// What the person who pushed should read, shown as `remote: …`. May have several lines each.
    pub messages: Vec<String>,
}

impl Outcome {
    /// Every reference is changed.
    pub fn all_done(push: &Push) -> Self {
        Outcome { refs: vec![RefOutcome::Done; push.commands.len()], ..Outcome::default() }
    }

    /// No reference is changed, for one reason.
    pub fn all_refused(push: &Push, reason: impl Into<String>) -> Self {
        Outcome { refs: vec![RefOutcome::Refused(reason.into()); push.commands.len()], ..Outcome::default() }
    }

    /// The pack was not taken.
    pub fn unpack_failed(push: &Push, reason: impl Into<String>) -> Self {
        Outcome { unpack_error: Some(reason.into()), ..Outcome::all_refused(push, "unpacker error") }
    }

    /// What becomes of an atomic push: if one reference is refused, so are those that would have been changed. Other
    /// pushes stay as they are.
    pub fn made_atomic(mut self, push: &Push) -> Self {
        let failed = self.refs.iter().any(|outcome| *outcome != RefOutcome::Done);
        if push.capabilities.atomic && failed {
            for outcome in self.refs.iter_mut().filter(|outcome| **outcome == RefOutcome::Done) {
                *outcome = RefOutcome::Refused("atomic push failed".into());
            }
        }
        self
    }

    /// The same with one more message to show.
    pub fn with_message(mut self, message: impl Into<String>) -> Self {
        self.messages.push(message.into());
        self
    }
}

/// A request that could not be read. [`refuse`] tells the client.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct ReadError {
    /// What was wrong.
    pub error: Error,
    pub(crate) side_band: bool,
}

/// Answers `GET info/refs?service=git-receive-pack`. Pushes have no v2: a client that asks for it is given v0.
pub fn advertise(version: Version, shown: Advertised<'_>, out: &mut dyn Write) -> Result<(), Error> {
    let mut out = PacketWriter::new(BufWriter::new(out));
    out.text("# service=git-receive-pack")?;
    out.flush_packet()?;
    if version == Version::V1 {
        out.text("version 1")?;
    }
    let capabilities =
        format!("report-status delete-refs side-band-64k quiet atomic ofs-delta object-format=sha1 agent={AGENT}");
    let mut capabilities = Some(capabilities);
    for (name, id) in shown.refs {
        match capabilities.take() {
            Some(capabilities) => out.text(format!("{id} {name}\0{capabilities}"))?,
            None => out.text(format!("{id} {name}"))?,
        }
    }
    if let Some(capabilities) = capabilities {
        out.text(format!("{} capabilities^{{}}\0{capabilities}", Oid::NULL))?;
    }
    out.flush_packet()?;
    out.flush()
}

/// Reads the body of `POST git-receive-pack`: the commands, then the pack, which is streamed into a quarantine of
/// `store` and checked there as far as a pack can be checked by itself.
///
/// Connectivity, the rules for trees and everything about the references is left to the caller: see
/// [`Quarantine::check_new`].
pub fn read(store: &Store, body: &mut dyn Read, limits: &ReceiveLimits) -> Result<Push, ReadError> {
    let mut request = PacketReader::new(body, limits.max_command_bytes);
    let mut head = Head::default();
    if let Err(error) = head.read(&mut request, limits) {
        drain(request.into_inner());
        return Err(ReadError { error, side_band: head.capabilities.side_band });
    }
    let mut push =
        Push { commands: head.commands, capabilities: head.capabilities, quarantine: None, received: Ok(None) };
    if push.commands.iter().any(|command| !command.is_delete()) {
        receive(store, request.into_inner(), limits, &mut push)
            .map_err(|error| ReadError { error, side_band: push.capabilities.side_band })?;
    }
    Ok(push)
}

/// Writes the answer to a push: messages, and per reference what became of it, as far as the client wants to know.
/// For a request without commands the answer is empty.
pub fn report(push: &Push, outcome: &Outcome, out: &mut dyn Write) -> Result<(), Error> {
    if push.commands.is_empty() {
        return Ok(());
    }
    let status = if push.capabilities.report_status { status(push, outcome)? } else { Vec::new() };
    let mut out = BufWriter::new(out);
    let mut bands = BandWriter::new(&mut out, if push.capabilities.side_band { Bands::Large } else { Bands::None });
    let failed = outcome.refs.iter().any(|outcome| *outcome != RefOutcome::Done);
    if failed || !push.capabilities.quiet {
        for message in &outcome.messages {
            bands.progress(&as_lines(message))?;
        }
    }
    bands.write_all(&status).map_err(super::packet::writing)?;
    bands.finish()
}

/// Writes the answer to a request that could not be read.
pub fn refuse(error: &ReadError, out: &mut dyn Write) -> Result<(), Error> {
    let text = format!("receive-pack: {error}");
    if error.side_band {
        let mut bands = BandWriter::new(out, Bands::Large);
        bands.error(&format!("{text}\n"))?;
        return bands.finish();
    }
    let mut out = PacketWriter::new(out);
    out.error(&text)?;
    out.flush()
}

/// Everything before the pack.
#[derive(Default)]
struct Head {
    commands: Vec<RefCommand>,
    capabilities: PushCapabilities,
    names: HashSet<RefName>,
    shallow: usize,
}

impl Head {
    fn read(&mut self, request: &mut PacketReader<&mut dyn Read>, limits: &ReceiveLimits) -> Result<()> {
        loop {
            match request.next()? {
                Some(Packet::Line(line)) => self.line(line, limits)?,
                Some(Packet::Flush) => return Ok(()),
                Some(_) => return Err(Error::malformed("a packet of protocol v2 in a push")),
                None if self.commands.is_empty() && self.shallow == 0 => return Ok(()),
                None => return Err(Error::malformed("it ends before the flush after its commands")),
            }
        }
    }

    fn line(&mut self, line: &[u8], limits: &ReceiveLimits) -> Result<()> {
        let (command, capabilities) = match line.iter().position(|byte| *byte == 0) {
            Some(at) => (&line[..at], Some(&line[at + 1..])),
            None => (line, None),
        };
        // First, so that what is wrong with the rest can be told in the client's way.
        if let Some(capabilities) = capabilities.filter(|_| self.commands.is_empty()) {
            self.capabilities(capabilities)?;
        }
        if let Some(id) = command.strip_prefix(b"shallow ") {
            return self.shallow(command, id, limits);
        }
        if command.starts_with(b"push-cert") {
            return Err(Error::Refused("push certificates are not supported".into()));
        }
        if self.commands.len() >= limits.max_commands {
            return Err(Error::TooLarge { what: "too many references in one push", limit: limits.max_commands as u64 });
        }
        let command = parse_command(command)?;
        if !self.names.insert(command.name.clone()) {
            return Err(Error::malformed(format!("more than one command for {}", command.name)));
        }
        self.commands.push(command);
        Ok(())
    }

    /// Where a shallow clone's history ends does not matter to us: the objects must connect without it, and if they do
    /// not, the check for connectivity names what is missing.
    fn shallow(&mut self, line: &[u8], id: &[u8], limits: &ReceiveLimits) -> Result<()> {
        parse_id(line, id)?;
        self.shallow += 1;
        if self.shallow > limits.max_shallow {
            return Err(Error::TooLarge { what: "too many shallow commits", limit: limits.max_shallow as u64 });
        }
        Ok(())
    }

    fn capabilities(&mut self, text: &[u8]) -> Result<()> {
        let found = &mut self.capabilities;
        for capability in text.split(|byte| *byte == b' ') {
            match capability {
                b"report-status" => found.report_status = true,
                b"side-band-64k" => found.side_band = true,
                b"atomic" => found.atomic = true,
                b"quiet" => found.quiet = true,
                b"push-options" => return Err(Error::malformed("push options, which were not offered")),
                other => {
                    if let Some(agent) = other.strip_prefix(b"agent=") {
                        found.agent = Some(printable(agent));
                    }
                    if let Some(format) = other.strip_prefix(b"object-format=").filter(|format| *format != b"sha1") {
                        let format = printable(format);
                        return Err(Error::malformed(format!("object format “{format}”; this repository has sha1")));
                    }
                }
            }
        }
        Ok(())
    }
}

/// `<old> <new> <name>`.
fn parse_command(line: &[u8]) -> Result<RefCommand> {
    let parts: Vec<&[u8]> = line.splitn(3, |byte| *byte == b' ').collect();
    let [old, new, name] = parts[..] else {
        return Err(Error::malformed(format!("expected “old new name”, got “{}”", printable(line))));
    };
    let name = RefName::try_from(name).map_err(|err| Error::Refused(err.to_string()))?;
    let command = RefCommand { name, old: parse_id(line, old)?, new: parse_id(line, new)? };
    if command.is_create() && command.is_delete() {
        return Err(Error::malformed(format!("{} is to be created and deleted at once", command.name)));
    }
    Ok(command)
}

fn parse_id(line: &[u8], id: &[u8]) -> Result<Oid> {
    let text = std::str::from_utf8(id).ok();
    text.and_then(|text| text.parse().ok())
        .ok_or_else(|| Error::malformed(format!("no object id in “{}”", printable(line))))
}

/// Streams the pack into a quarantine. A pack that is not taken is the push's failure, not the request's.
fn receive(store: &Store, body: &mut dyn Read, limits: &ReceiveLimits, push: &mut Push) -> Result<()> {
    let mut quarantine = store.quarantine().map_err(Error::store)?;
    match quarantine.receive(body, &limits.pack) {
        Ok(received) => {
            push.quarantine = Some(quarantine);
            push.received = Ok(Some(received));
        }
        Err(error) => {
            if let PackError::Io { source, .. } = &error {
                tracing::warn!(error = %error, source = %source, "a pushed pack could not be received");
            }
            push.received = Err(error.to_string());
            drain(body);
        }
    }
    Ok(())
}

/// Reads on for a while: a client that is still sending does not look at the answer, and shows a broken
/// connection instead of it.
fn drain(body: &mut dyn Read) {
    /// More is not worth the words.
    const MAX_DRAINED_BYTES: u64 = 64 << 20;
    let drained = io::copy(&mut body.take(MAX_DRAINED_BYTES), &mut io::sink());
    tracing::trace!(?drained, "read the rest of a refused push");
}

/// The report as gitprotocol-pack(5), "Report Status", has it.
fn status(push: &Push, outcome: &Outcome) -> Result<Vec<u8>> {
    let mut out = PacketWriter::new(Vec::new());
    match &outcome.unpack_error {
        None => out.text("unpack ok")?,
        Some(reason) => out.text(format!("unpack {}", as_words(reason)))?,
    }
    let undecided = RefOutcome::Refused("no decision was made".into());
    for (at, command) in push.commands.iter().enumerate() {
        match outcome.refs.get(at).unwrap_or(&undecided) {
            RefOutcome::Done => out.text(format!("ok {}", command.name))?,
            RefOutcome::Refused(reason) => out.text(format!("ng {} {}", command.name, as_words(reason)))?,
        }
    }
    out.flush_packet()?;
    Ok(std::mem::take(out.inner()))
}

/// A reason on one line, not too long for a packet.
fn as_words(text: &str) -> String {
    let words = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ");
    let words: String = words.chars().map(|c| if c.is_control() { ' ' } else { c }).take(1000).collect();
    if words.is_empty() { "failed".into() } else { words }
}

/// A message whose lines all end, without what could move a terminal's cursor.
fn as_lines(text: &str) -> String {
    let mut lines: String = text.chars().filter(|c| !c.is_control() || ['\n', '\t'].contains(c)).collect();
    if !lines.ends_with('\n') {
        lines.push('\n');
    }
    lines
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn line(text: &str) -> Vec<u8> {
        format!("{:04x}{text}", text.len() + 4).into_bytes()
    }

    fn head(lines: &[&str], end: &[u8]) -> (Head, Result<()>) {
        let mut body: Vec<u8> = lines.iter().flat_map(|text| line(text)).collect();
        body.extend_from_slice(end);
        let mut head = Head::default();
        let limits = ReceiveLimits { max_commands: 2, max_shallow: 1, ..ReceiveLimits::default() };
        let mut body = &body[..];
        let result = head.read(&mut PacketReader::new(&mut body as &mut dyn Read, limits.max_command_bytes), &limits);
        (head, result)
    }

    const A: &str = "1111111111111111111111111111111111111111";
    const B: &str = "2222222222222222222222222222222222222222";
    const NULL: &str = "0000000000000000000000000000000000000000";

    #[test]
    fn reads_commands_and_capabilities() {
        let first = format!(
            "{A} {B} refs/heads/main\0 report-status side-band-64k atomic quiet agent=git/2.47 object-format=sha1\n"
        );
        let second = format!("{A} {NULL} refs/tags/v1\n");
        let (head, result) = head(&[&format!("shallow {A}\n"), &first, &second], b"0000");
        result.unwrap();
        assert_eq!(head.commands.len(), 2);
        assert_eq!(head.commands[0].name, RefName::main());
        assert!(head.commands[1].is_delete() && !head.commands[1].is_create());
        let agent = Some("git/2.47".into());
        assert_eq!(
            head.capabilities,
            PushCapabilities { report_status: true, atomic: true, quiet: true, side_band: true, agent }
        );
    }

    #[test]
    fn names_what_is_wrong() {
        let good = |name: &str| format!("{A} {B} {name}");
        for (lines, end, words) in [
            (vec![good("refs/heads/main")], &b""[..], "before the flush"),
            (vec![good("refs/heads/main")], b"0001", "protocol v2"),
            (vec![good("refs/heads/../x")], b"0000", "not a reference name"),
            (vec![good("HEAD")], b"0000", "not a reference name"),
            (vec![good("refs/heads/a"), good("refs/heads/a")], b"0000", "more than one command for refs/heads/a"),
            (vec![good("refs/heads/a"), good("refs/heads/b"), good("refs/heads/c")], b"0000", "limit 2"),
            (vec![format!("{A} refs/heads/a")], b"0000", "old new name"),
            (vec![format!("{A} zz refs/heads/a")], b"0000", "no object id"),
            (vec![format!("{NULL} {NULL} refs/heads/a")], b"0000", "created and deleted"),
            (vec![format!("shallow {A}"), format!("shallow {B}")], b"0000", "too many shallow"),
            (vec!["push-cert\0x".into()], b"0000", "push certificates"),
            (vec![good("refs/heads/a\0 object-format=sha256")], b"0000", "sha256"),
            (vec![good("refs/heads/a\0 push-options")], b"0000", "push options"),
        ] {
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            let text = head(&lines, end).1.unwrap_err().to_string();
            assert!(text.contains(words), "{text} lacks {words}");
        }
    }

    #[test]
    fn a_probe_has_no_commands() {
        assert!(head(&[], b"0000").1.is_ok());
        assert!(head(&[], b"").1.is_ok());
    }

    fn push(side_band: bool) -> Push {
        let command =
            |name: &str| RefCommand { name: name.try_into().unwrap(), old: Oid::NULL, new: A.parse().unwrap() };
        Push {
            commands: vec![command("refs/heads/a"), command("refs/heads/b")],
            capabilities: PushCapabilities {
                report_status: true,
                atomic: true,
                side_band,
                ..PushCapabilities::default()
            },
            quarantine: None,
            received: Ok(None),
        }
    }

    fn reported(push: &Push, outcome: &Outcome) -> String {
        let mut out = Vec::new();
        report(push, outcome, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn reports() {
        let push = push(false);
        let mut outcome = Outcome::all_done(&push);
        assert_eq!(reported(&push, &outcome), "000eunpack ok\n0014ok refs/heads/a\n0014ok refs/heads/b\n0000");
        outcome.refs[1] = RefOutcome::Refused("two\nlines\x1b[1m".into());
        let outcome = outcome.made_atomic(&push);
        let expected =
            "000eunpack ok\n0027ng refs/heads/a atomic push failed\n0023ng refs/heads/b two; lines [1m\n0000";
        assert_eq!(reported(&push, &outcome), expected);
    }

    #[test]
    fn reports_in_bands() {
        let mut push = push(true);
        push.commands.truncate(1);
        let outcome = Outcome::unpack_failed(&push, "broken").with_message("one\ntwo");
        let text = reported(&push, &outcome);
        assert!(text.starts_with("000d\u{2}one\ntwo\n"), "{text:?}");
        assert!(text.ends_with("0012unpack broken\n0023ng refs/heads/a unpacker error\n00000000"), "{text:?}");
        push.capabilities.quiet = true;
        let silent = reported(&push, &Outcome::all_done(&push).with_message("hello"));
        assert!(!silent.contains("hello"));
    }

    #[test]
    fn refusals_use_the_clients_way() {
        let mut out = Vec::new();
        let error = ReadError { error: Error::malformed("x"), side_band: false };
        refuse(&error, &mut out).unwrap();
        assert_eq!(out, b"002aERR receive-pack: malformed request: x");
        out.clear();
        refuse(&ReadError { side_band: true, ..error }, &mut out).unwrap();
        assert_eq!(out, b"0028\x03receive-pack: malformed request: x\n0000");
    }
}
