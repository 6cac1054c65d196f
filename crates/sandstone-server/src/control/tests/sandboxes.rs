use std::collections::BTreeMap;
use std::time::Duration;

use sandstone_api::{ErrorCode, SandboxId, SandboxStatus};
use sandstone_core::{Clock, LIFETIME_MAX_MS, Labels, Lifetime, SandboxState, StopReason};
use sandstone_node_api::{NodeError, Readiness};

use super::harness::{Harness, assert_code, eventually, region, soon};
use super::node::{Failure, SECRET, broken};
use crate::control::NewSandbox;

#[tokio::test]
async fn a_sandbox_lives_and_its_volume_outlives_it() {
    let harness = Harness::new().await;
    let (control, who) = (&harness.control, &harness.who);
    let volume = harness.volume("data").await;
    let mut ids = Vec::new();
    for name in ["data", &volume.id] {
        let id = harness.sandbox(&[name]).await;
        assert_eq!(harness.row(id).await.state, SandboxState::Running);
        control.agent(who, id).await.unwrap();
        assert_code(
            control.agent(&harness.stranger, id).await,
            ErrorCode::SandboxNotFound,
        );
        let error = assert_code(
            harness.create(Harness::new_sandbox(&["data"])).await,
            ErrorCode::VolumeIsMounted,
        );
        assert!(error.message.contains(&id.to_string()), "{error}");
        let foreign = control.stop_sandbox(&harness.stranger, id, StopReason::Killed);
        assert_code(foreign.await, ErrorCode::SandboxNotFound);
        control
            .stop_sandbox(who, id, StopReason::Killed)
            .await
            .unwrap();
        assert_code(control.agent(who, id).await, ErrorCode::SandboxNotFound);
        ids.push(id);
    }
    let listed = control.sandboxes(who, &BTreeMap::new()).await.unwrap();
    let shown: Vec<_> = listed.iter().map(|sandbox| sandbox.status).collect();
    assert_eq!(shown, [SandboxStatus::Stopped; 2]);
    assert!(listed.iter().all(|sandbox| sandbox.stopped_at.is_some()));
    assert_eq!(listed[0].created_at, "2023-11-14T22:13:20.000Z");
    harness.clock.advance(24 * 60 * 60 * 1000);
    assert_eq!(control.sandboxes(who, &BTreeMap::new()).await.unwrap(), []);
    // Ending it again is fine as long as anyone can know of it.
    control
        .stop_sandbox(who, ids[0], StopReason::Killed)
        .await
        .unwrap();
    harness.assert_idle().await;
}

#[tokio::test]
async fn refusals_name_what_is_wrong() {
    let harness = Harness::new().await;
    harness.volume("data").await;
    let refuse = async |new: NewSandbox, code, text: &str| {
        let error = assert_code(harness.create(new).await, code);
        assert!(error.message.contains(text), "{error}");
    };
    let with_region = |text, volumes: &[&str]| NewSandbox {
        region: Some(region(text)),
        ..Harness::new_sandbox(volumes)
    };
    use ErrorCode::{InvalidRequest, RegionMismatch, VolumeNotFound};
    refuse(Harness::new_sandbox(&["nope"]), VolumeNotFound, "`nope`").await;
    let endless = "x".repeat(100_000);
    refuse(Harness::new_sandbox(&[&endless]), VolumeNotFound, "…").await;
    refuse(
        Harness::new_sandbox(&["data", "data"]),
        InvalidRequest,
        "`data`",
    )
    .await;
    refuse(with_region("fra", &[]), InvalidRequest, "fra").await;
    refuse(with_region("ams", &["data"]), RegionMismatch, "ord").await;
    refuse(with_region("ams", &["data"]), RegionMismatch, "ams").await;
    refuse(harness.timed_sandbox(&[], 0), InvalidRequest, "stop_at_ms").await;
    assert_eq!(harness.node.count("start_sandbox"), 0);
    harness.assert_idle().await;
}

#[tokio::test]
async fn the_region_follows_the_volumes() {
    let harness = Harness::new().await;
    let mut new = Harness::new_volume("far");
    new.region = Some(region("ams"));
    harness
        .control
        .create_volume(&harness.who, new)
        .await
        .unwrap();
    assert_eq!(harness.sandbox(&["far"]).await.region(), region("ams"));
    assert_eq!(harness.sandbox(&[]).await.region(), region("ord"));
    let new = NewSandbox {
        region: Some(region("ams")),
        ..Harness::new_sandbox(&[])
    };
    assert_eq!(harness.create(new).await.unwrap().region(), region("ams"));
}

