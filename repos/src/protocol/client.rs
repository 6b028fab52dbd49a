//! A small client of protocol v2, for the node agent.
//!
//! An agent knows which commit it wants, because the watch told it, and which one it has. So it needs one request and no
//! advertisement: [`fetch_request`] makes the body of `POST git-upload-pack` (with the header `Git-Protocol: version=2`),
//! [`read_fetch_response`] takes the answer into a store. Where names must be resolved first, [`ls_refs_request`] and
//! [`read_ls_refs_response`] do it in one request more. Negotiation in several rounds is left out: what we have is
//! offered with `done`.

use std::io::Read;

use crate::{Oid, PackId, PackLimits, RefMap, Store};

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

/// The body of a request that lists references with one of these prefixes (all, without any).
pub fn ls_refs_request(_prefixes: &[&str]) -> Vec<u8> {
    todo!()
}

/// Reads the answer to [`ls_refs_request`].
pub fn read_ls_refs_response(_answer: &mut dyn Read) -> Result<RemoteRefs, ClientError> {
    todo!()
}

/// The body of a request for a pack.
pub fn fetch_request(_request: &FetchRequest<'_>) -> Vec<u8> {
    todo!()
}

/// Reads the answer to [`fetch_request`] and installs its pack into `store`. `progress` is given what the server has to
/// say, in pieces of lines.
pub fn read_fetch_response(
    _answer: &mut dyn Read,
    _store: &Store,
    _limits: &PackLimits,
    _progress: &mut dyn FnMut(&str),
) -> Result<Fetched, ClientError> {
    todo!()
}
