//! Names of objects.
//!
//! An [`Oid`] is the SHA-1 of an object, kept as its 20 bytes so that it copies, sorts and hashes without an
//! allocation. It is not a `gix` type because callers outside this crate store it and send it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The name of an object: its SHA-1.
///
/// Serialises as 40 hexadecimal digits in text formats and as 20 bytes in binary ones.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Oid([u8; 20]);

/// A text that is not 40 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("“{0}” is not an object id: 40 hexadecimal digits are wanted")]
pub struct ParseOidError(pub String);

impl Oid {
    /// All zeroes: "no object", as the old value of a reference that is being created.
    pub const NULL: Oid = Oid([0; 20]);
    /// The tree without entries. Every repository has it, whether or not it is stored.
    pub const EMPTY_TREE: Oid = Oid([
        0x4b, 0x82, 0x5d, 0xc6, 0x42, 0xcb, 0x6e, 0xb9, 0xa0, 0x60, 0xe5, 0x4b, 0xf8, 0xd6, 0x92, 0x88, 0xfb, 0xee,
        0x49, 0x04,
    ]);

    /// The id with these bytes.
    pub const fn from_bytes(bytes: [u8; 20]) -> Self {
        Oid(bytes)
    }

    /// The id with these bytes, if there are twenty of them.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Oid)
    }

    /// The 20 bytes.
    pub const fn as_bytes(&self) -> &[u8; 20] {
        &self.0
    }

    /// True for [`Oid::NULL`].
    pub fn is_null(&self) -> bool {
        *self == Oid::NULL
    }

    /// 40 lower-case hexadecimal digits.
    pub fn to_hex(&self) -> String {
        hex::encode(self.0)
    }

    /// The first twelve digits, for people.
    pub fn short(&self) -> String {
        hex::encode(&self.0[..6])
    }
}

impl fmt::Display for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0u8; 40];
        hex::encode_to_slice(self.0, &mut text).map_err(|_| fmt::Error)?;
        f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Oid {
    type Err = ParseOidError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 20];
        match hex::decode_to_slice(text, &mut bytes) {
            Ok(()) => Ok(Oid(bytes)),
            Err(_) => Err(ParseOidError(text.chars().take(80).collect())),
        }
    }
}

impl Serialize for Oid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { serializer.serialize_bytes(&self.0) }
    }
}

impl<'de> Deserialize<'de> for Oid {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            deserializer.deserialize_str(OidVisitor)
        } else {
            deserializer.deserialize_bytes(OidVisitor)
        }
    }
}

struct OidVisitor;

impl<'de> de::Visitor<'de> for OidVisitor {
    type Value = Oid;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object id")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Oid, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Oid, E> {
        Oid::from_slice(bytes).ok_or_else(|| E::invalid_length(bytes.len(), &"20 bytes"))
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Oid, A::Error> {
        let mut bytes = [0u8; 20];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = seq.next_element()?.ok_or_else(|| de::Error::invalid_length(i, &"20 bytes"))?;
        }
        Ok(Oid(bytes))
    }
}

impl From<Oid> for gix::ObjectId {
    fn from(id: Oid) -> Self {
        gix::ObjectId::from(id.0)
    }
}

impl From<gix::ObjectId> for Oid {
    fn from(id: gix::ObjectId) -> Self {
        Oid::from(id.as_ref())
    }
}

impl From<&gix::hash::oid> for Oid {
    fn from(id: &gix::hash::oid) -> Self {
        Oid(id.as_bytes().try_into().expect("only SHA-1 is compiled in, and it has 20 bytes"))
    }
}

impl AsRef<gix::hash::oid> for Oid {
    fn as_ref(&self) -> &gix::hash::oid {
        gix::hash::oid::from_bytes_unchecked(&self.0)
    }
}

/// The name of a pack: the checksum of its content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PackId(pub Oid);

impl PackId {
    /// `pack-<hex>.<extension>`, the name of one of its files.
    pub fn file_name(&self, extension: &str) -> String {
        format!("pack-{}.{extension}", self.0)
    }
}

impl fmt::Display for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn text_and_back() {
        let text = "4b825dc642cb6eb9a060e54bf8d69288fbee4904";
        let id: Oid = text.parse().unwrap();
        assert_eq!(id, Oid::EMPTY_TREE);
        assert_eq!(id.to_string(), text);
        assert_eq!(gix::ObjectId::from(id), gix::ObjectId::empty_tree(gix::hash::Kind::Sha1));
        assert_eq!(Oid::from(gix::ObjectId::from(id)), id);
    }

    #[test]
    fn refuses_what_is_no_id() {
        for text in
            ["", "4b82", "zz825dc642cb6eb9a060e54bf8d69288fbee4904", "4b825dc642cb6eb9a060e54bf8d69288fbee49040"]
        {
            assert!(text.parse::<Oid>().is_err(), "{text}");
        }
    }
}
