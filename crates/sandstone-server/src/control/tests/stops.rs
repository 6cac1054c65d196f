use std::time::Duration;

use futures_util::future::join_all;
use sandstone_api::{ErrorCode, SandboxId};
use sandstone_core::{SandboxState, StopReason};
use sandstone_node_api::Readiness;

use super::harness::{Harness, assert_code, eventually, soon};
use super::node::{PIECE_BYTES, broken};

#[tokio::test]
async fn everyone_who_stops_it_returns_after_the_release() {
    let harness = Harness::new().await;
    harness.volume("data").await;
    let id = harness.sandbox(&["data"]).await;
    let gate = harness.node.hold("stop_sandbox");
    let stops: Vec<_> = (0..10)
        .map(|_| harness.stopping(id, StopReason::Killed))
        .collect();
    harness.called("stop_sandbox", 1).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(stops.iter().all(|stop| !stop.is_finished()));
    gate.add_permits(1);
    for stop in soon(join_all(stops)).await {
        stop.unwrap().unwrap();
    }
    assert_eq!(harness.node.count("stop_sandbox"), 1);
    harness.assert_idle().await;
}

#[tokio::test]
async fn a_failed_stop_is_everyones_answer_and_tried_again() {
    let harness = Harness::new().await;
    harness.volume("data").await;
    let id = harness.sandbox(&["data"]).await;
    let gate = harness.node.hold("stop_sandbox");
    for _ in 0..5 {
        harness.node.fail("stop_sandbox", broken());
    }
    let stops: Vec<_> = (0..5)
        .map(|_| harness.stopping(id, StopReason::Killed))
        .collect();
    harness.called("stop_sandbox", 1).await;
    // Time for the others to begin waiting. One that is later makes an attempt of its own.
    tokio::time::sleep(Duration::from_millis(500)).await;
    gate.add_permits(5);
    for stop in soon(join_all(stops)).await {
        let error = assert_code(stop.unwrap(), ErrorCode::Internal);
        assert!(error.message.contains(&id.to_string()), "{error}");
        assert!(!format!("{error:?}").contains("secret"), "{error:?}");
    }
    let attempts = harness.node.count("stop_sandbox");
    assert!(attempts < 5, "{attempts} attempts");
    harness.node.clear_failures();
    assert_eq!(harness.row(id).await.state, SandboxState::Stopping);
    // The volume is not free: its data may not be on disk.
    let error = harness.control.delete_volume(&harness.who, "data");
    let early = tokio::time::timeout(Duration::from_millis(50), error).await;
    assert!(early.is_err());

    harness.node.fail("stop_sandbox", broken());
    gate.add_permits(10);
    harness.run();
    assert_eq!(harness.ended(id).await, StopReason::Killed);
    assert_eq!(harness.node.count("stop_sandbox"), attempts + 2);
    harness.assert_idle().await;
}

#[tokio::test]
async fn a_stop_is_carried_out_without_its_client() {
    let harness = Harness::new().await;
    let id = harness.sandbox(&[]).await;
    let gate = harness.node.hold("stop_sandbox");
    let client = harness.stopping(id, StopReason::Killed);
    harness.called("stop_sandbox", 1).await;
    client.abort();
    let _ = client.await;
    gate.add_permits(1);
    assert_eq!(harness.ended(id).await, StopReason::Killed);
    harness.assert_idle().await;
}

#[tokio::test]
async fn watchers_hear_the_first_reason() {
    let harness = Harness::new().await;
    let id = harness.sandbox(&[]).await;
    let early = tokio::spawn(harness.control.stopped(id));
    // Not yet asked when the stop begins.
    let late = harness.control.stopped(id);
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert!(!early.is_finished());
    let gate = harness.node.hold("stop_sandbox");
    let stop = harness.stopping(id, StopReason::TimedOut);
    // Heard before the release is done.
    assert_eq!(soon(early).await.unwrap(), StopReason::TimedOut);
    assert_eq!(soon(late).await, StopReason::TimedOut);
    let second = harness.stopping(id, StopReason::Killed);
    gate.add_permits(1);
    soon(stop).await.unwrap().unwrap();
    soon(second).await.unwrap().unwrap();
    assert_eq!(
        soon(harness.control.stopped(id)).await,
        StopReason::TimedOut
    );
    let unknown: SandboxId = "sbx_ord_1at5nn58e77rtd11e3k3".parse().unwrap();
    assert_eq!(
        soon(harness.control.stopped(unknown)).await,
        StopReason::Exited
    );
    let refused = harness
        .control
        .stop_sandbox(&harness.who, unknown, StopReason::Killed);
    assert_code(refused.await, ErrorCode::SandboxNotFound);
    harness.control.end_session(unknown).await;
    harness.assert_idle().await;
}

