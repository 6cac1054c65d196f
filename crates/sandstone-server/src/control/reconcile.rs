//! The jobs that keep the world as the store says it should be.
//!
//! Each takes no input: it reads the rows that differ and does one repeatable step for each. A
//! wake-up only makes it look earlier than its timer would.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sandstone_api::SandboxId;
use sandstone_core::{SandboxState, StopReason};
use sandstone_node_api::NodeEvent;
use sandstone_store::{StoreError, Usage};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::ControlPlane;
use super::error::Chain;

/// Longest sleep of the deadline job: the clock on the wall may be set meanwhile.
const DEADLINES_EVERY: Duration = Duration::from_secs(30);

/// Pause after the database failed.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// Rows that one pass of the purge job takes.
const PURGE_BATCH: u32 = 1000;

impl ControlPlane {
    /// Does the control plane's own work until `shutdown` is cancelled: ends sandboxes whose time
    /// is over or that ended by themselves, finishes what failed before, purges deleted volumes.
    /// A step that was begun is carried out all the same; [`ControlPlane::stop_all`] waits for it.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        tokio::join!(
            shutdown.run_until_cancelled(self.enforce_deadlines()),
            shutdown.run_until_cancelled(self.hear_node()),
            shutdown.run_until_cancelled(self.finish_unfinished()),
            shutdown.run_until_cancelled(self.purge_deleted()),
        );
    }

    async fn enforce_deadlines(self: &Arc<Self>) {
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
                    .spawn(async move { control.release(&live, id, &begun).await });
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

    async fn hear_node(self: &Arc<Self>) {
        let Some(mut events) = self.node.take_events() else {
            return;
        };
        while let Some(event) = events.recv().await {
            match event {
                NodeEvent::SandboxExited(id) => {
                    tracing::info!(sandbox = %id, "its first process has ended");
                    self.tasks.spawn(self.clone().stop(id, StopReason::Exited));
                }
                NodeEvent::VolumeMeasured(id, usage) => {
                    let usage = Usage {
                        allocated: usage.allocated,
                        flattened: usage.flattened,
                    };
                    self.record_usage(id, usage).await;
                }
            }
        }
    }

    async fn finish_unfinished(self: &Arc<Self>) {
        let mut delays = Delays::default();
        loop {
            sleep(self.config.retry_every).await;
            if let Err(error) = self.look_for_unfinished(&mut delays).await {
                tracing::error!(error = %Chain(&error), "cannot look for unfinished work");
            }
        }
    }

    /// Goes on with whatever has no worker: a stop that failed, a start or the making of a volume
    /// whose task died.
    async fn look_for_unfinished(self: &Arc<Self>, delays: &mut Delays) -> Result<(), StoreError> {
        for id in self.store.half_created_volumes().await? {
            if !self.is_making(id) {
                // Denied if it was finished meanwhile, which is fine. The purge job removes the
                // image.
                match self.store.finish_volume(id, false, self.clock.now()).await {
                    Ok(_) => tracing::warn!(volume = %id, "gave up a volume nobody makes"),
                    Err(StoreError::Denied { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        let mut unfinished = self.store.unfinished_sandboxes().await?;
        unfinished.retain(|sandbox| sandbox.state != SandboxState::Running);
        delays.forget_others(|id| unfinished.iter().any(|sandbox| sandbox.id == *id));
        for sandbox in unfinished {
            let id = sandbox.id;
            let live = self.live.get(id.suffix());
            let Ok(idle) = live.work.try_lock() else {
                continue;
            };
            // Asked again now that nobody works on it: it may have started meanwhile.
            let state = self.store.any_sandbox(id).await?.state;
            drop(idle);
            let is_unfinished = matches!(state, SandboxState::Starting | SandboxState::Stopping);
            if is_unfinished && delays.is_due(id, &self.config) {
                tracing::info!(sandbox = %id, state = state.as_str(), "trying again to end it");
                self.tasks
                    .spawn(self.clone().stop(id, StopReason::StartFailed));
            }
        }
        Ok(())
    }

    async fn purge_deleted(&self) {
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
        for id in self.store.volumes_to_purge(before, PURGE_BATCH).await? {
            match self.node.remove_volume(id).await {
                Ok(()) => {
                    self.store.purge_volume(id, now).await?;
                    tracing::info!(volume = %id, "volume purged");
                }
                Err(error) => {
                    tracing::error!(volume = %id, error = %Chain(&error), "cannot purge a volume");
                }
            }
        }
        let before = now.plus_millis(-self.config.stopped_kept_ms);
        self.store.forget_stopped(before, PURGE_BATCH).await?;
        Ok(())
    }
}

/// When to try again to end which sandbox: later after each failure.
#[derive(Default)]
struct Delays(HashMap<SandboxId, (Instant, Duration)>);

impl Delays {
    fn forget_others(&mut self, is_unfinished: impl Fn(&SandboxId) -> bool) {
        self.0.retain(|id, _| is_unfinished(id));
    }

    /// Whether it is time to try; if so, the next time is set.
    fn is_due(&mut self, id: SandboxId, config: &super::ControlConfig) -> bool {
        let now = Instant::now();
        let delay = match self.0.get(&id) {
            Some((next, _)) if now < *next => return false,
            Some((_, delay)) => (*delay * 2).min(config.retry_max),
            None => config.retry_every,
        };
        self.0.insert(id, (now + delay, delay));
        true
    }
}
