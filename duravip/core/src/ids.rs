//! Names for members, processes, terms and versions: small, ordered, and without meaning outside comparison.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A member, by a number that every node derives from the name alone: nobody has to agree on a numbering first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MemberId(pub u64);

impl MemberId {
    /// The member of this name. Two names that fall on one number (2⁻⁵⁴ for 32 members) are refused where
    /// configurations are read, by [`crate::Config::new`].
    pub fn of_name(name: &str) -> Self {
        let digest = Sha256::digest(name.as_bytes());
        Self(digest.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Real ids fill 64 bits; small ones are the tests'.
        if self.0 < 1 << 16 { write!(f, "n{}", self.0) } else { write!(f, "{:016x}", self.0) }
    }
}

impl fmt::Debug for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One run of a member's daemon. A later run has a larger number, also when the disk was lost: the shell takes the
/// larger of "stored + 1" and the wall clock in milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Incarnation(pub u64);

/// A period of leadership. The leader is part of it, so that two leaders of one number (possible only after a majority
/// lost its disks) can never be taken for one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Term {
    /// Counts elections.
    pub number: u64,
    /// Who was elected.
    pub leader: MemberId,
}

/// A state of the ownership table. Only the term's leader makes versions of a term, so equal versions are equal tables.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Version {
    /// The leadership that made it.
    pub term: Term,
    /// Counts within the term; step 0 is what the leader took over.
    pub step: u64,
}

impl Version {
    /// Before everything: the empty table.
    pub const ZERO: Self = Self { term: Term { number: 0, leader: MemberId(0) }, step: 0 };
}

impl Default for Version {
    fn default() -> Self {
        Self::ZERO
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.number, self.leader)
    }
}

impl fmt::Debug for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.term.number, self.step)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A revision of the configuration. Revisions are ordered, so that a leader that lags never takes the table back.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct ConfigId {
    /// Grows with every change. A plain directory has no revisions: there it is 0, and any other content may follow.
    pub revision: u64,
    /// The commit (20 bytes, then zeros), or the hash of a plain directory's effective documents.
    pub commit: [u8; 32],
}

impl ConfigId {
    /// Before the first configuration.
    pub const NONE: Self = Self { revision: 0, commit: [0; 32] };

    /// Whether this may take the place of `other`.
    pub fn may_follow(self, other: Self) -> bool {
        self != other && self.revision >= other.revision
    }
}

impl fmt::Debug for ConfigId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r{}", self.revision)
    }
}
