//! A pool in a file: an XFS with reflinks on a loop device, mounted at the pool's directory.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::mount::MountAttrFlags;

use crate::error::{Result, StorageError};
use crate::image::{self, Unfinished};
use crate::sys::loop_device::LoopDevice;
use crate::sys::mount;
use crate::{occupants, tool};

/// What the pool is called in messages about its file.
const NAME: &str = "the pool";

/// How long the kernel may take to write the pool's last data when it is closed.
const CLOSE_LIMIT: Duration = Duration::from_secs(60);

/// How long something may keep the directory busy that is about to end by itself.
const BUSY_LIMIT: Duration = Duration::from_secs(5);

/// Pause between two attempts.
const PAUSE: Duration = Duration::from_millis(10);

/// Attempts to take up a device that may be just clearing itself.
const ATTEMPTS: u32 = 10;

/// Makes the pool's file if it is missing, and mounts it at `dir` if it is not.
pub(crate) fn open(dir: &Path, file: &Path, bytes: u64) -> Result<()> {
    let directory = file.parent().unwrap_or(Path::new("/"));
    let stem = file.file_name().unwrap_or_default().to_string_lossy();
    image::sweep(directory, &stem)?;
    if !file.exists() {
        make(directory, file, bytes)?;
    }
    if is_mount_point(dir)? {
        return adopt(dir, file);
    }
    let device = device(file)?;
    let mounted = mount::mount(
        "xfs",
        &device.path(),
        &[],
        &[],
        MountAttrFlags::MOUNT_ATTR_NOATIME,
    )
    .map_err(StorageError::io("mounting", file))?;
    mount::attach(mounted.as_fd(), dir).map_err(StorageError::io("mounting the pool at", dir))
}

/// Takes up what a killed server left mounted.
fn adopt(dir: &Path, file: &Path) -> Result<()> {
    let mounted = device_of(dir)?;
    let device =
        LoopDevice::of(file).map_err(StorageError::io("looking for the device of", file))?;
    let ours = match device {
        Some(device) => {
            device
                .device_id()
                .map_err(StorageError::io("looking at the device of", file))?
                == mounted
        }
        None => false,
    };
    if ours {
        Ok(())
    } else {
        Err(StorageError::Foreign {
            dir: dir.to_owned(),
            file: file.to_owned(),
        })
    }
}

/// The device of the pool's file. There may be one already though the pool is not mounted here:
/// sandboxes that outlived a server keep it in other namespaces. A second one would be a second
/// writer.
fn device(file: &Path) -> Result<LoopDevice> {
    let mut attempt = 0;
    loop {
        let existing =
            LoopDevice::of(file).map_err(StorageError::io("looking for the device of", file))?;
        if let Some(device) = existing {
            return Ok(device);
        }
        match image::open_locked(NAME, file) {
            Ok(opened) => {
                return LoopDevice::attach(&opened, NAME, false)
                    .map_err(StorageError::io("attaching", file));
            }
            Err(StorageError::AlreadyAttached { .. }) if attempt < ATTEMPTS => {}
            Err(error) => return Err(error),
        }
        attempt += 1;
        thread::sleep(PAUSE);
    }
}

/// Unmounts the pool, and waits until all of it is on disk.
pub(crate) fn close(dir: &Path, file: &Path) -> Result<()> {
    let start = Instant::now();
    let mounted = device_of(dir)?;
    while let Err(error) = mount::detach(dir) {
        if error.kind() != std::io::ErrorKind::ResourceBusy {
            return Err(StorageError::io("unmounting", dir)(error));
        }
        if start.elapsed() >= BUSY_LIMIT {
            return Err(StorageError::InUse(occupants::describe(dir, mounted)));
        }
        thread::sleep(PAUSE);
    }
    let closed = match image::wait_until_free(NAME, file, CLOSE_LIMIT) {
        Err(StorageError::StillHeld { .. }) => {
            return Err(StorageError::InUse(occupants::describe(dir, mounted)));
        }
        outcome => outcome?,
    };
    closed
        .sync_all()
        .map_err(StorageError::io("flushing", file))
}

/// Reserves the pool's file in full, so that it never runs out of disk below its tenants.
fn make(directory: &Path, file: &Path, bytes: u64) -> Result<()> {
    let status = statvfs(directory).map_err(StorageError::sys("measuring", directory))?;
    let free = status.f_bavail.saturating_mul(status.f_frsize);
    if free < bytes {
        return Err(StorageError::NoRoom {
            needed: bytes,
            free,
            path: file.to_owned(),
        });
    }
    let unfinished = Unfinished::create(file)?;
    fallocate(unfinished.file(), FallocateFlags::empty(), 0, bytes)
        .map_err(StorageError::sys("reserving", unfinished.path()))?;
    tool::run(
        "mkfs.xfs",
        [
            "-q".as_ref(),
            // Discarding would give back what was just reserved.
            "-K".as_ref(),
            "-m".as_ref(),
            "reflink=1".as_ref(),
            "-s".as_ref(),
            "size=4096".as_ref(),
            unfinished.path().as_os_str(),
        ],
    )?;
    unfinished.publish()
}

/// Whether another file system begins at `dir`.
fn is_mount_point(dir: &Path) -> Result<bool> {
    Ok(device_of(dir)? != device_of(&dir.join(".."))?)
}

/// The device number of the file system at `path`.
fn device_of(path: &Path) -> Result<u64> {
    File::open(path)
        .and_then(|file| file.metadata())
        .map(|metadata| metadata.dev())
        .map_err(StorageError::io("opening", path))
}

/// Whether files in `dir` can share data.
pub(crate) fn has_reflinks(dir: &Path) -> Result<bool> {
    let (from, to) = (dir.join(".reflink-from"), dir.join(".reflink-to"));
    let probe = || -> std::io::Result<bool> {
        fs::write(&from, [1; 4096])?;
        Ok(rustix::fs::ioctl_ficlone(File::create(&to)?, File::open(&from)?).is_ok())
    };
    let outcome = probe();
    let _ = fs::remove_file(&from);
    let _ = fs::remove_file(&to);
    outcome.map_err(StorageError::io("probing", dir))
}
