//! What the node does by itself.

use std::sync::Arc;
use std::time::Duration;

use sandstone_node_api::Chain;

use super::{Node, blocking};
use crate::host::Host;

/// Longest time for which starting sandboxes come before the next warm one.
const WARM_PATIENCE: Duration = Duration::from_millis(100);

/// Pause after a warm sandbox could not be made.
const WARM_RETRY: Duration = Duration::from_secs(5);

/// Pause after the pool's room could not be found out.
const SPACE_RETRY: Duration = Duration::from_secs(1);

/// How often unused mounts of snapshots are let go of, and how long one stays for the next
/// sandbox.
const TREES_IDLE: Duration = Duration::from_secs(60);

impl Node {
    /// Keeps warm sandboxes ready.
    pub(super) async fn keep_warm(self: Arc<Self>, host: Arc<Host>) {
        loop {
            tokio::select! {
                () = self.shutdown.cancelled() => break,
                () = self.warm.wanted() => {}
            }
            self.let_starts_pass().await;
            let (node, host) = (self.clone(), host.clone());
            let made = blocking(move || {
                let spare = node.warm.spare();
                host.make_warm(spare, node.scratch_name())
            });
            match made.await {
                Ok(warm) => self.warm.add(warm),
                Err(error) => {
                    tracing::warn!(error = %Chain(&error), "no warm sandbox");
                    if self.pause(WARM_RETRY).await {
                        break;
                    }
                }
            }
        }
    }

    /// Waits while sandboxes are being started: they need the processors more than the next warm
    /// one does.
    async fn let_starts_pass(&self) {
        let mut starting = self.starting.subscribe();
        let quiet = starting.wait_for(|starting| *starting == 0);
        // The sender lives as long as `self`; a host that is always busy still gets warm ones.
        let _ = tokio::time::timeout(WARM_PATIENCE, quiet).await;
    }

    /// Sees to it that the pool never fills.
    pub(super) async fn guard_space(self: Arc<Self>, host: Arc<Host>) {
        loop {
            let looked = {
                let host = host.clone();
                blocking(move || host.guard_space()).await
            };
            let pause = looked.unwrap_or_else(|error| {
                tracing::error!(error = %Chain(&error), "the pool's room is not guarded");
                SPACE_RETRY
            });
            if self.pause(pause).await {
                break;
            }
        }
    }

    /// Lets go of mounts that no sandbox has used for a while.
    pub(super) async fn drop_idle_trees(self: Arc<Self>, host: Arc<Host>) {
        while !self.pause(TREES_IDLE).await {
            let host = host.clone();
            let dropped = blocking(move || {
                host.pool.drop_idle_trees(TREES_IDLE);
                Ok(())
            });
            if let Err(error) = dropped.await {
                tracing::warn!(error = %Chain(&error), "unused mounts stay");
            }
        }
    }

    /// Waits; whether the node is to end.
    async fn pause(&self, duration: Duration) -> bool {
        tokio::select! {
            () = self.shutdown.cancelled() => true,
            () = tokio::time::sleep(duration) => false,
        }
    }
}