#[tokio::test]
async fn the_end_of_a_session_ends_session_sandboxes_only() {
    let harness = Harness::new().await;
    let session = harness.sandbox(&[]).await;
    let timed = harness
        .create(harness.timed_sandbox(&[], 60_000))
        .await
        .unwrap();
    for _ in 0..2 {
        harness.control.end_session(session).await;
        harness.control.end_session(timed).await;
    }
    let row = harness.row(session).await;
    assert_eq!(row.state, SandboxState::Stopped);
    assert_eq!(row.stop_reason, Some(StopReason::SessionEnded));
    assert_eq!(harness.row(timed).await.state, SandboxState::Running);
}

#[tokio::test]
async fn volumes_are_measured_after_a_stop() {
    let harness = Harness::new().await;
    let volume = harness.volume("data").await;
    let id = harness.sandbox(&["data"]).await;
    harness.node.write(&volume.id);
    harness.control.end_session(id).await;
    eventually("the measurement", async || {
        let found = harness.control.volume(&harness.who, "data").await;
        found.unwrap().volume.estimated_allocated_size == 2 * PIECE_BYTES
    })
    .await;
}

#[tokio::test]
async fn shutdown_ends_everything_and_begins_nothing() {
    let harness = Harness::new().await;
    harness.volume("data").await;
    harness.volume("other").await;
    let mut ids = vec![harness.sandbox(&["data"]).await];
    ids.push(
        harness
            .create(harness.timed_sandbox(&[], 60_000))
            .await
            .unwrap(),
    );
    let gate = harness.node.hold("start_sandbox");
    let starting = harness.creating(Harness::new_sandbox(&["other"]));
    harness.called("start_sandbox", 3).await;
    let control = harness.control.clone();
    let shutdown = tokio::spawn(async move { control.stop_all(StopReason::ServerStopped).await });
    eventually("the sandboxes to stop", async || {
        harness.store.unfinished_sandboxes().await.unwrap().len() == 1
    })
    .await;
    assert!(
        !shutdown.is_finished(),
        "it waits for the one that is starting"
    );
    let refused = harness.create(Harness::new_sandbox(&[])).await;
    assert_code(refused, ErrorCode::NotReady);
    let refused = harness
        .control
        .create_volume(&harness.who, Harness::new_volume("third"));
    assert_code(refused.await, ErrorCode::NotReady);
    gate.add_permits(1);
    soon(shutdown).await.unwrap();
    assert_code(soon(starting).await.unwrap(), ErrorCode::NotReady);
    for id in ids {
        assert_eq!(
            harness.row(id).await.stop_reason,
            Some(StopReason::ServerStopped)
        );
    }
    harness.assert_idle().await;
}

#[tokio::test]
async fn a_sandbox_that_waited_for_its_volume_is_not_begun_after_the_shutdown() {
    let harness = Harness::new().await;
    harness.volume("data").await;
    let id = harness.sandbox(&["data"]).await;
    let gate = harness.node.hold("stop_sandbox");
    let stop = harness.stopping(id, StopReason::Killed);
    harness.called("stop_sandbox", 1).await;
    let waiting = harness.creating(Harness::new_sandbox(&["data"]));
    tokio::time::sleep(Duration::from_millis(100)).await;
    let control = harness.control.clone();
    let shutdown = tokio::spawn(async move { control.stop_all(StopReason::ServerStopped).await });
    eventually("the shutdown to begin", async || {
        harness.control.readiness().await != Readiness::Ready
    })
    .await;
    gate.add_permits(2);
    assert_code(soon(waiting).await.unwrap(), ErrorCode::NotReady);
    soon(stop).await.unwrap().unwrap();
    soon(shutdown).await.unwrap();
    assert_eq!(harness.node.count("start_sandbox"), 1);
    harness.assert_idle().await;
}

#[tokio::test]
async fn shutdown_does_not_wait_for_ever() {
    let harness = Harness::configured(|config| {
        config.stop_all_limit = Duration::from_millis(50);
    })
    .await;
    harness.volume("data").await;
    let id = harness.sandbox(&["data"]).await;
    let _gate = harness.node.hold("stop_sandbox");
    soon(harness.control.stop_all(StopReason::ServerStopped)).await;
    assert_eq!(harness.row(id).await.state, SandboxState::Stopping);
}
