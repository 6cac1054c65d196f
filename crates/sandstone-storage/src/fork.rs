//! Forks: volumes that begin as a copy of another image.

use sandstone_crash::{self as crash, Point};

use crate::copy::Copied;
use crate::error::{Result, StorageError};
use crate::images::ImageName;
use crate::volume::image_bytes;
use crate::{Pool, ext4, image};

impl Pool {
    /// Makes a volume of `capacity` bytes that begins as a copy of a snapshot or a volume, attached
    /// or not, durably. Fine when it is there with that capacity; then nothing is copied again.
    /// Takes about 10 µs for each extent of the source, and up to 50 ms more with a larger
    /// capacity than the source's.
    ///
    /// # Errors
    /// [`StorageError::Missing`] when there is no such source, [`StorageError::Smaller`] when its
    /// capacity is larger, and as for [`Pool::create_volume`] and [`Pool::create_snapshot`].
    pub fn fork(&self, name: &str, capacity: u64, source: ImageName<'_>) -> Result<Copied> {
        let wanted = image_bytes(capacity);
        let copied = self.make_volume(name, capacity, |volume| {
            let copied = self.copy(source, volume)?;
            crash::at(Point::ForkCloned);
            let existing = image::length(volume.file(), volume.path())?;
            if existing > wanted {
                return Err(StorageError::Smaller {
                    name: source.name.to_owned(),
                    existing,
                    wanted,
                });
            }
            if existing < wanted {
                volume.set_len(wanted)?;
                ext4::enlarge(volume)?;
            }
            Ok(copied)
        })?;
        Ok(copied.unwrap_or(Copied::OF_IDLE))
    }
}
