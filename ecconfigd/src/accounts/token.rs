//! API tokens: `ect_<id>_<secret>`, where the secret has 256 random bits and only its hash is stored.
//!
//! A plain SHA-256 is enough here: unlike a password, 256 random bits cannot be guessed, so there is nothing to slow down.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq as _;

use super::password::Secret;

/// What every API token begins with, so that a leaked one is recognised by scanners and a password field by us.
pub const PREFIX: &str = "ect_";

/// A new token and what is stored of it.
#[derive(Debug)]
pub struct NewToken {
    /// What it is listed and revoked by.
    pub id: String,
    /// The whole token: shown once, stored nowhere.
    pub text: Secret,
    /// What is stored.
    pub secret_sha256: [u8; 32],
}

/// Draws a token.
pub fn new() -> Result<NewToken, getrandom::Error> {
    let (mut id, mut secret) = ([0u8; 6], [0u8; 32]);
    getrandom::fill(&mut id)?;
    getrandom::fill(&mut secret)?;
    let (id, secret) = (hex::encode(id), URL_SAFE_NO_PAD.encode(secret));
    let text = Secret::new(format!("{PREFIX}{id}_{secret}"));
    Ok(NewToken { id, text, secret_sha256: sha256(&secret) })
}

/// Splits a token into its id and its secret; `None` for anything that is not shaped like one.
pub fn split(text: &str) -> Option<(&str, &str)> {
    let (id, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
    (id.len() == 12 && secret.len() == 43).then_some((id, secret))
}

/// Whether the secret is the one whose hash is stored, in constant time.
pub fn fits(secret: &str, stored: &[u8; 32]) -> bool {
    sha256(secret).ct_eq(stored).into()
}

fn sha256(secret: &str) -> [u8; 32] {
    Sha256::digest(secret).into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn tokens_differ_and_only_their_secret_fits() {
        let (one, two) = (new().unwrap(), new().unwrap());
        let (id, secret) = split(one.text.expose()).unwrap();
        assert_eq!(id, one.id);
        assert!(fits(secret, &one.secret_sha256));
        assert!(!fits(secret, &two.secret_sha256));
        for bad in ["", "ect_", "ect_0123456789ab", "ect_0123456789ab_short", "a password with_underscores"] {
            assert_eq!(split(bad), None, "{bad:?}");
        }
    }
}
