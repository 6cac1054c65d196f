//! The local pool: volumes as ext4 images, attached by loop devices and mounted as detached
//! mounts.
//!
//! ```text
//! <dir>            a directory with reflinks: the host's own, or an XFS in <dir>.img
//! ├── volumes/     <name>.img    raw ext4 image of exactly the capacity; /v inside is the volume
//! ├── scratch/     <name>.img    journal-less ext4: a sandbox's writable layer, /upper and /work
//! ├── bases/       <name>.img    read-only ext4: a root file system
//! └── skeleton/                  what a fresh volume or writable layer holds
//! ```
//!
//! An image is made under a name that starts with a dot and renamed when it is whole and on disk.
//! A file system on an image is mounted nowhere on the host: the caller gets a detached mount and
//! passes it on. When its last holder ends, the file system ends and the loop device clears
//! itself; [`Pool::release_volume`] waits for that and flushes the image.
//!
//! One writer: whoever changes an image holds a lock (flock(2)) on its open file, and the loop
//! device keeps that very file open. So the lock lasts exactly as long as the device, in whatever
//! process or server, and an image that is locked is not attached again.

mod error;
mod file_backed;
mod image;
mod occupants;
mod pool;
mod scratch;
mod sys;
mod tool;
mod volume;

pub use error::StorageError;
pub use pool::{Backing, Pool, PoolConfig, Space};
pub use volume::Usage;
