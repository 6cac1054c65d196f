//! Ending sandboxes.
//!
//! Three steps: the store hears why (the first reason stays), the node takes the sandbox down and
//! puts its volumes on disk, the store hears that they are free. The middle one can fail; then the
//! sandbox stays `stopping`, keeps its volumes, and is tried again by the retry job.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use sandstone_api::{ApiError, SandboxId};
use sandstone_core::{Lifetime, SandboxState, StopReason};
use sandstone_crash::Point;
use sandstone_node_api::Chain;
use sandstone_store::{StopBegun, StoreError};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::error;
use super::live::{LastStop, Live};
use super::{ControlPlane, Principal};

/// How long to wait before the database is asked again after it failed.
const ASK_AGAIN: Duration = Duration::from_secs(1);

impl ControlPlane {
    /// Ends a sandbox; returns when its volumes are on disk and free. Ending it again is fine;
    /// everyone who asks while it is being ended gets the same answer. It is carried out even if
    /// the caller goes away.
    ///
    /// # Errors
    /// `SANDBOX_NOT_FOUND` when there never was one; `TIMED_OUT`, `INTERNAL` when the node could
    /// not release everything yet. It is tried again then.
    pub async fn stop_sandbox(
        self: &Arc<Self>,
        who: &Principal,
        id: SandboxId,
        reason: StopReason,
    ) -> Result<(), ApiError> {
        let object = format!("sandbox {id}");
        let sandbox = self.store.sandbox(who.organisation, id).await;
        sandbox.map_err(|error| error::of_store(&object, error))?;
        self.carry_out(&object, self.clone().stop(id, reason)).await
    }

    /// The connection that created the sandbox is gone: ends it if its life depends on that.
    /// Returns when its volumes are free, or when they could not be freed yet, which is logged
    /// and tried again.
    pub async fn end_session(self: &Arc<Self>, id: SandboxId) {
        let control = self.clone();
        let work = async move {
            let sandbox = control.store.any_sandbox(id).await;
            let sandbox = sandbox.map_err(|error| error::of_store("its session", error))?;
            match sandbox.lifetime {
                Lifetime::Session => control.stop(id, StopReason::SessionEnded).await,
                Lifetime::Until(_) => Ok(()),
            }
        };
        if let Err(error) = self.carry_out("its session", work).await {
            tracing::warn!(sandbox = %id, %error, "the session's sandbox is not released yet");
        }
    }

    /// Waits until the sandbox begins to stop, and says why it does. Returns at once when it has
    /// stopped already or never was there.
    pub fn stopped(
        self: &Arc<Self>,
        id: SandboxId,
    ) -> impl Future<Output = StopReason> + Send + use<> {
        let control = self.clone();
        async move {
            let live = control.live.get(id.suffix());
            // Watching begins before asking, so that no announcement falls in between.
            let mut ended = live.watch();
            loop {
                match control.store.any_sandbox(id).await {
                    Ok(sandbox) => match sandbox.stop_reason {
                        Some(reason) => return reason,
                        None => break,
                    },
                    Err(StoreError::SandboxNotFound(_)) => return StopReason::Exited,
                    Err(error) => {
                        tracing::warn!(sandbox = %id, error = %Chain(&error), "cannot ask for it");
                        sleep(ASK_AGAIN).await;
                    }
                }
            }
            match ended.wait_for(Option::is_some).await.map(|reason| *reason) {
                Ok(Some(reason)) => reason,
                // The sender lives as long as `live`.
                Ok(None) | Err(_) => StopReason::Exited,
            }
        }
    }

    /// Ends every sandbox, for the shutdown of the server; nothing new is begun from here on.
    /// Returns when all are released, or after the configured limit, with the late ones logged;
    /// the next start goes on with them.
    pub async fn stop_all(self: &Arc<Self>, reason: StopReason) {
        self.draining.store(true, Ordering::SeqCst);
        let limit = self.config.stop_all_limit;
        if timeout(limit, self.stop_everything(reason)).await.is_ok() {
            return;
        }
        tracing::warn!(tasks = ?self.tasks.names(), "work has not ended in time");
        match self.store.unfinished_sandboxes().await {
            Ok(late) => {
                for sandbox in late {
                    tracing::warn!(sandbox = %sandbox.id, "not released in time");
                }
            }
            Err(error) => {
                tracing::error!(error = %Chain(&error), "cannot list the sandboxes left");
            }
        }
    }

