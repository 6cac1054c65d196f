//! What is done alike for volumes and snapshots: measuring, giving up, purging.

use std::time::Duration;

use sandstone_api::{ApiError, ErrorCode, ImageId, SnapshotId};
use sandstone_core::Timestamp;
use sandstone_crash::Point;
use sandstone_node_api::{Chain, Measured, NodeError};
use sandstone_store::{Snapshot, StoreError};
use tokio::time::timeout;

use super::ControlPlane;
use super::error;

/// How long a client waits for sizes. It asked for a volume or a snapshot, and the Python SDK gives
/// every call 10 s; a job measures what took longer.
const MEASURE_LIMIT: Duration = Duration::from_secs(2);

/// How long a client waits until its snapshot is read: others may be read first.
const READING_WAIT: Duration = Duration::from_secs(60);

impl ControlPlane {
    /// Measures an image and records the result. A failure is logged: the numbers are estimates.
    pub(super) async fn measure(&self, image: ImageId) -> Option<Measured> {
        let begun = self.clock.now();
        let measured = match self.node.measure(image).await {
            Ok(measured) => measured,
            Err(error @ (NodeError::NotReady(_) | NodeError::NoSuchImage(_))) => {
                // Removed meanwhile, or reported at the start.
                tracing::debug!(%image, error = %Chain(&error), "cannot measure");
                return None;
            }
            Err(error) => {
                tracing::warn!(%image, error = %Chain(&error), "cannot measure");
                return None;
            }
        };
        self.record_measured(image, measured, begun).await;
        Some(measured)
    }

    /// Measures an image for a client that waits.
    pub(super) async fn measure_soon(&self, image: ImageId) -> Option<Measured> {
        timeout(MEASURE_LIMIT, self.measure(image)).await.ok()?
    }

    pub(super) async fn record_measured(
        &self,
        image: ImageId,
        measured: Measured,
        begun: Timestamp,
    ) {
        let Measured { usage, extents } = measured;
        let recorded = self
            .store
            .record_measured(image, usage, extents, begun)
            .await;
        if let Err(error) = recorded {
            tracing::warn!(%image, error = %Chain(&error), "cannot record a measurement");
        }
    }

    /// Gives up an image that is being made: frees its slug and removes what there is of it. The
    /// jobs go on with what cannot be done now. Whoever was making it still says so.
    pub(super) async fn give_up(&self, image: ImageId, reason: String) {
        if let Err(error) = self.try_give_up(image, reason).await {
            tracing::error!(%image, error = %Chain(&error), "cannot give up an image");
        }
    }

    pub(super) async fn try_give_up(
        &self,
        image: ImageId,
        reason: String,
    ) -> Result<(), StoreError> {
        let now = self.clock.now();
        let given_up = match image {
            ImageId::Volume(id) => {
                let finished = self.store.finish_volume(id, Err(reason), now).await;
                finished.map(drop)
            }
            ImageId::Snapshot(id) => {
                let finished = self.store.finish_snapshot(id, Err(reason), now).await;
                finished.map(drop)
            }
        };
        match given_up {
            // It was finished meanwhile.
            Err(StoreError::Denied { .. }) => return Ok(()),
            given_up => given_up?,
        }
        // What it was copied from is free again.
        self.released.notify_waiters();
        self.purge_image(image).await
    }

    /// Removes the image of what is not needed any more: what was deleted long enough ago, or could
    /// not be made. Nothing happens to what was restored meanwhile or is still used. What the node
    /// cannot do now is logged and left for the next time.
    pub(super) async fn purge_image(&self, image: ImageId) -> Result<(), StoreError> {
        let now = self.clock.now();
        let before = now.plus_millis(-self.config.deletion_grace_ms);
        if !self.store.begin_purge(image, before, now).await? {
            return Ok(());
        }
        sandstone_crash::at(Point::PurgeBegun);
        match self.node.remove_image(image).await {
            Ok(()) => {}
            Err(error @ (NodeError::InUse(_) | NodeError::NotReady(_))) => {
                tracing::debug!(%image, error = %Chain(&error), "not purged yet");
                return Ok(());
            }
            Err(error) => {
                tracing::error!(%image, error = %Chain(&error), "cannot purge");
                return Ok(());
            }
        }
        sandstone_crash::at(Point::PurgeImageRemoved);
        self.store.finish_purge(image, self.clock.now()).await?;
        tracing::info!(%image, "purged");
        Ok(())
    }

    /// Reads all of a snapshot and compares it with its checksum, or records that if there is none
    /// yet; returns the row with the outcome. Snapshots are read one at a time.
    pub(super) async fn check_snapshot(&self, id: SnapshotId) -> Result<Snapshot, ApiError> {
        let object = format!("snapshot {id}");
        let of_store = |error| error::of_store(&object, error);
        let waited = timeout(READING_WAIT, self.reading.lock()).await;
        let _reading = waited.map_err(|_| {
            ApiError::new(
                ErrorCode::TimedOut,
                format!("{object} was not read in time: others are read first"),
            )
            .with_hint("Try again later.")
        })?;
        if self.is_draining() {
            return Err(error::shutting_down());
        }
        let row = self.store.any_snapshot(id).await.map_err(of_store)?;
        let checksum = self.node.checksum_snapshot(id).await;
        let checksum = checksum.map_err(|error| error::of_node(&object, error))?;
        let now = self.clock.now();
        let recorded = match &row.checksum {
            None => self.store.record_checksum(id, &checksum, now).await,
            Some(expected) => {
                let intact = *expected == checksum;
                if !intact {
                    tracing::error!(snapshot = %id, %expected, found = %checksum, "damaged");
                }
                self.store.record_check(id, intact, now).await
            }
        };
        recorded.map_err(of_store)?;
        self.store.any_snapshot(id).await.map_err(of_store)
    }
}
