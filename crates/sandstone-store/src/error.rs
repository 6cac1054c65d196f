//! Why an intent was refused or failed.

use sandstone_api::{ByteSize, ImageId, Region, SandboxId, Slug, SnapshotId, VolumeId};
use sandstone_core::Denied;

/// An intent was refused, or the database failed. Either way nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A volume or snapshot that is not deleted has the slug.
    #[error("the slug {0} is taken")]
    SlugTaken(Slug),
    /// No visible volume of the organisation has this id or slug.
    #[error("no volume {name}")]
    VolumeNotFound {
        /// As it was asked for.
        name: String,
    },
    /// No visible snapshot of the organisation has this id or slug.
    #[error("no snapshot {name}")]
    SnapshotNotFound {
        /// As it was asked for.
        name: String,
    },
    /// No visible volume or snapshot of the organisation has this id or slug.
    #[error("no volume or snapshot {name}")]
    RootNotFound {
        /// As it was asked for.
        name: String,
    },
    /// The volume or snapshot asked for as a root holds no system.
    #[error("{name} is not bootable")]
    NotBootable {
        /// Its name.
        name: Slug,
        /// Its id.
        id: ImageId,
    },
    /// The capacity asked for is less than what must fit in.
    #[error("{asked} is less than the {least} of {source_name}")]
    CapacityBelowSource {
        /// The capacity asked for.
        asked: ByteSize,
        /// The least that will do.
        least: ByteSize,
        /// What needs so much: the slug of a source or of the volume itself, or what kind of
        /// source it is.
        source_name: String,
    },
    /// A volume that is no copy needs a capacity.
    #[error("no capacity")]
    CapacityMissing,
    /// It was deleted, and it is too late to restore it.
    #[error("{name} cannot be restored any more")]
    NotRestorable {
        /// As it was asked for.
        name: String,
    },
    /// The snapshot no longer has the content it was made with.
    #[error("snapshot {slug} is damaged")]
    SnapshotDamaged {
        /// Its name.
        slug: Slug,
        /// Its id.
        id: SnapshotId,
    },
    /// The volume is being enlarged, or is to be while it is being copied. It will be free soon.
    #[error("volume {slug} is being enlarged or copied")]
    VolumeIsBusy {
        /// The volume.
        volume: VolumeId,
        /// Its name.
        slug: Slug,
    },
    /// A sandbox holds the volume.
    #[error("volume {slug} is held by {sandbox}")]
    VolumeIsMounted {
        /// The volume.
        volume: VolumeId,
        /// Its name.
        slug: Slug,
        /// Who holds it.
        sandbox: SandboxId,
        /// Whether the holder is being stopped already, so that waiting helps.
        releasing: bool,
    },
    /// The organisation has as many sandboxes as it may have.
    #[error("the organisation has {limit} sandboxes")]
    TooManySandboxes {
        /// How many that is.
        limit: u32,
        /// Whether one of them is being stopped, so that waiting helps.
        releasing: bool,
    },
    /// One request names the same volume twice.
    #[error("volume {slug} is named twice")]
    VolumeNamedTwice {
        /// The volume's name.
        slug: Slug,
    },
    /// A volume or snapshot lives in another region than what is to use it.
    #[error("{slug} is in {region}, wanted in {wanted}")]
    RegionMismatch {
        /// The volume's or snapshot's name.
        slug: Slug,
        /// Where it is.
        region: Region,
        /// Where it would be used: as asked, or where the root or the first volume is.
        wanted: Region,
    },
    /// No such sandbox.
    #[error("no sandbox {0}")]
    SandboxNotFound(SandboxId),
    /// The sandbox has as many SSH users as it may have.
    #[error("sandbox {0} has too many SSH users")]
    TooManySshUsers(SandboxId),
    /// This name was not issued for the sandbox.
    #[error("sandbox {0} has no such exposure")]
    ExposureNotFound(SandboxId),
    /// The sandbox has as many names as it may have.
    #[error("sandbox {0} has too many exposures")]
    TooManyExposures(SandboxId),
    /// The token belongs to another organisation.
    #[error("the token belongs to another organisation")]
    TokenTaken,
    /// The object is not in a state in which this can happen.
    #[error("{object}: {reason}")]
    Denied {
        /// Which object.
        object: String,
        /// Why not.
        reason: Denied,
    },
    /// A row holds something that this version cannot read.
    #[error("the database holds {value:?} as {column}")]
    Unreadable {
        /// The column.
        column: &'static str,
        /// Its content.
        value: String,
    },
    /// The database failed.
    #[error("the database failed: {step}")]
    Database {
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl StoreError {
    pub(crate) fn denied(object: impl ToString, reason: Denied) -> Self {
        Self::Denied {
            object: object.to_string(),
            reason,
        }
    }
}

/// Says what was being done when the database failed.
pub(crate) trait Step<T> {
    fn step(self, step: &'static str) -> Result<T, StoreError>;
}

impl<T, E> Step<T> for Result<T, E>
where
    E: std::error::Error + Send + Sync + 'static,
{
    fn step(self, step: &'static str) -> Result<T, StoreError> {
        self.map_err(|source| StoreError::Database {
            step,
            source: Box::new(source),
        })
    }
}
