//! Values that are checked when they are read: hosts, networks, modes, patterns. Each reads from a string, prints the
//! same string, and its error says what is expected.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::documents::place::shortened;

/// Why a text is not such a value. The message is complete.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ValueError(pub String);

pub(crate) fn wrong(message: impl Into<String>) -> ValueError {
    ValueError(message.into())
}

/// Serde as a string through `FromStr` and `Display`.
macro_rules! string_value {
    ($type:ty, $expected:literal) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl serde::de::Visitor<'_> for Text {
                    type Value = $type;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str($expected)
                    }

                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Text)
            }
        }
    };
}
pub(crate) use string_value;

/// An IP address or a host name, without a port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// An address.
    Ip(IpAddr),
    /// A name to be resolved, in lower case.
    Name(String),
}

impl FromStr for Host {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        if let Ok(ip) = bare.parse() {
            return Ok(Self::Ip(ip));
        }
        let expected = || wrong(format!("\"{}\" is neither an IP address nor a host name", shortened(text)));
        if text.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) {
            return Err(wrong(format!("\"{}\" has a port; an address alone belongs here", shortened(text))));
        }
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        // A name of digits and dots alone is a mistyped address.
        let digits = name.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        if name.len() > 253 || digits || !name.split('.').all(label) {
            return Err(expected());
        }
        Ok(Self::Name(name))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => write!(f, "{ip}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

string_value!(Host, "an IP address or a host name such as \"10.0.0.11\"");

/// A host with a port: `127.0.0.1:25`, `[::1]:25`, `mail.example:25`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// The host.
    pub host: Host,
    /// The port.
    pub port: u16,
}

impl FromStr for HostPort {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let expected = || wrong(format!("\"{}\" is not HOST:PORT", shortened(text)));
        let (host, port) = text.rsplit_once(':').ok_or_else(expected)?;
        if host.contains(':') && !(host.starts_with('[') && host.ends_with(']')) {
            return Err(wrong(format!("\"{}\" is not HOST:PORT; an IPv6 address needs brackets", shortened(text))));
        }
        Ok(Self { host: host.parse()?, port: port.parse().map_err(|_| expected())? })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}", self.port),
            host => write!(f, "{host}:{}", self.port),
        }
    }
}

string_value!(HostPort, "HOST:PORT such as \"127.0.0.1:25\"");

/// A block of addresses: `10.1.1.0/24`, `2001:db8::/64`. Host bits are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Network {
    address: IpAddr,
    prefix_length: u8,
}

impl Network {
    /// The block's first address.
    pub fn address(self) -> IpAddr {
        self.address
    }

    /// The number of bits that all addresses of the block share.
    pub fn prefix_length(self) -> u8 {
        self.prefix_length
    }

    /// True when the address lies in the block.
    pub fn contains(self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => masked_v4(other, self.prefix_length) == own,
            (IpAddr::V6(own), IpAddr::V6(other)) => masked_v6(other, self.prefix_length) == own,
            _ => false,
        }
    }

    /// The prefix length of a single address: 32 or 128.
    pub fn longest_prefix(self) -> u8 {
        if self.address.is_ipv4() { 32 } else { 128 }
    }
}

fn masked_v4(address: Ipv4Addr, bits: u8) -> Ipv4Addr {
    let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
    Ipv4Addr::from(u32::from(address) & mask)
}

fn masked_v6(address: Ipv6Addr, bits: u8) -> Ipv6Addr {
    let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
    Ipv6Addr::from(u128::from(address) & mask)
}

