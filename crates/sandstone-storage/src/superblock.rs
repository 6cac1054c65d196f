//! What an ext4 superblock says: Documentation/filesystems/ext4/super.rst.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Where the superblock begins, and its size, bytes.
const OFFSET: u64 = 1024;
const BYTES: usize = 1024;

// Offsets of its little-endian fields, and bits in them.
const BLOCKS_COUNT_LO: usize = 0x4;
const LOG_BLOCK_SIZE: usize = 0x18;
const MAGIC: usize = 0x38;
const MAGIC_VALUE: u32 = 0xef53;
const FEATURE_INCOMPAT: usize = 0x60;
const INCOMPAT_RECOVER: u32 = 0x4;
const INCOMPAT_64BIT: u32 = 0x80;
const FEATURE_RO_COMPAT: usize = 0x64;
const RO_COMPAT_ORPHAN_PRESENT: u32 = 0x1_0000;
const LAST_ORPHAN: usize = 0xe8;
const BLOCKS_COUNT_HI: usize = 0x150;

/// The largest `s_log_block_size`: 64 KiB blocks.
const LOG_BLOCK_SIZE_MAX: u32 = 6;

/// What has to be known of a file system that is not mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Superblock {
    /// Its size, bytes. Less than its image's by what does not fill a block group.
    pub(crate) bytes: u64,
    /// Its journal has to be replayed.
    pub(crate) needs_recovery: bool,
    /// It has files without a name, which were open when it ended or was frozen.
    pub(crate) has_orphans: bool,
}

impl Superblock {
    /// Reads the superblock of an image.
    ///
    /// # Errors
    /// The system's; [`io::ErrorKind::InvalidData`] when there is none.
    pub(crate) fn read(image: &File) -> io::Result<Self> {
        let mut bytes = [0; BYTES];
        image.read_exact_at(&mut bytes, OFFSET)?;
        Self::parse(&bytes).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not an ext4"))
    }

    fn parse(bytes: &[u8; BYTES]) -> Option<Self> {
        let word = |offset: usize| {
            u32::from_le_bytes([
                bytes[offset],
                bytes[offset + 1],
                bytes[offset + 2],
                bytes[offset + 3],
            ])
        };
        let log_block_size = word(LOG_BLOCK_SIZE);
        if word(MAGIC) & 0xffff != MAGIC_VALUE || log_block_size > LOG_BLOCK_SIZE_MAX {
            return None;
        }
        let incompat = word(FEATURE_INCOMPAT);
        let mut blocks = u64::from(word(BLOCKS_COUNT_LO));
        if incompat & INCOMPAT_64BIT != 0 {
            blocks |= u64::from(word(BLOCKS_COUNT_HI)) << 32;
        }
        Some(Self {
            bytes: blocks.saturating_mul(1024 << log_block_size),
            needs_recovery: incompat & INCOMPAT_RECOVER != 0,
            has_orphans: word(LAST_ORPHAN) != 0
                || word(FEATURE_RO_COMPAT) & RO_COMPAT_ORPHAN_PRESENT != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(bytes: &mut [u8; BYTES], offset: usize, value: u32) {
        bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    }

    #[test]
    fn fields_are_found() {
        let mut bytes = [0; BYTES];
        assert_eq!(Superblock::parse(&bytes), None);
        set(&mut bytes, MAGIC, MAGIC_VALUE | 0x1_0000);
        set(&mut bytes, LOG_BLOCK_SIZE, 2);
        set(&mut bytes, BLOCKS_COUNT_LO, 1000);
        set(&mut bytes, BLOCKS_COUNT_HI, 1);
        let clean = Superblock {
            bytes: 1000 * 4096,
            needs_recovery: false,
            has_orphans: false,
        };
        assert_eq!(Superblock::parse(&bytes), Some(clean));
        set(&mut bytes, FEATURE_INCOMPAT, 0x80 | 0x4);
        let recover = Superblock {
            bytes: ((1 << 32) + 1000) * 4096,
            needs_recovery: true,
            ..clean
        };
        assert_eq!(Superblock::parse(&bytes), Some(recover));
        set(&mut bytes, LAST_ORPHAN, 12);
        assert!(Superblock::parse(&bytes).unwrap().has_orphans);
        set(&mut bytes, LAST_ORPHAN, 0);
        set(&mut bytes, FEATURE_RO_COMPAT, 0x1_0000);
        assert!(Superblock::parse(&bytes).unwrap().has_orphans);
        set(&mut bytes, LOG_BLOCK_SIZE, 60);
        assert_eq!(Superblock::parse(&bytes), None);
    }
}
