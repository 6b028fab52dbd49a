//! Keys of sorted tables: an IPv4 address or the front part of one in 32 bits, the same of IPv6 in 128.
//!
//! A table of a level (/24, /48, /64) stores the address shifted right, so that neighbours differ by one and pack into few bits.
//! Everything that walks, packs and merges is written once over this trait.

use crate::segment::bits;

/// A number of fixed width that a table is sorted by.
pub(crate) trait Key: Copy + Ord + Default + std::hash::Hash + std::fmt::Debug + Send + Sync + 'static {
    /// Bits of a whole address.
    const BITS: u8;
    /// Bytes in an index.
    const BYTES: usize;
    /// A key, or the end behind all keys: comparing two of these needs no look at an option.
    type Head: Copy + Ord + Send;
    /// The end.
    const END: Self::Head;

    fn head(self) -> Self::Head;
    /// The key; none at the end.
    fn of_head(head: Self::Head) -> Option<Self>;

    fn to_u128(self) -> u128;
    /// Drops what does not fit; callers have masked.
    fn from_u128(value: u128) -> Self;
    fn wrapping_add(self, other: Self) -> Self;
    /// `data` holds at least `BYTES`.
    fn read(data: &[u8]) -> Self;
    fn unpack(data: &[u8], bit: usize, width: u32, out: &mut [Self]) -> Option<()>;

    /// Shifting by the whole width gives zero, unlike the operator.
    fn shift_right(self, by: u8) -> Self;

    fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_u128().to_le_bytes()[..Self::BYTES]);
    }
}

impl Key for u32 {
    const BITS: u8 = 32;
    const BYTES: usize = 4;
    type Head = u64;
    const END: u64 = u64::MAX;

    #[inline]
    fn head(self) -> u64 {
        u64::from(self)
    }

    #[inline]
    fn of_head(head: u64) -> Option<Self> {
        (head != Self::END).then_some(head as u32)
    }

    fn to_u128(self) -> u128 {
        u128::from(self)
    }

    fn from_u128(value: u128) -> Self {
        value as u32
    }

    fn wrapping_add(self, other: Self) -> Self {
        self.wrapping_add(other)
    }

    fn read(data: &[u8]) -> Self {
        u32::from_le_bytes([data[0], data[1], data[2], data[3]])
    }

    fn unpack(data: &[u8], bit: usize, width: u32, out: &mut [Self]) -> Option<()> {
        bits::unpack_narrow(data, bit, width, out, |value| value as u32)
    }

    fn shift_right(self, by: u8) -> Self {
        self.checked_shr(u32::from(by)).unwrap_or(0)
    }
}

impl Key for u128 {
    const BITS: u8 = 128;
    const BYTES: usize = 16;
    type Head = (bool, u128);
    const END: (bool, u128) = (true, 0);

    #[inline]
    fn head(self) -> (bool, u128) {
        (false, self)
    }

    #[inline]
    fn of_head((end, key): (bool, u128)) -> Option<Self> {
        (!end).then_some(key)
    }

    fn to_u128(self) -> u128 {
        self
    }

    fn from_u128(value: u128) -> Self {
        value
    }

    fn wrapping_add(self, other: Self) -> Self {
        self.wrapping_add(other)
    }

    fn read(data: &[u8]) -> Self {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&data[..16]);
        u128::from_le_bytes(bytes)
    }

    fn unpack(data: &[u8], bit: usize, width: u32, out: &mut [Self]) -> Option<()> {
        if width <= bits::NARROW {
            return bits::unpack_narrow(data, bit, width, out, u128::from);
        }
        bits::unpack_wide(data, bit, width, out, |value| value)
    }

    fn shift_right(self, by: u8) -> Self {
        self.checked_shr(u32::from(by)).unwrap_or(0)
    }
}
