//! The blocking half of the node: the order of kernel-facing steps, on one thread at a time per
//! sandbox.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use sandstone_api::{SandboxId, VolumeId};
use sandstone_node_api::{NodeError, SandboxSpec, VolumeSpec, VolumeUsage};
use sandstone_runtime::{Runtime, StartSpec};
use sandstone_storage::{Pool, StorageError};

use crate::record::{Record, Records};
use crate::warm::Warm;

/// How long the kernel may take to write a dead sandbox's data and let go of the device. A full
/// window of dirty memory (4 GiB) at 100 MB/s is 40 s.
pub(crate) const RELEASE_LIMIT: Duration = Duration::from_secs(60);

/// Name of the base image in the pool.
pub(crate) const BASE_IMAGE: &str = "debian-13";

/// Limits of every sandbox on this host.
#[derive(Debug, Clone)]
pub struct SandboxLimits {
    /// Bytes of the writable layer over a read-only root.
    pub scratch_bytes: u64,
    /// Thousandths of a processor.
    pub cpu_millis: u32,
    /// Processes and threads.
    pub pids: u32,
}

/// The host's pool, runtime and records.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) pool: Pool,
    pub(crate) runtime: Runtime,
    pub(crate) records: Records,
    /// Base image in the pool that sandboxes start from.
    pub(crate) base: String,
    /// Directory of the agents' sockets. Short: a unix socket's path has at most 107 bytes.
    pub(crate) sockets: PathBuf,
    pub(crate) limits: SandboxLimits,
}

impl Host {
    /// The socket on which a sandbox's agent listens.
    pub(crate) fn socket(&self, id: SandboxId) -> PathBuf {
        self.sockets.join(format!("{}.sock", id.suffix()))
    }

    pub(crate) fn create_volume(&self, spec: &VolumeSpec) -> Result<(), NodeError> {
        self.pool
            .create_volume(spec.id.suffix(), spec.capacity.bytes())
            .map_err(|error| storage("making the image of", &spec.id, error))
    }

    pub(crate) fn remove_volume(&self, id: VolumeId) -> Result<(), NodeError> {
        self.pool
            .remove_volume(id.suffix())
            .map_err(|error| storage("removing the image of", &id, error))
    }

    pub(crate) fn measure_volume(&self, id: VolumeId) -> Result<VolumeUsage, NodeError> {
        let usage = self
            .pool
            .measure_volume(id.suffix())
            .map_err(|error| storage("measuring", &id, error))?;
        Ok(VolumeUsage {
            allocated: usage.allocated,
            flattened: usage.flattened,
        })
    }

    /// Makes everything a sandbox needs apart from its volumes.
    pub(crate) fn prepare(&self, scratch: String) -> Result<Warm, NodeError> {
        let prepared = self
            .runtime
            .prepare()
            .map_err(|error| failed("preparing a sandbox", error))?;
        match self
            .pool
            .create_scratch(&scratch, self.limits.scratch_bytes)
        {
            Ok(mount) => Ok(Warm {
                prepared,
                scratch,
                mount,
            }),
            Err(error) => {
                if let Err(error) = self.runtime.discard(prepared) {
                    tracing::warn!(%error, "a half-prepared sandbox stays until the next start");
                }
                Err(storage("making a writable layer", &scratch, error))
            }
        }
    }

    /// Takes a prepared sandbox down again.
    pub(crate) fn discard(&self, warm: Warm) -> Result<(), NodeError> {
        let Warm {
            prepared,
            scratch,
            mount,
        } = warm;
        drop(mount);
        self.runtime
            .discard(prepared)
            .map_err(|error| failed("discarding a sandbox", error))?;
        self.pool
            .release_scratch(&scratch, RELEASE_LIMIT)
            .map_err(|error| storage("releasing the writable layer", &scratch, error))
    }

    /// Starts a sandbox from `warm`; returns when the agent has been executed.
    pub(crate) fn start(&self, spec: &SandboxSpec, warm: Warm) -> Result<(), NodeError> {
        let record = Record {
            id: spec.id,
            volumes: spec.mounts.iter().map(|mount| mount.volume).collect(),
            scratch: warm.scratch.clone(),
        };
        if let Err(error) = self.records.write(&record) {
            let outcome = self.discard(warm);
            tracing::debug!(?outcome, "discarded");
            return Err(failed(format!("writing the record of {}", spec.id), error));
        }
        let started = self.start_recorded(spec, &record, warm);
        if started.is_err()
            && let Err(error) = self.stop(spec.id)
        {
            tracing::warn!(sandbox.id = %spec.id, %error, "a sandbox that did not start is not gone yet");
        }
        started
    }

