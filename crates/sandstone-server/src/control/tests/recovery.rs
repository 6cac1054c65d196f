use sandstone_core::{SandboxState, StopReason};
use sandstone_node_api::NodeApi;

use super::harness::{Harness, eventually};
use super::node::broken;

#[tokio::test]
async fn what_was_under_way_comes_to_an_end() {
    let harness = Harness::new().await;
    for slug in ["aa", "bb", "cc", "dd", "ee"] {
        harness.volume(slug).await;
    }
    let session = harness.sandbox(&["aa"]).await;
    let alive = harness
        .create(harness.timed_sandbox(&["bb"], 60_000))
        .await
        .unwrap();
    let dead = harness
        .create(harness.timed_sandbox(&["cc"], 60_000))
        .await
        .unwrap();
    harness.node.state().dead_agents.insert(dead);
    // Dies while one starts, one stops and a volume is being made.
    let stopping = harness.sandbox(&["dd"]).await;
    let gates = ["stop_sandbox", "start_sandbox", "create_volume"]
        .map(|call| (call, harness.node.hold(call)));
    let stop = harness.stopping(stopping, StopReason::Killed);
    let start = harness.creating(Harness::new_sandbox(&["ee"]));
    let make = harness.making(Harness::new_volume("half"));
    for (call, times) in [
        ("stop_sandbox", 1),
        ("start_sandbox", 5),
        ("create_volume", 6),
    ] {
        harness.called(call, times).await;
    }
    let unfinished = harness.store.unfinished_sandboxes().await.unwrap();
    let starting = unfinished.last().unwrap().id;
    assert_eq!(unfinished.last().unwrap().state, SandboxState::Starting);
    // The old server's tasks hang for ever, as if they were gone.
    let harness = harness.crash().await;
    drop((stop, start, make));
    harness.node.forget_calls();
    harness.control.recover().await.unwrap();
    drop(gates);

    for (id, reason) in [
        (session, StopReason::ServerLost),
        (dead, StopReason::Exited),
        (stopping, StopReason::Killed),
        (starting, StopReason::ServerLost),
    ] {
        let row = harness.row(id).await;
        assert_eq!(
            (row.state, row.stop_reason),
            (SandboxState::Stopped, Some(reason))
        );
    }
    assert_eq!(harness.row(alive).await.state, SandboxState::Running);
    harness.control.agent(&harness.who, alive).await.unwrap();
    assert_eq!(harness.store.half_created().await.unwrap(), []);
    assert_eq!(harness.node.state().sandboxes.len(), 1);
    assert_eq!(harness.node.state().images.len(), 5);
    for slug in ["aa", "cc", "dd", "ee"] {
        harness.sandbox(&[slug]).await;
    }
    harness.volume("half").await;
    // The survivor's deadline still counts.
    harness.run();
    harness.clock.advance(60_000);
    assert_eq!(harness.ended(alive).await, StopReason::TimedOut);
    harness.node.assert_sound();
}

#[tokio::test]
async fn unknown_sandboxes_are_removed() {
    let harness = Harness::new().await;
    let known = harness
        .create(harness.timed_sandbox(&[], 60_000))
        .await
        .unwrap();
    let stopped = harness.sandbox(&[]).await;
    harness.control.end_session(stopped).await;
    let unknown = "sbx_ord_1at5nn58e77rtd11e3k3".parse().unwrap();
    {
        let mut state = harness.node.state();
        state.sandboxes.insert(unknown, Vec::new());
        state.sandboxes.insert(stopped, Vec::new());
    }
    let harness = harness.crash().await;
    harness.control.recover().await.unwrap();
    assert_eq!(harness.node.sandboxes().await.unwrap(), [known]);
}

#[tokio::test]
async fn recovery_that_the_node_cannot_do_now_is_done_later() {
    let harness = Harness::new().await;
    harness.volume("data").await;
    let id = harness.sandbox(&["data"]).await;
    harness.node.fail("stop_sandbox", broken());
    // Once more for the search for unknown sandboxes, which must not touch this one.
    harness.node.fail("stop_sandbox", broken());
    let harness = harness.crash().await;
    harness.control.recover().await.unwrap();
    assert_eq!(harness.row(id).await.state, SandboxState::Stopping);
    harness.run();
    assert_eq!(harness.ended(id).await, StopReason::ServerLost);
    eventually("the third attempt", async || {
        harness.node.count("stop_sandbox") == 3
    })
    .await;
    harness.sandbox(&["data"]).await;
}

#[tokio::test]
async fn recovering_twice_changes_nothing_more() {
    let harness = Harness::new().await;
    harness.volume("data").await;
    let alive = harness
        .create(harness.timed_sandbox(&["data"], 60_000))
        .await
        .unwrap();
    let session = harness.sandbox(&[]).await;
    let mut harness = harness.crash().await;
    for _ in 0..2 {
        harness.control.recover().await.unwrap();
        harness.control.recover().await.unwrap();
        harness = harness.crash().await;
    }
    assert_eq!(harness.row(alive).await.state, SandboxState::Running);
    assert_eq!(harness.row(session).await.state, SandboxState::Stopped);
    assert_eq!(harness.node.count("stop_sandbox"), 1);
}
