//! The binary batch: many addresses of a few series in one message.
//!
//! ```text
//! "ECB1" · u32 bytes that follow
//! sections: u8 flags (1: IPv6, 2: with amounts) · u8 length of the name · the name · u32 number of addresses
//!           the addresses, 4 or 16 bytes each in network order · with amounts: an i32 each
//! ```
//!
//! Numbers are little-endian, addresses as they are on the wire. A batch is checked whole before any of it is counted.

use crate::address::Address;
use crate::live::{Refusal, Tally};

/// Longest batch, without its head.
pub const MAX_BATCH_BYTES: usize = 1 << 20;

const MAGIC: &[u8; 4] = b"ECB1";

/// Events handed on together.
const AT_ONCE: usize = 256;

const HEAD: usize = 8;
const IPV6: u8 = 1;
const AMOUNTS: u8 = 2;

/// Why a batch was not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Not the beginning of a batch; nothing after it can be trusted.
    #[error("this is not a batch of counts")]
    Magic,
    /// Longer than [`MAX_BATCH_BYTES`].
    #[error("a batch has at most {MAX_BATCH_BYTES} bytes")]
    Long,
    /// Sections that do not fit their batch.
    #[error("the batch does not hold what it says")]
    Content,
    /// The counters; what came before in the batch is counted.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

struct Section<'a> {
    name: &'a [u8],
    is_v6: bool,
    addresses: &'a [u8],
    /// Empty: one each.
    amounts: &'a [u8],
}

/// Counts the batch at the beginning of `data`. Returns its length and number of events; none when more bytes are needed.
pub fn feed_batch(window: &mut impl Tally, data: &[u8]) -> Result<Option<(usize, u64)>, BatchError> {
    let known = data.len().min(MAGIC.len());
    if data[..known] != MAGIC[..known] {
        return Err(BatchError::Magic);
    }
    let Some(length) = crate::segment::u32_at(data, 4).map(|length| length as usize) else { return Ok(None) };
    if length > MAX_BATCH_BYTES {
        return Err(BatchError::Long);
    }
    let Some(body) = data.get(HEAD..HEAD + length) else { return Ok(None) };
    let sections = sections(body).ok_or(BatchError::Content)?;
    let mut events = 0;
    for section in &sections {
        events += count(window, section)?;
    }
    Ok(Some((HEAD + length, events)))
}

fn sections(mut body: &[u8]) -> Option<Vec<Section<'_>>> {
    let mut sections = Vec::new();
    while !body.is_empty() {
        let (flags, name_length) = (*body.first()?, usize::from(*body.get(1)?));
        if flags & !(IPV6 | AMOUNTS) != 0 {
            return None;
        }
        let name = body.get(2..2 + name_length)?;
        let number = crate::segment::u32_at(body, 2 + name_length)? as usize;
        let at = 6 + name_length;
        let is_v6 = flags & IPV6 != 0;
        let end = at.checked_add(number.checked_mul(if is_v6 { 16 } else { 4 })?)?;
        let addresses = body.get(at..end)?;
        let amounts_end = if flags & AMOUNTS != 0 { end.checked_add(number.checked_mul(4)?)? } else { end };
        let amounts = body.get(end..amounts_end)?;
        body = &body[amounts_end..];
        sections.push(Section { name, is_v6, addresses, amounts });
    }
    Some(sections)
}

fn count(window: &mut impl Tally, section: &Section<'_>) -> Result<u64, Refusal> {
    let id = window.series(section.name)?;
    let width = if section.is_v6 { 16 } else { 4 };
    let events = (section.addresses.len() / width) as u64;
    if !section.is_v6 && section.amounts.is_empty() {
        let mut some = [(0, 1); AT_ONCE];
        for chunk in section.addresses.chunks(AT_ONCE * 4) {
            let number = chunk.len() / 4;
            for (event, bytes) in some.iter_mut().zip(chunk.chunks_exact(4)) {
                event.0 = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            }
            window.add_v4(id, &some[..number]).map_err(|(_, refusal)| refusal)?;
        }
        return Ok(events);
    }
    let mut amounts = section.amounts.chunks_exact(4);
    for bytes in section.addresses.chunks_exact(width) {
        let amount =
            amounts.next().map_or(1, |bytes| i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]).into());
        window.add(id, address(bytes), amount)?;
    }
    Ok(events)
}

