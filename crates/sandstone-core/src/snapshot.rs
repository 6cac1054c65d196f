//! What is known about a snapshot beside its life.

/// What a snapshot or volume occupies, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// In extents that no relative shares: what deleting it would free.
    pub allocated: u64,
    /// In all extents: the size of a full copy.
    pub flattened: u64,
}

/// How a snapshot's file system was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Consistency {
    /// As after an unmount: everything written before is in it. The volume was not attached, or
    /// its file system was frozen meanwhile.
    FileSystem,
    /// As after a power failure, its journal replayed: everything synced before is in it.
    Crash,
}

impl Consistency {
    /// Every kind.
    pub const ALL: [Self; 2] = [Self::FileSystem, Self::Crash];

    /// The text in the database and the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::FileSystem => "filesystem",
            Self::Crash => "crash",
        }
    }

    /// The kind with this text.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

/// Whether a snapshot still has the content it was made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Health {
    /// Its checksum is not recorded yet.
    Unrecorded,
    /// Its content had the recorded checksum when it was last read.
    Intact,
    /// It had not.
    Damaged,
}

impl Health {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Unrecorded, Self::Intact, Self::Damaged];

    /// The text in the database and the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unrecorded => "unrecorded",
            Self::Intact => "intact",
            Self::Damaged => "damaged",
        }
    }

    /// The kind with this text.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_round_trip() {
        for kind in Consistency::ALL {
            assert_eq!(Consistency::from_text(kind.as_str()), Some(kind));
        }
        for kind in Health::ALL {
            assert_eq!(Health::from_text(kind.as_str()), Some(kind));
        }
    }
}
