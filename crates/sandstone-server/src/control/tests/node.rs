//! A node in memory: its images have content, it records calls, fails and hangs on demand, and
//! notices whoever breaks the rules that the storage engine rests on.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use sandstone_api::{ImageId, SandboxId, SnapshotId, VolumeId};
use sandstone_core::{Consistency, NetworkPolicy, Usage, VolumeCapacity};
use sandstone_node_api::{
    AgentClient, Copied, Images, Measured, NodeApi, NodeError, NodeEvent, Readiness, Root,
    SandboxSpec, SnapshotSpec, Space, VolumeSource, VolumeSpec,
};
use sandstone_protocol::GENERATION;
use sandstone_protocol::frame::{Frame, FrameKind};
use sandstone_protocol::message::{self, Hello};
use tokio::io::AsyncWriteExt;
use tokio::sync::{Semaphore, mpsc};

/// Bytes of a piece of content.
pub(super) const PIECE_BYTES: u64 = 4096;

/// The piece that all copies of the base image share.
const BASE_PIECE: u64 = 0;

#[derive(Debug)]
pub(super) struct FakeNode {
    state: Mutex<State>,
    events: mpsc::Sender<NodeEvent>,
}

#[derive(Debug)]
pub(super) struct State {
    /// By kind and random part of the id, like files in a pool.
    pub(super) images: BTreeMap<String, Image>,
    /// The running sandboxes and what they use.
    pub(super) sandboxes: BTreeMap<SandboxId, Vec<ImageId>>,
    pub(super) calls: Vec<String>,
    pub(super) not_ready: Option<String>,
    pub(super) space: Space,
    /// How copies of attached volumes turn out.
    pub(super) consistency: Consistency,
    pub(super) dead_agents: BTreeSet<SandboxId>,
    /// Packing changes what a snapshot holds.
    pub(super) spoils_packed: bool,
    next_piece: u64,
    failures: HashMap<&'static str, VecDeque<Failure>>,
    gates: HashMap<&'static str, Arc<Semaphore>>,
    late_gates: HashMap<&'static str, Arc<Semaphore>>,
    /// What is worked on, and how.
    busy: BTreeMap<String, &'static str>,
    /// What is being copied.
    sources: Vec<String>,
    violations: Vec<String>,
    events: Option<mpsc::Receiver<NodeEvent>>,
}

/// An image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Image {
    pub(super) capacity: u64,
    /// What was written to it or copied into it. A write makes a new piece.
    pub(super) pieces: Vec<u64>,
    pub(super) extents: u64,
}

/// What a call is to do instead of its work.
#[derive(Debug)]
pub(super) enum Failure {
    Error(NodeError),
    Panic,
}

/// Never to be seen by a client.
pub(super) const SECRET: &str = "ENOSPC at /var/lib/sandstone/secret";

/// How long writers of an attached volume wait when it is copied, microseconds.
pub(super) const STALL_US: u64 = 250;

pub(super) fn broken() -> Failure {
    Failure::Error(NodeError::Failed {
        step: SECRET.to_owned(),
        source: SECRET.into(),
    })
}

/// The image's name in the pool.
pub(super) fn key(image: impl Into<ImageId>) -> String {
    match image.into() {
        ImageId::Volume(id) => format!("volumes/{}", id.suffix()),
        ImageId::Snapshot(id) => format!("snapshots/{}", id.suffix()),
    }
}