    async fn stop_everything(self: &Arc<Self>, reason: StopReason) {
        match self.store.unfinished_sandboxes().await {
            Ok(unfinished) => {
                let stops = unfinished
                    .into_iter()
                    .map(|sandbox| self.spawn_stop(sandbox.id, reason));
                // Failures are logged where they happen.
                join_all(stops).await;
            }
            Err(error) => {
                tracing::error!(error = %Chain(&error), "cannot list the sandboxes");
            }
        }
        self.tasks.ended().await;
    }

    /// Ends a sandbox, whoever owns it and whoever waits for it.
    pub(super) fn spawn_stop(
        self: &Arc<Self>,
        id: SandboxId,
        reason: StopReason,
    ) -> JoinHandle<Result<(), ApiError>> {
        let stop = self.clone().stop(id, reason);
        self.tasks.spawn(format!("ending sandbox {id}"), stop)
    }

    /// Ends a sandbox, whoever owns it. To be run as a task of its own.
    pub(super) async fn stop(
        self: Arc<Self>,
        id: SandboxId,
        reason: StopReason,
    ) -> Result<(), ApiError> {
        let live = self.live.get(id.suffix());
        let begun = self.begin_stop(&live, id, reason).await?;
        if begun.already_stopped {
            return Ok(());
        }
        self.release(&live, id, &begun).await
    }

    /// Records that the sandbox is to end and tells everyone who watches.
    pub(super) async fn begin_stop(
        &self,
        live: &Live,
        id: SandboxId,
        reason: StopReason,
    ) -> Result<StopBegun, ApiError> {
        let begun = self.store.begin_stop(id, reason).await;
        let begun = begun.map_err(|error| error::of_store(&format!("sandbox {id}"), error))?;
        live.announce(begun.reason);
        sandstone_crash::at(Point::DetachRecorded);
        Ok(begun)
    }

    /// Takes a stopping sandbox down, or waits for the one who does.
    pub(super) async fn release(
        self: &Arc<Self>,
        live: &Live,
        id: SandboxId,
        begun: &StopBegun,
    ) -> Result<(), ApiError> {
        let attempts = live.attempts();
        let mut work = live.work.lock().await;
        if live.attempts() != attempts
            && let Some(failure) = &work.failure
        {
            // An attempt failed while we waited; ours would only take as long again.
            return Err(failure.clone());
        }
        let sandbox = self.store.any_sandbox(id).await;
        let sandbox = sandbox.map_err(|error| error::of_store(&format!("sandbox {id}"), error))?;
        if sandbox.state == SandboxState::Stopped {
            return Ok(());
        }
        let released = self.release_now(id, begun, &mut work).await;
        live.count_attempt();
        released
    }

    /// Takes a stopping sandbox down. `work` proves that nobody else does.
    pub(super) async fn release_now(
        self: &Arc<Self>,
        id: SandboxId,
        begun: &StopBegun,
        work: &mut LastStop,
    ) -> Result<(), ApiError> {
        let object = format!("sandbox {id}");
        let released = match self.node.stop_sandbox(id).await {
            Ok(()) => {
                sandstone_crash::at(Point::DetachDone);
                let released = self.store.sandbox_released(id, self.clock.now()).await;
                released.map_err(|error| error::of_store(&object, error))
            }
            Err(error) => Err(error::of_node(&object, error)),
        };
        work.failure = released.as_ref().err().cloned();
        if released.is_ok() {
            tracing::info!(sandbox = %id, reason = begun.reason.as_str(), "sandbox stopped");
            self.released.notify_waiters();
            let control = self.clone();
            let volumes = begun.volumes.clone();
            self.tasks
                .spawn(format!("measuring what sandbox {id} wrote"), async move {
                    for volume in volumes {
                        control.measure(volume.into()).await;
                    }
                });
        }
        released
    }
}
