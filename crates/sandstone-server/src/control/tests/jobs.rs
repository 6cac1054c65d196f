use std::time::Duration;

use sandstone_api::ImageId;
use sandstone_core::{SandboxState, StopReason};
use sandstone_node_api::NodeEvent;

use super::harness::{Harness, eventually};
use super::node::{PIECE_BYTES, broken, key};

#[tokio::test]
async fn a_sandbox_ends_when_its_time_is_over() {
    let harness = Harness::new().await;
    harness.run();
    // Nothing to wait for yet: the job must wake up for the new sandbox.
    tokio::time::sleep(Duration::from_millis(20)).await;
    harness.volume("data").await;
    let long = harness
        .create(harness.timed_sandbox(&[], 60_000))
        .await
        .unwrap();
    let short = harness
        .create(harness.timed_sandbox(&["data"], 50))
        .await
        .unwrap();
    let session = harness.sandbox(&[]).await;
    harness.clock.advance(49);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(harness.row(short).await.state, SandboxState::Running);
    harness.clock.advance(1);
    assert_eq!(harness.ended(short).await, StopReason::TimedOut);
    for id in [long, session] {
        assert_eq!(harness.row(id).await.state, SandboxState::Running);
    }
    assert_eq!(harness.node.count("stop_sandbox"), 1);
    harness.sandbox(&["data"]).await;
}

#[tokio::test]
async fn an_extended_sandbox_goes_on() {
    let harness = Harness::new().await;
    harness.run();
    let id = harness
        .create(harness.timed_sandbox(&[], 50))
        .await
        .unwrap();
    let until = sandstone_core::Clock::now(&*harness.clock).plus_millis(90);
    let granted = harness.control.extend(&harness.who, id, until).await;
    assert_eq!(granted.unwrap(), until);
    harness.clock.advance(60);
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert_eq!(harness.row(id).await.state, SandboxState::Running);
    harness.clock.advance(40);
    assert_eq!(harness.ended(id).await, StopReason::TimedOut);
}

#[tokio::test]
async fn a_sandbox_that_ends_by_itself_is_released() {
    let harness = Harness::new().await;
    harness.volume("data").await;
    harness.run();
    let id = harness.sandbox(&["data"]).await;
    harness.node.fail("stop_sandbox", broken());
    for _ in 0..2 {
        harness.node.report(NodeEvent::SandboxExited(id)).await;
    }
    assert_eq!(harness.ended(id).await, StopReason::Exited);
    harness.node.report(NodeEvent::SandboxExited(id)).await;
    let unknown = "sbx_ord_1at5nn58e77rtd11e3k3".parse().unwrap();
    harness.node.report(NodeEvent::SandboxExited(unknown)).await;
    harness.sandbox(&["data"]).await;
    harness.node.assert_sound();
}

#[tokio::test]
async fn sizes_of_attached_volumes_and_their_relatives_stay_fresh() {
    let harness = Harness::new().await;
    harness.run();
    let volume = harness.volume("data").await;
    let snapshot = harness.snapshot("data", "before").await;
    let other = harness.volume("other").await;
    harness.clock.advance(1);
    harness.sandbox(&["data"]).await;
    let sizes = async || {
        let volume = harness.control.volume(&harness.who, "data").await.unwrap();
        let volume = volume.volume.estimated_allocated_size;
        let snapshot = harness.control.snapshot(&harness.who, "before").await;
        (volume, snapshot.unwrap().snapshot.allocated_size)
    };
    for writes in 1..4 {
        harness.node.write(&volume.id);
        eventually("the numbers", async || {
            sizes().await == (writes * PIECE_BYTES, 0)
        })
        .await;
    }
    // The volume overwrites what it shared.
    let key = key(volume.id.parse::<ImageId>().unwrap());
    let taken = harness.node.image(&snapshot.snapshot.id).unwrap().pieces;
    let mut pieces = harness.node.image(&volume.id).unwrap().pieces;
    pieces.retain(|piece| !taken.contains(piece));
    harness.node.state().images.get_mut(&key).unwrap().pieces = pieces;
    eventually("the snapshot's number", async || {
        sizes().await == (3 * PIECE_BYTES, PIECE_BYTES)
    })
    .await;
    // One that nobody uses is left alone.
    let calls = harness.node.count(&format!("measure {}", other.id));
    tokio::time::sleep(Duration::from_millis(100)).await;
    harness.clock.advance(1);
    assert!(harness.node.count(&format!("measure {}", other.id)) <= calls + 1);
}

#[tokio::test]
async fn old_records_are_forgotten() {
    let harness = Harness::new().await;
    let id = harness.sandbox(&[]).await;
    harness.control.end_session(id).await;
    harness.run();
    harness.clock.advance(7 * 24 * 60 * 60 * 1000);
    eventually("the record to go", async || {
        harness.store.any_sandbox(id).await.is_err()
    })
    .await;
}