impl FakeNode {
    pub(super) fn new() -> Arc<Self> {
        let (events, receiver) = mpsc::channel(16);
        Arc::new(Self {
            state: Mutex::new(State {
                images: BTreeMap::new(),
                sandboxes: BTreeMap::new(),
                calls: Vec::new(),
                not_ready: None,
                space: Space {
                    total: 1 << 40,
                    free: 1 << 39,
                    low: 1 << 30,
                    critical: 1 << 28,
                },
                consistency: Consistency::FileSystem,
                dead_agents: BTreeSet::new(),
                spoils_packed: false,
                next_piece: BASE_PIECE + 1,
                failures: HashMap::new(),
                gates: HashMap::new(),
                late_gates: HashMap::new(),
                busy: BTreeMap::new(),
                sources: Vec::new(),
                violations: Vec::new(),
                events: Some(receiver),
            }),
            events,
        })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The next call of this kind fails.
    pub(super) fn fail(&self, call: &'static str, failure: Failure) {
        let mut state = self.state();
        state.failures.entry(call).or_default().push_back(failure);
    }

    /// Calls of this kind hang before their work until the gate has a permit for each.
    pub(super) fn hold(&self, call: &'static str) -> Arc<Semaphore> {
        let gate = Arc::new(Semaphore::new(0));
        self.state().gates.insert(call, gate.clone());
        gate
    }

    /// Calls of this kind hang after their work until the gate has a permit for each.
    pub(super) fn hold_after(&self, call: &'static str) -> Arc<Semaphore> {
        let gate = Arc::new(Semaphore::new(0));
        self.state().late_gates.insert(call, gate.clone());
        gate
    }

    pub(super) fn count(&self, call: &str) -> usize {
        let calls = &self.state().calls;
        calls.iter().filter(|made| made.starts_with(call)).count()
    }

    pub(super) async fn report(&self, event: NodeEvent) {
        self.events.send(event).await.unwrap();
    }

    /// The calls of a server that died are cut off, and with them what held them up.
    pub(super) fn forget_calls(&self) {
        let mut state = self.state();
        state.gates.clear();
        state.late_gates.clear();
        state.busy.clear();
        state.sources.clear();
    }

    pub(super) fn clear_failures(&self) {
        self.state().failures.clear();
    }

    /// What a sandbox writes to a volume.
    pub(super) fn write(&self, volume: &str) -> u64 {
        let mut state = self.state();
        let piece = state.new_piece();
        let key = key(volume.parse::<ImageId>().unwrap());
        let image = state.images.get_mut(&key).unwrap();
        image.pieces.push(piece);
        image.extents += 1;
        piece
    }

    /// The image of this volume or snapshot.
    pub(super) fn image(&self, id: &str) -> Option<Image> {
        let key = key(id.parse::<ImageId>().unwrap());
        self.state().images.get(&key).cloned()
    }

    /// The disk changes what a snapshot holds.
    pub(super) fn damage(&self, id: &str) {
        let key = key(id.parse::<ImageId>().unwrap());
        self.state().images.get_mut(&key).unwrap().pieces[0] = u64::MAX;
    }

    pub(super) fn assert_sound(&self) {
        let state = self.state();
        assert!(state.violations.is_empty(), "{:?}", state.violations);
    }

    /// Enters a call: one at a time for each object.
    async fn enter(&self, call: &'static str, object: String) -> Result<Busy<'_>, NodeError> {
        let gate = {
            let mut state = self.state();
            state.calls.push(format!("{call} {object}"));
            if let Some(other) = state.busy.insert(object.clone(), call) {
                state.violate(format!("{call} {object} during {other}"));
            }
            state.gates.get(call).cloned()
        };
        let busy = Busy { node: self, object };
        self.pause(call, gate).await?;
        Ok(busy)
    }

    /// Enters a call that may go on beside others.
    async fn enter_reading(&self, call: &'static str, object: ImageId) -> Result<(), NodeError> {
        let gate = {
            let mut state = self.state();
            state.calls.push(format!("{call} {object}"));
            state.gates.get(call).cloned()
        };
        self.pause(call, gate).await
    }

    async fn pause(
        &self,
        call: &'static str,
        gate: Option<Arc<Semaphore>>,
    ) -> Result<(), NodeError> {
        if let Some(gate) = gate {
            gate.acquire().await.unwrap().forget();
        } else {
            tokio::task::yield_now().await;
        }
        let failure = {
            let mut state = self.state();
            state.failures.get_mut(call).and_then(VecDeque::pop_front)
        };
        match failure {
            None => Ok(()),
            Some(Failure::Error(error)) => Err(error),
            Some(Failure::Panic) => panic!("on demand"),
        }
    }

    /// Hangs after the work of a call if a test wants that.
    async fn leave(&self, call: &'static str) {
        let gate = self.state().late_gates.get(call).cloned();
        if let Some(gate) = gate {
            gate.acquire().await.unwrap().forget();
        }
    }

    /// Nobody may remove or change `source` as long as this lives.
    fn copying(&self, source: ImageId) -> Result<Copying<'_>, NodeError> {
        let mut state = self.state();
        let key = key(source);
        if !state.images.contains_key(&key) {
            state.violate(format!("{source} is copied and has no image"));
            return Err(NodeError::NoSuchImage(source));
        }
        if let Some(call) = state.busy.get(&source.to_string()) {
            let violation = format!("{source} is copied during {call}");
            state.violate(violation);
        }
        state.sources.push(key.clone());
        Ok(Copying { node: self, key })
    }
}

impl State {
    fn violate(&mut self, violation: String) {
        self.violations.push(violation);
    }

    fn new_piece(&mut self) -> u64 {
        self.next_piece += 1;
        self.next_piece
    }

    fn is_used(&self, image: ImageId) -> bool {
        let key_of_used = |used: &ImageId| key(*used) == key(image);
        self.sandboxes.values().flatten().any(key_of_used)
    }

    fn copied(&self, source: ImageId) -> Copied {
        if self.is_used(source) && matches!(source, ImageId::Volume(_)) {
            Copied {
                consistency: self.consistency,
                stall_us: STALL_US,
            }
        } else {
            Copied {
                consistency: Consistency::FileSystem,
                stall_us: 0,
            }
        }
    }

