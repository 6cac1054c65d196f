//! What the control plane asks of the node.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use sandstone_api::{ImageId, SandboxId, SnapshotId, VolumeId};
use sandstone_core::{NetworkPolicy, VolumeCapacity};
use sandstone_node_api::{
    AgentClient, Copied, Images, Measured, NodeApi, NodeError, NodeEvent, Readiness, SandboxSpec,
    SnapshotSpec, Space, VolumeSpec,
};
use tokio::sync::mpsc;

use super::{Node, Phase, blocking, lock};
use crate::host::{Host, failed};

/// How long the node's own tasks may take to end when it is shut down.
const TASKS_LIMIT: Duration = Duration::from_secs(3);

/// How long reading or packing a snapshot may take to notice that the node is being shut down.
const LONG_WORK_LIMIT: Duration = Duration::from_secs(3);

impl Node {
    /// Runs a step that may wait for the kernel, and says in the log at level debug how long it took.
    async fn on_host<T: Send + 'static>(
        &self,
        step: &'static str,
        work: impl FnOnce(&Host) -> Result<T, NodeError> + Send + 'static,
    ) -> Result<T, NodeError> {
        let host = self.host()?;
        let begun = Instant::now();
        let outcome = blocking(move || work(&host)).await;
        tracing::debug!(step, took_us = begun.elapsed().as_micros());
        outcome
    }

    /// As [`Self::on_host`], for what reads or writes a whole image: one at a time, because more
    /// would take the disk from the sandboxes.
    async fn on_host_alone<T: Send + 'static>(
        &self,
        step: &'static str,
        work: impl FnOnce(&Host) -> Result<T, NodeError> + Send + 'static,
    ) -> Result<T, NodeError> {
        let turn = tokio::select! {
            () = self.shutdown.cancelled() => return Err(shutting_down()),
            turn = self.long_work.clone().lock_owned() => turn,
        };
        self.on_host(step, move |host| {
            let outcome = work(host);
            // Whoever asked may have gone; the turn is over when the work is.
            drop(turn);
            outcome
        })
        .await
    }
}

fn shutting_down() -> NodeError {
    NodeError::NotReady("the node is being shut down".to_owned())
}

#[async_trait]
impl NodeApi for Node {
    async fn readiness(&self) -> Readiness {
        match self.host() {
            Ok(_) => Readiness::Ready,
            Err(NodeError::NotReady(reason)) => Readiness::NotReady(reason),
            Err(error) => Readiness::NotReady(error.to_string()),
        }
    }

    async fn create_volume(&self, spec: &VolumeSpec) -> Result<Option<Copied>, NodeError> {
        let spec = spec.clone();
        self.on_host("create_volume", move |host| host.create_volume(&spec))
            .await
    }

    async fn grow_volume(&self, id: VolumeId, capacity: VolumeCapacity) -> Result<(), NodeError> {
        self.on_host("grow_volume", move |host| host.grow_volume(id, capacity))
            .await
    }

    async fn create_snapshot(&self, spec: &SnapshotSpec) -> Result<Copied, NodeError> {
        let spec = *spec;
        self.on_host("create_snapshot", move |host| host.create_snapshot(&spec))
            .await
    }

    async fn remove_image(&self, image: ImageId) -> Result<(), NodeError> {
        self.on_host("remove_image", move |host| host.remove_image(image))
            .await
    }

    async fn measure(&self, image: ImageId) -> Result<Measured, NodeError> {
        self.on_host("measure", move |host| host.measure(image))
            .await
    }

    async fn checksum_snapshot(&self, id: SnapshotId) -> Result<String, NodeError> {
        self.on_host_alone("checksum_snapshot", move |host| host.checksum_snapshot(id))
            .await
    }

    async fn pack_snapshot(&self, id: SnapshotId) -> Result<Measured, NodeError> {
        self.on_host_alone("pack_snapshot", move |host| host.pack_snapshot(id))
            .await
    }

    async fn images(&self) -> Result<Images, NodeError> {
        self.on_host("images", Host::images).await
    }

    async fn space(&self) -> Result<Space, NodeError> {
        self.on_host("space", Host::space).await
    }

    async fn start_sandbox(&self, spec: &SandboxSpec) -> Result<(), NodeError> {
        let host = self.host()?;
        let turn = self.turn(spec.id);
        let _turn = turn.lock().await;
        self.starting.send_modify(|starting| *starting += 1);
        let started = self.start_in_turn(host, spec).await;
        self.starting.send_modify(|starting| *starting -= 1);
        started
    }

    async fn adopt_network(&self, id: SandboxId, network: &NetworkPolicy) -> Result<(), NodeError> {
        let host = self.host()?;
        let turn = self.turn(id);
        let _turn = turn.lock().await;
        self.adopt_gate(host, id, network).await
    }

    async fn stop_sandbox(&self, id: SandboxId) -> Result<(), NodeError> {
        let host = self.host()?;
        let turn = self.turn(id);
        let guard = turn.lock().await;
        lock(&self.agents).remove(&id);
        self.close_gate(id).await;
        let stopped = blocking(move || host.stop(id)).await;
        drop(guard);
        if stopped.is_ok() {
            lock(&self.turns).remove(&id);
            lock(&self.watched).remove(&id);
        }
        stopped
    }

    async fn sandboxes(&self) -> Result<Vec<SandboxId>, NodeError> {
        self.on_host("sandboxes", Host::sandboxes).await
    }

    async fn agent(&self, id: SandboxId) -> Result<Arc<AgentClient>, NodeError> {
        self.agent_of(id).await
    }

    async fn oom_kills(&self, id: SandboxId) -> Result<u64, NodeError> {
        self.on_host("oom_kills", move |host| host.oom_kills(id))
            .await
    }

    fn take_events(&self) -> Option<mpsc::Receiver<NodeEvent>> {
        lock(&self.events_out).take()
    }

    async fn shut_down(&self) -> Result<(), NodeError> {
        self.shutdown.cancel();
        self.tasks.close();
        let ended = tokio::time::timeout(TASKS_LIMIT, self.tasks.wait()).await;
        if ended.is_err() && matches!(&*self.phase.borrow(), Phase::Preparing(_)) {
            // A base image is being built. Its processes end with ours.
            return Ok(());
        }
        let Phase::Ready(host) = self.phase.send_replace(Phase::ShutDown) else {
            return Ok(());
        };
        host.pool.interrupt();
        let idle = tokio::time::timeout(LONG_WORK_LIMIT, self.long_work.lock()).await;
        lock(&self.agents).clear();
        self.close_gates().await;
        let (warm, spare) = self.warm.drain();
        let closable = idle.is_ok();
        blocking(move || {
            let mut scratches = spare;
            for warm in warm {
                host.discard(warm.prepared)?;
                scratches.push(warm.scratch);
            }
            for scratch in scratches {
                host.discard_scratch(scratch)?;
            }
            if !host.sandboxes()?.is_empty() {
                return Ok(());
            }
            host.runtime
                .close()
                .map_err(|error| failed("closing the runtime", error))?;
            let _ = std::fs::remove_dir(&host.sockets);
            if closable {
                host.pool
                    .close()
                    .map_err(|error| failed("closing the pool", error))
            } else {
                tracing::warn!("a snapshot is still being read: the pool stays mounted");
                Ok(())
            }
        })
        .await
    }
}
