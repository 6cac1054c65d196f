//! Byte sizes as people write them.

use std::fmt;
use std::str::FromStr;

/// A number of bytes.
///
/// Parsed from a plain number (bytes) or a whole number with a unit: `kB`, `KB`, `MB`, `GB`
/// (powers of 1000) or `KiB`, `MiB`, `GiB` (powers of 1024), in any case.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ByteSize(u64);

/// The text is not a byte size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a size; write a number of bytes or one with a unit: 500MB, 2GB, 1GiB")]
pub struct ParseByteSizeError;

impl ByteSize {
    /// A size in bytes.
    #[must_use]
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// `n` mebibytes.
    #[must_use]
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }
}

impl FromStr for ByteSize {
    type Err = ParseByteSizeError;

    fn from_str(text: &str) -> Result<Self, ParseByteSizeError> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| ParseByteSizeError)?;
        let factor: u64 = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "kb" => 1000,
            "mb" => 1000 * 1000,
            "gb" => 1000 * 1000 * 1000,
            "kib" => 1 << 10,
            "mib" => 1 << 20,
            "gib" => 1 << 30,
            _ => return Err(ParseByteSizeError),
        };
        number
            .checked_mul(factor)
            .map(Self)
            .ok_or(ParseByteSizeError)
    }
}

impl fmt::Display for ByteSize {
    /// Exact when a unit divides the size, else two decimals with a decimal unit.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(&str, u64); 6] = [
            ("GB", 1_000_000_000),
            ("GiB", 1 << 30),
            ("MB", 1_000_000),
            ("MiB", 1 << 20),
            ("kB", 1000),
            ("KiB", 1 << 10),
        ];
        if let Some((unit, size)) = UNITS
            .iter()
            .find(|(_, size)| self.0 >= *size && self.0.is_multiple_of(*size))
        {
            return write!(f, "{} {unit}", self.0 / size);
        }
        for (unit, size) in [UNITS[0], UNITS[2], UNITS[4]] {
            if self.0 >= size {
                return write!(
                    f,
                    "{}.{:02} {unit}",
                    self.0 / size,
                    u128::from(self.0 % size) * 100 / u128::from(size)
                );
            }
        }
        write!(f, "{} bytes", self.0)
    }
}

impl fmt::Debug for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        for (text, bytes) in [
            ("0", 0),
            ("1234", 1234),
            ("300MB", 300_000_000),
            ("1GB", 1_000_000_000),
            ("10GiB", 10 << 30),
            ("512MiB", 512 << 20),
            ("5kB", 5000),
            ("5KB", 5000),
            ("5KiB", 5120),
            ("2gb", 2_000_000_000),
        ] {
            assert_eq!(text.parse::<ByteSize>().unwrap().bytes(), bytes, "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "GB",
            "-1",
            "1.5GB",
            "1 GB",
            "1TB",
            "99999999999999999999",
            "20000000000GiB",
        ] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn display_is_short_and_true() {
        for (bytes, text) in [
            (300_000_000, "300 MB"),
            (1 << 30, "1 GiB"),
            (20_000_000_000, "20 GB"),
            (8_797_184, "8591 KiB"),
            (1_234_567, "1.23 MB"),
            (12, "12 bytes"),
        ] {
            assert_eq!(ByteSize::new(bytes).to_string(), text);
        }
    }
}