impl FromStr for Network {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let expected = || wrong(format!("\"{}\" is not a block of addresses such as \"10.1.1.0/24\"", shortened(text)));
        let (address, bits) = text.split_once('/').ok_or_else(expected)?;
        let address: IpAddr = address.parse().map_err(|_| expected())?;
        let prefix_length: u8 = bits.parse().map_err(|_| expected())?;
        let (longest, masked) = match address {
            IpAddr::V4(v4) => (32, IpAddr::V4(masked_v4(v4, prefix_length.min(32)))),
            IpAddr::V6(v6) => (128, IpAddr::V6(masked_v6(v6, prefix_length.min(128)))),
        };
        if prefix_length > longest {
            return Err(wrong(format!("the prefix length of \"{}\" is over {longest}", shortened(text))));
        }
        if masked != address {
            return Err(wrong(format!(
                "\"{text}\" has bits beyond its prefix; the block is \"{masked}/{prefix_length}\""
            )));
        }
        let network = Self { address, prefix_length };
        shortest_form(text, &network.to_string())?;
        Ok(network)
    }
}

/// Addresses are keys, and layers meet by their keys: each has one spelling.
fn shortest_form(text: &str, shortest: &str) -> Result<(), ValueError> {
    if text == shortest {
        return Ok(());
    }
    Err(wrong(format!("write \"{shortest}\" instead of \"{}\": layers meet by one spelling", shortened(text))))
}

/// An address that is managed, as a key: `10.1.1.1`, `2001:db8::1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(pub IpAddr);

impl FromStr for Address {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let address: IpAddr =
            text.parse().map_err(|_| wrong(format!("\"{}\" is not an IP address", shortened(text))))?;
        shortest_form(text, &address.to_string())?;
        Ok(Self(address))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

string_value!(Address, "an IP address such as \"10.1.1.1\"");

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_length)
    }
}

string_value!(Network, "a block of addresses such as \"10.1.1.0/24\"");

/// Permission bits in octal: `0640`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileMode(pub u32);

impl FromStr for FileMode {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let octal = !text.is_empty() && text.len() <= 5 && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
        match u32::from_str_radix(text, 8) {
            Ok(mode) if octal && mode <= 0o7777 => Ok(Self(mode)),
            _ => Err(wrong(format!("\"{}\" is not a file mode in octal such as \"0640\"", shortened(text)))),
        }
    }
}

impl fmt::Display for FileMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

string_value!(FileMode, "a file mode in octal, as a string such as \"0640\"");

/// One text or a list of them: `listen = "a"` and `listen = ["a", "b"]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OneOrMany<T>(pub Vec<T>);

impl<T: Serialize> Serialize for OneOrMany<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> de::Visitor<'de> for Either<T> {
            type Value = OneOrMany<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or an array of strings")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                T::deserialize(de::value::StrDeserializer::new(text)).map(|value| OneOrMany(vec![value]))
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = seq.next_element()? {
                    values.push(value);
                }
                Ok(OneOrMany(values))
            }
        }
        deserializer.deserialize_any(Either(std::marker::PhantomData))
    }
}

/// A shell pattern over paths, such as `default/nginx/**`.
#[derive(Debug, Clone)]
pub struct PathGlob {
    text: String,
    glob: globset::Glob,
}

impl PathGlob {
    /// The compiled pattern, for a set.
    pub fn glob(&self) -> &globset::Glob {
        &self.glob
    }

    /// True when the path matches.
    pub fn matches(&self, path: &str) -> bool {
        self.glob.compile_matcher().is_match(path)
    }
}

impl PartialEq for PathGlob {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for PathGlob {}

impl FromStr for PathGlob {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        const LONGEST: usize = 1024;
        if text.is_empty() || text.len() > LONGEST || text.starts_with('/') {
            return Err(wrong(format!("\"{}\" is not a pattern over paths inside a working copy", shortened(text))));
        }
        let glob = globset::GlobBuilder::new(text).literal_separator(true).backslash_escape(true).build();
        let glob =
            glob.map_err(|error| wrong(format!("\"{}\" is not a pattern: {}", shortened(text), error.kind())))?;
        Ok(Self { text: text.to_owned(), glob })
    }
}

impl fmt::Display for PathGlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

string_value!(PathGlob, "a pattern over paths such as \"default/nginx/**\"");

/// A regular expression.
#[derive(Debug, Clone)]
pub struct Pattern(regex::Regex);

