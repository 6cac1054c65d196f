//! Limits, and the types that are within them.

use std::collections::BTreeMap;

use sandstone_api::{ApiError, ByteSize, ErrorCode};

/// Smallest volume: 300 MB, as documented by the hosted product.
pub const CAPACITY_MIN: ByteSize = ByteSize::new(300_000_000);
/// Largest volume: 20 GB, as documented by the hosted product.
pub const CAPACITY_MAX: ByteSize = ByteSize::new(20_000_000_000);
/// Smallest volume made from a base image: the system takes about 400 MB of it.
pub const BOOTABLE_CAPACITY_MIN: ByteSize = ByteSize::new(1_000_000_000);
/// Default of the least memory of a sandbox: 768 MiB (checked by the JavaScript SDK too).
pub const MEMORY_MIN: ByteSize = ByteSize::mib(768);
/// Default of the most memory of a sandbox: 4096 MiB (checked by the JavaScript SDK too).
pub const MEMORY_MAX: ByteSize = ByteSize::mib(4096);
/// Memory when the client names none.
pub const MEMORY_DEFAULT: ByteSize = ByteSize::mib(1280);
/// Default of the longest life that a client may ask for at once: 30 minutes, as documented by
/// the hosted product.
pub const LIFETIME_MAX_MS: i64 = 30 * 60 * 1000;
/// Default of the sandboxes that an organisation has at once: 5, as documented by the hosted
/// product.
pub const SANDBOXES_MAX: u32 = 5;
/// Labels per sandbox.
pub const LABELS_MAX: usize = 5;
/// Bytes of a label's key.
pub const LABEL_KEY_MAX_BYTES: usize = 64;
/// Bytes of a label's value.
pub const LABEL_VALUE_MAX_BYTES: usize = 128;
/// Volumes mounted in one sandbox. Undocumented by the hosted product; ours is generous.
pub const VOLUMES_PER_SANDBOX_MAX: usize = 16;
/// Connections of clients to one sandbox, the one that created it included. A client of the SDKs
/// has one for each sandbox it works with, so this is as many programs at once.
pub const CONNECTIONS_PER_SANDBOX_MAX: usize = 64;
/// Connections of clients to all sandboxes of a server. An idle one costs about 100 KiB and one
/// file descriptor.
pub const CONNECTIONS_MAX: usize = 4096;
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
    /// What a maintenance sandbox has: [`MEMORY_MIN`], whatever clients are allowed.
    pub const MAINTENANCE: Self = Self(MEMORY_MIN);

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

/// What an operator allows: the limits of a client's sandboxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SandboxBounds {
    memory_min: ByteSize,
    memory_max: ByteSize,
    /// Longest life that a client may ask for at once, milliseconds.
    pub lifetime_max_ms: i64,
    /// Sandboxes that an organisation has at once.
    pub sandboxes_max: u32,
}

impl Default for SandboxBounds {
    fn default() -> Self {
        Self {
            memory_min: MEMORY_MIN,
            memory_max: MEMORY_MAX,
            lifetime_max_ms: LIFETIME_MAX_MS,
            sandboxes_max: SANDBOXES_MAX,
        }
    }
}

impl SandboxBounds {
    /// The same with other bounds of the memory, in whole MiB. Nothing when no amount is within
    /// them.
    #[must_use]
    pub fn with_memory(self, min: ByteSize, max: ByteSize) -> Option<Self> {
        let memory_min = ByteSize::mib(min.bytes().div_ceil(1 << 20).max(1));
        let memory_max = ByteSize::mib(max.bytes() >> 20);
        (memory_min <= memory_max).then_some(Self {
            memory_min,
            memory_max,
            ..self
        })
    }

