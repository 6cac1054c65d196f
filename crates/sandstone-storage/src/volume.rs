//! Volumes: made, attached, released.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::mount::MountAttrFlags;

use crate::error::{Result, StorageError};
use crate::ext4::{self, Journal};
use crate::image::Unfinished;
use crate::images::{ImageKind, ImageName};
use crate::sys::loop_device::{BLOCK_BYTES, LoopDevice};
use crate::sys::mount;
use crate::{Pool, image};

/// The directory inside an image that is its tree. The image's own root is never shown: its
/// `lost+found` breaks programs that want an empty directory, PostgreSQL's initdb among them.
pub(crate) const TREE: &str = "v";

/// What a volume is attached for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeUse {
    /// Data below a sandbox's root: without set-user-id programs and devices.
    Data,
    /// A sandbox's root: without devices.
    Root,
}

/// The size of an image with `capacity`, bytes.
pub(crate) fn image_bytes(capacity: u64) -> u64 {
    capacity.next_multiple_of(u64::from(BLOCK_BYTES))
}

impl Pool {
    pub(crate) fn volume_path(&self, name: &str) -> Result<PathBuf> {
        self.image_path(ImageName {
            kind: ImageKind::Volume,
            name,
        })
    }

    /// Makes an empty volume of `capacity` bytes, rounded up to whole blocks, durably. Fine when
    /// it is there with that capacity.
    ///
    /// # Errors
    /// [`StorageError::OtherCapacity`], [`StorageError::Full`], the system's; nothing is left of a
    /// volume that could not be made.
    pub fn create_volume(&self, name: &str, capacity: u64) -> Result<()> {
        self.make_volume(name, capacity, |volume| {
            volume.set_len(image_bytes(capacity))?;
            ext4::format(volume, Journal::Yes, &self.dir().join("skeleton/volume"))
        })?;
        Ok(())
    }

    /// Makes a volume of `capacity` bytes that holds what a base image holds, as
    /// [`Pool::create_volume`] does.
    ///
    /// # Errors
    /// As for [`Pool::create_volume`]; [`StorageError::Missing`] when there is no such base,
    /// [`StorageError::Smaller`] when it does not fit.
    pub fn create_volume_from_base(&self, name: &str, capacity: u64, base: &str) -> Result<()> {
        self.make_volume(name, capacity, |volume| {
            volume.clone_of(&self.bootable_template(base, image_bytes(capacity))?)
        })?;
        Ok(())
    }

    /// Makes the volume with `fill` if it is missing, and checks its capacity. What `fill` said
    /// if it was called.
    pub(crate) fn make_volume<T>(
        &self,
        name: &str,
        capacity: u64,
        fill: impl FnOnce(&Unfinished) -> Result<T>,
    ) -> Result<Option<T>> {
        let path = self.volume_path(name)?;
        let wanted = image_bytes(capacity);
        let mut made = None;
        if !path.exists() {
            let volume = Unfinished::create(&path)?;
            made = Some(fill(&volume)?);
            volume.publish_image()?;
        }
        // Its length, if only now somebody else's, says whether it is the one asked for.
        let existing = image::length(&image::open(name, &path, false)?, &path)?;
        if existing == wanted {
            Ok(made)
        } else {
            Err(StorageError::OtherCapacity {
                name: name.to_owned(),
                existing,
                wanted,
            })
        }
    }

    /// Attaches a volume: a detached mount of its content, read-write. The file system replays
    /// its journal if it has to.
    ///
    /// # Errors
    /// [`StorageError::AlreadyAttached`] when any loop device of this host has the image open.
    pub fn attach_volume(&self, name: &str, purpose: VolumeUse) -> Result<OwnedFd> {
        let path = self.volume_path(name)?;
        let file = image::open_locked(name, &path)?;
        let device =
            LoopDevice::attach(&file, name, false).map_err(StorageError::io("attaching", &path))?;
        let attributes = match purpose {
            VolumeUse::Data => MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID,
            VolumeUse::Root => MountAttrFlags::MOUNT_ATTR_NODEV,
        };
        let root = ext4::mount(&device, attributes).map_err(StorageError::io("mounting", &path))?;
        self.tree_of(root, &path)
    }

    /// The tree in a mounted image.
    pub(crate) fn tree_of(&self, root: OwnedFd, path: &Path) -> Result<OwnedFd> {
        mount::subdirectory(root, TREE, self.dir())
            .map_err(StorageError::io("opening the content of", path))
    }

    /// Whether a loop device has the volume's image open.
    ///
    /// # Errors
    /// [`StorageError`].
    pub fn is_attached(&self, name: &str) -> Result<bool> {
        Ok(image::holder(&self.volume_path(name)?)?.is_some())
    }

    /// Waits until the volume's file system has ended, and flushes the image to the disk. Fine
    /// when it is not attached, or not there. Thaws it first.
    ///
    /// # Errors
    /// [`StorageError::StillHeld`] after `limit`.
    pub fn release_volume(&self, name: &str, limit: Duration) -> Result<()> {
        let path = self.volume_path(name)?;
        self.thaw(&path)?;
        match image::wait_until_free(name, &path, limit) {
            Ok(file) => file.sync_all().map_err(StorageError::io("flushing", &path)),
            Err(StorageError::Missing(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
