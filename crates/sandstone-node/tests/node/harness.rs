//! A node on this host, and conversations with its sandboxes.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use sandstone_api::{ByteSize, IdSuffix, ImageId, Region, SandboxId, SnapshotId, VolumeId};
use sandstone_core::{Clock, Entropy, Memory, MountPath, Timestamp, VolumeCapacity};
use sandstone_node::{GuestTrust, Node, NodeConfig, SandboxLimits, Shim, public_name_servers};
use sandstone_node_api::{
    AgentClient, Mount, NodeApi, Readiness, Root, SandboxSpec, VolumeSource, VolumeSpec,
};
use sandstone_protocol::message::{Answer, Request, Spawn};

/// The same in every run, so that a run can clear what a failed one left.
pub(crate) const DATA_DIR: &str = "/var/tmp/sandstone-node-test";
const INSTANCE: &str = "7e57a0de";

#[derive(Debug)]
struct Kernel;

impl Clock for Kernel {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(1_800_000_000_000)
    }
}

impl Entropy for Kernel {
    fn fill(&self, bytes: &mut [u8]) {
        let mut file = std::fs::File::open("/dev/urandom").unwrap();
        std::io::Read::read_exact(&mut file, bytes).unwrap();
    }
}

pub(crate) async fn start(data: &Path, warm: usize) -> Arc<Node> {
    let config = NodeConfig {
        data_dir: data.to_owned(),
        run_dir: "/run/sandstone".into(),
        image_cache: "/var/cache/sandstone/images".into(),
        instance: INSTANCE.to_owned(),
        pool_bytes: 3 << 30,
        limits: SandboxLimits {
            scratch_bytes: 1 << 30,
            cpu_millis: 1000,
            pids: 200,
            open_files: 4096,
        },
        warm,
        guest: GuestTrust::none(&public_name_servers()),
        shim: Shim {
            program: "/proc/self/exe".into(),
            args: vec!["shim".to_owned()],
        },
        network: Ipv4Addr::new(10, 210, 0, 0),
    };
    let node = Node::start(config, Arc::new(Kernel), Arc::new(Kernel));
    assert_eq!(node.prepared().await, Readiness::Ready);
    node
}

fn suffix() -> IdSuffix {
    let mut bytes = [0; 20];
    Kernel.fill(&mut bytes);
    IdSuffix::from_random(bytes)
}

fn region() -> Region {
    "ord".parse().unwrap()
}

pub(crate) fn new_snapshot() -> SnapshotId {
    SnapshotId::new(region(), suffix())
}

pub(crate) fn capacity(bytes: u64) -> VolumeCapacity {
    VolumeCapacity::new(ByteSize::new(bytes)).unwrap()
}

/// Makes a volume.
pub(crate) async fn volume(node: &Node, bytes: u64, source: VolumeSource) -> VolumeId {
    let spec = VolumeSpec {
        id: VolumeId::new(region(), suffix()),
        capacity: capacity(bytes),
        source,
    };
    node.create_volume(&spec).await.unwrap();
    spec.id
}

/// A sandbox from this root, with images at these paths.
pub(crate) fn sandbox(root: Root, mounts: &[(ImageId, &str)]) -> SandboxSpec {
    SandboxSpec {
        id: SandboxId::new(region(), suffix()),
        memory: Memory::default(),
        root,
        mounts: mounts
            .iter()
            .map(|(image, path)| Mount {
                image: *image,
                path: MountPath::parse(path).unwrap(),
            })
            .collect(),
        environment: BTreeMap::from([("GREETING".to_owned(), "hello".to_owned())]),
        network: sandstone_core::NetworkPolicy::default(),
    }
}

/// A running sandbox.
pub(crate) struct Running {
    pub(crate) id: SandboxId,
    pub(crate) agent: Arc<AgentClient>,
}

impl Running {
    /// Starts a sandbox and says how long that took.
    pub(crate) async fn start(node: &Node, what: &str, spec: SandboxSpec) -> Self {
        let begin = Instant::now();
        node.start_sandbox(&spec).await.unwrap();
        println!("start, {what}: {:?}", begin.elapsed());
        let agent = node.agent(spec.id).await.unwrap();
        Self { id: spec.id, agent }
    }

    /// Runs a shell command as `app`, which must print this.
    pub(crate) async fn expect(&self, command: &str, expected: &str) {
        assert_eq!(self.shell(command).await, expected, "{command}");
    }

    /// Runs a shell command as `app` and returns what it printed.
    pub(crate) async fn shell(&self, command: &str) -> String {
        let mut stdout = self.agent.inbound();
        let spawn = Spawn {
            command: "bash".into(),
            args: vec!["-c".into(), format!("({command}) 2>&1")],
            stdout: Some(stdout.id()),
            ..Spawn::default()
        };
        let Answer::Spawned { pid } = self.agent.call(Request::Spawn(spawn)).await.unwrap() else {
            panic!("spawn answers with a pid")
        };
        let mut text = Vec::new();
        while let Some(chunk) = stdout.next().await {
            text.extend_from_slice(&chunk.unwrap());
        }
        let Answer::Exited(_) = self.agent.call(Request::Wait { pid }).await.unwrap() else {
            panic!("wait answers with a status")
        };
        String::from_utf8_lossy(&text).trim().to_owned()
    }

    /// Stops the sandbox and says how long that took.
    pub(crate) async fn stop(self, node: &Node, what: &str) {
        let begin = Instant::now();
        node.stop_sandbox(self.id).await.unwrap();
        println!("stop, {what}: {:?}", begin.elapsed());
    }
}

/// Takes down what a failed run left, the way a restarted server would.
pub(crate) async fn clear(directory: &Path) {
    if !directory.exists() {
        return;
    }
    let node = start(directory, 0).await;
    let mut stops = tokio::task::JoinSet::new();
    for id in node.sandboxes().await.unwrap() {
        let node = node.clone();
        stops.spawn(async move { node.stop_sandbox(id).await.unwrap() });
    }
    stops.join_all().await;
    node.shut_down().await.unwrap();
    std::fs::remove_dir_all(directory).unwrap();
}
