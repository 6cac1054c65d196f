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
//! * a slug belongs to at most one volume that is not deleted;
//! * a sandbox is `stopped` if and only if all its attachments are `detached` for good.
//!
//! To add a table or a column, add the next file to `migrations/sqlite`; files that were released
//! never change.

mod attachment;
mod error;
mod label;
mod organisation;
mod row;
mod sandbox;
mod stop;
mod store;
#[cfg(test)]
mod tests;
mod volume;

pub use attachment::Attachment;
pub use error::StoreError;
pub use organisation::{OrganisationId, TokenHash};
pub use sandbox::{BegunSandbox, NewSandbox, SANDBOXES_LISTED_MAX, Sandbox};
pub use stop::StopBegun;
pub use store::Store;
pub use volume::{NewVolume, Usage, Volume, VolumePosition, VolumesPage};
