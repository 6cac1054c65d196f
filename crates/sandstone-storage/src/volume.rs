//! Volumes: images that last.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::mount::MountAttrFlags;

use crate::error::{Result, StorageError};
use crate::image::Unfinished;
use crate::sys::loop_device::{BLOCK_BYTES, LoopDevice};
use crate::sys::{fiemap, mount};
use crate::{Pool, image, tool};

/// The directory inside an image that is the volume. The image's own root is never shown: its
/// `lost+found` breaks programs that want an empty directory, PostgreSQL's initdb among them.
const VOLUME_DIRECTORY: &str = "v";

/// What a volume occupies in the pool, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// In extents that no other image shares.
    pub allocated: u64,
    /// In all extents: the size of a full copy.
    pub flattened: u64,
}

impl Pool {
    fn volume_path(&self, name: &str) -> Result<PathBuf> {
        self.path("volumes", name)
    }

    /// Makes a volume of `capacity` bytes, rounded up to whole blocks, durably. Fine when it is
    /// there with that capacity.
    ///
    /// # Errors
    /// [`StorageError`]; nothing is left of a volume that could not be made.
    pub fn create_volume(&self, name: &str, capacity: u64) -> Result<()> {
        let path = self.volume_path(name)?;
        let wanted = capacity.next_multiple_of(u64::from(BLOCK_BYTES));
        if !path.exists() {
            self.make_volume(&path, wanted)?;
        }
        // Its length, if only now somebody else's, says whether it is the one asked for.
        let existing = image::open(name, &path, false)?
            .metadata()
            .map_err(StorageError::io("measuring", &path))?
            .len();
        if existing == wanted {
            Ok(())
        } else {
            Err(StorageError::OtherCapacity {
                name: name.to_owned(),
                existing,
                wanted,
            })
        }
    }

    fn make_volume(&self, path: &Path, bytes: u64) -> Result<()> {
        let unfinished = Unfinished::create(path)?;
        unfinished.set_len(bytes)?;
        // 4 KiB blocks whatever the size: smaller ones cannot be mounted from our devices.
        // The image reads as zeros, so neither discard nor zeroing is needed.
        tool::run(
            "mkfs.ext4",
            [
                "-q".as_ref(),
                "-F".as_ref(),
                "-b".as_ref(),
                "4096".as_ref(),
                "-m".as_ref(),
                "0".as_ref(),
                "-E".as_ref(),
                "nodiscard,assume_storage_prezeroed=1,lazy_journal_init=1".as_ref(),
                "-d".as_ref(),
                self.dir().join("skeleton/volume").as_os_str(),
                unfinished.path().as_os_str(),
            ],
        )?;
        unfinished.publish()
    }

    /// Removes a volume's image. Fine when there is none.
    ///
    /// # Errors
    /// [`StorageError::AlreadyAttached`] while it is attached.
    pub fn remove_volume(&self, name: &str) -> Result<()> {
        let path = self.volume_path(name)?;
        match image::open_locked(name, &path) {
            // Locked while it is removed, so that nobody attaches it meanwhile.
            Ok(_locked) => image::remove(&path),
            Err(StorageError::Missing(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The volumes that have an image.
    ///
    /// # Errors
    /// [`StorageError`].
    pub fn volumes(&self) -> Result<Vec<String>> {
        image::names(&self.dir().join("volumes"))
    }

    /// Measures a volume, attached or not. Takes time by extents: about 0.3 ms for a thousand.
    /// Shares with images that were removed a moment ago may still count.
    ///
    /// # Errors
    /// [`StorageError::Missing`], or the system's.
    pub fn measure_volume(&self, name: &str) -> Result<Usage> {
        let path = self.volume_path(name)?;
        let file = image::open(name, &path, false)?;
        let (allocated, flattened) =
            fiemap::usage(&file).map_err(StorageError::io("measuring", &path))?;
        Ok(Usage {
            allocated,
            flattened,
        })
    }

    /// Attaches a volume: a detached mount of its content, read-write, without set-user-id
    /// programs and devices. The file system replays its journal if it has to.
    ///
    /// # Errors
    /// [`StorageError::AlreadyAttached`] when any loop device of this host has the image open.
    pub fn attach_volume(&self, name: &str) -> Result<OwnedFd> {
        let path = self.volume_path(name)?;
        let file = image::open_locked(name, &path)?;
        let device =
            LoopDevice::attach(&file, name, false).map_err(StorageError::io("attaching", &path))?;
        let root = mount::mount(
            "ext4",
            &device.path(),
            &["discard"],
            &[("errors", "remount-ro")],
            MountAttrFlags::MOUNT_ATTR_NOATIME
                | MountAttrFlags::MOUNT_ATTR_NOSUID
                | MountAttrFlags::MOUNT_ATTR_NODEV,
        )
        .map_err(StorageError::io("mounting", &path))?;
        mount::subdirectory(root, VOLUME_DIRECTORY, self.dir())
            .map_err(StorageError::io("opening the content of", &path))
    }

    /// Whether a loop device has the volume's image open.
    ///
    /// # Errors
    /// [`StorageError`].
    pub fn is_attached(&self, name: &str) -> Result<bool> {
        Ok(image::holder(&self.volume_path(name)?)?.is_some())
    }

    /// Waits until the volume's file system has ended, and flushes the image to the disk. Fine
    /// when it is not attached, or not there.
    ///
    /// # Errors
    /// [`StorageError::StillHeld`] after `limit`.
    pub fn release_volume(&self, name: &str, limit: Duration) -> Result<()> {
        let path = self.volume_path(name)?;
        match image::wait_until_free(name, &path, limit) {
            Ok(file) => file.sync_all().map_err(StorageError::io("flushing", &path)),
            Err(StorageError::Missing(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
