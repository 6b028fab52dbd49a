//! Addresses and blocks, with one spelling for each: an IPv4-mapped IPv6 address *is* the IPv4 address.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::key::Key;

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// 32 bits.
    V4,
    /// 128 bits.
    V6,
}

impl Family {
    /// Bits of an address.
    pub const fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::V4 { "IPv4" } else { "IPv6" })
    }
}

/// An address that is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// IPv4, and IPv4 mapped into IPv6.
    V4(u32),
    /// All other IPv6.
    V6(u128),
}

impl Address {
    /// Its family.
    pub const fn family(self) -> Family {
        match self {
            Self::V4(_) => Family::V4,
            Self::V6(_) => Family::V6,
        }
    }

    /// The bits as a number.
    pub const fn number(self) -> u128 {
        match self {
            Self::V4(bits) => bits as u128,
            Self::V6(bits) => bits,
        }
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Self::V4(ip.to_bits()),
            IpAddr::V6(ip) => Self::V6(ip.to_bits()),
        }
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        match address {
            Address::V4(bits) => Self::V4(Ipv4Addr::from_bits(bits)),
            Address::V6(bits) => Self::V6(Ipv6Addr::from_bits(bits)),
        }
    }
}

impl FromStr for Address {
    type Err = std::net::AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<IpAddr>().map(Self::from)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&IpAddr::from(*self), f)
    }
}

/// A block of addresses, such as `10.0.0.0/8`. Bits behind the prefix are always zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Block {
    family: Family,
    first: u128,
    length: u8,
}

/// Why a text is not a block.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// The part before the slash.
    #[error("\"{0}\" is not an IPv4 or IPv6 address")]
    Address(String),
    /// The part after the slash.
    #[error("a prefix of {family} has 0 to {} bits, not \"{text}\"", family.bits())]
    Length {
        /// The family of the address.
        family: Family,
        /// What was written.
        text: String,
    },
}

impl Block {
    /// The block of `length` bits around a number; a length beyond the family's is the whole address.
    pub fn new(family: Family, number: u128, length: u8) -> Self {
        let length = length.min(family.bits());
        Self { family, first: number & !host_mask(family, length), length }
    }

    /// Its family.
    pub const fn family(&self) -> Family {
        self.family
    }

    /// Length of the prefix in bits.
    pub const fn length(&self) -> u8 {
        self.length
    }

    /// The lowest address as a number.
    pub const fn first(&self) -> u128 {
        self.first
    }

    /// The highest address as a number.
    pub fn last(&self) -> u128 {
        self.first | host_mask(self.family, self.length)
    }

    /// True when all of `other` is inside.
    pub fn contains(&self, other: &Self) -> bool {
        self.family == other.family && self.first <= other.first && other.last() <= self.last()
    }

    /// A key of a level as the block that it stands for.
    pub(crate) fn of_key<K: Key>(key: K, level: u8) -> Self {
        let family = if K::BITS == 32 { Family::V4 } else { Family::V6 };
        let first = key.to_u128().checked_shl(u32::from(K::BITS - level)).unwrap_or(0);
        Self { family, first, length: level }
    }
}

fn host_mask(family: Family, length: u8) -> u128 {
    let host = u32::from(family.bits() - length);
    if host == 128 { u128::MAX } else { (1 << host) - 1 }
}

impl From<Address> for Block {
    fn from(address: Address) -> Self {
        Self { family: address.family(), first: address.number(), length: address.family().bits() }
    }
}

impl FromStr for Block {
    type Err = BlockError;

    fn from_str(text: &str) -> Result<Self, BlockError> {
        let (address, length) = text.split_once('/').map_or((text, None), |(a, l)| (a, Some(l)));
        let ip: IpAddr = address.parse().map_err(|_| BlockError::Address(address.chars().take(48).collect()))?;
        let written = if ip.is_ipv4() { Family::V4 } else { Family::V6 };
        let wrong = || BlockError::Length { family: written, text: length.unwrap_or("").chars().take(8).collect() };
        let bits = match length {
            None => written.bits(),
            Some(digits) if digits.len() <= 3 && digits.bytes().all(|b| b.is_ascii_digit()) => {
                digits.parse::<u8>().ok().filter(|bits| *bits <= written.bits()).ok_or_else(wrong)?
            }
            Some(_) => return Err(wrong()),
        };
        // ::ffff:0:0/96 and what is inside it is IPv4; shorter prefixes are real IPv6.
        match (ip, Address::from(ip)) {
            (IpAddr::V6(_), Address::V4(bits4)) if bits >= 96 => {
                Ok(Self::new(Family::V4, u128::from(bits4), bits - 96))
            }
            (IpAddr::V6(ip), _) => Ok(Self::new(Family::V6, ip.to_bits(), bits)),
            (IpAddr::V4(_), address) => Ok(Self::new(Family::V4, address.number(), bits)),
        }
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.family {
            Family::V4 => write!(f, "{}/{}", Ipv4Addr::from_bits(self.first as u32), self.length),
            Family::V6 => write!(f, "{}/{}", Ipv6Addr::from_bits(self.first), self.length),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn one_spelling_per_block() {
        for (text, printed) in [
            ("10.79.18.1", "10.79.18.1/32"),
            ("10.79.18.1/8", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("::ffff:10.1.2.3", "10.1.2.3/32"),
            ("::ffff:10.1.2.3/104", "10.0.0.0/8"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
            ("::ffff:0:0/95", "::fffe:0:0/95"),
            ("2001:DB8::/32", "2001:db8::/32"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(text.parse::<Block>().unwrap().to_string(), printed, "{text}");
        }
        for text in ["", "10.0.0", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/+8", "::/129", "spam", "10.0.0.0/8/8"] {
            assert!(text.parse::<Block>().is_err(), "{text}");
        }
    }
}