fn address(bytes: &[u8]) -> Address {
    let number = bytes.iter().fold(0_u128, |number, byte| number << 8 | u128::from(*byte));
    if bytes.len() == 4 {
        return Address::V4(number as u32);
    }
    std::net::IpAddr::V6(std::net::Ipv6Addr::from_bits(number)).into()
}

/// Writes batches, for clients and tests.
#[derive(Debug, Default)]
pub struct BatchWriter {
    body: Vec<u8>,
}

impl BatchWriter {
    /// Adds a section; amounts for none of the events, or for all. False when it does not fit: finish, and begin anew.
    pub fn section(&mut self, series: &str, addresses: &[Address], amounts: Option<&[i32]>) -> bool {
        debug_assert!(amounts.is_none_or(|amounts| amounts.len() == addresses.len()));
        let is_v6 = matches!(addresses.first(), Some(Address::V6(_)));
        let bytes =
            6 + series.len() + addresses.len() * (if is_v6 { 16 } else { 4 } + if amounts.is_some() { 4 } else { 0 });
        let same_family = addresses.iter().all(|address| matches!(address, Address::V6(_)) == is_v6);
        if self.body.len() + bytes > MAX_BATCH_BYTES || series.len() > 63 || !same_family {
            return false;
        }
        self.body.push((if is_v6 { IPV6 } else { 0 }) | (if amounts.is_some() { AMOUNTS } else { 0 }));
        self.body.push(series.len() as u8);
        self.body.extend_from_slice(series.as_bytes());
        self.body.extend_from_slice(&(addresses.len() as u32).to_le_bytes());
        for address in addresses {
            match address {
                Address::V4(bits) => self.body.extend_from_slice(&bits.to_be_bytes()),
                Address::V6(bits) => self.body.extend_from_slice(&bits.to_be_bytes()),
            }
        }
        amounts.into_iter().flatten().for_each(|amount| self.body.extend_from_slice(&amount.to_le_bytes()));
        true
    }

    /// The batch.
    pub fn finish(self) -> Vec<u8> {
        let mut batch = MAGIC.to_vec();
        batch.extend_from_slice(&(self.body.len() as u32).to_le_bytes());
        batch.extend(self.body);
        batch
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::live::{Limits, LiveWindow};
    use proptest::prelude::*;

    fn sample() -> Vec<u8> {
        let mut writer = BatchWriter::default();
        let v4: Vec<Address> = ["10.0.0.1", "10.0.0.2", "10.0.0.1"].map(|text| text.parse().unwrap()).into();
        assert!(writer.section("spam", &v4, None));
        assert!(writer.section("virus", &v4, Some(&[5, -1, 7])));
        assert!(writer.section("spam", &["2001:db8::1".parse().unwrap()], Some(&[9])));
        writer.finish()
    }

    #[test]
    fn batches_are_counted() {
        let mut window = LiveWindow::new(Limits::default(), 1);
        let batch = sample();
        assert_eq!(feed_batch(&mut window, &batch), Ok(Some((batch.len(), 7))));
        for cut in 0..batch.len() {
            assert_eq!(feed_batch(&mut window, &batch[..cut]), Ok(None), "cut at {cut}");
        }
        let count = |series: &str, block: &str| window.count(series, &block.parse().unwrap());
        assert_eq!((count("spam", "10.0.0.1"), count("virus", "10.0.0.0/8"), count("spam", "::/0")), (2, 11, 9));
    }

    #[test]
    fn a_mapped_address_is_the_ipv4_address() {
        let mut window = LiveWindow::new(Limits::default(), 1);
        let mut batch = b"ECB1\x19\0\0\0\x01\x03abc\x01\0\0\0".to_vec();
        batch.extend("::ffff:10.0.0.9".parse::<std::net::Ipv6Addr>().unwrap().octets());
        assert_eq!(feed_batch(&mut window, &batch), Ok(Some((batch.len(), 1))));
        assert_eq!(window.count("abc", &"10.0.0.9".parse().unwrap()), 1);
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), flip in any::<prop::sample::Index>(), with in any::<u8>()) {
            let mut window = LiveWindow::new(Limits { series: 4, addresses: 100 }, 1);
            let _ = feed_batch(&mut window, &bytes);
            let mut head = b"ECB1".to_vec();
            head.extend((bytes.len() as u32).to_le_bytes());
            head.append(&mut bytes);
            let _ = feed_batch(&mut window, &head);
            let mut sample = sample();
            let at = flip.index(sample.len());
            sample[at] = with;
            let _ = feed_batch(&mut window, &sample);
        }
    }
}
