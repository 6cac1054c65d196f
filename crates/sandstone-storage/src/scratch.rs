//! What sandboxes boot from: read-only bases, and writable layers that are thrown away.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Result, StorageError};
use crate::image::Unfinished;
use crate::sys::loop_device::LoopDevice;
use crate::volume::image_bytes;
use crate::{Pool, ext4, image, sparse};

impl Pool {
    fn base_path(&self, name: &str) -> Result<PathBuf> {
        self.path("bases", name)
    }

    pub(crate) fn scratch_path(&self, name: &str) -> Result<PathBuf> {
        self.path("scratch", name)
    }

    /// Whether a base image is installed.
    #[must_use]
    pub fn has_base(&self, name: &str) -> bool {
        self.base_path(name).is_ok_and(|path| path.exists())
    }

    /// Copies a raw ext4 image into the pool as a base. Holes stay holes. Fine when it is there.
    ///
    /// # Errors
    /// [`StorageError`].
    pub fn install_base(&self, name: &str, source: &Path) -> Result<()> {
        let path = self.base_path(name)?;
        if path.exists() {
            return Ok(());
        }
        let unfinished = Unfinished::create(&path)?;
        let from = File::open(source).map_err(StorageError::io("opening", source))?;
        if unfinished.clone_of(&from).is_err() {
            sparse::copy(&from, unfinished.file(), &self.interrupted, |_, _| {})
                .map_err(StorageError::interruptible("copying", source))?;
        }
        unfinished.publish()
    }

    /// Makes a writable layer that holds at most `bytes`: a detached mount with the directories
    /// `upper` and `work`. What a crash left under this name is replaced.
    ///
    /// It has no journal and no barriers: it never outlives its sandbox, so nothing in it needs
    /// to survive.
    ///
    /// # Errors
    /// [`StorageError::AlreadyAttached`] when the name is in use. Nothing is left of a layer that
    /// could not be made.
    pub fn create_scratch(&self, name: &str, bytes: u64) -> Result<OwnedFd> {
        let template = self.scratch_template(image_bytes(bytes))?;
        let path = self.scratch_path(name)?;
        match image::open_locked(name, &path) {
            Ok(_locked) => image::remove(&path)?,
            Err(StorageError::Missing(_)) => {}
            Err(error) => return Err(error),
        }
        drop(image::create(&path)?);
        let file = image::open_locked(name, &path)?;
        let mounted = image::clone(&template, &file, &path).and_then(|()| {
            let device = LoopDevice::attach(&file, name, false)
                .map_err(StorageError::io("attaching", &path))?;
            ext4::mount_volatile(&device).map_err(StorageError::io("mounting", &path))
        });
        if mounted.is_err() {
            let _ = fs::remove_file(&path);
        }
        mounted
    }

    /// Waits until a writable layer's file system has ended, and removes it. Fine when there is
    /// none. Thaws it first.
    ///
    /// # Errors
    /// [`StorageError::StillHeld`] after `limit`.
    pub fn release_scratch(&self, name: &str, limit: Duration) -> Result<()> {
        let path = self.scratch_path(name)?;
        self.thaw(&path)?;
        match image::wait_until_free(name, &path, limit) {
            // Not flushed: after a crash it is found again, and removed again.
            Ok(_locked) => fs::remove_file(&path).map_err(StorageError::io("removing", &path)),
            Err(StorageError::Missing(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The writable layers that exist.
    ///
    /// # Errors
    /// [`StorageError`].
    pub fn scratches(&self) -> Result<Vec<String>> {
        image::names(&self.dir().join("scratch"))
    }
}
