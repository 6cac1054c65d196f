//! The database: what should be.
//!
//! One [`Store`] over SQLite. A method is an intent (`begin_sandbox`, `delete_volume`) and exactly
//! one transaction: it happens as a whole or not at all, and a refusal changes nothing. Which
//! state may follow which is decided by the pure functions of `sandstone-core`; every change is
//! written as `UPDATE … WHERE id AND state` (and `AND token` for attachments), so even a second
//! writer could not act on a state that is no longer there.
//!
//! The store has no clock and no randomness: times and identifiers are handed in. No SQL type
//! leaves this crate, and rows do not serialise: they are turned into API objects above.
//!
//! Invariants, each held by an index or a transaction and tested:
//! * at most one attachment of a volume is not detached;
//! * a volume's attach token only grows;
//! * a slug belongs to at most one volume or snapshot that is being made or available;
//! * no image is purged while another is being copied from it, or a sandbox uses it;
//! * a sandbox is `stopped` if and only if all its attachments are `detached` for good.
//!
//! To add a table or a column, add the next file to `migrations/sqlite`; files that were released
//! never change.

mod attachment;
mod begin;
mod care;
mod error;
mod exposure;
mod grow;
mod image;
mod image_life;
mod label;
mod measure;
mod network;
mod organisation;
mod row;
mod sandbox;
mod slug;
mod snapshot;
mod source;
mod ssh_user;
mod stop;
mod store;
#[cfg(test)]
mod tests;
mod volume;

pub use begin::{BegunRoot, BegunSandbox, NewSandbox};
pub use error::StoreError;
pub use exposure::Exposure;
pub use image::{ImagePosition, ImagesPage};
pub use organisation::{OrganisationId, TokenHash};
pub use sandbox::{SANDBOXES_LISTED_MAX, Sandbox};
pub use sandstone_core::Usage;
pub use snapshot::{NewSnapshot, Snapshot, SnapshotMade};
pub use ssh_user::SSH_USERS_MAX;
pub use stop::StopBegun;
pub use store::Store;
pub use volume::{NewSource, NewVolume, Origin, Volume};
