//! What a new volume is made from.

use sandstone_api::{ByteSize, ImageId, Region, Slug};
use sandstone_core::BOOTABLE_CAPACITY_MIN;
use sqlx::SqliteConnection;

use crate::snapshot::Snapshot;
use crate::volume::{NewSource, NewVolume, Origin, Volume};
use crate::{StoreError, image};

/// A source that was found and will do.
pub(crate) struct Found {
    pub(crate) origin: Origin,
    /// The image to copy, and its slug.
    pub(crate) copied: Option<(ImageId, Slug)>,
    pub(crate) is_bootable: bool,
    /// Capacity of the new volume, bytes.
    pub(crate) capacity: u64,
}

impl Origin {
    /// The text in the database.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Base => "base",
            Self::Image(_) => "image",
            Self::Import => "import",
        }
    }
}

/// Finds the source of a new volume, and checks that it fits.
pub(crate) async fn find(
    connection: &mut SqliteConnection,
    new: &NewVolume,
) -> Result<Found, StoreError> {
    match &new.source {
        NewSource::Empty => fresh(new, Origin::Empty, false),
        NewSource::Base => fresh(new, Origin::Base, true),
        NewSource::Import { is_bootable } => fresh(new, Origin::Import, *is_bootable),
        NewSource::Snapshot(name) => {
            let source: Snapshot = image::visible(connection, new.organisation, name).await?;
            source.check_not_damaged()?;
            Copied {
                id: source.id.into(),
                slug: source.slug,
                region: source.region,
                capacity: source.capacity,
                is_bootable: source.is_bootable,
            }
            .for_volume(new)
        }
        NewSource::Volume(name) => {
            let source: Volume = image::visible(connection, new.organisation, name).await?;
            source.check_not_growing()?;
            Copied {
                id: source.id.into(),
                slug: source.slug,
                region: source.region,
                capacity: source.capacity,
                is_bootable: source.is_bootable,
            }
            .for_volume(new)
        }
    }
}

fn fresh(new: &NewVolume, origin: Origin, is_bootable: bool) -> Result<Found, StoreError> {
    let capacity = new.capacity.ok_or(StoreError::CapacityMissing)?.bytes();
    if is_bootable && capacity < BOOTABLE_CAPACITY_MIN.bytes() {
        return Err(StoreError::CapacityBelowSource {
            asked: ByteSize::new(capacity),
            least: BOOTABLE_CAPACITY_MIN,
            source_name: match origin {
                Origin::Import => "a bootable archive".to_owned(),
                Origin::Empty | Origin::Base | Origin::Image(_) => "the base image".to_owned(),
            },
        });
    }
    Ok(Found {
        origin,
        copied: None,
        is_bootable,
        capacity,
    })
}

struct Copied {
    id: ImageId,
    slug: Slug,
    region: Region,
    capacity: u64,
    is_bootable: bool,
}

impl Copied {
    fn for_volume(self, new: &NewVolume) -> Result<Found, StoreError> {
        if self.region != new.id.region() {
            return Err(StoreError::RegionMismatch {
                slug: self.slug,
                region: self.region,
                wanted: new.id.region(),
            });
        }
        let capacity = new.capacity.map_or(self.capacity, |asked| asked.bytes());
        if capacity < self.capacity {
            return Err(StoreError::CapacityBelowSource {
                asked: ByteSize::new(capacity),
                least: ByteSize::new(self.capacity),
                source_name: self.slug.to_string(),
            });
        }
        Ok(Found {
            origin: Origin::Image(self.id),
            copied: Some((self.id, self.slug)),
            is_bootable: self.is_bootable,
            capacity,
        })
    }
}
