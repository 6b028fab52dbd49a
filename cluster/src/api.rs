//! The JSON of ecconfigd's HTTP API, shared by the server and its clients so that the two cannot drift apart.
//!
//! What always holds: field names are the public contract (`docs/openapi.json` is generated from these types); requests refuse unknown
//! fields, because a misspelt `delete` must not become a commit; answers may grow fields, so clients ignore what they do not know.
//! Lists are plain JSON arrays; the revision an answer was read at travels in the header `X-Revision`. Times are RFC 3339 in UTC.
//! Left out on purpose: behaviour. Nothing here does I/O or knows how a value is stored.

mod commits;
mod doctor;
mod documents;
mod nodes;
mod problem;
mod repos;
mod revision;
mod trust;
mod watch;

pub use commits::*;
pub use doctor::*;
pub use documents::*;
pub use nodes::*;
pub use problem::*;
pub use repos::*;
pub use revision::*;
pub use trust::*;
pub use watch::*;

/// The header that names the revision (or the target's serial) an answer was read at.
pub const X_REVISION: &str = "x-revision";
/// The header that carries a request's id, taken from the request or made up, in every answer and log line.
pub const X_REQUEST_ID: &str = "x-request-id";
/// The header under which a client may repeat a write safely.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// Media type of a [`Problem`].
pub const PROBLEM_JSON: &str = "application/problem+json";
