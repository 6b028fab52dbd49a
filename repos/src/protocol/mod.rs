//! The server's side of git's wire protocol, and a small client for it.
//!
//! `gix` speaks the protocol as a client only, so what answers `git clone`, `git fetch` and `git push` is ours,
//! written against gitprotocol-pack(5), gitprotocol-v2(5), gitprotocol-http(5), gitprotocol-common(5) and
//! gitprotocol-capabilities(5):
//!
//! * [`upload_pack`]: advertisement, `ls-refs` and `fetch` for protocol v2, and the stateless-rpc negotiation of
//!   v0 and v1,
//! * [`receive_pack`]: advertisement, the request of a push with its pack, and the report,
//! * [`client`]: one-request fetches of a known commit over v2, for the node agent.
//!
//! What always holds:
//! * Nothing here knows a transport. Requests are a [`std::io::Read`], answers a [`std::io::Write`]; the HTTP layer
//!   supplies both, and may use [`decode_body`] for compressed requests and [`Service`] for the content types.
//! * References come from the caller's [`RefMap`], never from the disk: what a client sees is the replicated state.
//! * Who may push what is the caller's decision: [`receive_pack::read`] yields a [`receive_pack::Push`], the caller
//!   makes an [`receive_pack::Outcome`] of it, and [`receive_pack::report`] puts it into the client's words.
//! * Input is never trusted: lines, their number, the pack and the work done for a request have limits, and a
//!   malformed request ends in an error that names what was wrong with it, told to the client too.
//! * Packs are streamed in both directions; a whole pack is never in memory.
//!
//! Left out on purpose: filters (partial clone), bundle URIs, packfile URIs, push options, push certificates and
//! `dumb` HTTP. Filters belong into [`mod@upload_pack`]'s enumeration (`enumerate.rs`, where trees are walked), caches of
//! whole packs between enumeration and `pack.rs`, which takes a list of objects and nothing else; a capability is
//! one line in the advertisement and one argument in the parser.

mod body;
pub mod client;
mod enumerate;
mod graph;
mod negotiate;
mod objects;
mod packet;
mod packwriter;
pub mod receive_pack;
mod shallow;
pub mod upload_pack;

use std::io;

pub use body::decode_body;

use crate::{RefMap, RefName};

/// How we introduce ourselves in `agent=`.
pub(crate) const AGENT: &str = concat!("eccluster/", env!("CARGO_PKG_VERSION"));

/// A version of the wire protocol, as the client asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Version {
    /// The original protocol.
    #[default]
    V0,
    /// The original protocol with a line that says so.
    V1,
    /// Commands and capabilities, without a reference advertisement.
    V2,
}

impl Version {
    /// The version that the `Git-Protocol` header asks for: the highest one we know in its colon-separated keys, or v0
    /// without such a header.
    pub fn from_header(header: Option<&[u8]>) -> Self {
        let keys = header.unwrap_or_default().split(|byte| *byte == b':');
        keys.filter_map(|key| match key.trim_ascii() {
            b"version=2" => Some(Version::V2),
            b"version=1" => Some(Version::V1),
            _ => None,
        })
        .max()
        .unwrap_or_default()
    }
}

/// One of the two services of smart HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Service {
    /// `git-upload-pack`: clone and fetch.
    UploadPack,
    /// `git-receive-pack`: push.
    ReceivePack,
}

impl Service {
    /// The service with this name, as in `info/refs?service=NAME` and as the last part of a request's path.
    pub fn from_name(name: &str) -> Option<Self> {
        [Service::UploadPack, Service::ReceivePack].into_iter().find(|service| service.name() == name)
    }

    /// `git-upload-pack` or `git-receive-pack`.
    pub fn name(self) -> &'static str {
        match self {
            Service::UploadPack => "git-upload-pack",
            Service::ReceivePack => "git-receive-pack",
        }
    }

    /// The content type of the answer to `info/refs`.
    pub fn advertisement_type(self) -> &'static str {
        match self {
            Service::UploadPack => "application/x-git-upload-pack-advertisement",
            Service::ReceivePack => "application/x-git-receive-pack-advertisement",
        }
    }

    /// The content type that a request's body must have.
    pub fn request_type(self) -> &'static str {
        match self {
            Service::UploadPack => "application/x-git-upload-pack-request",
            Service::ReceivePack => "application/x-git-receive-pack-request",
        }
    }

    /// The content type of the answer to a request.
    pub fn result_type(self) -> &'static str {
        match self {
            Service::UploadPack => "application/x-git-upload-pack-result",
            Service::ReceivePack => "application/x-git-receive-pack-result",
        }
    }
}

/// The references that a client is shown: all of a repository's, or those that it may see.
#[derive(Debug, Clone, Copy)]
pub struct Advertised<'a> {
    /// Every reference and where it points.
    pub refs: &'a RefMap,
    /// What `HEAD` is a symbolic reference to. It need not exist.
    pub head: &'a RefName,
}

/// Why a request could not be answered.
///
/// Unless it is [`Error::Io`] the client has been told already, in the words of this error: the caller logs it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading the request or writing the answer failed; most often the client went away.
    #[error("{attempt}")]
    Io {
        /// What was being done.
        attempt: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The request breaks the protocol.
    #[error("malformed request: {0}")]
    Malformed(String),
    /// The request is well-formed but larger than the limits allow.
    #[error("request refused: {what} (limit {limit})")]
    TooLarge {
        /// What there was too much of.
        what: &'static str,
        /// How much is allowed.
        limit: u64,
    },
    /// The request asks for something that is not here or not for this client.
    #[error("{0}")]
    Refused(String),
    /// The store could not be read.
    #[error("reading the repository failed")]
    Store(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    pub(crate) fn malformed(what: impl Into<String>) -> Self {
        Error::Malformed(what.into())
    }

    pub(crate) fn store(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Error::Store(source.into())
    }

    /// True if the fault lies with the request rather than with this machine or the connection.
    pub fn is_clients_fault(&self) -> bool {
        matches!(self, Error::Malformed(_) | Error::TooLarge { .. } | Error::Refused(_))
    }
}

pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// Bytes from a client as they may appear in an error: printable, and not longer than a line.
pub(crate) fn printable(bytes: &[u8]) -> String {
    let mut text = bytes[..bytes.len().min(120)].escape_ascii().to_string();
    if bytes.len() > 120 {
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(Version::from_header(None), Version::V0);
        assert_eq!(Version::from_header(Some(b"version=1")), Version::V1);
        assert_eq!(Version::from_header(Some(b"version=2")), Version::V2);
        assert_eq!(Version::from_header(Some(b"something:version=1:version=2:x=y")), Version::V2);
        assert_eq!(Version::from_header(Some(b"version=3")), Version::V0);
        assert_eq!(Version::from_header(Some(b"\xff::")), Version::V0);
    }

    #[test]
    fn services_have_names() {
        for service in [Service::UploadPack, Service::ReceivePack] {
            assert_eq!(Service::from_name(service.name()), Some(service));
            assert!(service.request_type().contains(service.name()));
        }
        assert_eq!(Service::from_name("git-upload-archive"), None);
    }

    #[test]
    fn foreign_bytes_are_printable() {
        assert_eq!(printable(b"want \x1b\xff"), "want \\x1b\\xff");
        assert!(printable(&[b'x'; 1000]).len() < 130);
    }
}
