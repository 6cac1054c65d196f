//! A real node on this host, without a server: volumes, sandboxes, restart. Needs root and the
//! base image, which it builds into the host's cache when it is missing.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test with a main of its own; clippy takes it for a program"
)]

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sandstone_api::{ByteSize, IdSuffix, SandboxId, VolumeId};
use sandstone_core::{Entropy, Memory, MountPath, VolumeCapacity};
use sandstone_node::{GuestTrust, Node, NodeConfig, SandboxLimits, Shim, public_name_servers};
use sandstone_node_api::{
    AgentClient, Mount, NodeApi, NodeEvent, Readiness, SandboxSpec, VolumeSpec,
};
use sandstone_protocol::message::{Answer, Request, Spawn};

/// The same in every run, so that a run can clear what a failed one left.
const DATA_DIR: &str = "/var/tmp/sandstone-node-test";
const INSTANCE: &str = "7e57a0de";

#[derive(Debug)]
struct Kernel;

impl Entropy for Kernel {
    fn fill(&self, bytes: &mut [u8]) {
        let mut file = std::fs::File::open("/dev/urandom").unwrap();
        std::io::Read::read_exact(&mut file, bytes).unwrap();
    }
}

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("shim") {
        return sandstone_node::shim_main();
    }
    assert!(
        rustix::process::geteuid().is_root(),
        "this test runs sandboxes: run as root"
    );
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    // Dropping a runtime ends its node in the middle of everything, as a crash does.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let left = runtime.block_on(a_volume_outlives_its_sandbox());
    drop(runtime);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(a_new_node_finds_what_an_old_one_left(left));
    println!("test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
    ExitCode::SUCCESS
}

async fn start(data: &Path) -> Arc<Node> {
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
        },
        warm: 0,
        guest: GuestTrust::none(&public_name_servers()),
        shim: Shim {
            program: "/proc/self/exe".into(),
            args: vec!["shim".to_owned()],
        },
        network: Ipv4Addr::new(10, 210, 0, 0),
    };
    let node = Node::start(config, Arc::new(Kernel));
    assert_eq!(node.prepared().await, Readiness::Ready);
    node
}

fn suffix() -> IdSuffix {
    let mut bytes = [0; 20];
    Kernel.fill(&mut bytes);
    IdSuffix::from_random(bytes)
}

fn sandbox(volume: VolumeId) -> SandboxSpec {
    SandboxSpec {
        id: SandboxId::new(volume.region(), suffix()),
        memory: Memory::default(),
        mounts: vec![Mount {
            volume,
            path: MountPath::parse("/data/set").unwrap(),
        }],
        environment: BTreeMap::from([("GREETING".to_owned(), "hello".to_owned())]),
    }
}

/// Runs a shell command as `app` and returns its output and exit code.
async fn shell(agent: &AgentClient, command: &str) -> (String, Option<i32>) {
    let mut stdout = agent.inbound();
    let spawn = Spawn {
        command: "bash".into(),
        args: vec!["-c".into(), format!("({command}) 2>&1")],
        stdout: Some(stdout.id()),
        ..Spawn::default()
    };
    let Answer::Spawned { pid } = agent.call(Request::Spawn(spawn)).await.unwrap() else {
        panic!("spawn answers with a pid")
    };
    let mut text = Vec::new();
    while let Some(chunk) = stdout.next().await {
        text.extend_from_slice(&chunk.unwrap());
    }
    let Answer::Exited(status) = agent.call(Request::Wait { pid }).await.unwrap() else {
        panic!("wait answers with a status")
    };
    (
        String::from_utf8_lossy(&text).trim().to_owned(),
        status.code,
    )
}

/// What the first node leaves: a volume, the sandbox that holds it, a process in that.
struct Left {
    volume: VolumeId,
    sandbox: SandboxId,
    process: String,
}

