//! What clients do with snapshots.

use std::sync::Arc;

use sandstone_api::{self as api, ApiError, Slug};
use sandstone_crash::Point;
use sandstone_node_api::{Chain, SnapshotSpec};
use sandstone_store::{NewSnapshot, Snapshot, SnapshotMade};

use super::error;
use super::{ControlPlane, Page, PageRequest, Principal};

impl ControlPlane {
    /// Takes a snapshot of a volume, attached or not; returns when it is on disk. A sandbox that
    /// holds the volume goes on; its writes wait for a moment. The snapshot is taken even if the
    /// caller goes away.
    ///
    /// # Errors
    /// `VOLUME_NOT_FOUND`, `SLUG_ALREADY_IN_USE`, `VOLUME_IS_MOUNTED` when it is being enlarged
    /// for too long, `NOT_READY`, `POOL_FULL`, `TIMED_OUT`, `INTERNAL`. Nothing is left of the
    /// snapshot then.
    pub async fn snapshot_volume(
        self: &Arc<Self>,
        who: &Principal,
        volume: &str,
        slug: Slug,
    ) -> Result<api::SnapshotDetail, ApiError> {
        self.check_ready().await?;
        let object = format!("snapshot `{slug}`");
        let new = NewSnapshot {
            suffix: self.random_suffix(),
            organisation: who.organisation,
            volume: volume.to_owned(),
            slug,
        };
        self.carry_out(&object, self.clone().take_snapshot(new))
            .await
    }

    /// The snapshot with this id or slug.
    ///
    /// # Errors
    /// `SNAPSHOT_NOT_FOUND`.
    pub async fn snapshot(
        &self,
        who: &Principal,
        name: &str,
    ) -> Result<api::SnapshotDetail, ApiError> {
        let snapshot = self.store.snapshot(who.organisation, name).await;
        let snapshot = snapshot.map_err(|error| error::of_store("the snapshot", error))?;
        Ok(self.show_snapshot(&snapshot))
    }

    /// A page of the snapshots, the oldest first.
    ///
    /// # Errors
    /// `INVALID_REQUEST` for a bad limit or cursor.
    pub async fn snapshots(
        &self,
        who: &Principal,
        page: PageRequest,
    ) -> Result<Page<api::SnapshotDetail>, ApiError> {
        let snapshots = self
            .store
            .list_snapshots(who.organisation, page.query()?)
            .await
            .map_err(|error| error::of_store("the list of snapshots", error))?;
        page.answer(snapshots, Snapshot::position, |snapshot| {
            self.show_snapshot(snapshot)
        })
    }

    /// Deletes the snapshot with this id or slug. Its name is free at once; its data is kept for
    /// the grace period, and as long as a sandbox runs from it. What was forked from it stays.
    ///
    /// # Errors
    /// `SNAPSHOT_NOT_FOUND`.
    pub async fn delete_snapshot(
        &self,
        who: &Principal,
        name: &str,
    ) -> Result<api::SnapshotDetail, ApiError> {
        let deleted = self
            .store
            .delete_snapshot(who.organisation, name, self.clock.now())
            .await
            .map_err(|error| error::of_store("the snapshot", error))?;
        sandstone_crash::at(Point::DeleteRecorded);
        tracing::info!(snapshot = %deleted.id, slug = %deleted.slug, "snapshot deleted");
        Ok(self.show_snapshot(&deleted))
    }

    /// Brings a deleted snapshot back, as [`ControlPlane::restore_volume`] does a volume.
    ///
    /// # Errors
    /// `SNAPSHOT_NOT_FOUND`, `NOT_RESTORABLE` when its data is gone, `SLUG_ALREADY_IN_USE`.
    pub async fn restore_snapshot(
        &self,
        who: &Principal,
        name: &str,
        slug: Option<Slug>,
    ) -> Result<api::SnapshotDetail, ApiError> {
        let now = self.clock.now();
        let deleted_after = now.plus_millis(-self.config.deletion_grace_ms);
        let snapshot = self
            .store
            .restore_snapshot(who.organisation, name, slug, deleted_after, now)
            .await
            .map_err(|error| error::of_store("the snapshot", error))?;
        sandstone_crash::at(Point::RestoreRecorded);
        tracing::info!(snapshot = %snapshot.id, slug = %snapshot.slug, "snapshot restored");
        Ok(self.show_snapshot(&snapshot))
    }

    /// Reads all of a snapshot from the disk, compares it with its checksum, and records the
    /// outcome, which is in the answer. Takes up to ten seconds for a gigabyte, and waits for other
    /// snapshots that are being read.
    ///
    /// # Errors
    /// `SNAPSHOT_NOT_FOUND`, `TIMED_OUT` when too many others are waiting, `INTERNAL`.
    pub async fn verify_snapshot(
        self: &Arc<Self>,
        who: &Principal,
        name: &str,
    ) -> Result<api::SnapshotDetail, ApiError> {
        let found = self.store.snapshot(who.organisation, name).await;
        let id = found
            .map_err(|error| error::of_store("the snapshot", error))?
            .id;
        let control = self.clone();
        let work = async move { control.check_snapshot(id).await };
        let checked = self.carry_out(&format!("snapshot {id}"), work).await?;
        Ok(self.show_snapshot(&checked))
    }

    async fn take_snapshot(
        self: Arc<Self>,
        new: NewSnapshot,
    ) -> Result<api::SnapshotDetail, ApiError> {
        let object = format!("snapshot `{}`", new.slug);
        let _making = self.making.begin(new.suffix.as_str());
        let begin = || self.store.begin_snapshot(&new, self.clock.now());
        let begun = self.once_released(begin).await;
        let begun = begun.map_err(|error| error::of_store(&object, error))?;
        sandstone_crash::at(Point::SnapshotRecorded);
        let id = begun.id;
        let (volume, _) = begun.volume;
        let copied = match self
            .node
            .create_snapshot(&SnapshotSpec { id, volume })
            .await
        {
            Ok(copied) => copied,
            Err(error) => {
                let reason = Chain(&error).to_string();
                self.give_up(id.into(), reason).await;
                return Err(error::of_node(&object, error));
            }
        };
        sandstone_crash::at(Point::SnapshotImageMade);
        let made = SnapshotMade {
            consistency: copied.consistency,
            stall_us: copied.stall_us,
        };
        let finished = self.store.finish_snapshot(id, Ok(made), self.clock.now());
        let snapshot = finished
            .await
            .map_err(|error| error::of_store(&object, error))?;
        tracing::info!(
            snapshot = %id,
            slug = %snapshot.slug,
            %volume,
            consistency = copied.consistency.as_str(),
            stall_us = copied.stall_us,
            "snapshot taken"
        );
        self.released.notify_waiters();
        self.new_snapshots.notify_one();
        let measured = self.measure_soon(id.into()).await.unwrap_or_default();
        // What the volume had for itself it now shares.
        self.measure_soon(volume.into()).await;
        Ok(self.show_snapshot(&Snapshot {
            usage: measured.usage,
            extents: measured.extents,
            ..snapshot
        }))
    }
}
