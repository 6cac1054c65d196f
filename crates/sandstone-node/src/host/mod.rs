//! The blocking half of the node: the order of kernel-facing steps, on one thread at a time per
//! sandbox.

mod images;
mod sandbox;
mod space;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sandstone_api::{ImageId, SandboxId};
use sandstone_egress::Egress;
use sandstone_node_api::NodeError;
use sandstone_runtime::Runtime;
use sandstone_storage::{Pool, StorageError};

use crate::record::Records;
pub(crate) use space::Writers;

/// How long the kernel may take to write a dead sandbox's data and let go of the device. A full
/// window of dirty memory (4 GiB) at 100 MB/s is 40 s.
const RELEASE_LIMIT: Duration = Duration::from_secs(60);

/// How long a device of a volume that was never handed to a sandbox may take to clear itself. Its
/// one user was a server that is dead, and it has nothing to write.
const ABANDONED_LIMIT: Duration = Duration::from_secs(2);

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
    /// Open files of each process.
    pub open_files: u32,
}

/// The host's pool, runtime and records.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) pool: Pool,
    pub(crate) runtime: Runtime,
    pub(crate) records: Records,
    pub(crate) egress: Arc<Egress>,
    /// Base image in the pool that sandboxes start from.
    pub(crate) base: String,
    /// Directory of the agents' sockets. Short: a unix socket's path has at most 107 bytes.
    pub(crate) sockets: PathBuf,
    pub(crate) limits: SandboxLimits,
    pub(crate) writers: Writers,
}

impl Host {
    /// The socket on which a sandbox's agent listens.
    pub(crate) fn socket(&self, id: SandboxId) -> PathBuf {
        self.sockets.join(format!("{}.sock", id.suffix()))
    }

    /// The sandboxes of which anything is left.
    pub(crate) fn sandboxes(&self) -> Result<Vec<SandboxId>, NodeError> {
        self.records
            .ids()
            .map_err(|error| failed("listing the records", error))
    }

    /// Removes what a dead server left half-made and no record names.
    pub(crate) fn sweep(&self) -> Result<(), NodeError> {
        // First: what is frozen cannot be taken down, and everybody else waits for it.
        let thawed = self
            .pool
            .thaw_all()
            .map_err(|error| failed("thawing what an earlier server froze", error))?;
        if !thawed.is_empty() {
            tracing::info!(images = ?thawed, "thawed what an earlier server had frozen");
        }
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
                in_use.extend(record.scratch);
            }
        }
        for scratch in self
            .pool
            .scratches()
            .map_err(|error| failed("listing writable layers", error))?
        {
            if !in_use.contains(&scratch) {
                self.release_scratch(&scratch)?;
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

/// What the pool could not do with an image.
fn of_image(step: &str, image: ImageId, error: StorageError) -> NodeError {
    match error {
        StorageError::AlreadyAttached { .. } | StorageError::Busy(_) => NodeError::InUse(image),
        StorageError::Missing(_) => NodeError::NoSuchImage(image),
        other => of_pool(format!("{step} {image}"), other),
    }
}

/// What the pool could not do.
fn of_pool(step: impl Into<String>, error: StorageError) -> NodeError {
    match error {
        StorageError::Full { .. } => NodeError::PoolFull(error.to_string()),
        StorageError::Interrupted => NodeError::NotReady("the node is being shut down".to_owned()),
        other => failed(step, other),
    }
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
