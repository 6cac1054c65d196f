//! Taking up the work of a server that died.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use sandstone_api::SandboxId;
use sandstone_core::{Lifetime, SandboxState, StopReason};
use sandstone_node_api::{Chain, NodeError};
use sandstone_store::{Sandbox, StoreError};
use tokio::time::timeout;

use super::ControlPlane;

/// Sandboxes that are looked at together: each may wait for a flush to the disk.
const AT_ONCE: usize = 16;

/// How long an agent may take to show that its sandbox survived.
const AGENT_LIMIT: Duration = Duration::from_secs(10);

impl ControlPlane {
    /// Brings everything that was under way when the last server ended to an end. To be called
    /// once; nothing new is begun before it has ended.
    ///
    /// * A sandbox that was starting or stopping, or whose life hung on a connection, is ended.
    /// * A sandbox with a deadline goes on if its agent still answers.
    /// * What the node has of sandboxes that the store does not know, or knows as stopped, is
    ///   removed.
    /// * A volume or snapshot that was being made is given up.
    /// * A volume that was being enlarged is enlarged again.
    /// * Images without a row and rows without an image are reported. Neither is ever removed or
    ///   made here: one of them may be somebody's data.
    ///
    /// What the node cannot do now is logged and tried again by [`ControlPlane::run`].
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be read or written: the server must not go on.
    pub async fn recover(self: &Arc<Self>) -> Result<(), StoreError> {
        // Sandboxes first: one of them may hold a volume that was being filled.
        let unfinished = self.store.unfinished_sandboxes().await?;
        stream::iter(unfinished)
            .for_each_concurrent(AT_ONCE, |sandbox| self.recover_sandbox(sandbox))
            .await;
        self.remove_unknown().await?;
        for image in self.store.half_created().await? {
            tracing::warn!(%image, "giving up an image that was being made");
            let reason = "the server ended while it was being made".to_owned();
            self.try_give_up(image, reason).await?;
        }
        self.finish_growing().await?;
        self.report_mismatch().await;
        self.recovered.store(true, Ordering::SeqCst);
        Ok(())
    }

    async fn report_mismatch(&self) {
        // A failure is logged where it happens.
        let Ok(found) = self.mismatch().await else {
            return;
        };
        for image in &found.unknown {
            tracing::warn!(
                image = image.shown(),
                "nobody has this image; `sandstone pool clean` removes it"
            );
        }
        for image in &found.missing {
            tracing::error!(%image, "there is no image of it: its data is lost");
        }
    }

    async fn recover_sandbox(self: &Arc<Self>, sandbox: Sandbox) {
        let id = sandbox.id;
        let reason = match (sandbox.state, sandbox.lifetime) {
            (SandboxState::Running, Lifetime::Until(_)) => {
                match timeout(AGENT_LIMIT, self.adopt(id)).await {
                    Ok(Ok(())) => {
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

    /// Finds a running sandbox again: its network, and its agent.
    async fn adopt(&self, id: SandboxId) -> Result<(), NodeError> {
        let network = self.store.network_policy(id).await;
        let network = network.map_err(|error| NodeError::Failed {
            step: format!("reading the network policy of {id}"),
            source: error.into(),
        })?;
        self.node.adopt_network(id, &network).await?;
        self.node.agent(id).await.map(drop)
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