    fn start_recorded(
        &self,
        spec: &SandboxSpec,
        record: &Record,
        warm: Warm,
    ) -> Result<(), NodeError> {
        let Warm {
            prepared,
            scratch: _,
            mount: scratch,
        } = warm;
        let mut laps = Laps::start();
        let mounts = self.attach(spec, record)?;
        laps.lap("volumes attached");
        let base = self
            .pool
            .base_tree(&self.base)
            .map_err(|error| storage("opening the base image", &self.base, error))?;
        let spec = StartSpec {
            name: spec.id.suffix().to_owned(),
            hostname: spec.id.suffix().to_owned(),
            memory_bytes: spec.memory.bytes(),
            cpu_millis: self.limits.cpu_millis,
            pids_max: self.limits.pids,
            base,
            scratch,
            mounts,
            agent_socket: self.socket(spec.id),
        };
        laps.lap("base mounted");
        let name = spec.name.clone();
        self.runtime
            .start(prepared, spec)
            .map_err(|error| failed(format!("starting sandbox {name}"), error))?;
        laps.lap("agent executed");
        Ok(())
    }

    /// Attaches the sandbox's volumes. When one cannot be, the record forgets it and those after
    /// it: they are not this sandbox's to release.
    fn attach(
        &self,
        spec: &SandboxSpec,
        record: &Record,
    ) -> Result<Vec<(OwnedFd, String)>, NodeError> {
        let mut mounts = Vec::with_capacity(spec.mounts.len());
        for mount in &spec.mounts {
            match self.pool.attach_volume(mount.volume.suffix()) {
                Ok(attached) => mounts.push((attached, mount.path.as_str().to_owned())),
                Err(error) => {
                    let mut shorter = record.clone();
                    shorter.volumes.truncate(mounts.len());
                    self.records.write(&shorter).map_err(|error| {
                        failed(format!("rewriting the record of {}", spec.id), error)
                    })?;
                    return Err(storage("attaching", &mount.volume, error));
                }
            }
        }
        Ok(mounts)
    }

    /// Takes a sandbox down, whatever is left of it. Returns when its data is on disk.
    pub(crate) fn stop(&self, id: SandboxId) -> Result<(), NodeError> {
        let mut laps = Laps::start();
        self.runtime
            .kill(id.suffix())
            .map_err(|error| failed(format!("killing sandbox {id}"), error))?;
        laps.lap("processes gone");
        let record = self
            .records
            .read(id)
            .map_err(|error| failed(format!("reading the record of {id}"), error))?;
        if let Some(record) = record {
            for volume in &record.volumes {
                self.pool
                    .release_volume(volume.suffix(), RELEASE_LIMIT)
                    .map_err(|error| storage("releasing", volume, error))?;
            }
            laps.lap("volumes released");
            self.pool
                .release_scratch(&record.scratch, RELEASE_LIMIT)
                .map_err(|error| storage("releasing the writable layer", &record.scratch, error))?;
            laps.lap("writable layer released");
        }
        // The runtime bound the socket; its name is ours, so removing it twice is harmless.
        let _ = fs::remove_file(self.socket(id));
        self.records
            .remove(id)
            .map_err(|error| failed(format!("removing the record of {id}"), error))
    }

    /// The sandboxes of which anything is left.
    pub(crate) fn sandboxes(&self) -> Result<Vec<SandboxId>, NodeError> {
        self.records
            .ids()
            .map_err(|error| failed("listing the records", error))
    }

    /// Removes what a dead server left half-made and no record names.
    pub(crate) fn sweep(&self) -> Result<(), NodeError> {
        let swept = self
            .runtime
            .sweep()
            .map_err(|error| failed("sweeping the runtime", error))?;
        if !swept.is_empty() {
            tracing::info!(
                count = swept.len(),
                "removed what an earlier server left parked"
            );
        }
        let recorded = self.sandboxes()?;
        for running in self
            .runtime
            .list()
            .map_err(|error| failed("listing sandboxes", error))?
        {
            if !recorded.iter().any(|id| id.suffix() == running.name) {
                self.runtime
                    .kill(&running.name)
                    .map_err(|error| failed(format!("killing {}", running.name), error))?;
            }
        }
        let mut in_use = Vec::new();
        for id in recorded {
            if let Ok(Some(record)) = self.records.read(id) {
                in_use.push(record.scratch);
            }
        }
        for scratch in self
            .pool
            .scratches()
            .map_err(|error| failed("listing writable layers", error))?
        {
            if !in_use.contains(&scratch) {
                self.pool
                    .release_scratch(&scratch, RELEASE_LIMIT)
                    .map_err(|error| storage("releasing the writable layer", &scratch, error))?;
            }
        }
        Ok(())
    }
}

/// Says in the log at level debug how long each step took.
struct Laps(std::time::Instant);

impl Laps {
    fn start() -> Self {
        Self(std::time::Instant::now())
    }

    fn lap(&mut self, step: &'static str) {
        tracing::debug!(step, took_us = self.0.elapsed().as_micros());
        self.0 = std::time::Instant::now();
    }
}

fn storage(step: &str, object: &impl std::fmt::Display, error: StorageError) -> NodeError {
    failed(format!("{step} {object}"), error)
}

pub(crate) fn failed(
    step: impl Into<String>,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> NodeError {
    NodeError::Failed {
        step: step.into(),
        source: source.into(),
    }
}
