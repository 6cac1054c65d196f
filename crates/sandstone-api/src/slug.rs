//! Slugs: the names people give to volumes.

use std::fmt;
use std::str::FromStr;

/// A checked slug: 2 to 32 characters of `a-z`, `0-9` and `-`, no `-` at either end, no `--` at
/// the third and fourth place (the hosted product's rule; such names are reserved for IDNA).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slug(String);

/// Why a text is not a slug.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseSlugError {
    /// Fewer than 2 or more than 32 characters.
    #[error("must have 2 to 32 characters")]
    Length,
    /// A character outside `a-z`, `0-9`, `-`.
    #[error("may hold only a-z, 0-9 and -")]
    Character,
    /// `-` first or last.
    #[error("must not start or end with -")]
    Edge,
    /// `--` at the third and fourth place.
    #[error("must not have -- as its third and fourth characters")]
    Reserved,
}

impl Slug {
    /// Fewest characters.
    pub const MIN_CHARS: usize = 2;
    /// Most characters.
    pub const MAX_CHARS: usize = 32;

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Slug {
    type Err = ParseSlugError;

    fn from_str(text: &str) -> Result<Self, ParseSlugError> {
        let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if !text.chars().all(valid) {
            return Err(ParseSlugError::Character);
        }
        if !(Self::MIN_CHARS..=Self::MAX_CHARS).contains(&text.len()) {
            return Err(ParseSlugError::Length);
        }
        if text.starts_with('-') || text.ends_with('-') {
            return Err(ParseSlugError::Edge);
        }
        if text.as_bytes().get(2..4) == Some(b"--") {
            return Err(ParseSlugError::Reserved);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Slug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Slug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_slugs() {
        for text in ["ab", "training-cache", "0a", "a--b", &"x".repeat(32)] {
            assert_eq!(text.parse::<Slug>().unwrap().as_str(), text);
        }
    }

    #[test]
    fn bad_slugs_say_why() {
        for (text, why) in [
            ("", ParseSlugError::Length),
            ("a", ParseSlugError::Length),
            (&*"x".repeat(33), ParseSlugError::Length),
            ("Ab", ParseSlugError::Character),
            ("a b", ParseSlugError::Character),
            ("../x", ParseSlugError::Character),
            ("é1", ParseSlugError::Character),
            ("-ab", ParseSlugError::Edge),
            ("ab-", ParseSlugError::Edge),
            ("ab--cd", ParseSlugError::Reserved),
        ] {
            assert_eq!(text.parse::<Slug>(), Err(why), "{text}");
        }
    }
}
