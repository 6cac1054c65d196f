//! What clients do with sandboxes, except ending them.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use sandstone_api::{self as api, ApiError, IdSuffix, Region, SandboxId, VolumeId};
use sandstone_core::{
    ExposureTarget, Labels, Lifetime, Memory, MountPath, NetworkPolicy, SandboxState, StopReason,
    Timestamp,
};
use sandstone_crash::Point;
use sandstone_node_api::{AgentClient, Chain, Mount, NodeError, Readiness, Root, SandboxSpec};
use sandstone_store::{BegunRoot, StoreError};
use tokio::runtime::Handle;

use super::error;
use super::{ControlPlane, Principal, show};

/// A sandbox that a client wants.
#[derive(Debug, Clone)]
pub struct NewSandbox {
    /// Where it is to run; else where its root and its volumes are, else in the default region.
    pub region: Option<Region>,
    /// How long it is to live; cut to the longest life that the server allows.
    pub lifetime: Lifetime,
    /// Memory limit.
    pub memory: Memory,
    /// Labels.
    pub labels: Labels,
    /// What its `/` is: a bootable volume or snapshot, by id or slug; else the base image.
    pub root: Option<String>,
    /// Where to mount which volumes, by id or slug; a parent path before what lies below it.
    pub volumes: Vec<(MountPath, String)>,
    /// Variables for every process in it.
    pub environment: BTreeMap<String, String>,
    /// What it may reach, and its secrets; each adds its placeholder to the variables.
    pub network: NetworkPolicy,
    /// The port of a server that is to be exposed from the start.
    pub port: Option<u16>,
}

impl ControlPlane {
    /// Starts a sandbox; returns when its agent answers. If the caller goes away before it has
    /// the id, the sandbox is ended again: nobody else knows of it, and it holds volumes.
    ///
    /// # Errors
    /// `INVALID_REQUEST`, `VOLUME_NOT_FOUND`, `SNAPSHOT_NOT_FOUND`, `NOT_BOOTABLE`,
    /// `SNAPSHOT_DAMAGED`, `VOLUME_IS_MOUNTED`, `REGION_MISMATCH`, `CONCURRENCY_LIMIT`,
    /// `NOT_READY`, `POOL_FULL`, `TIMED_OUT`, `INTERNAL`. Nothing is left of the sandbox then.
    pub async fn create_sandbox(
        self: &Arc<Self>,
        who: &Principal,
        new: NewSandbox,
    ) -> Result<SandboxId, ApiError> {
        if let Some(region) = new.region {
            self.check_region(region)?;
        }
        if new.port.is_some() {
            self.exposed_at()?;
        }
        let row = sandstone_store::NewSandbox {
            suffix: self.random_suffix(),
            organisation: who.organisation,
            sandboxes_max: self.config.bounds.sandboxes_max,
            region: new.region,
            default_region: self.config.default_region(),
            lifetime: self.bounded(new.lifetime)?,
            memory: new.memory,
            labels: new.labels,
            root: new.root,
            volumes: new.volumes,
            network: new.network,
        };
        let control = self.clone();
        let work = async move {
            let begin = || control.begin_sandbox(&row, &new.environment);
            control.start(row.suffix, begin).await
        };
        let unclaimed = self.carry_out("the sandbox", work).await?;
        if let Some(port) = new.port {
            let target = Some(ExposureTarget::Port(port));
            self.expose(who, unclaimed.id(), target).await?;
        }
        Ok(unclaimed.claim())
    }

    /// A connection to a running sandbox's agent.
    ///
    /// # Errors
    /// `SANDBOX_NOT_FOUND` unless it runs.
    pub async fn agent(
        &self,
        who: &Principal,
        id: SandboxId,
    ) -> Result<Arc<AgentClient>, ApiError> {
        let object = format!("sandbox {id}");
        let sandbox = self.store.sandbox(who.organisation, id).await;
        let sandbox = sandbox.map_err(|error| error::of_store(&object, error))?;
        if sandbox.state != SandboxState::Running {
            return Err(error::sandbox_not_found(id));
        }
        self.node.agent(id).await.map_err(|error| match error {
            // It is ending at this moment.
            NodeError::NoSuchSandbox(_) => error::sandbox_not_found(id),
            NodeError::NotReady(_)
            | NodeError::PoolFull(_)
            | NodeError::InUse(_)
            | NodeError::NoSuchImage(_)
            | NodeError::TimedOut { .. }
            | NodeError::Failed { .. } => error::of_node(&object, error),
        })
    }

    /// How many processes of a sandbox the kernel killed so far because its memory ran out; nothing
    /// when that cannot be found out.
    pub(crate) async fn oom_kills(&self, id: SandboxId) -> Option<u64> {
        match self.node.oom_kills(id).await {
            Ok(kills) => Some(kills),
            Err(error) => {
                tracing::debug!(sandbox = %id, error = %Chain(&error), "no count of memory's victims");
                None
            }
        }
    }

    /// Lets a running sandbox live until `until`, but not longer from now than the server
    /// allows, and never shorter than it would anyway. Returns the granted instant, which is in the
    /// future. A sandbox that lives as long as its session keeps doing so.
    ///
    /// # Errors
    /// `SANDBOX_NOT_FOUND` unless it runs.
    pub async fn extend(
        &self,
        who: &Principal,
        id: SandboxId,
        until: Timestamp,
    ) -> Result<Timestamp, ApiError> {
        let now = self.clock.now();
        let until = until
            .max(now.plus_millis(1))
            .min(now.plus_millis(self.config.bounds.lifetime_max_ms));
        let granted = self.store.extend(who.organisation, id, until).await;
        granted.map_err(|error| error::of_store(&format!("sandbox {id}"), error))
    }