#[tokio::test]
async fn a_failed_start_leaves_nothing() {
    let harness = Harness::new().await;
    harness.volume("data").await;
    let no_room = NodeError::PoolFull(SECRET.into());
    let too_slow = NodeError::TimedOut {
        step: "boot it",
        limit_ms: 7,
    };
    for (failure, code) in [
        (broken(), ErrorCode::Internal),
        (Failure::Error(no_room), ErrorCode::PoolFull),
        (Failure::Error(too_slow), ErrorCode::TimedOut),
        (
            Failure::Error(NodeError::NotReady("warming up".into())),
            ErrorCode::NotReady,
        ),
    ] {
        harness.node.fail("start_sandbox", failure);
        let failed = harness.create(Harness::new_sandbox(&["data"])).await;
        let error = assert_code(failed, code);
        assert!(!format!("{error:?}").contains("secret"), "{error:?}");
        harness.assert_idle().await;
    }
    // Asked before anything is reserved.
    harness.node.state().not_ready = Some("no image yet".into());
    let failed = harness.create(Harness::new_sandbox(&["data"])).await;
    assert!(
        assert_code(failed, ErrorCode::NotReady)
            .message
            .contains("no image yet")
    );
    assert_eq!(
        harness.control.readiness().await,
        Readiness::NotReady("no image yet".into())
    );
    harness.node.state().not_ready = None;
    assert_eq!(harness.node.count("start_sandbox"), 4);
    assert_eq!(harness.node.count("stop_sandbox"), 4);
    let listed = harness
        .control
        .sandboxes(&harness.who, &BTreeMap::new())
        .await;
    assert_eq!(listed.unwrap(), [], "nobody knows of them");
    harness.sandbox(&["data"]).await;
}

#[tokio::test]
async fn a_start_whose_undoing_fails_is_undone_later() {
    let harness = Harness::new().await;
    harness.volume("data").await;
    harness.node.fail("start_sandbox", broken());
    harness.node.fail("stop_sandbox", broken());
    let failed = harness.create(Harness::new_sandbox(&["data"])).await;
    assert_code(failed, ErrorCode::Internal);
    let stuck = harness.store.unfinished_sandboxes().await.unwrap();
    assert_eq!(stuck[0].state, SandboxState::Stopping);
    harness.run();
    assert_eq!(harness.ended(stuck[0].id).await, StopReason::StartFailed);
    harness.assert_idle().await;
}

#[tokio::test]
async fn a_start_whose_task_dies_is_undone_later() {
    let harness = Harness::new().await;
    harness.volume("data").await;
    harness.node.fail("start_sandbox", Failure::Panic);
    let failed = harness.create(Harness::new_sandbox(&["data"])).await;
    assert_code(failed, ErrorCode::Internal);
    let stuck = harness.store.unfinished_sandboxes().await.unwrap();
    assert_eq!(stuck[0].state, SandboxState::Starting);
    harness.run();
    assert_eq!(harness.ended(stuck[0].id).await, StopReason::StartFailed);
    harness.sandbox(&["data"]).await;
}

#[tokio::test]
async fn a_slow_start_is_not_taken_for_a_dead_one() {
    let harness = Harness::new().await;
    harness.run();
    let gate = harness.node.hold("start_sandbox");
    let client = harness.creating(Harness::new_sandbox(&[]));
    harness.called("start_sandbox", 1).await;
    tokio::time::sleep(Duration::from_millis(150)).await;
    gate.add_permits(1);
    let id = soon(client).await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(harness.row(id).await.state, SandboxState::Running);
}

