//! What a mounted file system can be told: `FIFREEZE`, `FITHAW` and `FITRIM` of linux/fs.h, see
//! fsfreeze(8) and fstrim(8).
#![expect(unsafe_code, reason = "the ioctls have no safe wrappers")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `_IOWR('X', 119, int)`.
const FIFREEZE: libc::c_ulong = 0xc004_5877;
/// `_IOWR('X', 120, int)`.
const FITHAW: libc::c_ulong = 0xc004_5878;
/// `_IOWR('X', 121, struct fstrim_range)`.
const FITRIM: libc::c_ulong = 0xc018_5879;

/// `struct fstrim_range`.
#[repr(C)]
struct Range {
    start: u64,
    length: u64,
    minimum: u64,
}

/// Puts all of the file system of `file` on its device in a clean state and stops writers, until
/// somebody thaws it. It lives on while it is frozen, mounted or not.
///
/// # Errors
/// `EBUSY` when it is frozen already; what the device says.
pub(crate) fn freeze(file: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the descriptor is open; the kernel ignores the argument.
    check(unsafe { libc::ioctl(file.as_raw_fd(), FIFREEZE as _, 0) })
}

/// Lets writers go on. Whether it was frozen.
///
/// # Errors
/// What the device says.
pub(crate) fn thaw(file: BorrowedFd<'_>) -> io::Result<bool> {
    // SAFETY: the descriptor is open; the kernel ignores the argument.
    match check(unsafe { libc::ioctl(file.as_raw_fd(), FITHAW as _, 0) }) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Gives the device all blocks back that the file system does not use.
///
/// # Errors
/// `EOPNOTSUPP` where the device takes none; what the device says.
pub(crate) fn trim(file: BorrowedFd<'_>) -> io::Result<()> {
    let mut range = Range {
        start: 0,
        length: u64::MAX,
        minimum: 0,
    };
    // SAFETY: the descriptor is open, and the kernel reads and writes exactly this struct.
    check(unsafe { libc::ioctl(file.as_raw_fd(), FITRIM as _, &raw mut range) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
