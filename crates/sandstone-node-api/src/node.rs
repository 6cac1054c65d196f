//! The node's promises.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use sandstone_api::{SandboxId, VolumeId};
use sandstone_core::{Memory, MountPath, VolumeCapacity};
use tokio::sync::mpsc;

use crate::AgentClient;

/// A volume to make.
#[derive(Debug, Clone)]
pub struct VolumeSpec {
    /// Its id, which names its image.
    pub id: VolumeId,
    /// Its hard limit.
    pub capacity: VolumeCapacity,
}

/// A sandbox to start.
#[derive(Debug, Clone)]
pub struct SandboxSpec {
    /// Its id, which names everything that belongs to it.
    pub id: SandboxId,
    /// Memory limit.
    pub memory: Memory,
    /// Volumes, a parent path before what lies below it.
    pub mounts: Vec<Mount>,
    /// Variables for every process in it.
    pub environment: BTreeMap<String, String>,
}

/// A volume mounted in a sandbox.
#[derive(Debug, Clone)]
pub struct Mount {
    /// The volume.
    pub volume: VolumeId,
    /// Where.
    pub path: MountPath,
}

/// What a volume occupies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VolumeUsage {
    /// Bytes that only this volume occupies.
    pub allocated: u64,
    /// Bytes that a full copy would occupy.
    pub flattened: u64,
}

/// Whether sandboxes can be created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// Yes.
    Ready,
    /// Not yet, or not any more, and why.
    NotReady(String),
}

/// What a node reports by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeEvent {
    /// A sandbox's first process has ended. Its volumes are still to be released with
    /// [`NodeApi::stop_sandbox`].
    SandboxExited(SandboxId),
    /// A volume's usage was measured.
    VolumeMeasured(VolumeId, VolumeUsage),
}

/// A promise the node could not keep.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The node cannot do this yet; the reason.
    #[error("the node is not ready: {0}")]
    NotReady(String),
    /// There is no such sandbox here.
    #[error("no sandbox {0} on this node")]
    NoSuchSandbox(SandboxId),
    /// There is no room.
    #[error("the pool is full: {0}")]
    PoolFull(String),
    /// A step did not end within its bound.
    #[error("{step} took longer than {limit_ms} ms")]
    TimedOut {
        /// The step.
        step: &'static str,
        /// Its bound, milliseconds.
        limit_ms: u64,
    },
    /// Anything else; `step` names what the node was doing.
    #[error("{step}")]
    Failed {
        /// What the node was doing, with the object's name.
        step: String,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// A node: it makes volumes and runs sandboxes on one host.
///
/// Every method is idempotent: repeating a call that was cut off by a crash leads to the same
/// state. Every method ends within a bound that the node sets.
#[async_trait]
pub trait NodeApi: fmt::Debug + Send + Sync {
    /// Whether [`NodeApi::start_sandbox`] can work now.
    async fn readiness(&self) -> Readiness;

    /// Makes a volume's image, durably. Repeating it on an existing image changes nothing.
    async fn create_volume(&self, spec: &VolumeSpec) -> Result<(), NodeError>;

    /// Removes a volume's image. Fine when there is none. Refused while it is attached.
    async fn remove_volume(&self, id: VolumeId) -> Result<(), NodeError>;

    /// Measures what a volume occupies now.
    async fn measure_volume(&self, id: VolumeId) -> Result<VolumeUsage, NodeError>;

    /// Starts a sandbox; returns when its agent has answered. On an error nothing is left of it.
    async fn start_sandbox(&self, spec: &SandboxSpec) -> Result<(), NodeError>;

    /// Ends a sandbox, running or not; returns when its volumes are on disk and released and
    /// nothing of it is left on the host.
    async fn stop_sandbox(&self, id: SandboxId) -> Result<(), NodeError>;

    /// The sandboxes of which anything exists on this host.
    async fn sandboxes(&self) -> Result<Vec<SandboxId>, NodeError>;

    /// A connection to a running sandbox's agent, shared by all callers.
    async fn agent(&self, id: SandboxId) -> Result<Arc<AgentClient>, NodeError>;

    /// The node's own reports. Given out once; later calls return `None`.
    fn take_events(&self) -> Option<mpsc::Receiver<NodeEvent>>;

    /// Lets go of everything, after all sandboxes were stopped: unmounts the pool.
    async fn shut_down(&self) -> Result<(), NodeError>;
}
