//! NATS's own credentials: a key of a user (`SU…`), alone or in a `.creds` file beside a token that an account has signed.
//!
//! The server sends a nonce and gets its signature; the key itself never leaves the node. A key is base32 of two bytes that say what it is,
//! 32 bytes of an Ed25519 seed, and a CRC-16 (XMODEM) of both.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use data_encoding::BASE32_NOPAD;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::Value;

use super::SinkError;

/// "S" for a seed, "U" for a user, as the five bits that base32 makes these letters of.
const SEED: u8 = 18;
const USER: u8 = 20;
const JWT_BEGIN: &str = "-----BEGIN NATS USER JWT-----";
const SEED_BEGIN: &str = "-----BEGIN USER NKEY SEED-----";

/// What a sink's credentials file says.
pub(super) enum Credentials {
    Password { user: String, password: String },
    Token(String),
    Key { key: Box<Ed25519KeyPair>, jwt: Option<String> },
}

impl Credentials {
    /// Tells the kinds apart: a `.creds` file, a user's seed, `user:password`, or else a token.
    pub(super) fn parse(text: &str) -> Result<Self, SinkError> {
        let text = text.trim();
        if text.contains(JWT_BEGIN) {
            let wrong = || SinkError::Credentials("the .creds file lacks its token or its seed");
            let jwt = line_behind(text, JWT_BEGIN).ok_or_else(wrong)?.to_owned();
            let key = key_of(line_behind(text, SEED_BEGIN).ok_or_else(wrong)?)?;
            return Ok(Self::Key { key: Box::new(key), jwt: Some(jwt) });
        }
        if text.len() == 58 && text.starts_with("SU") {
            return Ok(Self::Key { key: Box::new(key_of(text)?), jwt: None });
        }
        Ok(match text.split_once(':') {
            Some((user, password)) => Self::Password { user: user.into(), password: password.into() },
            None => Self::Token(text.into()),
        })
    }

    /// Adds them to what is said at the beginning; `nonce` is what the server wants signed.
    pub(super) fn add_to(&self, connect: &mut Value, nonce: Option<&str>) -> Result<(), SinkError> {
        match self {
            Self::Password { user, password } => {
                (connect["user"], connect["pass"]) = (user.as_str().into(), password.as_str().into());
            }
            Self::Token(token) => connect["auth_token"] = token.as_str().into(),
            Self::Key { key, jwt } => {
                let nonce =
                    nonce.ok_or(SinkError::Credentials("the server does not ask for the signature of a key"))?;
                match jwt {
                    Some(jwt) => connect["jwt"] = jwt.as_str().into(),
                    None => connect["nkey"] = name_of(key).into(),
                }
                connect["sig"] = URL_SAFE_NO_PAD.encode(key.sign(nonce.as_bytes())).into();
            }
        }
        Ok(())
    }
}

/// The first line behind the one that begins a part of a `.creds` file.
fn line_behind<'a>(text: &'a str, begin: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(begin)?;
    rest.lines().map(|line| line.trim_matches(['-', ' ', '\t', '\r'])).find(|line| !line.is_empty())
}

fn key_of(seed: &str) -> Result<Ed25519KeyPair, SinkError> {
    let wrong = SinkError::Credentials("the seed of the key is not a user's, or damaged");
    let bytes = BASE32_NOPAD.decode(seed.trim().as_bytes()).unwrap_or_default();
    if bytes.len() != 36 {
        return Err(wrong);
    }
    let kind = bytes[0] >> 3;
    let whose = (bytes[0] & 7) << 2 | bytes[1] >> 6;
    let sum = u16::from_le_bytes([bytes[34], bytes[35]]);
    if kind != SEED || whose != USER || crc16(&bytes[..34]) != sum {
        return Err(wrong);
    }
    Ed25519KeyPair::from_seed_unchecked(&bytes[2..34]).map_err(|_| wrong)
}

/// The user's public name: `U…`.
fn name_of(key: &Ed25519KeyPair) -> String {
    let mut bytes = vec![USER << 3];
    bytes.extend_from_slice(key.public_key().as_ref());
    bytes.extend_from_slice(&crc16(&bytes).to_le_bytes());
    BASE32_NOPAD.encode(&bytes)
}

fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc: u16, byte| {
        (0..8).fold(crc ^ u16::from(*byte) << 8, |crc, _| if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 })
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use ring::signature::{ED25519, UnparsedPublicKey};
    use serde_json::json;

    use super::*;

    fn seed(bytes: [u8; 32]) -> String {
        let mut raw = vec![SEED << 3 | USER >> 2, (USER & 3) << 6];
        raw.extend_from_slice(&bytes);
        raw.extend_from_slice(&crc16(&raw).to_le_bytes());
        BASE32_NOPAD.encode(&raw)
    }

    #[test]
    fn a_nonce_is_signed_with_the_key() {
        let seed = seed([7; 32]);
        assert!(seed.starts_with("SU") && seed.len() == 58, "{seed}");
        let credentials = Credentials::parse(&format!("{seed}\n")).unwrap();
        let mut connect = json!({});
        credentials.add_to(&mut connect, Some("nonce")).unwrap();
        let signature = URL_SAFE_NO_PAD.decode(connect["sig"].as_str().unwrap()).unwrap();
        let name = BASE32_NOPAD.decode(connect["nkey"].as_str().unwrap().as_bytes()).unwrap();
        UnparsedPublicKey::new(&ED25519, &name[1..33]).verify(b"nonce", &signature).unwrap();
        assert!(connect["nkey"].as_str().unwrap().starts_with('U'));
        assert!(credentials.add_to(&mut connect, None).is_err(), "nothing to sign");
    }

    #[test]
    fn kinds_are_told_apart() {
        let seed = seed([9; 32]);
        let creds = format!(
            "-----BEGIN NATS USER JWT-----\r\neyJ0.eyJq.c2ln\r\n------END NATS USER JWT------\n\n{SEED_BEGIN}\n{seed}\n------END USER NKEY SEED------\n"
        );
        let said = |text: &str| {
            let mut connect = json!({});
            Credentials::parse(text).unwrap().add_to(&mut connect, Some("n")).unwrap();
            connect
        };
        assert_eq!(said(&creds)["jwt"], "eyJ0.eyJq.c2ln");
        assert_eq!(said("me:it:is\n"), json!({ "user": "me", "pass": "it:is" }));
        assert_eq!(said("SUSPICIOUS"), json!({ "auth_token": "SUSPICIOUS" }));
        for wrong in [&seed.replace('A', "B"), "-----BEGIN NATS USER JWT-----\n"] {
            assert!(Credentials::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_checksum_is_xmodem() {
        assert_eq!(crc16(b"123456789"), 0x31C3);
    }
}
