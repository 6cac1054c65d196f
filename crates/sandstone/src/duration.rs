//! Lengths of time as people write them on the command line.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Units, the largest first, in milliseconds.
const UNITS: [(&str, u64); 5] = [
    ("d", 24 * 60 * 60 * 1000),
    ("h", 60 * 60 * 1000),
    ("m", 60 * 1000),
    ("s", 1000),
    ("ms", 1),
];

/// A whole number with a unit: `500ms`, `30s`, `5m`, `24h`, `7d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Humane(u64);

/// The text is not a length of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("write a whole number with a unit: 500ms, 30s, 5m, 24h, 7d")]
pub(crate) struct ParseHumaneError;

impl Humane {
    /// A length of time in milliseconds.
    pub(crate) const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// For timers.
    pub(crate) const fn duration(self) -> Duration {
        Duration::from_millis(self.0)
    }

    /// For sums with timestamps.
    pub(crate) fn millis(self) -> i64 {
        i64::try_from(self.0).unwrap_or(i64::MAX)
    }
}

impl FromStr for Humane {
    type Err = ParseHumaneError;

    fn from_str(text: &str) -> Result<Self, ParseHumaneError> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| ParseHumaneError)?;
        let found = UNITS.iter().find(|(name, _)| *name == unit);
        let (_, factor) = found.ok_or(ParseHumaneError)?;
        let millis = number.checked_mul(*factor).ok_or(ParseHumaneError)?;
        Ok(Self(millis))
    }
}

impl fmt::Display for Humane {
    /// The two largest units: `26s`, `5m 3s`, `6d 23h`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let largest = UNITS.iter().position(|(_, millis)| self.0 >= *millis);
        let Some(largest) = largest else {
            return f.write_str("0s");
        };
        let (unit, millis) = UNITS[largest];
        write!(f, "{}{unit}", self.0 / millis)?;
        if let Some((smaller, smaller_millis)) = UNITS.get(largest + 1)
            && *smaller != "ms"
        {
            let rest = self.0 % millis / smaller_millis;
            if rest > 0 {
                write!(f, " {rest}{smaller}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        for (text, millis) in [
            ("0s", 0),
            ("500ms", 500),
            ("30s", 30_000),
            ("5m", 300_000),
            ("24h", 86_400_000),
            ("7d", 604_800_000),
        ] {
            assert_eq!(text.parse(), Ok(Humane(millis)), "{text}");
        }
        for bad in [
            "",
            "5",
            "s",
            "1.5s",
            "-1s",
            "1 s",
            "1w",
            "99999999999999999d",
        ] {
            assert_eq!(bad.parse::<Humane>(), Err(ParseHumaneError), "{bad}");
        }
    }

    #[test]
    fn shown_by_the_two_largest_units() {
        for (millis, text) in [
            (0, "0s"),
            (84, "84ms"),
            (26_900, "26s"),
            (303_000, "5m 3s"),
            (86_400_000, "1d"),
            (86_399_999, "23h 59m"),
            (604_800_000 - 1, "6d 23h"),
        ] {
            assert_eq!(Humane(millis).to_string(), text);
        }
    }
}
