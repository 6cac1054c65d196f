//! The local pool: volumes and snapshots as ext4 images, attached by loop devices and mounted as
//! detached mounts.
//!
//! ```text
//! <dir>            a directory with reflinks: the host's own, or an XFS in <dir>.img
//! ├── volumes/     <name>.img    raw ext4 image of exactly the capacity
//! ├── snapshots/   <name>.img    the same, sealed: mode 0400, mounted without a write
//! ├── bases/       <name>.img    read-only ext4 without a journal: a root file system
//! ├── scratch/     <name>.img    journal-less ext4: a sandbox's writable layer, /upper and /work
//! └── skeleton/                  what a fresh volume or writable layer holds, and templates
//! ```
//!
//! The tree of a volume, a snapshot or a base is the directory `/v` in its image. Copies in any
//! direction are reflink clones of whole images: whatever is removed, the others stay whole.
//!
//! An image is made under a name that starts with a dot and renamed when it is whole and on disk.
//! A file system on an image is mounted nowhere on the host: the caller gets a detached mount and
//! passes it on. When its last holder ends, the file system ends and the loop device clears
//! itself; [`Pool::release_volume`] waits for that and flushes the image.
//!
//! One writer: whoever changes an image holds a lock (flock(2)) on its open file, and the loop
//! device keeps that very file open. So the lock lasts exactly as long as the device, in whatever
//! process or server, and an image that is locked is not attached again.

mod checksum;
mod copy;
mod error;
mod ext4;
mod file_backed;
mod fork;
mod freeze;
mod grow;
mod image;
mod images;
mod occupants;
mod pack;
mod pool;
mod scratch;
mod second_mount;
mod shared_tree;
mod snapshot;
mod sparse;
mod superblock;
mod sys;
mod template;
mod tool;
mod volume;
mod writers;

pub use copy::Copied;
pub use error::StorageError;
pub use images::{ImageKind, ImageName, Measured};
pub use pool::{Backing, Pool, PoolConfig, Space};
pub use volume::VolumeUse;
