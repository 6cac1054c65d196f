//! Taking up the work of a server that died.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use sandstone_api::SandboxId;
use sandstone_core::{Lifetime, SandboxState, StopReason};
use sandstone_store::{Sandbox, StoreError};
use tokio::time::timeout;

use super::ControlPlane;
use super::error::Chain;

/// Sandboxes that are looked at together: each may wait for a flush to the disk.
const AT_ONCE: usize = 16;

/// How long an agent may take to show that its sandbox survived.
const AGENT_LIMIT: Duration = Duration::from_secs(10);

impl ControlPlane {
    /// Brings everything that was under way when the last server ended to an end. To be called
    /// once; nothing new is begun before it has ended.
    ///
    /// * A volume that was being made is given up.
    /// * A sandbox that was starting or stopping, or whose life hung on a connection, is ended.
    /// * A sandbox with a deadline goes on if its agent still answers.
    /// * What the node has and the store does not know, or knows as stopped, is removed.
    ///
    /// What the node cannot do now is logged and tried again by [`ControlPlane::run`].
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be read or written: the server must not start.
    pub async fn recover(self: &Arc<Self>) -> Result<(), StoreError> {
        for id in self.store.half_created_volumes().await? {
            // First the record: from here on the purge job removes the image if we cannot.
            self.store
                .finish_volume(id, false, self.clock.now())
                .await?;
            tracing::warn!(volume = %id, "gave up a volume that was being made");
            if let Err(error) = self.node.remove_volume(id).await {
                tracing::warn!(volume = %id, error = %Chain(&error), "a half-made image stays");
            }
        }
        let unfinished = self.store.unfinished_sandboxes().await?;
        stream::iter(unfinished)
            .for_each_concurrent(AT_ONCE, |sandbox| self.recover_sandbox(sandbox))
            .await;
        self.remove_unknown().await?;
        self.recovered.store(true, Ordering::SeqCst);
        Ok(())
    }

    async fn recover_sandbox(self: &Arc<Self>, sandbox: Sandbox) {
        let id = sandbox.id;
        let reason = match (sandbox.state, sandbox.lifetime) {
            (SandboxState::Running, Lifetime::Until(_)) => {
                match timeout(AGENT_LIMIT, self.node.agent(id)).await {
                    Ok(Ok(_)) => {
                        tracing::info!(sandbox = %id, "sandbox goes on");
                        return;
                    }
                    Ok(Err(error)) => {
                        tracing::warn!(sandbox = %id, error = %Chain(&error), "it did not survive");
                    }
                    Err(_) => tracing::warn!(sandbox = %id, "its agent does not answer"),
                }
                StopReason::Exited
            }
            (SandboxState::Running, Lifetime::Session)
            | (SandboxState::Starting | SandboxState::Stopping, _) => StopReason::ServerLost,
            (SandboxState::Stopped, _) => return,
        };
        if let Err(error) = self.clone().stop(id, reason).await {
            tracing::warn!(sandbox = %id, %error, "not released yet");
        }
    }

    /// Removes what the node has of sandboxes that nobody should have.
    async fn remove_unknown(&self) -> Result<(), StoreError> {
        let present = match self.node.sandboxes().await {
            Ok(present) => present,
            Err(error) => {
                tracing::error!(error = %Chain(&error), "cannot list the node's sandboxes");
                return Ok(());
            }
        };
        let mut unknown = Vec::new();
        for id in present {
            match self.store.any_sandbox(id).await {
                Ok(sandbox) if sandbox.state != SandboxState::Stopped => {}
                Ok(_) | Err(StoreError::SandboxNotFound(_)) => unknown.push(id),
                Err(error) => return Err(error),
            }
        }
        stream::iter(unknown)
            .for_each_concurrent(AT_ONCE, |id: SandboxId| async move {
                tracing::warn!(sandbox = %id, "removing the remains of an unknown sandbox");
                if let Err(error) = self.node.stop_sandbox(id).await {
                    tracing::error!(sandbox = %id, error = %Chain(&error), "remains stay");
                }
            })
            .await;
        Ok(())
    }
}
