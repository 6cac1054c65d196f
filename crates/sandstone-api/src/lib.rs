//! The words Sandstone speaks at its boundaries: typed identifiers, slugs, regions, sizes, error
//! codes and the JSON objects of the HTTP API.
//!
//! Nothing here does I/O. A value of one of these types has been checked: code that holds a
//! [`Slug`] need not look at its characters again. Parse once at the edge, pass the type on.

mod capacity;
mod error;
mod id;
mod object;
mod region;
mod slug;

pub use capacity::{ByteSize, ParseByteSizeError};
pub use error::{ApiError, ErrorCode};
pub use id::{
    ID_ALPHABET, ID_RANDOM_CHARS, IdSuffix, ImageId, ParseIdError, SandboxId, SnapshotId, VolumeId,
};
pub use object::{
    DirectoryEntry, ErrorBody, Exposure, ObjectRef, Pool, Sandbox, SandboxStatus, Snapshot,
    SnapshotDetail, Volume, VolumeDetail,
};
pub use region::{ParseRegionError, Region};
pub use slug::{ParseSlugError, Slug};