async fn a_volume_outlives_its_sandbox() -> Left {
    let directory = Path::new(DATA_DIR);
    clear(directory).await;
    let node = start(directory).await;
    let volume = VolumeId::new("ord".parse().unwrap(), suffix());
    let capacity = VolumeCapacity::new(ByteSize::new(300_000_000)).unwrap();
    node.create_volume(&VolumeSpec {
        id: volume,
        capacity,
    })
    .await
    .unwrap();

    let first = sandbox(volume);
    let begin = Instant::now();
    node.start_sandbox(&first).await.unwrap();
    println!("first start: {:?}", begin.elapsed());
    let agent = node.agent(first.id).await.unwrap();
    for (command, expected) in [
        (
            "id -un; pwd; sudo id -u; echo $GREETING",
            "app\n/home/app\n0\nhello",
        ),
        (
            "echo kept > /data/set/file && sync && stat -c %U /data/set",
            "app",
        ),
        ("head -c 6 /proc/1/comm", "agent-"),
        ("df --output=fstype / /data/set | tail -2", "overlay\next4"),
        (
            "sudo mount -t tmpfs none /mnt >/dev/null 2>&1 || echo refused",
            "refused",
        ),
    ] {
        assert_eq!(shell(&agent, command).await.0, expected, "{command}");
    }
    assert!(
        node.start_sandbox(&sandbox(volume)).await.is_err(),
        "one writer"
    );
    assert_eq!(shell(&agent, "cat /data/set/file").await.0, "kept");

    node.stop_sandbox(first.id).await.unwrap();
    let second = sandbox(volume);
    node.start_sandbox(&second).await.unwrap();
    let agent = node.agent(second.id).await.unwrap();
    let (process, _) = shell(&agent, "sleep 1000 >/dev/null 2>&1 & echo $!").await;
    Left {
        volume,
        sandbox: second.id,
        process,
    }
}

async fn a_new_node_finds_what_an_old_one_left(left: Left) {
    let directory = Path::new(DATA_DIR);
    let node = start(directory).await;
    let mut events = node.take_events().unwrap();
    assert_eq!(node.sandboxes().await.unwrap(), [left.sandbox]);
    let agent = node.agent(left.sandbox).await.unwrap();
    let command = format!("ps -o comm= -p {}", left.process);
    assert_eq!(shell(&agent, &command).await.0, "sleep");
    assert_eq!(shell(&agent, "cat /data/set/file").await.0, "kept");
    drop(agent);

    let begin = Instant::now();
    node.stop_sandbox(left.sandbox).await.unwrap();
    println!("stop: {:?}", begin.elapsed());
    let event = tokio::time::timeout(Duration::from_secs(5), events.recv())
        .await
        .unwrap();
    assert_eq!(event, Some(NodeEvent::SandboxExited(left.sandbox)));
    node.stop_sandbox(left.sandbox).await.unwrap();
    assert!(node.agent(left.sandbox).await.is_err());

    let third = sandbox(left.volume);
    let begin = Instant::now();
    node.start_sandbox(&third).await.unwrap();
    println!("start: {:?}", begin.elapsed());
    let agent = node.agent(third.id).await.unwrap();
    assert_eq!(shell(&agent, "cat /data/set/file").await.0, "kept");
    drop(agent);
    node.stop_sandbox(third.id).await.unwrap();
    node.remove_volume(left.volume).await.unwrap();
    node.shut_down().await.unwrap();
    assert!(
        node.sandboxes().await.is_err(),
        "a node that was shut down does nothing"
    );
    std::fs::remove_dir_all(directory).unwrap();
}

/// Takes down what a failed run left, the way a restarted server would.
async fn clear(directory: &Path) {
    if !directory.exists() {
        return;
    }
    let node = start(directory).await;
    let mut stops = tokio::task::JoinSet::new();
    for id in node.sandboxes().await.unwrap() {
        let node = node.clone();
        stops.spawn(async move { node.stop_sandbox(id).await.unwrap() });
    }
    stops.join_all().await;
    node.shut_down().await.unwrap();
    std::fs::remove_dir_all(directory).unwrap();
}
