//! Removing for good what was deleted, could not be made, or is only a record.

use sandstone_node_api::Chain;
use sandstone_store::StoreError;
use tokio::time::sleep;

use crate::control::ControlPlane;

/// Rows of each kind that one pass takes.
const PURGE_BATCH: u32 = 1000;

impl ControlPlane {
    pub(super) async fn purge_deleted(&self) {
        loop {
            if let Err(error) = self.purge().await {
                tracing::error!(error = %Chain(&error), "cannot purge");
            }
            sleep(self.config.purge_every).await;
        }
    }

    async fn purge(&self) -> Result<(), StoreError> {
        let now = self.clock.now();
        let before = now.plus_millis(-self.config.deletion_grace_ms);
        for image in self.store.images_to_purge(before, PURGE_BATCH).await? {
            // Not what is being given up or packed now.
            if !self.making.contains(image) {
                self.purge_image(image).await?;
            }
        }
        let before = now.plus_millis(-self.config.stopped_kept_ms);
        self.store.forget_stopped(before, PURGE_BATCH).await?;
        Ok(())
    }
}
