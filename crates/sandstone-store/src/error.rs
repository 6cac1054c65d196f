//! Why an intent was refused or failed.

use sandstone_api::{Region, SandboxId, Slug, VolumeId};
use sandstone_core::Denied;

/// An intent was refused, or the database failed. Either way nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A volume that is not deleted has the slug.
    #[error("the slug {0} is taken")]
    SlugTaken(Slug),
    /// No visible volume of the organisation has this id or slug.
    #[error("no volume {name}")]
    VolumeNotFound {
        /// As it was asked for.
        name: String,
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
    /// One request names the same volume twice.
    #[error("volume {slug} is named twice")]
    VolumeNamedTwice {
        /// The volume's name.
        slug: Slug,
    },
    /// A volume lives in another region than the sandbox would.
    #[error("volume {slug} is in {volume_region}, the sandbox in {sandbox_region}")]
    RegionMismatch {
        /// The volume's name.
        slug: Slug,
        /// Where the volume is.
        volume_region: Region,
        /// Where the sandbox would be: as asked, or where the first volume is.
        sandbox_region: Region,
    },
    /// No such sandbox.
    #[error("no sandbox {0}")]
    SandboxNotFound(SandboxId),
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
