//! The key that members without certificates share.

use std::fmt;
use std::path::Path;

use zeroize::Zeroizing;

use super::IdentityError;
use crate::files;

/// 32 bytes, the same on all members; kept in a file as 64 hex digits. Shown by nothing.
#[derive(Clone)]
pub struct ClusterKey(Zeroizing<[u8; 32]>);

impl ClusterKey {
    /// Reads the key file.
    pub fn load(path: &Path) -> Result<Self, IdentityError> {
        let bad = || IdentityError::invalid(path.display().to_string(), "a cluster key is 64 hex digits");
        let text = files::read_limited(path, 1024)?
            .map(Zeroizing::new)
            .ok_or_else(|| IdentityError::invalid(path.display().to_string(), "there is no such cluster key"))?;
        let mut key = Zeroizing::new([0; 32]);
        hex::decode_to_slice(text.trim_ascii(), key.as_mut_slice()).map_err(|_| bad())?;
        if key.iter().all(|byte| *byte == 0) {
            return Err(IdentityError::invalid(path.display().to_string(), "a key of zeros protects nothing"));
        }
        Ok(Self(key))
    }

    /// The bytes, for a cipher or a MAC.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterKey(…)")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn exactly_32_bytes_in_hex() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let load = |text: &str| {
            std::fs::write(&path, text).unwrap();
            ClusterKey::load(&path)
        };
        let key = load(&format!("{}\n", "0b".repeat(32))).unwrap();
        assert_eq!(key.as_bytes(), &[11; 32]);
        assert!(!format!("{key:?}").contains("11"));
        for bad in ["", "0b", &"0b".repeat(33), &"zz".repeat(32), &"00".repeat(32)] {
            assert!(load(bad).is_err(), "{bad:?}");
        }
    }
}
