//! Larger capacities.

use sandstone_crash::{self as crash, Point};

use crate::error::{Result, StorageError};
use crate::image::Unfinished;
use crate::volume::image_bytes;
use crate::{Pool, ext4, image};

impl Pool {
    /// Gives a volume that is not attached a capacity of `capacity` bytes, rounded up to whole
    /// blocks, durably. Fine when it has it already. Takes some 20 ms.
    ///
    /// What grows is a copy that takes the volume's place when it is whole, so at any moment there
    /// is either the old or the new volume.
    ///
    /// # Errors
    /// [`StorageError::AlreadyAttached`], [`StorageError::Smaller`] when the capacity is larger
    /// already, [`StorageError::Missing`], [`StorageError::Full`], the system's.
    pub fn grow_volume(&self, name: &str, capacity: u64) -> Result<()> {
        let path = self.volume_path(name)?;
        let wanted = image_bytes(capacity);
        let locked = image::open_locked(name, &path)?;
        let existing = image::length(&locked, &path)?;
        if existing > wanted {
            return Err(StorageError::Smaller {
                name: name.to_owned(),
                existing,
                wanted,
            });
        }
        if existing == wanted && ext4::superblock(&locked, &path)?.bytes == wanted {
            return Ok(());
        }
        let grown = Unfinished::create(&path)?;
        grown.clone_of(&locked)?;
        ext4::settle(&grown)?;
        grown.set_len(wanted)?;
        crash::at(Point::GrowFileGrown);
        ext4::enlarge(&grown)?;
        grown.replace()
    }
}
