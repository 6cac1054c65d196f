//! A node in memory: it records calls, fails and hangs on demand, and notices whoever breaks the
//! rules that the storage engine rests on.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use sandstone_api::{SandboxId, VolumeId};
use sandstone_node_api::{
    AgentClient, NodeApi, NodeError, NodeEvent, Readiness, SandboxSpec, VolumeSpec, VolumeUsage,
};
use sandstone_protocol::GENERATION;
use sandstone_protocol::frame::{Frame, FrameKind};
use sandstone_protocol::message::{self, Hello};
use tokio::io::AsyncWriteExt;
use tokio::sync::{Semaphore, mpsc};

#[derive(Debug)]
pub(super) struct FakeNode {
    state: Mutex<State>,
    events: mpsc::Sender<NodeEvent>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) images: BTreeSet<VolumeId>,
    pub(super) sandboxes: BTreeMap<SandboxId, Vec<VolumeId>>,
    pub(super) calls: Vec<String>,
    pub(super) not_ready: Option<String>,
    pub(super) usage: VolumeUsage,
    pub(super) dead_agents: BTreeSet<SandboxId>,
    failures: HashMap<&'static str, VecDeque<Failure>>,
    gates: HashMap<&'static str, Arc<Semaphore>>,
    busy: BTreeSet<String>,
    violations: Vec<String>,
    events: Option<mpsc::Receiver<NodeEvent>>,
}

/// What a call is to do instead of its work.
#[derive(Debug)]
pub(super) enum Failure {
    Error(NodeError),
    Panic,
}

/// Never to be seen by a client.
pub(super) const SECRET: &str = "ENOSPC at /var/lib/sandstone/secret";

pub(super) fn broken() -> Failure {
    Failure::Error(NodeError::Failed {
        step: SECRET.to_owned(),
        source: SECRET.into(),
    })
}

impl FakeNode {
    pub(super) fn new() -> Arc<Self> {
        let (events, receiver) = mpsc::channel(16);
        Arc::new(Self {
            state: Mutex::new(State {
                events: Some(receiver),
                usage: VolumeUsage {
                    allocated: 4096,
                    flattened: 8192,
                },
                ..State::default()
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

    /// Calls of this kind hang until the gate has a permit for each.
    pub(super) fn hold(&self, call: &'static str) -> Arc<Semaphore> {
        let gate = Arc::new(Semaphore::new(0));
        self.state().gates.insert(call, gate.clone());
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
        state.busy.clear();
    }

    pub(super) fn clear_failures(&self) {
        self.state().failures.clear();
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
            if !state.busy.insert(object.clone()) {
                let violation = format!("{call} {object} while another call works on it");
                state.violations.push(violation);
            }
            state.gates.get(call).cloned()
        };
        let busy = Busy { node: self, object };
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
            None => Ok(busy),
            Some(Failure::Error(error)) => Err(error),
            Some(Failure::Panic) => panic!("on demand"),
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

#[async_trait]
impl NodeApi for FakeNode {
    async fn readiness(&self) -> Readiness {
        match &self.state().not_ready {
            None => Readiness::Ready,
            Some(why) => Readiness::NotReady(why.clone()),
        }
    }

    async fn create_volume(&self, spec: &VolumeSpec) -> Result<(), NodeError> {
        let _busy = self.enter("create_volume", spec.id.to_string()).await?;
        self.state().images.insert(spec.id);
        Ok(())
    }

    async fn remove_volume(&self, id: VolumeId) -> Result<(), NodeError> {
        let _busy = self.enter("remove_volume", id.to_string()).await?;
        let mut state = self.state();
        if state.sandboxes.values().flatten().any(|held| *held == id) {
            state.violations.push(format!("removed {id} in use"));
        }
        state.images.remove(&id);
        Ok(())
    }

    async fn measure_volume(&self, id: VolumeId) -> Result<VolumeUsage, NodeError> {
        // Measuring may go on beside anything, so it does not count as work on the volume.
        let mut state = self.state();
        state.calls.push(format!("measure_volume {id}"));
        Ok(state.usage)
    }

    async fn start_sandbox(&self, spec: &SandboxSpec) -> Result<(), NodeError> {
        let _busy = self.enter("start_sandbox", spec.id.to_string()).await?;
        let mut state = self.state();
        for mount in &spec.mounts {
            let id = mount.volume;
            if state.sandboxes.values().flatten().any(|held| *held == id) {
                state.violations.push(format!("{id} has two holders"));
            }
            if !state.images.contains(&id) {
                state.violations.push(format!("{id} has no image"));
            }
        }
        let volumes = spec.mounts.iter().map(|mount| mount.volume).collect();
        state.sandboxes.insert(spec.id, volumes);
        Ok(())
    }

    async fn stop_sandbox(&self, id: SandboxId) -> Result<(), NodeError> {
        let _busy = self.enter("stop_sandbox", id.to_string()).await?;
        self.state().sandboxes.remove(&id);
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

    fn take_events(&self) -> Option<mpsc::Receiver<NodeEvent>> {
        self.state().events.take()
    }

    async fn shut_down(&self) -> Result<(), NodeError> {
        Ok(())
    }
}
