//! The ext4 inside images: made, mended, enlarged, mounted.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::mount::MountAttrFlags;

use crate::error::{Result, StorageError};
use crate::image::Unfinished;
use crate::superblock::Superblock;
use crate::sys::loop_device::LoopDevice;
use crate::sys::mount;
use crate::tool;

/// Whether a file system has to survive a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Journal {
    Yes,
    No,
}

/// Makes a file system in an image of its final size, with the tree at `content` in it.
pub(crate) fn format(image: &Unfinished, journal: Journal, content: &Path) -> Result<()> {
    let mut arguments = vec![
        "-q".as_ref(),
        "-F".as_ref(),
        // 4 KiB blocks whatever the size: smaller ones cannot be mounted from our devices.
        "-b".as_ref(),
        "4096".as_ref(),
        "-m".as_ref(),
        "0".as_ref(),
        // The image reads as zeros, so neither discarding nor zeroing is needed.
        "-E".as_ref(),
        "nodiscard,assume_storage_prezeroed=1,lazy_journal_init=1".as_ref(),
        "-d".as_ref(),
        content.as_os_str(),
    ];
    if journal == Journal::No {
        arguments.extend(["-O".as_ref() as &OsStr, "^has_journal".as_ref()]);
    }
    arguments.push(image.path().as_os_str());
    tool::run("mkfs.ext4", arguments)
}

/// Gives the file system in an image a journal. Fine when it has one.
pub(crate) fn add_journal(image: &Unfinished) -> Result<()> {
    let path = image.path().as_os_str();
    tool::run(
        "tune2fs",
        [
            "-O".as_ref(),
            "has_journal".as_ref(),
            "-m".as_ref(),
            "0".as_ref(),
            path,
        ],
    )
}

/// Replays the journal of a copied image and removes its nameless files, if it has any: it can
/// then be mounted without a write. Whether the journal had to be replayed.
pub(crate) fn settle(image: &Unfinished) -> Result<bool> {
    let superblock = superblock(image.file(), image.path())?;
    if superblock.needs_recovery || superblock.has_orphans {
        // e2fsck(8): 1 and 2 say that something was corrected, all above that something was not.
        tool::run_accepting("e2fsck", ["-p".as_ref(), image.path().as_os_str()], 2)?;
    }
    Ok(superblock.needs_recovery)
}

/// Lets the file system in a settled image fill the image.
pub(crate) fn enlarge(image: &Unfinished) -> Result<()> {
    // Forced: it insists on a full check otherwise, of a file system that was never in doubt.
    tool::run("resize2fs", ["-f".as_ref(), image.path().as_os_str()])
}

pub(crate) fn superblock(image: &File, path: &Path) -> Result<Superblock> {
    Superblock::read(image).map_err(StorageError::io("reading the superblock of", path))
}

/// A detached read-write mount of a device with a journal.
pub(crate) fn mount(device: &LoopDevice, attributes: MountAttrFlags) -> io::Result<OwnedFd> {
    mount::mount(
        "ext4",
        &device.path(),
        &["discard"],
        &[("errors", "remount-ro")],
        attributes | MountAttrFlags::MOUNT_ATTR_NOATIME,
    )
}

/// A detached read-write mount of a device without a journal, whose content may be lost.
pub(crate) fn mount_volatile(device: &LoopDevice) -> io::Result<OwnedFd> {
    mount::mount(
        "ext4",
        &device.path(),
        &["nobarrier", "discard"],
        &[],
        MountAttrFlags::MOUNT_ATTR_NOATIME,
    )
}

/// A detached mount of a settled image's device that writes nothing.
pub(crate) fn mount_read_only(device: &LoopDevice) -> io::Result<OwnedFd> {
    mount::mount(
        "ext4",
        &device.path(),
        &["ro", "noload"],
        &[],
        MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV,
    )
}
