//! What clients do with volumes.

use std::sync::{Arc, PoisonError};

use sandstone_api::{self as api, ApiError, Region, Slug, VolumeId};
use sandstone_core::VolumeCapacity;
use sandstone_node_api::VolumeSpec;
use sandstone_store::{OrganisationId, Usage, Volume, VolumesPage};

use super::error::{self, Chain};
use super::{ControlPlane, Page, PageRequest, Principal, page};

/// A volume that a client wants.
#[derive(Debug, Clone)]
pub struct NewVolume {
    /// Its name.
    pub slug: Slug,
    /// Where it is to be.
    pub region: Region,
    /// Hard limit.
    pub capacity: VolumeCapacity,
}

impl ControlPlane {
    /// Makes a volume; returns when it is on disk. It is made even if the caller goes away.
    ///
    /// # Errors
    /// `INVALID_REQUEST` for an unknown region, `SLUG_ALREADY_IN_USE`, `NOT_READY`, `POOL_FULL`,
    /// `TIMED_OUT`, `INTERNAL`. Nothing is left of the volume then.
    pub async fn create_volume(
        self: &Arc<Self>,
        who: &Principal,
        new: NewVolume,
    ) -> Result<api::Volume, ApiError> {
        self.check_region(new.region)?;
        self.check_ready().await?;
        let id = VolumeId::new(new.region, self.random_suffix());
        let work = self.clone().make_volume(who.organisation, id, new);
        let volume = self.carry_out(&id.to_string(), work).await?;
        Ok(shown(&volume))
    }

    /// The volume with this id or slug.
    ///
    /// # Errors
    /// `VOLUME_NOT_FOUND`.
    pub async fn volume(&self, who: &Principal, id_or_slug: &str) -> Result<api::Volume, ApiError> {
        let volume = self.store.volume(who.organisation, id_or_slug).await;
        let volume = volume.map_err(|error| error::of_store("the volume", error))?;
        Ok(shown(&volume))
    }

    /// A page of the volumes, the oldest first.
    ///
    /// # Errors
    /// `INVALID_REQUEST` for a bad limit or cursor.
    pub async fn volumes(
        &self,
        who: &Principal,
        page: PageRequest,
    ) -> Result<Page<api::Volume>, ApiError> {
        let limit = page.checked_limit()?;
        let query = VolumesPage {
            // One more than is shown tells whether there is a next page.
            limit: limit + 1,
            after: page.position()?,
            search: page.search.as_deref(),
        };
        let mut volumes = self
            .store
            .list_volumes(who.organisation, query)
            .await
            .map_err(|error| error::of_store("the list of volumes", error))?;
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let has_more = volumes.len() > limit;
        volumes.truncate(limit);
        let last = volumes.last().filter(|_| has_more);
        Ok(Page {
            next_cursor: last.map(|volume| page::encode(volume.position())),
            items: volumes.iter().map(shown).collect(),
        })
    }

    /// Deletes the volume with this id or slug. Its name is free at once; its data is kept for
    /// the grace period.
    ///
    /// # Errors
    /// `VOLUME_NOT_FOUND`, `VOLUME_IS_MOUNTED` naming the sandbox.
    pub async fn delete_volume(&self, who: &Principal, id_or_slug: &str) -> Result<(), ApiError> {
        let organisation = who.organisation;
        let delete = || {
            self.store
                .delete_volume(organisation, id_or_slug, self.clock.now())
        };
        let deleted = self.once_released(delete).await;
        let deleted = deleted.map_err(|error| error::of_store("the volume", error))?;
        tracing::info!(volume = %deleted.id, slug = %deleted.slug, "volume deleted");
        Ok(())
    }

    async fn make_volume(
        self: Arc<Self>,
        organisation: OrganisationId,
        id: VolumeId,
        new: NewVolume,
    ) -> Result<Volume, ApiError> {
        let _making = Making::begin(&self, id);
        let object = format!("volume `{}`", new.slug);
        let of_store = |error| error::of_store(&object, error);
        let row = sandstone_store::NewVolume {
            id,
            organisation,
            slug: new.slug,
            capacity: new.capacity,
        };
        self.store
            .begin_volume(&row, self.clock.now())
            .await
            .map_err(of_store)?;
        let spec = VolumeSpec {
            id,
            capacity: new.capacity,
        };
        let made = self.node.create_volume(&spec).await;
        let is_made = made.is_ok();
        let volume = self
            .store
            .finish_volume(id, is_made, self.clock.now())
            .await
            .map_err(of_store);
        if let Err(error) = made {
            // The purge job tries again if this fails.
            if let Err(error) = self.node.remove_volume(id).await {
                tracing::warn!(volume = %id, error = %Chain(&error), "a half-made image stays");
            }
            return Err(error::of_node(&object, error));
        }
        let volume = volume?;
        tracing::info!(volume = %id, slug = %volume.slug, "volume created");
        let usage = self.measure(id).await.unwrap_or(volume.usage);
        Ok(Volume { usage, ..volume })
    }

    /// Measures a volume and records the result. A failure is logged: the numbers are estimates.
    pub(super) async fn measure(&self, id: VolumeId) -> Option<Usage> {
        let usage = match self.node.measure_volume(id).await {
            Ok(usage) => Usage {
                allocated: usage.allocated,
                flattened: usage.flattened,
            },
            Err(error) => {
                tracing::warn!(volume = %id, error = %Chain(&error), "cannot measure a volume");
                return None;
            }
        };
        self.record_usage(id, usage).await;
        Some(usage)
    }

    pub(super) async fn record_usage(&self, id: VolumeId, usage: Usage) {
        let recorded = self.store.record_usage(id, usage, self.clock.now()).await;
        if let Err(error) = recorded {
            tracing::warn!(volume = %id, error = %Chain(&error), "cannot record a measurement");
        }
    }

    pub(super) fn is_making(&self, id: VolumeId) -> bool {
        let making = self.making.lock();
        making.unwrap_or_else(PoisonError::into_inner).contains(&id)
    }
}

/// A volume's image is being made, as long as this lives.
struct Making<'a> {
    control: &'a ControlPlane,
    id: VolumeId,
}

impl<'a> Making<'a> {
    fn begin(control: &'a ControlPlane, id: VolumeId) -> Self {
        let making = control.making.lock();
        making.unwrap_or_else(PoisonError::into_inner).insert(id);
        Self { control, id }
    }
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        let making = self.control.making.lock();
        making
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.id);
    }
}

fn shown(volume: &Volume) -> api::Volume {
    api::Volume {
        id: volume.id.to_string(),
        slug: volume.slug.to_string(),
        region: volume.region.to_string(),
        capacity: volume.capacity,
        estimated_allocated_size: volume.usage.allocated,
        estimated_flattened_size: volume.usage.flattened,
        is_bootable: false,
        base_snapshot: None,
    }
}
