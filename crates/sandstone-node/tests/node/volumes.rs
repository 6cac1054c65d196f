//! Volumes of data, and a node that takes over from another.

use std::path::Path;
use std::time::Duration;

use sandstone_api::{SandboxId, VolumeId};
use sandstone_node::Node;
use sandstone_node_api::{
    NodeApi, NodeError, NodeEvent, Root, SandboxSpec, SnapshotSpec, VolumeSource,
};

use crate::harness::{Running, clear, new_snapshot, sandbox, start, volume};

/// What the first node leaves: a volume, the sandbox that holds it, a process in that.
pub(crate) struct Left {
    volume: VolumeId,
    sandbox: SandboxId,
    process: String,
}

fn with(volume: VolumeId) -> SandboxSpec {
    sandbox(Root::Base, &[(volume.into(), "/data/set")])
}

pub(crate) async fn a_volume_outlives_its_sandbox(directory: &Path) -> Left {
    clear(directory).await;
    let node = start(directory, 0).await;
    let volume = volume(&node, 300_000_000, VolumeSource::Empty).await;

    let first = Running::start(&node, "base, first", with(volume)).await;
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
        first.expect(command, expected).await;
    }
    assert!(matches!(
        node.start_sandbox(&with(volume)).await,
        Err(NodeError::InUse(image)) if image == volume.into()
    ));
    first.expect("cat /data/set/file", "kept").await;

    first.stop(&node, "base").await;
    let second = Running::start(&node, "base", with(volume)).await;
    let process = second.shell("sleep 1000 >/dev/null 2>&1 & echo $!").await;
    Left {
        volume,
        sandbox: second.id,
        process,
    }
}

pub(crate) async fn a_new_node_finds_what_an_old_one_left(node: &Node, left: Left) {
    let mut events = node.take_events().unwrap();
    assert_eq!(node.sandboxes().await.unwrap(), [left.sandbox]);
    let agent = node.agent(left.sandbox).await.unwrap();
    let adopted = Running {
        id: left.sandbox,
        agent,
    };
    let command = format!("ps -o comm= -p {}", left.process);
    adopted.expect(&command, "sleep").await;
    adopted.expect("cat /data/set/file", "kept").await;

    adopted.stop(node, "base, of an earlier node").await;
    let event = tokio::time::timeout(Duration::from_secs(5), events.recv())
        .await
        .unwrap();
    assert_eq!(event, Some(NodeEvent::SandboxExited(left.sandbox)));
    node.stop_sandbox(left.sandbox).await.unwrap();
    assert!(node.agent(left.sandbox).await.is_err());

    let third = Running::start(node, "base", with(left.volume)).await;
    third.expect("cat /data/set/file", "kept").await;
    a_snapshot_is_what_it_was(node, &third, left.volume).await;
    assert!(matches!(
        node.remove_image(left.volume.into()).await,
        Err(NodeError::InUse(_))
    ));
    third.stop(node, "base").await;
    node.remove_image(left.volume.into()).await.unwrap();
    node.remove_image(left.volume.into()).await.unwrap();
    assert!(matches!(
        node.start_sandbox(&with(left.volume)).await,
        Err(NodeError::NoSuchImage(_))
    ));
}

/// A snapshot of a volume that `holder` writes to.
async fn a_snapshot_is_what_it_was(node: &Node, holder: &Running, volume: VolumeId) {
    let snapshot = new_snapshot();
    let spec = SnapshotSpec {
        id: snapshot,
        volume,
    };
    node.create_snapshot(&spec).await.unwrap();
    let checksum = node.checksum_snapshot(snapshot).await.unwrap();
    let mounts = [(snapshot.into(), "/mnt/image")];
    let reader = Running::start(node, "base", sandbox(Root::Base, &mounts)).await;
    holder.expect("echo later > /data/set/file; sync", "").await;
    reader.expect("cat /mnt/image/file", "kept").await;
    node.pack_snapshot(snapshot).await.unwrap();
    assert_eq!(node.checksum_snapshot(snapshot).await.unwrap(), checksum);
    reader.expect("cat /mnt/image/file", "kept").await;
    reader.stop(node, "base").await;
    node.remove_image(snapshot.into()).await.unwrap();
    assert!(matches!(
        node.checksum_snapshot(snapshot).await,
        Err(NodeError::NoSuchImage(image)) if image == snapshot.into()
    ));
}
