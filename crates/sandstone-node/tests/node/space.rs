//! A pool that is about to be full.

use std::time::Duration;

use sandstone_node::Node;
use sandstone_node_api::{NodeApi, NodeError, Root, Space, VolumeSource};

use crate::harness::{Running, sandbox, volume};

pub(crate) async fn writers_wait_for_room(node: &Node) {
    let space = node.space().await.unwrap();
    assert!(space.free < space.total && space.critical < space.low && space.low < space.free);

    // Together they promise more than there is.
    let greedy = volume(node, 3_000_000_000, VolumeSource::Empty).await;
    let modest = volume(node, 300_000_000, VolumeSource::Empty).await;
    let with =
        |volume: sandstone_api::VolumeId| sandbox(Root::Base, &[(volume.into(), "/data/set")]);
    let other = Running::start(node, "base, warm", with(modest)).await;
    let filler = Running::start(node, "base, warm", with(greedy)).await;
    other
        .expect(
            "echo synced > /data/set/file && sync && echo on disk",
            "on disk",
        )
        .await;
    filler
        .expect(
            "head -c 2900M /dev/zero > /data/set/big 2>/tmp/said & echo begun",
            "begun",
        )
        .await;

    // The writer comes to a stop, and not because the pool is full.
    let mut last = u64::MAX;
    let mut same = 0;
    let full = wait_until(node, |space| {
        same = if space.free == last { same + 1 } else { 0 };
        last = space.free;
        space.free < space.low && same == 20
    })
    .await;
    println!(
        "held with {} MB free of {}",
        full.free >> 20,
        full.total >> 20
    );
    assert!(full.free > 0, "{full:?}");
    // Who wants more is told; who writes, waits.
    let refused = wait_for_refusal(node, &with(modest)).await;
    assert!(refused.contains("bytes are free"), "{refused}");
    other
        .expect(
            "(timeout -s KILL 60 sh -c 'echo more >> /data/set/file; echo done > /run/wrote' &) \
             >/dev/null 2>&1; sleep 0.5; cat /run/wrote 2>/dev/null",
            "",
        )
        .await;

    // Ending a sandbox makes room, also while its writes wait.
    filler.stop(node, "of a full pool").await;
    assert!(node.space().await.unwrap().free > 0);
    node.remove_image(greedy.into()).await.unwrap();
    wait_until(node, |space| space.free > space.low).await;
    let wrote = "for i in $(seq 100); do grep -q more /data/set/file && break; sleep 0.05; done; \
                 cat /data/set/file";
    other.expect(wrote, "synced\nmore").await;
    other.stop(node, "after that").await;
    node.remove_image(modest.into()).await.unwrap();
}

async fn wait_until(node: &Node, mut enough: impl FnMut(&Space) -> bool) -> Space {
    let wait = async {
        loop {
            let space = node.space().await.unwrap();
            if enough(&space) {
                return space;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait)
        .await
        .unwrap()
}

async fn wait_for_refusal(node: &Node, spec: &sandstone_node_api::SandboxSpec) -> String {
    match node.start_sandbox(spec).await {
        Err(NodeError::PoolFull(text)) => text,
        other => panic!("the pool is full, and the node says {other:?}"),
    }
}
