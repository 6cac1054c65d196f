//! Identifiers: `<kind>_<region>_<20 characters>`, for example `sbx_ord_1at5nn58e77rtd11e3k3`.
//!
//! The official JavaScript SDK refuses a sandbox id that does not match
//! `^sbx_([a-z]{3})_[0-9a-hjkmnp-z]{20}$` and reads the region out of it, so all our ids have that
//! shape.

use std::fmt;
use std::str::FromStr;

use crate::Region;

/// The 33 characters of the random part: no `i`, `l`, `o`.
pub const ID_ALPHABET: &[u8; 33] = b"0123456789abcdefghjkmnpqrstuvwxyz";

/// Length of the random part.
pub const ID_RANDOM_CHARS: usize = 20;

/// The random part of an identifier.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IdSuffix([u8; ID_RANDOM_CHARS]);

impl IdSuffix {
    /// Maps random bytes to the alphabet. The tiny bias of a modulo over 256 values leaves more
    /// than 99 bits of entropy.
    #[must_use]
    pub fn from_random(bytes: [u8; ID_RANDOM_CHARS]) -> Self {
        Self(bytes.map(|byte| ID_ALPHABET[usize::from(byte) % ID_ALPHABET.len()]))
    }

    /// The characters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Debug for IdSuffix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for IdSuffix {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let bytes: [u8; ID_RANDOM_CHARS] = text.as_bytes().try_into().map_err(|_| ParseIdError)?;
        if bytes.iter().all(|byte| ID_ALPHABET.contains(byte)) {
            Ok(Self(bytes))
        } else {
            Err(ParseIdError)
        }
    }
}

/// The text is not an identifier of the expected kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an identifier of this kind")]
pub struct ParseIdError;

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name {
            region: Region,
            suffix: IdSuffix,
        }

        impl $name {
            /// An identifier in `region`.
            #[must_use]
            pub fn new(region: Region, suffix: IdSuffix) -> Self {
                Self { region, suffix }
            }

            /// The region the object lives in.
            #[must_use]
            pub fn region(&self) -> Region {
                self.region
            }

            /// The random part, without kind and region. Unique by itself.
            #[must_use]
            pub fn suffix(&self) -> &str {
                self.suffix.as_str()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "_{}_{}"), self.region, self.suffix.as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let rest = text.strip_prefix(concat!($prefix, "_")).ok_or(ParseIdError)?;
                let (region, suffix) = rest.split_once('_').ok_or(ParseIdError)?;
                Ok(Self {
                    region: region.parse().map_err(|_| ParseIdError)?,
                    suffix: suffix.parse()?,
                })
            }
        }
    };
}

id_type!(
    /// A sandbox: `sbx_<region>_<20>`.
    SandboxId,
    "sbx"
);
id_type!(
    /// A volume: `vol_<region>_<20>`.
    VolumeId,
    "vol"
);
id_type!(
    /// A snapshot: `snp_<region>_<20>`.
    SnapshotId,
    "snp"
);

/// A volume or a snapshot: each is an image in a pool.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ImageId {
    /// A volume.
    Volume(VolumeId),
    /// A snapshot.
    Snapshot(SnapshotId),
}

impl ImageId {
    /// The random part of its id.
    #[must_use]
    pub fn suffix(&self) -> &str {
        match self {
            Self::Volume(id) => id.suffix(),
            Self::Snapshot(id) => id.suffix(),
        }
    }
}

impl From<VolumeId> for ImageId {
    fn from(id: VolumeId) -> Self {
        Self::Volume(id)
    }
}

impl From<SnapshotId> for ImageId {
    fn from(id: SnapshotId) -> Self {
        Self::Snapshot(id)
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Volume(id) => fmt::Display::fmt(id, f),
            Self::Snapshot(id) => fmt::Display::fmt(id, f),
        }
    }
}

impl fmt::Debug for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ImageId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let volume = text.parse().map(Self::Volume);
        volume.or_else(|_| text.parse().map(Self::Snapshot))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_text() {
        let region: Region = "ord".parse().unwrap();
        let id = SandboxId::new(region, IdSuffix::from_random([7; 20]));
        assert_eq!(id.to_string().parse::<SandboxId>().unwrap(), id);
        assert_eq!(id.to_string(), "sbx_ord_77777777777777777777");
        assert_eq!(id.region(), region);
    }

    #[test]
    fn wrong_shapes_are_refused() {
        for text in [
            "",
            "sbx_ord_",
            "vol_ord_1at5nn58e77rtd11e3k3",
            "sbx_orde_1at5nn58e77rtd11e3k3",
            "sbx_ord_1at5nn58e77rtd11e3k",
            "sbx_ord_1at5nn58e77rtd11e3kl",
            "sbx_ord_1AT5nn58e77rtd11e3k3",
        ] {
            assert!(text.parse::<SandboxId>().is_err(), "{text}");
        }
    }
}
