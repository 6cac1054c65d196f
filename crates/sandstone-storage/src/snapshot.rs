//! Snapshots: images that never change.

use crate::Pool;
use crate::copy::Copied;
use crate::error::Result;
use crate::image::Unfinished;
use crate::images::{ImageKind, ImageName};

impl Pool {
    /// Makes a snapshot of a volume, attached or not, durably. A volume that is attached is frozen
    /// meanwhile, and is still attached after. Fine when there is a snapshot of this name; then
    /// nothing is taken again. Takes about 10 µs for each extent of the volume.
    ///
    /// # Errors
    /// [`StorageError::Missing`](crate::StorageError::Missing) when there is no such volume,
    /// [`StorageError::Full`](crate::StorageError::Full),
    /// [`StorageError::Busy`](crate::StorageError::Busy) when the volume changes hands all the
    /// time; nothing is left of a snapshot that could not be made.
    pub fn create_snapshot(&self, name: &str, volume: &str) -> Result<Copied> {
        let path = self.image_path(ImageName {
            kind: ImageKind::Snapshot,
            name,
        })?;
        if path.exists() {
            return Ok(Copied::OF_IDLE);
        }
        let source = ImageName {
            kind: ImageKind::Volume,
            name: volume,
        };
        let snapshot = Unfinished::create(&path)?;
        let copied = self.copy(source, &snapshot)?;
        snapshot.seal()?;
        snapshot.publish_image()?;
        Ok(copied)
    }
}
