//! Servers in a sandbox that can be reached from outside, under names of their own.

use std::fmt;
use std::str::FromStr;

use sandstone_api::ID_ALPHABET;

/// Names per sandbox, bound or not.
pub const EXPOSURES_PER_SANDBOX_MAX: usize = 64;

/// 24 of 33 characters: 120 bits. Who knows the name can reach the server, so it must not be
/// guessable.
const NAME_CHARS: usize = 24;

/// The name under which a server can be reached: one label of a host name, in lower case.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExposureName(String);

impl ExposureName {
    /// How many random bytes [`ExposureName::from_random`] takes.
    pub const RANDOM_BYTES: usize = NAME_CHARS;

    /// Maps random bytes to the alphabet of identifiers. The tiny bias of a modulo over 256 values
    /// leaves more than 119 bits of entropy.
    #[must_use]
    pub fn from_random(bytes: [u8; NAME_CHARS]) -> Self {
        let letter = |byte| char::from(ID_ALPHABET[usize::from(byte) % ID_ALPHABET.len()]);
        Self(bytes.into_iter().map(letter).collect())
    }

    /// The label.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ExposureName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The rest opens the door.
        write!(f, "{}…", &self.0[..6])
    }
}

/// The text is no name that was ever issued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the name of an exposed server")]
pub struct ParseExposureNameError;

impl FromStr for ExposureName {
    type Err = ParseExposureNameError;

    /// Host names know no case.
    fn from_str(text: &str) -> Result<Self, ParseExposureNameError> {
        let name = text.to_ascii_lowercase();
        let is_one = name.len() == NAME_CHARS && name.bytes().all(|c| ID_ALPHABET.contains(&c));
        is_one.then_some(Self(name)).ok_or(ParseExposureNameError)
    }
}

/// Where a name leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExposureTarget {
    /// A port of the sandbox; not 0.
    Port(u16),
    /// The HTTP server of a process, whatever port it chose.
    Process {
        /// Its id, as seen inside the sandbox.
        pid: u32,
        /// The path of the unix socket on which that server listens, too.
        socket: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_labels_of_host_names() {
        let bytes = std::array::from_fn(|n| u8::try_from(n * 11).unwrap());
        let name = ExposureName::from_random(bytes);
        assert_eq!(name.as_str().len(), NAME_CHARS);
        let shouted = name.as_str().to_ascii_uppercase();
        assert_eq!(shouted.parse::<ExposureName>(), Ok(name.clone()));
        assert!(!format!("{name:?}").contains(name.as_str()));
        let long = format!("{}a", name.as_str());
        for text in ["", "www", "-", "é", &long, &name.as_str().replace('0', "i")] {
            assert_eq!(text.parse::<ExposureName>(), Err(ParseExposureNameError));
        }
    }
}
