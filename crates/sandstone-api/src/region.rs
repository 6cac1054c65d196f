//! Regions: three lower-case letters, because the official SDK demands that inside sandbox ids.

use std::fmt;
use std::str::FromStr;

/// A region, for example `ord`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Region([u8; 3]);

/// The text is not three lower-case ASCII letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a region is three lower-case letters, for example `ord`")]
pub struct ParseRegionError;

impl Region {
    /// The three letters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl FromStr for Region {
    type Err = ParseRegionError;

    fn from_str(text: &str) -> Result<Self, ParseRegionError> {
        let bytes: [u8; 3] = text.as_bytes().try_into().map_err(|_| ParseRegionError)?;
        if bytes.iter().all(u8::is_ascii_lowercase) {
            Ok(Self(bytes))
        } else {
            Err(ParseRegionError)
        }
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
