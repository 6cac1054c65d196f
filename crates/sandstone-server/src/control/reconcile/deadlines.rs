//! Ending sandboxes whose time is over.

use std::sync::Arc;
use std::time::Duration;

use sandstone_core::StopReason;
use sandstone_node_api::Chain;
use sandstone_store::StoreError;
use tokio::time::sleep;

use super::AFTER_FAILURE;
use crate::control::ControlPlane;

/// Longest sleep of this job: the clock on the wall may be set meanwhile.
const DEADLINES_EVERY: Duration = Duration::from_secs(30);

impl ControlPlane {
    pub(super) async fn enforce_deadlines(self: &Arc<Self>) {
        loop {
            let wait = self.stop_due().await.unwrap_or_else(|error| {
                tracing::error!(error = %Chain(&error), "cannot look for due sandboxes");
                AFTER_FAILURE
            });
            tokio::select! {
                () = self.deadlines.notified() => {}
                () = sleep(wait) => {}
            }
        }
    }

    /// Begins to stop what is due; returns when to look again.
    async fn stop_due(self: &Arc<Self>) -> Result<Duration, StoreError> {
        for id in self.store.due_sandboxes(self.clock.now()).await? {
            let live = self.live.get(id.suffix());
            let Ok(begun) = self.begin_stop(&live, id, StopReason::TimedOut).await else {
                return Ok(AFTER_FAILURE);
            };
            if !begun.already_stopped {
                let control = self.clone();
                self.tasks
                    .spawn(format!("ending sandbox {id}"), async move {
                        control.release(&live, id, &begun).await
                    });
            }
        }
        let Some(next) = self.store.next_deadline().await? else {
            return Ok(DEADLINES_EVERY);
        };
        let left = next
            .as_millis()
            .saturating_sub(self.clock.now().as_millis());
        let left = Duration::from_millis(u64::try_from(left).unwrap_or(0));
        Ok(left.min(DEADLINES_EVERY))
    }
}
