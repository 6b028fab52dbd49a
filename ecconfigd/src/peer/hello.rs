//! The first words on a connection: which protocol version, who calls, and who shall answer.
//!
//! The frame of the hello never changes, so that builds of any two versions can tell each other what they do not understand.

use std::io;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::Lane;

/// The version of the protocol behind the hello.
pub const VERSION: u16 = 1;
const MAGIC: &[u8; 6] = b"ECPEER";
/// Names and numbers fit many times.
const MAX_BYTES: u32 = 16 << 10;

/// What the caller says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The caller's number in the Raft group. Its name is in its certificate.
    pub from: u64,
    /// Whom it wants to talk to: another number means that the node was set up anew, or the address belongs to somebody else.
    pub to: u64,
    /// What the connection is for.
    pub lane: Lane,
    /// Where the caller is reached, `host:port`: the others may know an older place, and the log, which has it, may need the caller's vote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The caller's build, for logs.
    pub build: String,
}

/// What the other end answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Welcome {
    /// Why not; absent when the caller is welcome.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) refused: Option<String>,
    /// The answering node's build.
    pub(super) build: String,
}

/// This build's name.
pub(super) fn build() -> String {
    env!("CARGO_PKG_VERSION").to_owned()
}

fn invalid(words: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, words.into())
}

/// Writes version and words.
pub(super) async fn write<T: Serialize>(
    out: &mut (impl AsyncWrite + Unpin),
    version: u16,
    words: &T,
) -> io::Result<()> {
    let json = serde_json::to_vec(words)?;
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&version.to_le_bytes());
    bytes.extend_from_slice(&u32::try_from(json.len()).map_err(io::Error::other)?.to_le_bytes());
    bytes.extend_from_slice(&json);
    out.write_all(&bytes).await?;
    out.flush().await
}

/// Reads version and words; the words are not looked at where the version is not ours.
pub(super) async fn read(input: &mut (impl AsyncRead + Unpin)) -> io::Result<(u16, Vec<u8>)> {
    let mut head = [0; 12];
    input.read_exact(&mut head).await?;
    if head[..6] != *MAGIC {
        return Err(invalid("the other end does not speak the peer protocol"));
    }
    let version = u16::from_le_bytes([head[6], head[7]]);
    let length = u32::from_le_bytes([head[8], head[9], head[10], head[11]]);
    if length > MAX_BYTES {
        return Err(invalid(format!("a hello of {length} bytes")));
    }
    let mut words = vec![0; length as usize];
    input.read_exact(&mut words).await?;
    Ok((version, words))
}

/// What is said to a version that is not ours.
pub(super) fn other_version(theirs: u16) -> String {
    format!(
        "this node speaks version {VERSION} of the peer protocol, the other end speaks {theirs}: run the same ecconfigd, or a newer one, on both"
    )
}
