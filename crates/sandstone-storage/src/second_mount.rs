//! One more mount of a file system that a sandbox uses, to tell it something.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, openat};
use rustix::mount::MountAttrFlags;

use crate::ext4;
use crate::sys::loop_device::LoopDevice;

/// How long a device that cannot be mounted may take to clear itself. After that, what the mount
/// said is the answer.
const CLEAR_LIMIT: Duration = Duration::from_secs(1);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(2);

/// A second mount of an attached image, and its open root. While it lasts the image stays
/// attached: it is never kept for long.
#[derive(Debug)]
pub(crate) struct SecondMount {
    root: OwnedFd,
    _mount: OwnedFd,
    _device: LoopDevice,
}

impl SecondMount {
    /// Of the image at `path`; `None` when it is not attached.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn of(path: &Path) -> io::Result<Option<Self>> {
        let start = Instant::now();
        loop {
            let Some(device) = LoopDevice::of(path)? else {
                return Ok(None);
            };
            match Self::on(device) {
                Err(_) if start.elapsed() < CLEAR_LIMIT => thread::sleep(PAUSE),
                outcome => return outcome.map(Some),
            }
        }
    }

    fn on(device: LoopDevice) -> io::Result<Self> {
        let attributes = MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let mount = match ext4::mount(&device, attributes) {
            // After an error the file system is read-only, and so must be all its mounts.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                ext4::mount_read_only(&device)?
            }
            outcome => outcome?,
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            root: openat(&mount, ".", flags, Mode::empty())?,
            _mount: mount,
            _device: device,
        })
    }

    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}