#[tokio::test]
async fn a_client_who_goes_away_leaves_no_sandbox_behind() {
    let harness = Harness::new().await;
    harness.volume("data").await;
    for new in [
        Harness::new_sandbox(&["data"]),
        harness.timed_sandbox(&["data"], 60_000),
    ] {
        let gate = harness.node.hold("start_sandbox");
        let calls = harness.node.count("start_sandbox");
        let client = harness.creating(new);
        harness.called("start_sandbox", calls + 1).await;
        client.abort();
        let _ = client.await;
        gate.add_permits(1);
        eventually("the sandbox to end", async || {
            harness
                .store
                .unfinished_sandboxes()
                .await
                .unwrap()
                .is_empty()
        })
        .await;
        harness.assert_idle().await;
        let gate = harness.node.hold("start_sandbox");
        gate.add_permits(100);
    }
    assert_eq!(harness.node.count("stop_sandbox"), 2);
    harness.sandbox(&["data"]).await;
}

#[tokio::test]
async fn hanging_up_and_coming_back_at_once_works() {
    let harness = Harness::new().await;
    harness.volume("data").await;
    let id = harness.sandbox(&["data"]).await;
    let gate = harness.node.hold("stop_sandbox");
    let control = harness.control.clone();
    let end = tokio::spawn(async move { control.end_session(id).await });
    harness.called("stop_sandbox", 1).await;
    let client = harness.creating(Harness::new_sandbox(&["data"]));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!client.is_finished());
    assert_eq!(harness.node.count("start_sandbox"), 1);
    gate.add_permits(1);
    let next = soon(client).await.unwrap().unwrap();
    soon(end).await.unwrap();
    assert_ne!(next, id);
    harness.node.assert_sound();
}

#[tokio::test]
async fn labels_filter_the_list() {
    let harness = Harness::new().await;
    let labels = |value: &str| BTreeMap::from([("env".to_owned(), value.to_owned())]);
    let mut ids = Vec::new();
    for value in ["a", "b", "a"] {
        let new = NewSandbox {
            labels: Labels::new(labels(value)).unwrap(),
            ..Harness::new_sandbox(&[])
        };
        ids.push(harness.create(new).await.unwrap().to_string());
        harness.clock.advance(1);
    }
    let list = async |filter| {
        let found = harness
            .control
            .sandboxes(&harness.who, &filter)
            .await
            .unwrap();
        found
            .into_iter()
            .map(|sandbox| sandbox.id)
            .collect::<Vec<_>>()
    };
    assert_eq!(list(labels("a")).await, [ids[2].clone(), ids[0].clone()]);
    assert_eq!(list(BTreeMap::new()).await.len(), 3);
    assert_eq!(list(labels("c")).await.len(), 0);
    let everything = BTreeMap::new();
    let theirs = harness.control.sandboxes(&harness.stranger, &everything);
    assert_eq!(theirs.await.unwrap(), []);
}

#[tokio::test]
async fn extending_is_bounded_and_never_shortens() {
    let harness = Harness::new().await;
    let now = harness.clock.now();
    let (control, who) = (&harness.control, &harness.who);
    let timed = harness
        .create(harness.timed_sandbox(&[], 60_000))
        .await
        .unwrap();
    let session = harness.sandbox(&[]).await;
    let extend = async |id: SandboxId, millis| {
        let granted = control
            .extend(who, id, now.plus_millis(millis))
            .await
            .unwrap();
        granted.as_millis() - now.as_millis()
    };
    assert_eq!(extend(timed, 90_000).await, 90_000);
    assert_eq!(extend(timed, 10_000).await, 90_000);
    assert_eq!(extend(timed, -10_000).await, 90_000);
    assert_eq!(extend(timed, i64::MAX / 2).await, LIFETIME_MAX_MS);
    assert_eq!(extend(session, 90_000).await, 90_000);
    assert!(extend(session, -5).await > 0);
    assert_eq!(harness.row(session).await.lifetime, Lifetime::Session);
    let foreign = control.extend(&harness.stranger, timed, now).await;
    assert_code(foreign, ErrorCode::SandboxNotFound);
    control
        .stop_sandbox(who, timed, StopReason::Killed)
        .await
        .unwrap();
    assert_code(
        control.extend(who, timed, now).await,
        ErrorCode::SandboxNotFound,
    );

    // A lifetime that is too long is cut.
    let long = harness.timed_sandbox(&[], LIFETIME_MAX_MS + 5000);
    let long = harness.create(long).await.unwrap();
    let until = now.plus_millis(LIFETIME_MAX_MS);
    assert_eq!(harness.row(long).await.lifetime, Lifetime::Until(until));
}
