//! The side of the server that pushes talk to (gitprotocol-pack(5), "Pushing Data To a Server").
//!
//! Three steps, because the decision lies in the middle and is not made here: [`read`] parses the request and streams
//! its pack into a quarantine, the caller decides about each reference (and about all of them, if the push is atomic),
//! [`report`] tells the client. Nothing becomes visible by what this module does.

use std::io::{Read, Write};

use super::{Advertised, Error, Version};
use crate::{Oid, PackLimits, Quarantine, Received, RefName, Store};

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
pub fn advertise(_version: Version, _shown: Advertised<'_>, _out: &mut dyn Write) -> Result<(), Error> {
    todo!()
}

/// Reads the body of `POST git-receive-pack`: the commands, then the pack, which is streamed into a quarantine of
/// `store` and checked there as far as a pack can be checked by itself.
///
/// Connectivity, the rules for trees and everything about the references is left to the caller: see
/// [`Quarantine::check_new`].
pub fn read(_store: &Store, _body: &mut dyn Read, _limits: &ReceiveLimits) -> Result<Push, ReadError> {
    todo!()
}

/// Writes the answer to a push: messages, and per reference what became of it, as far as the client wants to know.
/// For a request without commands the answer is empty.
pub fn report(_push: &Push, _outcome: &Outcome, _out: &mut dyn Write) -> Result<(), Error> {
    todo!()
}

/// Writes the answer to a request that could not be read.
pub fn refuse(_error: &ReadError, _out: &mut dyn Write) -> Result<(), Error> {
    todo!()
}
