//! The extents of a file: `FS_IOC_FIEMAP`, Documentation/filesystems/fiemap.rst.
#![expect(unsafe_code, reason = "the ioctl has no safe wrapper")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `_IOWR('f', 11, struct fiemap)` of linux/fs.h.
const FS_IOC_FIEMAP: libc::c_ulong = 0xc020_660b;
/// Write out what is delayed first.
const FIEMAP_FLAG_SYNC: u32 = 0x0000_0001;
const FIEMAP_EXTENT_LAST: u32 = 0x0000_0001;
const FIEMAP_EXTENT_UNWRITTEN: u32 = 0x0000_0800;
const FIEMAP_EXTENT_SHARED: u32 = 0x0000_2000;

/// Extents asked for in one call: 56 bytes each.
const BATCH: usize = 1024;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

#[repr(C)]
struct Request {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    extents: [Extent; BATCH],
}

/// The written extents of a file.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Extents {
    /// Bytes in those that no other file shares.
    pub(crate) own: u64,
    /// Bytes in all.
    pub(crate) all: u64,
    /// How many there are: pieces of the file that are one piece on the disk.
    pub(crate) count: u64,
}

/// Looks at the written extents of a file.
///
/// # Errors
/// The system's.
pub(crate) fn extents(file: &File) -> io::Result<Extents> {
    let mut request = Box::new(Request {
        start: 0,
        length: u64::MAX,
        flags: FIEMAP_FLAG_SYNC,
        mapped_extents: 0,
        extent_count: BATCH as u32,
        reserved: 0,
        extents: [Extent::default(); BATCH],
    });
    let mut extents = Extents::default();
    // Where the file and the disk would go on if the next record belonged to the same extent.
    let mut end = None;
    loop {
        // SAFETY: the descriptor is open, and the struct has room for `extent_count` extents.
        let result =
            unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP as _, &raw mut *request) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        let mapped = (request.mapped_extents as usize).min(BATCH);
        let Some(last) = request.extents[..mapped].last().copied() else {
            return Ok(extents);
        };
        for extent in &request.extents[..mapped] {
            if extent.flags & FIEMAP_EXTENT_UNWRITTEN == 0 {
                extents.all += extent.length;
                // One extent has several records when others share parts of it only.
                if end != Some((extent.logical, extent.physical)) {
                    extents.count += 1;
                }
                end = Some((
                    extent.logical.saturating_add(extent.length),
                    extent.physical.saturating_add(extent.length),
                ));
                if extent.flags & FIEMAP_EXTENT_SHARED == 0 {
                    extents.own += extent.length;
                }
            }
        }
        if last.flags & FIEMAP_EXTENT_LAST != 0 {
            return Ok(extents);
        }
        request.start = last.logical.saturating_add(last.length);
        request.length = u64::MAX - request.start;
    }
}
