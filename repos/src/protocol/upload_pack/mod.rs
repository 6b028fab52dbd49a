//! The side of the server that clones and fetches talk to.
//!
//! One call answers one request, whole: smart HTTP is stateless, so everything that a negotiation has found out so far
//! is repeated by the client (gitprotocol-http(5), "stateless-rpc"). [`advertise`] answers `GET info/refs`, [`serve`]
//! answers `POST git-upload-pack`, for v0 and v1 (gitprotocol-pack(5)) as for v2 (gitprotocol-v2(5)).

mod advertisement;
mod session;
mod v0;
mod v2;

use std::io::{BufWriter, Read, Write};

use super::objects::Objects;
use super::packet::{BandWriter, Bands, PacketReader, PacketWriter};
use super::{Advertised, Error, Result, Version};
use crate::Store;
use session::Session;

/// What one request may cost.
#[derive(Debug, Clone)]
pub struct UploadLimits {
    /// The request, unpacked. A thousand wants and sixteen thousand haves are under a megabyte.
    pub max_request_bytes: u64,
    /// `want` lines. git sends one for each reference that it follows.
    pub max_wants: usize,
    /// `have` lines. git stops offering after 256 that we do not know, but repeats all common ones.
    pub max_haves: usize,
    /// `shallow` lines: one for each commit at which a client's history ends.
    pub max_shallow: usize,
    /// `ref-prefix` lines; beyond it the prefixes are ignored, as gitprotocol-v2(5) allows.
    pub max_ref_prefixes: usize,
    /// Objects in one pack. Their ids are held in memory: about 100 bytes each.
    pub max_objects: usize,
    /// Commits looked at for one request. Their links are held in memory: about 200 bytes each.
    pub max_visited_commits: usize,
    /// Whether a commit that no reference names may be fetched by its id.
    pub wants: WantPolicy,
}

/// Which objects a client may ask for by id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WantPolicy {
    /// What the references name, and every commit that they reach: history, but nothing that was deleted.
    Reachable,
    /// Every object of the store, as git itself does it in protocol v2.
    Any,
}

impl Default for UploadLimits {
    fn default() -> Self {
        UploadLimits {
            max_request_bytes: 4 << 20,
            max_wants: 10_000,
            max_haves: 20_000,
            max_shallow: 10_000,
            max_ref_prefixes: 1_000,
            max_objects: 2_000_000,
            max_visited_commits: 500_000,
            wants: WantPolicy::Reachable,
        }
    }
}

/// What a request was and what it was given, for logs and metrics.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Served {
    /// What the client asked for.
    pub kind: ServedKind,
    /// Objects in the pack.
    pub objects: u64,
    /// Bytes of the pack.
    pub pack_bytes: u64,
}

/// The kinds of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ServedKind {
    /// A lone flush: clients try their credentials with it before they send something large.
    #[default]
    Probe,
    /// `ls-refs`.
    Refs,
    /// A round of negotiation that ended without a pack.
    Negotiation,
    /// A pack.
    Pack,
}

/// Answers `GET info/refs?service=git-upload-pack`: the references for v0 and v1, the capabilities for v2.
pub fn advertise(store: &Store, version: Version, shown: Advertised<'_>, out: &mut dyn Write) -> Result<(), Error> {
    let mut out = PacketWriter::new(BufWriter::new(out));
    match version {
        Version::V2 => advertisement::capabilities_v2(&mut out)?,
        Version::V0 | Version::V1 => advertisement::references(store, version, shown, &mut out)?,
    }
    out.flush()
}

/// Answers `POST git-upload-pack`.
///
/// `body` is the request without its content encoding (see [`decode_body`](super::decode_body)). What goes wrong is told
/// to the client in the answer, so an HTTP layer that has begun to send status 200 need not change its mind.
pub fn serve(
    store: &Store,
    shown: Advertised<'_>,
    version: Version,
    body: &mut dyn Read,
    out: &mut dyn Write,
    limits: &UploadLimits,
) -> Result<Served, Error> {
    let mut answer = Answer::new(out);
    let result = answer_request(store, shown, version, body, &mut answer, limits);
    match result {
        Ok(served) => answer.out.flush().map(|()| served),
        Err(error) => {
            answer.tell(&error);
            Err(error)
        }
    }
}

fn answer_request(
    store: &Store,
    shown: Advertised<'_>,
    version: Version,
    body: &mut dyn Read,
    answer: &mut Answer<'_>,
    limits: &UploadLimits,
) -> Result<Served> {
    let objects = Objects::new(store, limits.max_visited_commits)?;
    let session = Session { objects, shown, limits };
    let mut request = PacketReader::new(body, limits.max_request_bytes);
    match version {
        Version::V2 => v2::serve(&session, &mut request, answer),
        Version::V0 | Version::V1 => v0::serve(&session, &mut request, answer),
    }
}

/// The request of a client, as both versions read it.
type Request<'a> = PacketReader<&'a mut dyn Read>;

/// The answer as far as it is written, and how an error would be told from here on.
struct Answer<'a> {
    out: PacketWriter<BufWriter<&'a mut dyn Write>>,
    /// Set once the pack has begun.
    bands: Option<Bands>,
}

impl<'a> Answer<'a> {
    fn new(out: &'a mut dyn Write) -> Self {
        // Two full packets: a pack leaves in few writes, and a small answer in one.
        Answer { out: PacketWriter::new(BufWriter::with_capacity(128 << 10, out)), bands: None }
    }

    /// Tells the client why there is no (further) answer. If that fails, too, the client is gone.
    fn tell(&mut self, error: &Error) {
        let text = format!("upload-pack: {error}");
        let told = match (error, self.bands) {
            (Error::Io { .. }, _) => return,
            (_, None) => self.out.error(&text).and_then(|()| self.out.flush()),
            (_, Some(bands)) => {
                let mut bands = BandWriter::new(self.out.inner(), bands);
                bands.error(&format!("{text}\n")).and_then(|()| bands.finish())
            }
        };
        if let Err(err) = told {
            tracing::debug!(error = %err, "the client could not be told of an error");
        }
    }
}
