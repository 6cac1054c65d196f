//! Looking after snapshots: recording their checksums, comparing them now and then, packing the
//! fragmented ones. One at a time: clients' sandboxes use the same disk.

use std::time::Duration;

use sandstone_api::SnapshotId;
use sandstone_core::{Health, ImageState};
use sandstone_node_api::Chain;
use sandstone_store::StoreError;
use tokio::time::{Instant, sleep};

use crate::control::ControlPlane;

/// Snapshots of which one pass takes so many.
const CARE_BATCH: u32 = 100;

impl ControlPlane {
    pub(super) async fn look_after_snapshots(&self) {
        loop {
            if let Err(error) = self.look_after_all().await {
                tracing::error!(error = %Chain(&error), "cannot look after snapshots");
            }
            tokio::select! {
                () = self.new_snapshots.notified() => {}
                () = sleep(self.config.checks_every) => {}
            }
        }
    }

    async fn look_after_all(&self) -> Result<(), StoreError> {
        self.record_checksums().await?;
        for id in self.store.snapshots_to_pack(CARE_BATCH).await? {
            self.pack(id).await?;
            // New ones need not wait for the end of this.
            self.record_checksums().await?;
        }
        let verify_every = i64::try_from(self.config.verify_every.as_millis());
        let before = (self.clock.now()).plus_millis(-verify_every.unwrap_or(i64::MAX));
        for id in self.store.snapshots_to_check(before, CARE_BATCH).await? {
            let begun = Instant::now();
            self.check(id).await;
            self.record_checksums().await?;
            // Leaves the disk to others for as long as it was taken.
            rest(begun).await;
        }
        Ok(())
    }

    async fn record_checksums(&self) -> Result<(), StoreError> {
        for id in self.store.snapshots_to_record(CARE_BATCH).await? {
            self.check(id).await;
        }
        Ok(())
    }

    /// Rewrites a fragmented snapshot, and makes sure that its content is still the same.
    async fn pack(&self, id: SnapshotId) -> Result<(), StoreError> {
        // While it is in our hands, it is not purged.
        let _making = self.making.begin(id.suffix());
        let row = self.store.any_snapshot(id).await?;
        if row.state != ImageState::Available || row.health != Health::Intact {
            // Gone meanwhile, or there is nothing to compare the result with.
            return Ok(());
        }
        let measured = match self.node.pack_snapshot(id).await {
            Ok(measured) => measured,
            Err(error) => {
                tracing::warn!(snapshot = %id, error = %Chain(&error), "cannot pack a snapshot");
                return Ok(());
            }
        };
        tracing::info!(
            snapshot = %id,
            before = row.extents,
            after = measured.extents,
            "snapshot packed"
        );
        self.store.record_packed(id, self.clock.now()).await?;
        self.record_measured(id.into(), measured, self.clock.now())
            .await;
        self.check(id).await;
        Ok(())
    }

    /// As [`ControlPlane::check_snapshot`]; a failure is logged there, and tried again by the next
    /// pass.
    async fn check(&self, id: SnapshotId) {
        if let Err(error) = self.check_snapshot(id).await {
            tracing::debug!(snapshot = %id, %error, "not checked");
        }
    }
}

async fn rest(begun: Instant) {
    /// Longest rest.
    const REST_MAX: Duration = Duration::from_secs(30);
    sleep(begun.elapsed().min(REST_MAX)).await;
}
