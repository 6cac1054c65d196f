//! Measuring images whose sizes may have changed.

use sandstone_node_api::Chain;
use sandstone_store::StoreError;
use tokio::time::sleep;

use crate::control::ControlPlane;

impl ControlPlane {
    pub(super) async fn measure_changed(&self) {
        loop {
            if let Err(error) = self.measure_all().await {
                tracing::error!(error = %Chain(&error), "cannot look for images to measure");
            }
            sleep(self.config.measure_every).await;
        }
    }

    /// One after the other: reading the map of a fragmented image costs the disk time.
    async fn measure_all(&self) -> Result<(), StoreError> {
        for image in self.store.images_to_measure().await? {
            self.measure(image).await;
        }
        Ok(())
    }
}