    fn measured(&self, image: &Image) -> Measured {
        let shared = |piece: &u64| {
            let has = |other: &&Image| other.pieces.contains(piece);
            *piece == BASE_PIECE || self.images.values().filter(has).count() > 1
        };
        let own = image.pieces.iter().filter(|piece| !shared(piece)).count();
        Measured {
            usage: Usage {
                allocated: own as u64 * PIECE_BYTES,
                flattened: image.pieces.len() as u64 * PIECE_BYTES,
            },
            extents: image.extents,
        }
    }

    /// Notes who breaks a rule by using `image`.
    fn check_use(&mut self, image: ImageId) {
        if !self.images.contains_key(&key(image)) {
            self.violate(format!("{image} has no image"));
        }
        if matches!(image, ImageId::Volume(_)) && self.is_used(image) {
            self.violate(format!("{image} has two holders"));
        }
        if let Some(call @ ("remove_image" | "grow_volume")) =
            self.busy.get(&image.to_string()).copied()
        {
            self.violate(format!("{image} is used during {call}"));
        }
    }
}

struct Busy<'a> {
    node: &'a FakeNode,
    object: String,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.node.state().busy.remove(&self.object);
    }
}

struct Copying<'a> {
    node: &'a FakeNode,
    key: String,
}

impl Drop for Copying<'_> {
    fn drop(&mut self) {
        let mut state = self.node.state();
        if let Some(at) = state.sources.iter().position(|key| *key == self.key) {
            state.sources.swap_remove(at);
        }
    }
}

#[async_trait]
impl NodeApi for FakeNode {
    async fn readiness(&self) -> Readiness {
        match &self.state().not_ready {
            None => Readiness::Ready,
            Some(why) => Readiness::NotReady(why.clone()),
        }
    }

    async fn create_volume(&self, spec: &VolumeSpec) -> Result<Option<Copied>, NodeError> {
        let _copying = match spec.source {
            VolumeSource::Image(source) => Some(self.copying(source)?),
            VolumeSource::Empty | VolumeSource::Base => None,
        };
        let _busy = self.enter("create_volume", spec.id.to_string()).await?;
        let copied = {
            let mut state = self.state();
            let mut pieces = Vec::new();
            let mut copied = None;
            match spec.source {
                VolumeSource::Empty => pieces.push(state.new_piece()),
                VolumeSource::Base => {
                    pieces.push(BASE_PIECE);
                    pieces.push(state.new_piece());
                }
                VolumeSource::Image(source) => {
                    let Some(image) = state.images.get(&key(source)).cloned() else {
                        state.violate(format!("{source} vanished while it was copied"));
                        return Err(NodeError::NoSuchImage(source));
                    };
                    if image.capacity > spec.capacity.bytes() {
                        state.violate(format!("{} is smaller than its source", spec.id));
                    }
                    pieces = image.pieces;
                    copied = Some(state.copied(source));
                }
            }
            let extents = pieces.len() as u64;
            let image = Image {
                capacity: spec.capacity.bytes(),
                pieces,
                extents,
            };
            state.images.entry(key(spec.id)).or_insert(image);
            copied
        };
        self.leave("create_volume").await;
        Ok(copied)
    }

    async fn grow_volume(&self, id: VolumeId, capacity: VolumeCapacity) -> Result<(), NodeError> {
        let _busy = self.enter("grow_volume", id.to_string()).await?;
        {
            let mut state = self.state();
            if state.is_used(id.into()) {
                state.violate(format!("{id} is grown in use"));
                return Err(NodeError::InUse(id.into()));
            }
            if state.sources.contains(&key(id)) {
                state.violate(format!("{id} is grown while it is copied"));
            }
            let Some(image) = state.images.get_mut(&key(id)) else {
                return Err(NodeError::NoSuchImage(id.into()));
            };
            let shrinks = image.capacity > capacity.bytes();
            image.capacity = image.capacity.max(capacity.bytes());
            if shrinks {
                state.violate(format!("{id} would shrink"));
            }
        }
        self.leave("grow_volume").await;
        Ok(())
    }

    async fn create_snapshot(&self, spec: &SnapshotSpec) -> Result<Copied, NodeError> {
        let source = ImageId::Volume(spec.volume);
        let _copying = self.copying(source)?;
        let _busy = self.enter("create_snapshot", spec.id.to_string()).await?;
        let copied = {
            let mut state = self.state();
            let Some(image) = state.images.get(&key(source)).cloned() else {
                state.violate(format!("{source} vanished while it was copied"));
                return Err(NodeError::NoSuchImage(source));
            };
            let copied = state.copied(source);
            state.images.entry(key(spec.id)).or_insert(image);
            copied
        };
        self.leave("create_snapshot").await;
        Ok(copied)
    }

