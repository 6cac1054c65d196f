//! The node's promises.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use sandstone_api::{ImageId, SandboxId, SnapshotId, VolumeId};
use sandstone_core::{Consistency, Memory, MountPath, NetworkPolicy, Usage, VolumeCapacity};
use tokio::sync::mpsc;

use crate::AgentClient;

/// A volume to make.
#[derive(Debug, Clone)]
pub struct VolumeSpec {
    /// Its id, which names its image.
    pub id: VolumeId,
    /// Its hard limit.
    pub capacity: VolumeCapacity,
    /// What it holds at first.
    pub source: VolumeSource,
}

/// What a new volume holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeSource {
    /// Nothing.
    Empty,
    /// The base image `builtin:debian-13`.
    Base,
    /// A copy-on-write copy of a snapshot or a volume, attached or not. Its capacity is at most
    /// the new one's.
    Image(ImageId),
}

/// A snapshot to take.
#[derive(Debug, Clone, Copy)]
pub struct SnapshotSpec {
    /// Its id, which names its image.
    pub id: SnapshotId,
    /// The volume, attached or not.
    pub volume: VolumeId,
}

/// What was found out when an image was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    /// How its file system was left.
    pub consistency: Consistency,
    /// How long writers of the source had to wait, microseconds; 0 when there were none.
    pub stall_us: u64,
}

/// What an image occupies, and in how many pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Measured {
    /// Its sizes.
    pub usage: Usage,
    /// Extents on the pool. Cloning costs time by extents.
    pub extents: u64,
}

/// The images that a node has, by the random parts of their ids: the region is not on disk.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Images {
    /// Of volumes.
    pub volumes: Vec<String>,
    /// Of snapshots.
    pub snapshots: Vec<String>,
}

/// How full the pool is, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// All of it.
    pub total: u64,
    /// What can still be written.
    pub free: u64,
    /// Below this much free, nothing new is begun.
    pub low: u64,
    /// Below this much free, sandboxes' writes are held up until there is room again.
    pub critical: u64,
}

/// A sandbox to start.
#[derive(Debug, Clone)]
pub struct SandboxSpec {
    /// Its id, which names everything that belongs to it.
    pub id: SandboxId,
    /// Memory limit.
    pub memory: Memory,
    /// What its `/` is.
    pub root: Root,
    /// Volumes, a parent path before what lies below it.
    pub mounts: Vec<Mount>,
    /// Variables for every process in it.
    pub environment: BTreeMap<String, String>,
    /// What it may reach, and its secrets.
    pub network: NetworkPolicy,
}

/// The root of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Root {
    /// The base image, under a writable layer that ends with the sandbox.
    Base,
    /// A snapshot, under a writable layer that ends with the sandbox.
    Snapshot(SnapshotId),
    /// A volume, read-write.
    Volume(VolumeId),
}

/// An image mounted in a sandbox: a volume read-write, a snapshot read-only.
#[derive(Debug, Clone)]
pub struct Mount {
    /// The image.
    pub image: ImageId,
    /// Where.
    pub path: MountPath,
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
    /// A sandbox uses the image.
    #[error("{0} is in use")]
    InUse(ImageId),
    /// There is no such image here.
    #[error("there is no image of {0} on this node")]
    NoSuchImage(ImageId),
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

    /// Makes a volume's image, durably. Repeating it on an existing image changes nothing. Returns
    /// what is known of the copy, if it is one.
    async fn create_volume(&self, spec: &VolumeSpec) -> Result<Option<Copied>, NodeError>;

    /// Enlarges an unattached volume. Fine when it has that capacity already.
    /// [`NodeError::InUse`] while it is attached.
    async fn grow_volume(&self, id: VolumeId, capacity: VolumeCapacity) -> Result<(), NodeError>;

    /// Makes a snapshot's image, durably. If there is one already, nothing is taken again.
    /// The sandbox that holds the volume goes on; its writes wait for a moment.
    async fn create_snapshot(&self, spec: &SnapshotSpec) -> Result<Copied, NodeError>;

    /// Removes an image. Fine when there is none. [`NodeError::InUse`] while a sandbox uses it.
    async fn remove_image(&self, image: ImageId) -> Result<(), NodeError>;

    /// Measures what an image occupies now.
    async fn measure(&self, image: ImageId) -> Result<Measured, NodeError>;

    /// Reads all of a snapshot from the disk and returns the checksum of its content: the same
    /// for the same content, packed or not. Takes up to ten seconds for a gigabyte.
    async fn checksum_snapshot(&self, id: SnapshotId) -> Result<String, NodeError>;

    /// Rewrites a snapshot's image in as few extents as possible. Those who use it do not notice.
    /// Returns what it occupies then.
    async fn pack_snapshot(&self, id: SnapshotId) -> Result<Measured, NodeError>;

    /// The images of volumes and snapshots that this node has.
    async fn images(&self) -> Result<Images, NodeError>;

    /// How full the pool is.
    async fn space(&self) -> Result<Space, NodeError>;

    /// Starts a sandbox; returns when its agent has answered. On an error nothing is left of it.
    async fn start_sandbox(&self, spec: &SandboxSpec) -> Result<(), NodeError>;

    /// Serves the network of a running sandbox that an earlier server started; until then it
    /// reaches nothing. Fine when it is served already, or has an open network.
    async fn adopt_network(&self, id: SandboxId, network: &NetworkPolicy) -> Result<(), NodeError>;

    /// Ends a sandbox, running or not; returns when its volumes are on disk and released and
    /// nothing of it is left on the host.
    async fn stop_sandbox(&self, id: SandboxId) -> Result<(), NodeError>;

    /// The sandboxes of which anything exists on this host.
    async fn sandboxes(&self) -> Result<Vec<SandboxId>, NodeError>;

    /// A connection to a running sandbox's agent, shared by all callers.
    async fn agent(&self, id: SandboxId) -> Result<Arc<AgentClient>, NodeError>;

    /// How many processes of a running sandbox the kernel killed so far because its memory ran out.
    async fn oom_kills(&self, id: SandboxId) -> Result<u64, NodeError>;

    /// The node's own reports. Given out once; later calls return `None`.
    fn take_events(&self) -> Option<mpsc::Receiver<NodeEvent>>;

    /// Lets go of everything, after all sandboxes were stopped: unmounts the pool.
    async fn shut_down(&self) -> Result<(), NodeError>;
}
