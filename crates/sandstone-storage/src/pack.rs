//! Packing: the same snapshot in fewer extents.

use std::sync::{PoisonError, TryLockError};

use sandstone_crash::{self as crash, Point};

use crate::checksum::Checksum;
use crate::error::{Result, StorageError};
use crate::image::Unfinished;
use crate::images::{ImageKind, ImageName, Measured};
use crate::{Pool, checksum, image, sparse};

/// Free room that packing leaves to others, bytes.
const ROOM_LEFT_BYTES: u64 = 64 << 20;

impl Pool {
    /// Writes a snapshot anew, in order, and puts the result in its place. It no longer shares
    /// anything with its relatives. Whoever uses the snapshot keeps the old image, and its room,
    /// until they end. The copy is read back and compared first. Takes some seconds for a gigabyte, and leaves the host's cache alone.
    ///
    /// # Errors
    /// [`StorageError::Full`] when there is no room for it, [`StorageError::Busy`] while another
    /// snapshot is being packed, [`StorageError::Missing`], [`StorageError::Interrupted`], the
    /// system's. The snapshot is then as before.
    pub fn pack_snapshot(&self, name: &str) -> Result<Measured> {
        let image = ImageName {
            kind: ImageKind::Snapshot,
            name,
        };
        let path = self.image_path(image)?;
        let _one_at_a_time = match self.packing.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(guard)) => PoisonError::into_inner(guard),
            Err(TryLockError::WouldBlock) => return Err(StorageError::Busy(name.to_owned())),
        };
        let source = image::open(name, &path, false)?;
        let needed = sparse::copy_bytes(&source).map_err(StorageError::io("measuring", &path))?;
        let free = self.space()?.free;
        if free < needed.saturating_add(ROOM_LEFT_BYTES) {
            return Err(StorageError::Full(format!(
                "packing {name} needs {needed} bytes, and {free} are free"
            )));
        }
        let packed = Unfinished::create(&path)?;
        let mut copied = Checksum::new();
        sparse::copy(&source, packed.file(), &self.interrupted, |index, block| {
            copied.add(index, block)
        })
        .map_err(StorageError::interruptible("packing", &path))?;
        packed.seal()?;
        // What the disk holds of the copy, before it takes the place of the only other one.
        let on_disk = checksum::of(packed.file(), &self.interrupted)
            .map_err(StorageError::interruptible("comparing", &path))?;
        if on_disk != copied.end(image::length(&source, &path)?) {
            return Err(StorageError::OtherContent(name.to_owned()));
        }
        crash::at(Point::PackCopied);
        {
            // Nobody may take up the old image just now.
            let mut trees = self.trees();
            packed.replace()?;
            trees.remove(&path);
        }
        crash::at(Point::PackSwapped);
        self.measure(image)
    }
}
