//! Checksums of snapshots.

use std::fmt::Write;
use std::fs::File;
use std::io;
use std::sync::atomic::AtomicBool;

use sha2::{Digest, Sha256};

use crate::error::{Result, StorageError};
use crate::images::{ImageKind, ImageName};
use crate::{Pool, image, sparse};

impl Pool {
    /// The checksum of a snapshot's content: `sha256:` and 64 hexadecimal digits. The same content
    /// has the same checksum, wherever it has holes.
    ///
    /// It is the SHA-256 of the SHA-256 digests, 32 bytes each, of all blocks of 1 MiB in order;
    /// the last block may be shorter. Holes count as zeros.
    ///
    /// All data is read from the disk, not from the host's cache, with 1 MiB of memory.
    ///
    /// # Errors
    /// [`StorageError::Missing`], [`StorageError::Interrupted`], the system's.
    pub fn checksum_snapshot(&self, name: &str) -> Result<String> {
        let path = self.image_path(ImageName {
            kind: ImageKind::Snapshot,
            name,
        })?;
        let file = image::open(name, &path, false)?;
        of(&file, &self.interrupted).map_err(StorageError::interruptible("reading", &path))
    }
}

/// See [`Pool::checksum_snapshot`].
pub(crate) fn of(file: &File, stop: &AtomicBool) -> io::Result<String> {
    let mut checksum = Checksum::new();
    sparse::visit(file, stop, |index, block| {
        checksum.add(index, block);
        Ok(())
    })?;
    Ok(checksum.end(file.metadata()?.len()))
}

/// A checksum that is being computed. It is shown the blocks that [`sparse::visit`] shows.
pub(crate) struct Checksum {
    all: Sha256,
    /// Digest of a whole block of zeros.
    zeros: [u8; 32],
    next: u64,
}

impl Checksum {
    pub(crate) fn new() -> Self {
        Self {
            all: Sha256::new(),
            zeros: Sha256::digest(vec![0; sparse::BLOCK_BYTES]).into(),
            next: 0,
        }
    }

    pub(crate) fn add(&mut self, index: u64, block: &[u8]) {
        // All blocks of zeros before the last have the whole size.
        (self.next..index).for_each(|_| self.all.update(self.zeros));
        self.all.update(Sha256::digest(block));
        self.next = index + 1;
    }

    /// The checksum of a file of `length` bytes.
    pub(crate) fn end(mut self, length: u64) -> String {
        for index in self.next..sparse::blocks(length) {
            let size = sparse::block_bytes(length, index);
            if size == sparse::BLOCK_BYTES {
                self.all.update(self.zeros);
            } else {
                self.all.update(Sha256::digest(vec![0; size]));
            }
        }
        let mut text = "sha256:".to_owned();
        for byte in self.all.finalize() {
            // Writing to a string does not fail.
            let _ = write!(text, "{byte:02x}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn with(length: u64, pieces: &[(u64, &[u8])]) -> String {
        let file = tempfile::tempfile_in("/var/tmp").unwrap();
        file.set_len(length).unwrap();
        for (offset, bytes) in pieces {
            file.write_all_at(bytes, *offset).unwrap();
        }
        of(&file, &AtomicBool::new(false)).unwrap()
    }

    /// The definition, word by word.
    fn defined(content: &[u8]) -> String {
        let digests: Vec<u8> = content.chunks(1 << 20).flat_map(Sha256::digest).collect();
        let digits: Vec<String> = Sha256::digest(digests)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        format!("sha256:{}", digits.concat())
    }

    #[test]
    fn holes_are_zeros_and_lengths_count() {
        let mib = 1 << 20;
        let mut content = vec![0; 4 * mib + 4096];
        content[mib + 77] = 1;
        content[2 * mib - 1] = 2;
        let sparse = with(
            content.len() as u64,
            &[(mib as u64 + 77, b"\x01"), (2 * mib as u64 - 1, b"\x02")],
        );
        assert_eq!(sparse, with(content.len() as u64, &[(0, &content)]));
        assert_eq!(sparse, defined(&content));
        assert_ne!(
            sparse,
            with(content.len() as u64 - 4096, &[(0, &content[..4 * mib])])
        );
        content[4 * mib + 9] = 1;
        assert_eq!(
            with(content.len() as u64, &[(0, &content)]),
            defined(&content)
        );
        assert_eq!(with(0, &[]), defined(&[]));
        assert_eq!(with(5, &[]), defined(&[0; 5]));
    }

    #[test]
    fn the_definition_never_changes() {
        assert_eq!(
            with(3 << 20, &[(1 << 20, b"sandstone")]),
            "sha256:3cd75880a1fd471cfca631d6b459a4ed0e4f7502dfeb2e0aecc11721ae5c86ab"
        );
    }
}
