//! What clients do with volumes.

use std::sync::Arc;

use sandstone_api::{self as api, ApiError, ByteSize, ErrorCode, Region, Slug, VolumeId};
use sandstone_core::VolumeCapacity;
use sandstone_crash::Point;
use sandstone_node_api::{Chain, Copied, NodeError, VolumeSource, VolumeSpec};
use sandstone_store::{NewSource, OrganisationId, Origin, Volume};

use super::error;
use super::making::Making;
use super::{ControlPlane, Page, PageRequest, Principal};

/// What names the base images of this server begin with.
const BUILTIN: &str = "builtin:";

/// The base images of this server.
const BASES: [&str; 1] = ["builtin:debian-13"];

/// A volume that a client wants.
#[derive(Debug, Clone)]
pub struct NewVolume {
    /// Its name.
    pub slug: Slug,
    /// Where it is to be; else where its source is, else in the default region.
    pub region: Option<Region>,
    /// Hard limit; else that of its source.
    pub capacity: Option<VolumeCapacity>,
    /// What it holds at first.
    pub source: Source,
}

/// What a new volume holds at first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Nothing.
    Empty,
    /// The base image: a sandbox can have the volume as its root.
    Base,
    /// What a snapshot holds, by id or slug.
    Snapshot(String),
    /// What a volume holds now, by id or slug.
    Volume(String),
}

impl Source {
    /// What a client calls `from`: a base image, or a snapshot by id or slug.
    ///
    /// # Errors
    /// `UNKNOWN_BASE` naming those that there are.
    pub fn parse_from(text: &str) -> Result<Self, ApiError> {
        if BASES.contains(&text) {
            Ok(Self::Base)
        } else if text.starts_with(BUILTIN) {
            Err(ApiError::new(
                ErrorCode::UnknownBase,
                format!(
                    "`from` is `{}`: there is no such base image, only {}",
                    error::shortened(text),
                    BASES.join(", ")
                ),
            )
            .with_hint("Name one of those, or a snapshot."))
        } else {
            Ok(Self::Snapshot(text.to_owned()))
        }
    }
}

/// A volume whose image is made and which nobody sees yet.
#[derive(Debug)]
pub(super) struct MadeVolume {
    pub(super) row: Volume,
    /// How the copying went, if it is a copy.
    copied: Option<Copied>,
    _making: Making,
}

impl ControlPlane {
    /// Makes a volume; returns when it is on disk. It is made even if the caller goes away.
    ///
    /// # Errors
    /// `INVALID_REQUEST` for an unknown region or a missing capacity, `SLUG_ALREADY_IN_USE`,
    /// `SNAPSHOT_NOT_FOUND`, `VOLUME_NOT_FOUND`, `SNAPSHOT_DAMAGED`, `REGION_MISMATCH`,
    /// `CAPACITY_BELOW_BASE`, `VOLUME_IS_MOUNTED` when the source is being enlarged for too long,
    /// `NOT_READY`, `POOL_FULL`, `TIMED_OUT`, `INTERNAL`. Nothing is left of the volume then.
    pub async fn create_volume(
        self: &Arc<Self>,
        who: &Principal,
        new: NewVolume,
    ) -> Result<api::VolumeDetail, ApiError> {
        let region = self.region_of(who, &new).await?;
        self.check_ready().await?;
        let row = sandstone_store::NewVolume {
            id: VolumeId::new(region, self.random_suffix()),
            organisation: who.organisation,
            slug: new.slug,
            capacity: new.capacity,
            source: match new.source {
                Source::Empty => NewSource::Empty,
                Source::Base => NewSource::Base,
                Source::Snapshot(name) => NewSource::Snapshot(name),
                Source::Volume(name) => NewSource::Volume(name),
            },
        };
        let object = format!("volume `{}`", row.slug);
        let control = self.clone();
        let work = async move {
            let made = control.make_volume(&row).await?;
            control.publish_volume(made).await
        };
        self.carry_out(&object, work).await
    }

    /// The volume with this id or slug.
    ///
    /// # Errors
    /// `VOLUME_NOT_FOUND`.
    pub async fn volume(&self, who: &Principal, name: &str) -> Result<api::VolumeDetail, ApiError> {
        let volume = self.store.volume(who.organisation, name).await;
        let volume = volume.map_err(|error| error::of_store("the volume", error))?;
        Ok(self.show_volume(&volume))
    }

