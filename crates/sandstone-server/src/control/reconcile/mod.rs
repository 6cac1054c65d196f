//! The jobs that keep the world as the store says it should be.
//!
//! Each takes no input: it reads the rows that differ and does one repeatable step for each. A
//! wake-up only makes it look earlier than its timer would.

mod care;
mod deadlines;
mod purge;
mod retry;
mod sizes;

use std::sync::Arc;
use std::time::Duration;

use sandstone_core::StopReason;
use sandstone_node_api::NodeEvent;
use tokio_util::sync::CancellationToken;

use super::ControlPlane;

/// Pause after the database failed.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

impl ControlPlane {
    /// Does the control plane's own work until `shutdown` is cancelled: ends sandboxes whose time
    /// is over or that ended by themselves, finishes what failed before, measures images, looks
    /// after snapshots, purges what was deleted. A sandbox that began to end is ended all the same:
    /// [`ControlPlane::stop_all`] waits for it. Any other step that is cut off is repeated by the
    /// next server.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        tokio::join!(
            shutdown.run_until_cancelled(self.enforce_deadlines()),
            shutdown.run_until_cancelled(self.hear_node()),
            shutdown.run_until_cancelled(self.finish_unfinished()),
            shutdown.run_until_cancelled(self.measure_changed()),
            shutdown.run_until_cancelled(self.look_after_snapshots()),
            shutdown.run_until_cancelled(self.purge_deleted()),
        );
    }

    async fn hear_node(self: &Arc<Self>) {
        let Some(mut events) = self.node.take_events() else {
            return;
        };
        while let Some(event) = events.recv().await {
            match event {
                NodeEvent::SandboxExited(id) => {
                    tracing::info!(sandbox = %id, "its first process has ended");
                    self.spawn_stop(id, StopReason::Exited);
                }
            }
        }
    }
}
