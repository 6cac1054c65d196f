//! The extent size hint of XFS: `FS_IOC_FSSETXATTR`, ioctl_xfs_fsgetxattr(2).
#![expect(unsafe_code, reason = "the ioctl has no safe wrapper")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `_IOW('X', 32, struct fsxattr)` of linux/fs.h.
const FS_IOC_FSSETXATTR: libc::c_ulong = 0x401c_5820;
/// `FS_XFLAG_EXTSIZE` of linux/fs.h.
const FS_XFLAG_EXTSIZE: u32 = 0x0000_0800;

/// `struct fsxattr` of linux/fs.h.
#[repr(C)]
struct FsXattr {
    xflags: u32,
    extsize: u32,
    nextents: u32,
    projid: u32,
    cowextsize: u32,
    pad: [u8; 8],
}

/// Asks the file system to allocate `file` in pieces of `bytes`. The file must be empty.
///
/// # Errors
/// The system's; `ENOTTY` or `EOPNOTSUPP` where the file system knows no such hint.
pub(crate) fn set(file: &File, bytes: u32) -> io::Result<()> {
    let attributes = FsXattr {
        xflags: FS_XFLAG_EXTSIZE,
        extsize: bytes,
        nextents: 0,
        projid: 0,
        cowextsize: 0,
        pad: [0; 8],
    };
    // SAFETY: the descriptor is open, and the kernel reads exactly this struct.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FSSETXATTR as _, &attributes) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
