//! The one-time token that lets a node join or enrol: an id to look it up by, a secret, and the fingerprint of the CA to trust.
//!
//! Text form: `ecjoin_` and the unpadded base64url of the bytes below, so that it survives shells, mail and double clicks.
//!
//! ```text
//! offset  length  content
//!      0       1  version, 1
//!      1       8  id, random
//!      9      20  secret, random
//!     29      32  SHA-256 of the CA certificate's DER
//!     61       4  first bytes of the SHA-256 over everything before: tells a truncated paste from a wrong token
//! ```
//! A server stores the id and the secret's SHA-256, never the secret.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::ca::random;
use super::{Fingerprint, IdentityError};

const PREFIX: &str = "ecjoin_";
const VERSION: u8 = 1;
const BODY_BYTES: usize = 61;
const CHECK_BYTES: usize = 4;

/// A join token. Its `Debug` shows the id and the fingerprint only; [`JoinToken::expose`] gives the text.
#[derive(Clone)]
pub struct JoinToken {
    id: [u8; 8],
    secret: TokenSecret,
    ca: Fingerprint,
}

/// The secret half of a token; shown by nothing.
#[derive(Clone)]
pub struct TokenSecret(Zeroizing<[u8; 20]>);

impl TokenSecret {
    /// What the server keeps. A plain hash is enough for 160 random bits.
    pub fn sha256(&self) -> [u8; 32] {
        Sha256::digest(self.0.as_slice()).into()
    }
}

impl fmt::Debug for TokenSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSecret(…)")
    }
}

impl JoinToken {
    /// A fresh random token for the cluster whose CA has this fingerprint.
    pub fn generate(ca: Fingerprint) -> Self {
        Self { id: random(), secret: TokenSecret(Zeroizing::new(random())), ca }
    }

    /// The public id, in hex: what the server looks the token up by, and what logs may say.
    pub fn id(&self) -> String {
        hex::encode(self.id)
    }

    /// The secret.
    pub fn secret(&self) -> &TokenSecret {
        &self.secret
    }

    /// Compares with the stored hash in constant time.
    pub fn secret_matches(&self, stored_sha256: &[u8; 32]) -> bool {
        let mine = self.secret.sha256();
        // No early exit: the time taken says nothing about where the first difference is.
        mine.iter().zip(stored_sha256).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
    }

    /// The fingerprint of the CA that the server's certificate must lead to.
    pub fn ca_fingerprint(&self) -> Fingerprint {
        self.ca
    }

    /// The token's text. Print it once, to the one who asked for it.
    pub fn expose(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(BODY_BYTES + CHECK_BYTES));
        bytes.push(VERSION);
        bytes.extend_from_slice(&self.id);
        bytes.extend_from_slice(self.secret.0.as_slice());
        bytes.extend_from_slice(&self.ca.0);
        let check = checksum(&bytes);
        bytes.extend_from_slice(&check);
        Zeroizing::new(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes.as_slice())))
    }
}

impl FromStr for JoinToken {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let body = text.trim().strip_prefix(PREFIX).ok_or(IdentityError::Token("it does not begin with ecjoin_"))?;
        let damaged = || IdentityError::Token("it is cut off or mistyped");
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(body).map_err(|_| damaged())?);
        if bytes.len() != BODY_BYTES + CHECK_BYTES || bytes[BODY_BYTES..] != checksum(&bytes[..BODY_BYTES]) {
            return Err(damaged());
        }
        if bytes[0] != VERSION {
            return Err(IdentityError::Token("it was made by a newer version of eccluster"));
        }
        let (mut id, mut secret, mut ca) = ([0; 8], Zeroizing::new([0; 20]), [0; 32]);
        id.copy_from_slice(&bytes[1..9]);
        secret.copy_from_slice(&bytes[9..29]);
        ca.copy_from_slice(&bytes[29..BODY_BYTES]);
        Ok(Self { id, secret: TokenSecret(secret), ca: Fingerprint(ca) })
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("id", &self.id()).field("ca", &self.ca).finish_non_exhaustive()
    }
}

fn checksum(bytes: &[u8]) -> [u8; CHECK_BYTES] {
    let digest = Sha256::digest(bytes);
    [digest[0], digest[1], digest[2], digest[3]]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn token() -> JoinToken {
        JoinToken::generate(Fingerprint([7; 32]))
    }

    #[test]
    fn text_form_round_trips_and_is_shell_safe() {
        let token = token();
        let text = token.expose();
        assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'), "{}", *text);
        let back: JoinToken = format!("  {}\n", *text).parse().unwrap();
        assert_eq!((back.id(), back.ca_fingerprint()), (token.id(), token.ca_fingerprint()));
        assert!(back.secret_matches(&token.secret().sha256()));
        assert!(!back.secret_matches(&self::token().secret().sha256()));
    }

    #[test]
    fn every_single_damage_is_noticed() {
        let text = token().expose().to_string();
        for position in 0..text.len() {
            let mut damaged = text.clone().into_bytes();
            damaged[position] = if damaged[position] == b'A' { b'B' } else { b'A' };
            let damaged = String::from_utf8(damaged).unwrap();
            assert!(damaged.parse::<JoinToken>().is_err(), "change at {position} went unnoticed");
            assert!(text[..position].parse::<JoinToken>().is_err(), "cut at {position} went unnoticed");
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let token = token();
        let shown = format!("{token:?} {:?}", token.secret());
        assert!(shown.contains(&token.id()));
        assert!(!shown.contains(&hex::encode(token.secret.0.as_slice())));
        assert!(!shown.contains(token.expose().as_str()));
    }
}