    /// A page of the volumes, the oldest first.
    ///
    /// # Errors
    /// `INVALID_REQUEST` for a bad limit or cursor.
    pub async fn volumes(
        &self,
        who: &Principal,
        page: PageRequest,
    ) -> Result<Page<api::VolumeDetail>, ApiError> {
        let volumes = self
            .store
            .list_volumes(who.organisation, page.query()?)
            .await
            .map_err(|error| error::of_store("the list of volumes", error))?;
        page.answer(volumes, Volume::position, |volume| self.show_volume(volume))
    }

    /// Deletes the volume with this id or slug. Its name is free at once; its data is kept for
    /// the grace period. The answer says when that ends.
    ///
    /// # Errors
    /// `VOLUME_NOT_FOUND`, `VOLUME_IS_MOUNTED` naming the sandbox.
    pub async fn delete_volume(
        &self,
        who: &Principal,
        name: &str,
    ) -> Result<api::VolumeDetail, ApiError> {
        let delete = || {
            self.store
                .delete_volume(who.organisation, name, self.clock.now())
        };
        let deleted = self.once_released(delete).await;
        let deleted = deleted.map_err(|error| error::of_store("the volume", error))?;
        sandstone_crash::at(Point::DeleteRecorded);
        tracing::info!(volume = %deleted.id, slug = %deleted.slug, "volume deleted");
        Ok(self.show_volume(&deleted))
    }

    /// Brings a deleted volume back, under the slug it had or a new one. It is named by its id, or
    /// by its old slug: then it is the newest deleted one of that name. Nothing happens to one
    /// that is not deleted.
    ///
    /// # Errors
    /// `VOLUME_NOT_FOUND`, `NOT_RESTORABLE` when its data is gone, `SLUG_ALREADY_IN_USE`.
    pub async fn restore_volume(
        &self,
        who: &Principal,
        name: &str,
        slug: Option<Slug>,
    ) -> Result<api::VolumeDetail, ApiError> {
        let now = self.clock.now();
        let deleted_after = now.plus_millis(-self.config.deletion_grace_ms);
        let volume = self
            .store
            .restore_volume(who.organisation, name, slug, deleted_after, now)
            .await
            .map_err(|error| error::of_store("the volume", error))?;
        sandstone_crash::at(Point::RestoreRecorded);
        tracing::info!(volume = %volume.id, slug = %volume.slug, "volume restored");
        Ok(self.show_volume(&volume))
    }

    /// Enlarges an unattached volume. Fine when it has that capacity already. It is carried out
    /// even if the caller goes away.
    ///
    /// # Errors
    /// `VOLUME_NOT_FOUND`, `VOLUME_IS_MOUNTED` naming the sandbox, `CAPACITY_BELOW_BASE` when it
    /// has more already, `NOT_READY`, `POOL_FULL`, `TIMED_OUT`, `INTERNAL`.
    pub async fn grow_volume(
        self: &Arc<Self>,
        who: &Principal,
        name: &str,
        capacity: VolumeCapacity,
    ) -> Result<api::VolumeDetail, ApiError> {
        self.check_ready().await?;
        let work = self
            .clone()
            .grow(who.organisation, name.to_owned(), capacity);
        self.carry_out("the volume", work).await
    }

    /// Records a volume and makes its image; on an error nothing is left of either. Follow it with
    /// [`ControlPlane::publish_volume`] or [`ControlPlane::give_up`].
    pub(super) async fn make_volume(
        &self,
        new: &sandstone_store::NewVolume,
    ) -> Result<MadeVolume, ApiError> {
        let object = format!("volume `{}`", new.slug);
        let making = self.making.begin(new.id.suffix());
        let begin = || self.store.begin_volume(new, self.clock.now());
        let begun = self.once_released(begin).await;
        let (row, origin) = begun.map_err(|error| error::of_store(&object, error))?;
        sandstone_crash::at(Point::CreateRecorded);
        let spec = VolumeSpec {
            id: row.id,
            capacity: VolumeCapacity::new(ByteSize::new(row.capacity))?,
            source: match origin {
                Origin::Empty | Origin::Import => VolumeSource::Empty,
                Origin::Base => VolumeSource::Base,
                Origin::Image(image) => VolumeSource::Image(image),
            },
        };
        match self.node.create_volume(&spec).await {
            Ok(copied) => {
                sandstone_crash::at(Point::CreateImageMade);
                Ok(MadeVolume {
                    row,
                    copied,
                    _making: making,
                })
            }
            Err(error) => {
                let reason = Chain(&error).to_string();
                self.give_up(row.id.into(), reason).await;
                Err(error::of_node(&object, error))
            }
        }
    }