impl Pattern {
    /// The compiled expression.
    pub fn regex(&self) -> &regex::Regex {
        &self.0
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Eq for Pattern {}

impl FromStr for Pattern {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        // Compiled size and nesting are bounded: the text comes from whoever may commit.
        let built = regex::RegexBuilder::new(text).size_limit(1 << 20).dfa_size_limit(1 << 20).nest_limit(64).build();
        built.map(Self).map_err(|error| {
            let last =
                error.to_string().lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default().to_owned();
            let reason = last.strip_prefix("error: ").unwrap_or(&last);
            wrong(format!("\"{}\" is not a regular expression: {}", shortened(text), shortened(reason)))
        })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

string_value!(Pattern, "a regular expression");

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn hosts() {
        for (text, shown) in
            [("10.0.0.11", "10.0.0.11"), ("::1", "::1"), ("[::1]", "::1"), ("N1.Example.", "n1.example"), ("n1", "n1")]
        {
            assert_eq!(text.parse::<Host>().unwrap().to_string(), shown);
        }
        for text in ["", "10.0.0", "10.0.0.256", "a b", "-a", "a..b", "n1:2027", "10.0.0.1:80", "a/b"] {
            assert!(text.parse::<Host>().is_err(), "{text:?}");
        }
        for text in ["127.0.0.1:25", "[::1]:25", "mail.example:25"] {
            assert_eq!(text.parse::<HostPort>().unwrap().to_string(), text);
        }
        for text in ["127.0.0.1", "::1:25", ":25", "a:66000", "a:"] {
            assert!(text.parse::<HostPort>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn networks() {
        let network: Network = "10.1.1.0/24".parse().unwrap();
        assert!(network.contains("10.1.1.255".parse().unwrap()));
        assert!(!network.contains("10.1.2.0".parse().unwrap()));
        assert!(!network.contains("::10.1.1.1".parse().unwrap()));
        assert!("0.0.0.0/0".parse::<Network>().unwrap().contains("9.9.9.9".parse().unwrap()));
        assert!("::/0".parse::<Network>().unwrap().contains("2001:db8::1".parse().unwrap()));
        assert!("2001:db8::/64".parse::<Network>().unwrap().contains("2001:db8::ff".parse().unwrap()));
        let message = "10.1.1.7/24".parse::<Network>().unwrap_err().to_string();
        assert!(message.contains("the block is \"10.1.1.0/24\""), "{message}");
        assert!("2001:DB8::/64".parse::<Network>().unwrap_err().to_string().contains("write \"2001:db8::/64\""));
        assert!("2001:db8:0::1".parse::<Address>().unwrap_err().to_string().contains("write \"2001:db8::1\""));
        assert!("10.1.1".parse::<Address>().unwrap_err().to_string().contains("not an IP address"));
        for text in ["10.1.1.0", "10.1.1.0/33", "x/8", "10.0.0.0/-1", "::/129"] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
    }

    #[test]
    fn modes_globs_and_patterns() {
        assert_eq!("0640".parse::<FileMode>().unwrap(), FileMode(0o640));
        assert_eq!(FileMode(0o755).to_string(), "0755");
        for text in ["", "0o640", "888", "17777", "-1", "+640"] {
            assert!(text.parse::<FileMode>().is_err(), "{text:?}");
        }
        let glob: PathGlob = "default/nginx/**".parse().unwrap();
        assert!(glob.matches("default/nginx/sites/a.conf") && !glob.matches("default/nginx.conf"));
        assert!(
            "*.toml".parse::<PathGlob>().is_ok_and(|glob| !glob.matches("a/b.toml")),
            "a star stays in its directory"
        );
        assert!("[".parse::<PathGlob>().is_err() && "/etc/*".parse::<PathGlob>().is_err());
        assert!("(".parse::<Pattern>().unwrap_err().to_string().contains("unclosed group"));
        assert!("(a{1000}){1000}".parse::<Pattern>().is_err(), "bounded");
    }
}
