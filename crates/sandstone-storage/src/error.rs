//! What can go wrong with the pool.

use std::io;
use std::path::{Path, PathBuf};

/// A storage step failed. The step and the object are in the text.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// A system call on a file or a device failed.
    #[error("{step} {path}: {source}", path = path.display())]
    Io {
        /// What was being done.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A program that makes file systems failed.
    #[error("{program} failed ({status}): {output}")]
    Tool {
        /// The program.
        program: String,
        /// Its exit status.
        status: String,
        /// The end of what it printed.
        output: String,
    },
    /// The image is open behind a loop device, so somebody may be writing to it.
    #[error("{name} is attached: /dev/loop{device} has its image open")]
    AlreadyAttached {
        /// The volume.
        name: String,
        /// Number of the loop device.
        device: u32,
    },
    /// The image does not exist.
    #[error("there is no image named {0}")]
    Missing(String),
    /// The kernel did not let go in time.
    #[error("/dev/loop{device} still holds {name} after {waited_ms} ms")]
    StillHeld {
        /// The image.
        name: String,
        /// Number of the loop device.
        device: u32,
        /// How long was waited, milliseconds.
        waited_ms: u64,
    },
    /// Something else works on the image at this moment: makes it, or removes it.
    #[error("{0} is being worked on")]
    Busy(String),
    /// The volume exists with another size.
    #[error("{name} exists with {existing} bytes, not {wanted}")]
    OtherCapacity {
        /// The volume.
        name: String,
        /// Its size, bytes.
        existing: u64,
        /// The size asked for, bytes.
        wanted: u64,
    },
    /// The pool has no room left; what was being done.
    #[error("the pool is full: {0}")]
    Full(String),
    /// An image does not become smaller, nor does its copy.
    #[error("{name} has {existing} bytes, more than {wanted}")]
    Smaller {
        /// The image.
        name: String,
        /// Its size, bytes.
        existing: u64,
        /// The size asked for, bytes.
        wanted: u64,
    },
    /// It was told to end early: [`Pool::interrupt`](crate::Pool::interrupt).
    #[error("interrupted: the pool is about to be closed")]
    Interrupted,
    /// A copy of it does not have its content when it is read back.
    #[error("a copy of {0} differs from it: the disk does not keep what is written")]
    OtherContent(String),
    /// Not a name that a file may be called by.
    #[error("{0:?} is not a name: 1 to 64 of a-z, 0-9 and -, not starting with -")]
    Name(String),
    /// The pool cannot be closed while somebody uses it.
    #[error("the pool is in use by {0}")]
    InUse(String),
    /// Something that is not the pool is mounted at the pool's directory.
    #[error("{dir} is a mount point, but not of {file}", dir = dir.display(), file = file.display())]
    Foreign {
        /// The pool's directory.
        dir: PathBuf,
        /// The pool's file.
        file: PathBuf,
    },
    /// No room for a file-backed pool.
    #[error("the pool needs {needed} bytes at {path}, and {free} are free", path = path.display())]
    NoRoom {
        /// Bytes wanted.
        needed: u64,
        /// Bytes there are.
        free: u64,
        /// The pool's file.
        path: PathBuf,
    },
}

impl StorageError {
    /// Wraps a failed call.
    pub(crate) fn io(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| {
            if source.kind() == io::ErrorKind::StorageFull {
                Self::Full(format!("{step} {}", path.display()))
            } else {
                Self::Io { step, path, source }
            }
        }
    }

    /// Wraps a failed call that ends early, with [`io::ErrorKind::Interrupted`], if it is told to.
    pub(crate) fn interruptible(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let wrap = Self::io(step, path);
        move |source| match source.kind() {
            io::ErrorKind::Interrupted => Self::Interrupted,
            _ => wrap(source),
        }
    }

    /// Wraps a failed call that reports an errno.
    pub(crate) fn sys(step: &'static str, path: &Path) -> impl FnOnce(rustix::io::Errno) -> Self {
        let wrap = Self::io(step, path);
        move |errno| wrap(errno.into())
    }
}

pub(crate) type Result<T> = std::result::Result<T, StorageError>;
