//! Limits, and the types that are within them.

use std::collections::BTreeMap;

use sandstone_api::{ApiError, ByteSize};

/// Smallest volume: 300 MB, as documented by the hosted product.
pub const CAPACITY_MIN: ByteSize = ByteSize::new(300_000_000);
/// Largest volume: 20 GB, as documented by the hosted product.
pub const CAPACITY_MAX: ByteSize = ByteSize::new(20_000_000_000);
/// Smallest volume made from a base image: the system takes about 400 MB of it.
pub const BOOTABLE_CAPACITY_MIN: ByteSize = ByteSize::new(1_000_000_000);
/// Least memory of a sandbox: 768 MiB (checked by the JavaScript SDK too).
pub const MEMORY_MIN: ByteSize = ByteSize::mib(768);
/// Most memory of a sandbox: 4096 MiB (checked by the JavaScript SDK too).
pub const MEMORY_MAX: ByteSize = ByteSize::mib(4096);
/// Memory when the client names none.
pub const MEMORY_DEFAULT: ByteSize = ByteSize::mib(1280);
/// Longest life a client may ask for at once: 30 minutes.
pub const LIFETIME_MAX_MS: i64 = 30 * 60 * 1000;
/// Labels per sandbox.
pub const LABELS_MAX: usize = 5;
/// Bytes of a label's key.
pub const LABEL_KEY_MAX_BYTES: usize = 64;
/// Bytes of a label's value.
pub const LABEL_VALUE_MAX_BYTES: usize = 128;
/// Volumes mounted in one sandbox. Undocumented by the hosted product; ours is generous.
pub const VOLUMES_PER_SANDBOX_MAX: usize = 16;
/// How long a deleted volume's data is kept: 24 hours.
pub const DELETION_GRACE_MS: i64 = 24 * 60 * 60 * 1000;

/// A volume's capacity, within bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct VolumeCapacity(ByteSize);

impl VolumeCapacity {
    /// Checks the bounds.
    ///
    /// # Errors
    /// 400 naming the field, the value and the bounds.
    pub fn new(size: ByteSize) -> Result<Self, ApiError> {
        if (CAPACITY_MIN..=CAPACITY_MAX).contains(&size) {
            Ok(Self(size))
        } else {
            Err(ApiError::invalid_field(
                "capacity",
                size,
                format_args!("a volume holds between {CAPACITY_MIN} and {CAPACITY_MAX}"),
            ))
        }
    }

    /// In bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0.bytes()
    }
}

/// A sandbox's memory, within bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory(ByteSize);

impl Memory {
    /// Checks the bounds of a number of MiB.
    ///
    /// # Errors
    /// 400 naming the field, the value and the bounds.
    pub fn from_mib(mib: u64) -> Result<Self, ApiError> {
        let bounds = MEMORY_MIN.bytes() >> 20..=MEMORY_MAX.bytes() >> 20;
        if bounds.contains(&mib) {
            Ok(Self(ByteSize::mib(mib)))
        } else {
            Err(ApiError::invalid_field(
                "memory_mb",
                mib,
                format_args!(
                    "a sandbox has between {} and {} MiB",
                    bounds.start(),
                    bounds.end()
                ),
            ))
        }
    }

    /// In bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0.bytes()
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self(MEMORY_DEFAULT)
    }
}

/// A sandbox's labels, within bounds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels(BTreeMap<String, String>);

impl Labels {
    /// Checks number and lengths.
    ///
    /// # Errors
    /// 400 naming the label and the bound.
    pub fn new(labels: BTreeMap<String, String>) -> Result<Self, ApiError> {
        if labels.len() > LABELS_MAX {
            return Err(ApiError::invalid_field(
                "labels",
                format_args!("{} entries", labels.len()),
                format_args!("at most {LABELS_MAX}"),
            ));
        }
        for (key, value) in &labels {
            if key.is_empty() || key.len() > LABEL_KEY_MAX_BYTES {
                return Err(ApiError::invalid_field(
                    "labels",
                    format_args!("a key of {} bytes", key.len()),
                    format_args!("keys have 1 to {LABEL_KEY_MAX_BYTES} bytes"),
                ));
            }
            if value.len() > LABEL_VALUE_MAX_BYTES {
                return Err(ApiError::invalid_field(
                    &format!("labels.{key}"),
                    format_args!("{} bytes long", value.len()),
                    format_args!("values have at most {LABEL_VALUE_MAX_BYTES} bytes"),
                ));
            }
        }
        Ok(Self(labels))
    }

    /// The labels.
    #[must_use]
    pub fn as_map(&self) -> &BTreeMap<String, String> {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capacity_bounds_are_inclusive() {
        assert!(VolumeCapacity::new(CAPACITY_MIN).is_ok());
        assert!(VolumeCapacity::new(CAPACITY_MAX).is_ok());
        let below = VolumeCapacity::new(ByteSize::new(299_999_999)).unwrap_err();
        assert!(below.message.contains("capacity"), "{below}");
        assert!(below.message.contains("300 MB"), "{below}");
        assert!(VolumeCapacity::new(ByteSize::new(20_000_000_001)).is_err());
    }

    #[test]
    fn memory_bounds_are_inclusive() {
        assert!(Memory::from_mib(768).is_ok());
        assert!(Memory::from_mib(4096).is_ok());
        assert!(Memory::from_mib(767).is_err());
        assert!(Memory::from_mib(4097).is_err());
    }

    #[test]
    fn labels_are_bounded() {
        let many = (0..6).map(|n| (n.to_string(), String::new())).collect();
        assert!(Labels::new(many).is_err());
        assert!(Labels::new([("k".repeat(65), String::new())].into()).is_err());
        assert!(Labels::new([("k".to_owned(), "v".repeat(129))].into()).is_err());
        assert!(Labels::new([("k".repeat(64), "v".repeat(128))].into()).is_ok());
    }
}
