//! Going on with what has no worker: a stop that failed, a start, a making or an enlarging whose
//! task died.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sandstone_api::{ByteSize, SandboxId};
use sandstone_core::{SandboxState, StopReason, VolumeCapacity};
use sandstone_node_api::Chain;
use sandstone_store::StoreError;
use tokio::time::{Instant, sleep};

use crate::control::{ControlConfig, ControlPlane};

impl ControlPlane {
    pub(super) async fn finish_unfinished(self: &Arc<Self>) {
        let mut delays = Delays::default();
        loop {
            sleep(self.config.retry_every).await;
            if let Err(error) = self.look_for_unfinished(&mut delays).await {
                tracing::error!(error = %Chain(&error), "cannot look for unfinished work");
            }
        }
    }

    async fn look_for_unfinished(self: &Arc<Self>, delays: &mut Delays) -> Result<(), StoreError> {
        for image in self.store.half_created().await? {
            if !self.making.contains(image) {
                tracing::warn!(%image, "giving up an image that nobody makes");
                let reason = "its task died".to_owned();
                self.try_give_up(image, reason).await?;
            }
        }
        self.finish_growing().await?;
        self.end_unfinished_sandboxes(delays).await
    }

    /// Enlarges the volumes that the store wants to be larger. Nothing happens while a client's
    /// volume is being enlarged: it is one of them.
    pub(in crate::control) async fn finish_growing(&self) -> Result<(), StoreError> {
        let Ok(_growing) = self.growing.try_lock() else {
            return Ok(());
        };
        for (id, capacity) in self.store.growing_volumes().await? {
            tracing::warn!(volume = %id, capacity, "enlarging it was cut off: doing it again");
            match VolumeCapacity::new(ByteSize::new(capacity)) {
                // A failure is logged, and ends the intent.
                Ok(capacity) => drop(self.grow_image(id, capacity, false).await),
                Err(error) => {
                    tracing::error!(volume = %id, %error, "it stays as it is");
                    self.store.finish_grow(id, Err(())).await?;
                }
            }
        }
        Ok(())
    }

    async fn end_unfinished_sandboxes(
        self: &Arc<Self>,
        delays: &mut Delays,
    ) -> Result<(), StoreError> {
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
                self.spawn_stop(id, StopReason::StartFailed);
            }
        }
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
    fn is_due(&mut self, id: SandboxId, config: &ControlConfig) -> bool {
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
