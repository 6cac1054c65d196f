//! `mount_setattr(2)`.
#![expect(unsafe_code, reason = "system call without a wrapper")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// Attributes to add to a mount.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Attributes<'fd> {
    /// `MOUNT_ATTR_*` bits other than the id map.
    pub(crate) set: u64,
    /// User name space whose maps the mount applies to owners. Only for detached mounts.
    pub(crate) idmap: Option<BorrowedFd<'fd>>,
}

/// Adds attributes to the mount `fd` and all mounts below it. See `mount_setattr(2)`.
///
/// # Errors
/// As `mount_setattr(2)`; `EINVAL` when the file system cannot be id-mapped.
pub(crate) fn set_attributes(fd: impl AsFd, attributes: Attributes<'_>) -> io::Result<()> {
    let mut attr = libc::mount_attr {
        attr_set: attributes.set,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    if let Some(userns) = attributes.idmap {
        attr.attr_set |= libc::MOUNT_ATTR_IDMAP;
        attr.userns_fd = userns.as_raw_fd() as u64;
    }
    // SAFETY: the path is a NUL-terminated empty string, `attr` outlives the call and its size is
    // passed; the call changes kernel state only.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