    /// Lets everyone see a volume whose image is made.
    pub(super) async fn publish_volume(
        &self,
        made: MadeVolume,
    ) -> Result<api::VolumeDetail, ApiError> {
        let id = made.row.id;
        let finished = self.store.finish_volume(id, Ok(()), self.clock.now()).await;
        let volume = finished
            .map_err(|error| error::of_store(&format!("volume `{}`", made.row.slug), error))?;
        tracing::info!(volume = %id, slug = %volume.slug, "volume created");
        // Its source may be free again for what changes it.
        self.released.notify_waiters();
        let measured = self.measure_soon(id.into()).await;
        let volume = Volume {
            usage: measured.map_or(volume.usage, |measured| measured.usage),
            measured_at: measured.map(|_| self.clock.now()),
            ..volume
        };
        let stall_us = made.copied.map(|copied| copied.stall_us);
        Ok(api::VolumeDetail {
            write_stall_us: stall_us.filter(|stall_us| *stall_us > 0),
            ..self.show_volume(&volume)
        })
    }

    async fn grow(
        self: Arc<Self>,
        organisation: OrganisationId,
        name: String,
        capacity: VolumeCapacity,
    ) -> Result<api::VolumeDetail, ApiError> {
        let begin = || async {
            let growing = self.growing.lock().await;
            let now = self.clock.now();
            let begun = self.store.begin_grow(organisation, &name, capacity, now);
            Ok((begun.await?, growing))
        };
        let begun = self.once_released(begin).await;
        let (volume, _growing) = begun.map_err(|error| error::of_store("the volume", error))?;
        if volume.growing_to.is_none() {
            return Ok(self.show_volume(&volume));
        }
        sandstone_crash::at(Point::GrowRecorded);
        let volume = self.grow_image(volume.id, capacity, true).await?;
        Ok(self.show_volume(&volume))
    }

    /// Carries out an enlargement that the store knows of. To be called with `growing` held. Where
    /// the node fails, the volume keeps its old capacity. A node that took too long may still do
    /// it, so it is asked `again` if so wished: by the retry job.
    pub(super) async fn grow_image(
        &self,
        id: VolumeId,
        capacity: VolumeCapacity,
        again: bool,
    ) -> Result<Volume, ApiError> {
        let object = format!("volume {id}");
        let of_store = |error| error::of_store(&object, error);
        if let Err(error) = self.node.grow_volume(id, capacity).await {
            if !again || !matches!(error, NodeError::TimedOut { .. }) {
                let finished = self.store.finish_grow(id, Err(())).await;
                finished.map_err(of_store)?;
                self.released.notify_waiters();
            }
            return Err(error::of_node(&object, error));
        }
        sandstone_crash::at(Point::GrowImageGrown);
        let finished = self.store.finish_grow(id, Ok(())).await;
        let volume = finished.map_err(of_store)?;
        self.released.notify_waiters();
        tracing::info!(volume = %id, capacity = volume.capacity, "volume enlarged");
        Ok(volume)
    }

    /// Where a new volume is to be.
    async fn region_of(&self, who: &Principal, new: &NewVolume) -> Result<Region, ApiError> {
        if let Some(region) = new.region {
            self.check_region(region)?;
            return Ok(region);
        }
        let organisation = who.organisation;
        let region = match &new.source {
            Source::Empty | Source::Base => Ok(self.config.default_region()),
            Source::Snapshot(name) => {
                let source = self.store.snapshot(organisation, name).await;
                source.map(|source| source.region)
            }
            Source::Volume(name) => {
                let source = self.store.volume(organisation, name).await;
                source.map(|source| source.region)
            }
        };
        region.map_err(|error| error::of_store("the source of the volume", error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn from_names_a_base_image_or_a_snapshot() {
        assert_eq!(Source::parse_from("builtin:debian-13"), Ok(Source::Base));
        for name in ["debian-13", "snp_ord_1at5nn58e77rtd11e3k3", ""] {
            assert_eq!(
                Source::parse_from(name),
                Ok(Source::Snapshot(name.to_owned()))
            );
        }
        let error = Source::parse_from("builtin:debian-12").unwrap_err();
        assert_eq!(error.code, ErrorCode::UnknownBase);
        assert!(error.message.contains("builtin:debian-12"), "{error}");
        assert!(error.message.contains("builtin:debian-13"), "{error}");
    }
}