    async fn remove_image(&self, image: ImageId) -> Result<(), NodeError> {
        let _busy = self.enter("remove_image", image.to_string()).await?;
        {
            let mut state = self.state();
            if state.is_used(image) {
                // One more user of a shared tree is the node's to notice, a writer is not.
                if matches!(image, ImageId::Volume(_)) {
                    state.violate(format!("removed {image} in use"));
                }
                return Err(NodeError::InUse(image));
            }
            if state.sources.contains(&key(image)) {
                state.violate(format!("removed {image} while it is copied"));
            }
            state.images.remove(&key(image));
        }
        self.leave("remove_image").await;
        Ok(())
    }

    async fn measure(&self, image: ImageId) -> Result<Measured, NodeError> {
        self.enter_reading("measure", image).await?;
        let state = self.state();
        let found = state.images.get(&key(image));
        found
            .map(|found| state.measured(found))
            .ok_or(NodeError::NoSuchImage(image))
    }

    async fn checksum_snapshot(&self, id: SnapshotId) -> Result<String, NodeError> {
        self.enter_reading("checksum_snapshot", id.into()).await?;
        let state = self.state();
        let image = state.images.get(&key(id));
        image
            .map(|image| format!("sha256:{:?}", image.pieces))
            .ok_or(NodeError::NoSuchImage(id.into()))
    }

    async fn pack_snapshot(&self, id: SnapshotId) -> Result<Measured, NodeError> {
        let _busy = self.enter("pack_snapshot", id.to_string()).await?;
        let mut state = self.state();
        let spoils = state.spoils_packed;
        let Some(image) = state.images.get_mut(&key(id)) else {
            return Err(NodeError::NoSuchImage(id.into()));
        };
        image.extents = 1;
        if spoils {
            image.pieces.reverse();
            image.pieces.push(u64::MAX);
        }
        let image = image.clone();
        Ok(state.measured(&image))
    }

    async fn images(&self) -> Result<Images, NodeError> {
        self.pause("images", None).await?;
        let state = self.state();
        let of = |kind: &str| {
            let names = state.images.keys().filter_map(|key| key.strip_prefix(kind));
            names.map(str::to_owned).collect()
        };
        Ok(Images {
            volumes: of("volumes/"),
            snapshots: of("snapshots/"),
        })
    }

    async fn space(&self) -> Result<Space, NodeError> {
        self.pause("space", None).await?;
        Ok(self.state().space)
    }

    async fn start_sandbox(&self, spec: &SandboxSpec) -> Result<(), NodeError> {
        let _busy = self.enter("start_sandbox", spec.id.to_string()).await?;
        {
            let mut state = self.state();
            let mut used: Vec<_> = spec.mounts.iter().map(|mount| mount.image).collect();
            match spec.root {
                Root::Base => {}
                Root::Snapshot(id) => used.push(id.into()),
                Root::Volume(id) => used.push(id.into()),
            }
            for image in &used {
                state.check_use(*image);
            }
            state.sandboxes.insert(spec.id, used);
        }
        self.leave("start_sandbox").await;
        Ok(())
    }

    async fn adopt_network(&self, _: SandboxId, _: &NetworkPolicy) -> Result<(), NodeError> {
        Ok(())
    }

    async fn stop_sandbox(&self, id: SandboxId) -> Result<(), NodeError> {
        let _busy = self.enter("stop_sandbox", id.to_string()).await?;
        self.state().sandboxes.remove(&id);
        self.leave("stop_sandbox").await;
        Ok(())
    }

    async fn sandboxes(&self) -> Result<Vec<SandboxId>, NodeError> {
        Ok(self.state().sandboxes.keys().copied().collect())
    }

    async fn agent(&self, id: SandboxId) -> Result<Arc<AgentClient>, NodeError> {
        {
            let state = self.state();
            if !state.sandboxes.contains_key(&id) || state.dead_agents.contains(&id) {
                return Err(NodeError::NoSuchSandbox(id));
            }
        }
        let (ours, mut theirs) = tokio::io::duplex(4096);
        let hello = Frame {
            kind: FrameKind::Hello,
            id: 0,
            payload: message::encode(&Hello {
                generation: GENERATION,
            }),
        };
        theirs.write_all(&hello.encode()).await.unwrap();
        Ok(AgentClient::connect(ours).await.unwrap())
    }

    async fn oom_kills(&self, _: SandboxId) -> Result<u64, NodeError> {
        Ok(0)
    }

    fn take_events(&self) -> Option<mpsc::Receiver<NodeEvent>> {
        self.state().events.take()
    }

    async fn shut_down(&self) -> Result<(), NodeError> {
        Ok(())
    }
}