    /// A sandbox's memory, of a number of MiB; when none is given [`MEMORY_DEFAULT`], or what is
    /// allowed and comes nearest.
    ///
    /// # Errors
    /// `MEMORY_OUT_OF_RANGE`, naming the field, the value and the bounds.
    pub fn memory(&self, mib: Option<u64>) -> Result<Memory, ApiError> {
        let Some(mib) = mib else {
            let nearest = MEMORY_DEFAULT.clamp(self.memory_min, self.memory_max);
            return Ok(Memory(nearest));
        };
        let bounds = self.memory_min.bytes() >> 20..=self.memory_max.bytes() >> 20;
        if bounds.contains(&mib) {
            return Ok(Memory(ByteSize::mib(mib)));
        }
        let (min, max) = bounds.into_inner();
        let error = ApiError::new(
            ErrorCode::MemoryOutOfRange,
            format!(
                "`memory_mb` is {mib}; a sandbox of this server has between {min} and {max} MiB"
            ),
        );
        Err(error.with_hint("Ask for an amount within these bounds."))
    }

    /// Checks how long a sandbox is to live from now, in milliseconds; a lifetime may be
    /// `tolerance_ms` too long and is cut then.
    ///
    /// # Errors
    /// `INVALID_REQUEST` when it would be over already, `LIFETIME_TOO_LONG`; both name `field` and
    /// the bound.
    pub fn lifetime_ms(
        &self,
        field: &str,
        wanted_ms: i64,
        tolerance_ms: i64,
    ) -> Result<i64, ApiError> {
        let max = self.lifetime_max_ms;
        if wanted_ms <= 0 {
            return Err(ApiError::invalid_field(
                field,
                format_args!("{wanted_ms} ms from now"),
                "the sandbox would end before it starts",
            ));
        }
        if wanted_ms > max.saturating_add(tolerance_ms) {
            let error = ApiError::new(
                ErrorCode::LifetimeTooLong,
                format!(
                    "`{field}`: the sandbox would live for {} s, and this server allows {} s at a \
                     time",
                    wanted_ms / 1000,
                    max / 1000
                ),
            );
            return Err(error.with_hint(
                "Ask for less, and extend it while it runs. If you did, compare the clocks of \
                 client and server.",
            ));
        }
        Ok(wanted_ms.min(max))
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
        let bounds = SandboxBounds::default();
        assert_eq!(bounds.memory(Some(768)).unwrap().bytes(), 768 << 20);
        assert_eq!(bounds.memory(Some(4096)).unwrap().bytes(), 4096 << 20);
        for mib in [0, 767, 4097, u64::MAX] {
            let error = bounds.memory(Some(mib)).unwrap_err();
            assert_eq!(error.code, ErrorCode::MemoryOutOfRange);
            assert!(error.message.contains("768 and 4096"), "{error}");
        }
    }

    #[test]
    fn an_operator_chooses_the_bounds_of_the_memory() {
        let with =
            |min, max| SandboxBounds::default().with_memory(ByteSize::mib(min), ByteSize::mib(max));
        let small = with(128, 512).unwrap();
        assert_eq!(small.memory(None).unwrap().bytes(), 512 << 20);
        assert!(small.memory(Some(128)).is_ok());
        assert!(small.memory(Some(513)).is_err());
        let large = with(2048, 8192).unwrap();
        assert_eq!(large.memory(None).unwrap().bytes(), 2048 << 20);
        assert_eq!(with(512, 256), None);
        let default = SandboxBounds::default().memory(None).unwrap();
        assert_eq!(default.bytes(), MEMORY_DEFAULT.bytes());
    }

    #[test]
    fn lifetimes_are_bounded() {
        let bounds = SandboxBounds {
            lifetime_max_ms: 60_000,
            ..SandboxBounds::default()
        };
        let lifetime = |wanted| bounds.lifetime_ms("timeout", wanted, 5000);
        assert_eq!(lifetime(1).unwrap(), 1);
        assert_eq!(lifetime(60_000).unwrap(), 60_000);
        assert_eq!(lifetime(65_000).unwrap(), 60_000, "cut");
        for (wanted, code) in [
            (0, ErrorCode::InvalidRequest),
            (i64::MIN, ErrorCode::InvalidRequest),
            (65_001, ErrorCode::LifetimeTooLong),
            (i64::MAX, ErrorCode::LifetimeTooLong),
        ] {
            let error = lifetime(wanted).unwrap_err();
            assert_eq!(error.code, code, "{wanted}");
            assert!(error.message.contains("timeout"), "{error}");
        }
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
