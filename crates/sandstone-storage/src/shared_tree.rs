//! Trees that many sandboxes read: bases and snapshots, each mounted once.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Result, StorageError};
use crate::images::{ImageKind, ImageName};
use crate::sys::loop_device::LoopDevice;
use crate::{Pool, ext4, image};

/// Attempts to take up a device that may be just clearing itself, and the pause between them.
const ATTEMPTS: u32 = 100;
const PAUSE: Duration = Duration::from_millis(5);

/// An image's file system and its cache, kept between sandboxes.
#[derive(Debug)]
pub(crate) struct SharedTree {
    _mount: OwnedFd,
    device: LoopDevice,
    asked_for: Instant,
}

impl Pool {
    /// A detached read-only mount of a base's tree. All of them share one file system and its
    /// cache.
    ///
    /// # Errors
    /// [`StorageError::Missing`] when it is not installed.
    pub fn base_tree(&self, name: &str) -> Result<OwnedFd> {
        self.shared_tree(name, self.path("bases", name)?)
    }

    /// A detached read-only mount of a snapshot's tree. All of them share one file system and its
    /// cache. Whoever asked before the snapshot was packed has the one before.
    ///
    /// # Errors
    /// [`StorageError::Missing`] when there is none.
    pub fn snapshot_tree(&self, name: &str) -> Result<OwnedFd> {
        let kind = ImageKind::Snapshot;
        self.shared_tree(name, self.image_path(ImageName { kind, name })?)
    }

    /// Lets go of the trees that nobody asked for during the last `idle`. The sandboxes that use
    /// one keep it, and who asks for it next shares it with them; what nobody uses is unmounted.
    pub fn drop_idle_trees(&self, idle: Duration) {
        self.trees()
            .retain(|_, tree| tree.asked_for.elapsed() < idle);
    }

    fn shared_tree(&self, name: &str, path: PathBuf) -> Result<OwnedFd> {
        let mut trees = self.trees();
        let tree = match trees.get_mut(&path) {
            Some(tree) => tree,
            None => {
                let tree = open(name, &path)?;
                trees.entry(path.clone()).or_insert(tree)
            }
        };
        tree.asked_for = Instant::now();
        // One more mount of the same device is one of the same file system.
        let root =
            ext4::mount_read_only(&tree.device).map_err(StorageError::io("mounting", &path))?;
        self.tree_of(root, &path)
    }
}

/// Takes up the image's device, which sandboxes may use already, or makes one.
fn open(name: &str, path: &Path) -> Result<SharedTree> {
    let file = image::open(name, path, false)?;
    let mut attempt = 0;
    loop {
        let existing =
            LoopDevice::of(path).map_err(StorageError::io("looking for the device of", path))?;
        let is_new = existing.is_none();
        let device = match existing {
            Some(device) => device,
            None => LoopDevice::attach(&file, name, true)
                .map_err(StorageError::io("attaching", path))?,
        };
        match ext4::mount_read_only(&device) {
            Ok(mount) => {
                return Ok(SharedTree {
                    _mount: mount,
                    device,
                    asked_for: Instant::now(),
                });
            }
            Err(error) if is_new || attempt == ATTEMPTS => {
                return Err(StorageError::io("mounting", path)(error));
            }
            Err(_) => attempt += 1,
        }
        drop(device);
        thread::sleep(PAUSE);
    }
}