    /// The sandboxes that run or stopped lately and have all of `labels`, the newest first.
    ///
    /// # Errors
    /// `INTERNAL`.
    pub async fn sandboxes(
        &self,
        who: &Principal,
        labels: &BTreeMap<String, String>,
    ) -> Result<Vec<api::Sandbox>, ApiError> {
        let stopped_after = self.clock.now().plus_millis(-self.config.stopped_listed_ms);
        let sandboxes = self
            .store
            .list_sandboxes(who.organisation, labels, stopped_after)
            .await
            .map_err(|error| error::of_store("the list of sandboxes", error))?;
        Ok(sandboxes.into_iter().map(show::sandbox).collect())
    }

    fn bounded(&self, lifetime: Lifetime) -> Result<Lifetime, ApiError> {
        let Lifetime::Until(until) = lifetime else {
            return Ok(lifetime);
        };
        let now = self.clock.now();
        if until <= now {
            return Err(ApiError::invalid_field(
                "stop_at_ms",
                until.as_millis(),
                "the sandbox would end before it starts",
            ));
        }
        let latest = now.plus_millis(self.config.bounds.lifetime_max_ms);
        Ok(Lifetime::Until(until.min(latest)))
    }

    /// Records a sandbox with `begin` and starts it. Called again, `begin` has not changed anything
    /// before. To be run as a task of its own.
    pub(super) async fn start<F>(
        self: &Arc<Self>,
        suffix: IdSuffix,
        begin: impl FnMut() -> F,
    ) -> Result<Unclaimed, ApiError>
    where
        F: Future<Output = Result<SandboxSpec, StoreError>>,
    {
        if let Readiness::NotReady(why) = self.readiness().await {
            return Err(error::not_ready(&why));
        }
        // Whoever wants to stop it waits until it has started. Taken before there is anything to
        // be stopped.
        let live = self.live.get(suffix.as_str());
        let mut work = live.work.lock().await;
        let spec = self
            .once_released(begin)
            .await
            .map_err(|error| error::of_store("the sandbox", error))?;
        sandstone_crash::at(Point::AttachRecorded);
        let id = spec.id;
        let error = match self.start_on_node(&spec).await {
            Ok(()) => {
                tracing::info!(sandbox = %id, "sandbox started");
                self.deadlines.notify_one();
                return Ok(Unclaimed {
                    control: Some(self.clone()),
                    runtime: Handle::current(),
                    id,
                });
            }
            Err(error) => error,
        };
        // If this fails too, the retry job goes on with it.
        if let Ok(begun) = self.begin_stop(&live, id, StopReason::StartFailed).await {
            let _ = self.release_now(id, &begun, &mut work).await;
            live.count_attempt();
        }
        Err(error)
    }

    async fn begin_sandbox(
        &self,
        row: &sandstone_store::NewSandbox,
        environment: &BTreeMap<String, String>,
    ) -> Result<SandboxSpec, StoreError> {
        let begun = self.store.begin_sandbox(row, self.clock.now()).await?;
        let mount = |(volume, path): (VolumeId, MountPath)| Mount {
            image: volume.into(),
            path,
        };
        Ok(SandboxSpec {
            id: begun.id,
            memory: row.memory,
            root: match begun.root {
                BegunRoot::Base => Root::Base,
                BegunRoot::Snapshot(id) => Root::Snapshot(id),
                BegunRoot::Volume(id) => Root::Volume(id),
            },
            mounts: begun.mounts.into_iter().map(mount).collect(),
            environment: with_placeholders(environment, &row.network),
            network: row.network.clone(),
        })
    }

    async fn start_on_node(&self, spec: &SandboxSpec) -> Result<(), ApiError> {
        let object = format!("sandbox {}", spec.id);
        // Asked again after the sandbox was recorded: either we see the shutdown here, or the
        // shutdown sees the record.
        if self.is_draining() {
            return Err(error::shutting_down());
        }
        let started = self.node.start_sandbox(spec).await;
        started.map_err(|error| error::of_node(&object, error))?;
        sandstone_crash::at(Point::AttachStarted);
        match self.store.sandbox_started(spec.id).await {
            Err(StoreError::Denied { .. }) if self.is_draining() => Err(error::shutting_down()),
            started => started.map_err(|error| error::of_store(&object, error)),
        }
    }
}

/// The variables of a sandbox, its secrets' placeholders among them.
fn with_placeholders(
    environment: &BTreeMap<String, String>,
    network: &NetworkPolicy,
) -> BTreeMap<String, String> {
    let mut environment = environment.clone();
    for secret in &network.secrets {
        let placeholder = secret.placeholder.as_str().to_owned();
        environment.insert(secret.name.clone(), placeholder);
    }
    environment
}

/// A sandbox whose id nobody has heard yet. Dropped unheard, it ends the sandbox.
pub(super) struct Unclaimed {
    /// Taken when the id is heard.
    control: Option<Arc<ControlPlane>>,
    /// Dropping may happen outside a task.
    runtime: Handle,
    id: SandboxId,
}

impl Unclaimed {
    pub(super) fn id(&self) -> SandboxId {
        self.id
    }

    pub(super) fn claim(mut self) -> SandboxId {
        self.control = None;
        self.id
    }
}

impl Drop for Unclaimed {
    fn drop(&mut self) {
        let Some(control) = self.control.take() else {
            return;
        };
        let id = self.id;
        tracing::info!(sandbox = %id, "its client went away");
        let tasks = control.tasks.clone();
        let stop = async move {
            if let Err(error) = control.stop(id, StopReason::SessionEnded).await {
                tracing::warn!(sandbox = %id, error = %Chain(&error), "cannot end it yet");
            }
        };
        tasks.spawn_on(format!("ending sandbox {id}"), stop, &self.runtime);
    }
}
