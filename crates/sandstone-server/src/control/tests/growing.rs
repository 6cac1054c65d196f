//! Enlarging volumes.

use std::time::Duration;

use sandstone_api::ErrorCode;
use sandstone_core::StopReason;
use sandstone_node_api::NodeError;

use super::harness::{Harness, assert_code, eventually, gigabytes, soon};
use super::node::{Failure, SECRET, broken};
use crate::control::Source;

#[tokio::test]
async fn a_volume_grows_and_never_shrinks() {
    let harness = Harness::new().await;
    let (control, who) = (&harness.control, &harness.who);
    let volume = harness.volume("data").await;
    let grow = async |name: &str, size| control.grow_volume(who, name, gigabytes(size)).await;
    for (name, size) in [("data", 2), ("data", 2), (&volume.id, 3)] {
        let grown = grow(name, size).await.unwrap();
        assert_eq!(grown.volume.capacity, size * 1_000_000_000);
        let image = harness.node.image(&volume.id).unwrap();
        assert_eq!(image.capacity, grown.volume.capacity);
    }
    assert_eq!(harness.node.count("grow_volume"), 2, "once for each size");
    let error = assert_code(grow("data", 1).await, ErrorCode::CapacityBelowBase);
    assert!(
        error.message.contains("data") && error.message.contains("3 GB"),
        "{error}"
    );
    assert_code(grow("nope", 4).await, ErrorCode::VolumeNotFound);
    let foreign = control.grow_volume(&harness.stranger, "data", gigabytes(4));
    assert_code(foreign.await, ErrorCode::VolumeNotFound);

    let id = harness.sandbox(&["data"]).await;
    let error = assert_code(grow("data", 4).await, ErrorCode::VolumeIsMounted);
    assert!(error.message.contains(&id.to_string()), "{error}");
    // Once its sandbox is being stopped, waiting helps.
    let gate = harness.node.hold("stop_sandbox");
    let stop = harness.stopping(id, StopReason::Killed);
    harness.called("stop_sandbox", 1).await;
    let growing = harness.growing("data", gigabytes(4));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!growing.is_finished());
    gate.add_permits(1);
    soon(stop).await.unwrap().unwrap();
    let grown = soon(growing).await.unwrap().unwrap();
    assert_eq!(grown.volume.capacity, 4_000_000_000);
    harness.assert_idle().await;
}

#[tokio::test]
async fn nobody_copies_or_attaches_a_volume_that_grows() {
    let harness = Harness::configured(|config| {
        config.release_wait = Duration::from_millis(300);
    })
    .await;
    harness.volume("data").await;
    let gate = harness.node.hold("grow_volume");
    let client = harness.growing("data", gigabytes(2));
    harness.called("grow_volume", 1).await;
    // It is carried out without its client.
    client.abort();
    let fork = || Harness::new_fork("fork", Source::Volume("data".into()));
    let waiting = (
        harness.making(fork()),
        harness.taking("data", "before"),
        harness.creating(Harness::new_sandbox(&["data"])),
        harness.growing("data", gigabytes(2)),
    );
    tokio::time::sleep(Duration::from_millis(50)).await;
    gate.add_permits(1);
    assert_eq!(
        soon(waiting.0).await.unwrap().unwrap().volume.capacity,
        2_000_000_000
    );
    assert_eq!(
        soon(waiting.1).await.unwrap().unwrap().capacity,
        2_000_000_000
    );
    let id = soon(waiting.2).await.unwrap().unwrap();
    soon(waiting.3).await.unwrap().unwrap();
    assert_eq!(harness.node.count("grow_volume"), 1);
    harness.control.end_session(id).await;

    // Waiting has a limit.
    let client = harness.growing("data", gigabytes(3));
    harness.called("grow_volume", 2).await;
    let refused = soon(harness.taking("data", "after")).await.unwrap();
    let error = assert_code(refused, ErrorCode::VolumeIsMounted);
    assert!(error.message.contains("`data`"), "{error}");
    gate.add_permits(1);
    soon(client).await.unwrap().unwrap();

    // And the other way round: a volume that is copied does not grow.
    gate.add_permits(1);
    let gate = harness.node.hold("create_snapshot");
    let taking = harness.taking("data", "after");
    harness.called("create_snapshot", 2).await;
    let growing = harness.growing("data", gigabytes(4));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!growing.is_finished());
    gate.add_permits(1);
    assert_eq!(soon(taking).await.unwrap().unwrap().capacity, 3_000_000_000);
    soon(growing).await.unwrap().unwrap();
    harness.assert_idle().await;
}

#[tokio::test]
async fn a_failure_leaves_the_old_capacity() {
    let harness = Harness::new().await;
    harness.volume("data").await;
    let grow = async || {
        let grown = harness
            .control
            .grow_volume(&harness.who, "data", gigabytes(2));
        grown.await
    };
    for (failure, code) in [
        (broken(), ErrorCode::Internal),
        (
            Failure::Error(NodeError::PoolFull(SECRET.into())),
            ErrorCode::PoolFull,
        ),
    ] {
        harness.node.fail("grow_volume", failure);
        let error = assert_code(grow().await, code);
        assert!(!format!("{error:?}").contains("secret"), "{error:?}");
        let volume = harness.control.volume(&harness.who, "data").await.unwrap();
        assert_eq!(volume.volume.capacity, 1_000_000_000);
        let id = harness.sandbox(&["data"]).await;
        harness.control.end_session(id).await;
    }
    // One that took too long may still happen, and one whose task died may have happened: each is
    // done again.
    let too_slow = NodeError::TimedOut {
        step: "enlarge it",
        limit_ms: 7,
    };
    harness.node.fail("grow_volume", Failure::Error(too_slow));
    assert_code(grow().await, ErrorCode::TimedOut);
    assert_eq!(harness.store.growing_volumes().await.unwrap().len(), 1);
    harness.node.fail("grow_volume", Failure::Panic);
    assert_code(grow().await, ErrorCode::Internal);
    harness.run();
    eventually("the new capacity", async || {
        let volume = harness.control.volume(&harness.who, "data").await.unwrap();
        volume.volume.capacity == 2_000_000_000
    })
    .await;
    assert_eq!(harness.store.growing_volumes().await.unwrap(), []);
    harness.sandbox(&["data"]).await;
    harness.node.assert_sound();
}
