//! Volumes and snapshots alike: named, listed, measured, removed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Result, StorageError};
use crate::sys::fiemap;
use crate::{Pool, image};

/// How long a device may take to clear itself after the pool let go of a snapshot. Those that
/// sandboxes use do not.
const CLEAR_LIMIT: Duration = Duration::from_millis(200);

/// The kinds of images that last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ImageKind {
    /// Read and written, by one sandbox at a time.
    Volume,
    /// Never changes; any number of sandboxes read it.
    Snapshot,
}

impl ImageKind {
    /// The directory in the pool that has the images of this kind.
    pub(crate) const fn directory(self) -> &'static str {
        match self {
            Self::Volume => "volumes",
            Self::Snapshot => "snapshots",
        }
    }
}

/// An image of a volume or a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ImageName<'a> {
    /// Its kind.
    pub kind: ImageKind,
    /// Its name among those of its kind.
    pub name: &'a str,
}

/// What an image occupies in the pool. Changes when a relative is written or removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measured {
    /// Bytes in extents that no other image shares: what removing it would free.
    pub allocated: u64,
    /// Bytes in all extents: the size of a full copy.
    pub flattened: u64,
    /// How many extents there are. A copy-on-write copy costs about 10 µs for each.
    pub extents: u64,
}

impl Pool {
    pub(crate) fn image_path(&self, image: ImageName<'_>) -> Result<PathBuf> {
        self.path(image.kind.directory(), image.name)
    }

    /// The names of all images of a kind.
    ///
    /// # Errors
    /// [`StorageError`].
    pub fn images(&self, kind: ImageKind) -> Result<Vec<String>> {
        image::names(&self.dir().join(kind.directory()))
    }

    /// Measures an image, in use or not. Takes time by extents: about 0.3 ms for a thousand.
    /// Shares with images that were removed a moment ago may still count. Of an attached volume,
    /// what its file system has freed is given back first.
    ///
    /// # Errors
    /// [`StorageError::Missing`], or the system's.
    pub fn measure(&self, image: ImageName<'_>) -> Result<Measured> {
        let path = self.image_path(image)?;
        let file = image::open(image.name, &path, false)?;
        if image.kind == ImageKind::Volume {
            self.trim_attached(&path);
        }
        let extents = fiemap::extents(&file).map_err(StorageError::io("measuring", &path))?;
        Ok(Measured {
            allocated: extents.own,
            flattened: extents.all,
            extents: extents.count,
        })
    }

    /// Removes an image, whatever copies there are of it. Fine when there is none.
    ///
    /// # Errors
    /// [`StorageError::AlreadyAttached`] while a sandbox uses it.
    pub fn remove_image(&self, image: ImageName<'_>) -> Result<()> {
        let path = self.image_path(image)?;
        match image.kind {
            ImageKind::Volume => remove_locked(image.name, &path, Duration::ZERO),
            ImageKind::Snapshot => {
                // Held until the end, so that nobody mounts it meanwhile.
                let mut trees = self.trees();
                let limit = match trees.remove(&path) {
                    Some(_) => CLEAR_LIMIT,
                    None => Duration::ZERO,
                };
                remove_locked(image.name, &path, limit)
            }
        }
    }
}

/// Removes an image that is not attached, or not any more within `limit`.
fn remove_locked(name: &str, path: &Path, limit: Duration) -> Result<()> {
    match image::wait_until_free(name, path, limit) {
        // Locked while it is removed, so that nobody attaches it meanwhile.
        Ok(_locked) => image::remove(path),
        Err(StorageError::Missing(_)) => Ok(()),
        Err(StorageError::StillHeld { name, device, .. }) => {
            Err(StorageError::AlreadyAttached { name, device })
        }
        Err(error) => Err(error),
    }
}
