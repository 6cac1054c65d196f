//! Taking snapshots, and what becomes of them.

use std::time::Duration;

use sandstone_api::ErrorCode;
use sandstone_core::{Consistency, StopReason};
use sandstone_node_api::NodeError;

use super::harness::{Harness, assert_code, eventually, soon};
use super::node::{Failure, PIECE_BYTES, SECRET, STALL_US, broken};
use crate::control::PageRequest;

#[tokio::test]
async fn a_snapshot_is_taken_shown_and_deleted() {
    let harness = Harness::new().await;
    let (control, who, stranger) = (&harness.control, &harness.who, &harness.stranger);
    let volume = harness.volume("data").await;
    harness.node.write(&volume.id);
    let taken = harness.snapshot("data", "before").await;
    let snapshot = &taken.snapshot;
    assert!(snapshot.id.starts_with("snp_ord_"));
    assert_eq!(
        (snapshot.volume.id.as_str(), snapshot.volume.slug.as_str()),
        (volume.id.as_str(), "data")
    );
    assert_eq!(
        (snapshot.allocated_size, snapshot.flattened_size),
        (0, 2 * PIECE_BYTES),
        "all of it is shared with the volume"
    );
    assert_eq!((taken.capacity, taken.extents), (volume.capacity, 2));
    assert_eq!(taken.consistency, "filesystem");
    assert_eq!(
        (taken.write_stall_us, taken.state.as_str()),
        (0, "available")
    );
    assert!(!snapshot.is_bootable);
    // The volume's own size is fresh too.
    let source = control.volume(who, "data").await.unwrap();
    assert_eq!(source.volume.estimated_allocated_size, 0);

    for name in ["before", &snapshot.id] {
        assert_eq!(control.snapshot(who, name).await.unwrap(), taken);
        for refused in [
            control.snapshot(stranger, name).await,
            control.delete_snapshot(stranger, name).await,
            control.verify_snapshot(stranger, name).await,
            control.restore_snapshot(stranger, name, None).await,
        ] {
            assert_code(refused, ErrorCode::SnapshotNotFound);
        }
        assert_code(control.volume(who, name).await, ErrorCode::VolumeNotFound);
    }
    // One namespace with the volumes.
    for slug in ["data", "before"] {
        let again = control.snapshot_volume(who, "data", slug.parse().unwrap());
        let error = assert_code(again.await, ErrorCode::SlugAlreadyInUse);
        assert!(error.message.contains(&format!("`{slug}`")), "{error}");
    }
    assert_code(
        harness.make(Harness::new_volume("before")).await,
        ErrorCode::SlugAlreadyInUse,
    );
    let missing = control.snapshot_volume(who, "nope", "x0".parse().unwrap());
    let error = assert_code(missing.await, ErrorCode::VolumeNotFound);
    assert!(error.message.contains("`nope`"), "{error}");

    let deleted = control.delete_snapshot(who, "before").await.unwrap();
    assert_eq!(deleted.state, "deleted");
    assert_code(
        control.snapshot(who, &snapshot.id).await,
        ErrorCode::SnapshotNotFound,
    );
    harness.volume("before").await;
    harness.assert_idle().await;
}

#[tokio::test]
async fn it_keeps_what_it_was_taken_with() {
    let harness = Harness::new().await;
    let volume = harness.bootable("data").await;
    let first = harness.node.image(&volume.id).unwrap();
    let one = harness.snapshot("data", "one").await;
    assert!(one.snapshot.is_bootable);
    let id = harness.sandbox(&["data"]).await;
    harness.node.write(&volume.id);
    let second = harness.node.image(&volume.id).unwrap();
    // Of an attached volume: the sandbox goes on.
    let two = harness.snapshot("data", "two").await;
    assert_eq!(two.write_stall_us, STALL_US);
    harness.node.state().consistency = Consistency::Crash;
    assert_eq!(harness.snapshot("data", "three").await.consistency, "crash");
    harness.node.write(&volume.id);
    harness.control.end_session(id).await;
    harness
        .control
        .delete_volume(&harness.who, "data")
        .await
        .unwrap();
    let kept = |id: &str| harness.node.image(id).unwrap().pieces;
    assert_eq!(kept(&one.snapshot.id), first.pieces);
    assert_eq!(kept(&two.snapshot.id), second.pieces);
    harness.assert_idle().await;
}

#[tokio::test]
async fn a_snapshot_does_not_wait_for_a_stop() {
    let harness = Harness::new().await;
    harness.volume("data").await;
    let id = harness.sandbox(&["data"]).await;
    let gate = harness.node.hold("stop_sandbox");
    let stop = harness.stopping(id, StopReason::Killed);
    harness.called("stop_sandbox", 1).await;
    soon(harness.snapshot("data", "before")).await;
    assert!(!stop.is_finished());
    gate.add_permits(1);
    soon(stop).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_failed_snapshot_leaves_nothing() {
    let harness = Harness::new().await;
    let volume = harness.volume("data").await;
    let no_room = NodeError::PoolFull(SECRET.into());
    let too_slow = NodeError::TimedOut {
        step: "copy it",
        limit_ms: 7,
    };
    let missing = NodeError::NoSuchImage(volume.id.parse().unwrap());
    for (failure, code) in [
        (broken(), ErrorCode::Internal),
        (Failure::Error(missing), ErrorCode::Internal),
        (Failure::Error(no_room), ErrorCode::PoolFull),
        (Failure::Error(too_slow), ErrorCode::TimedOut),
    ] {
        harness.node.fail("create_snapshot", failure);
        let slug = "before".parse().unwrap();
        let failed = harness
            .control
            .snapshot_volume(&harness.who, "data", slug)
            .await;
        let error = assert_code(failed, code);
        assert!(!format!("{error:?}").contains("secret"), "{error:?}");
        assert_eq!(harness.store.half_created().await.unwrap(), []);
        let found = harness.control.snapshot(&harness.who, "before").await;
        assert_code(found, ErrorCode::SnapshotNotFound);
        assert_eq!(harness.node.state().images.len(), 1);
    }
    // What could not be removed at once is removed by the job, as is what a dead task leaves.
    harness.node.fail("create_snapshot", broken());
    harness.node.fail("remove_image", broken());
    assert!(
        soon(harness.taking("data", "before"))
            .await
            .unwrap()
            .is_err()
    );
    harness.node.fail("create_snapshot", Failure::Panic);
    assert!(
        soon(harness.taking("data", "before"))
            .await
            .unwrap()
            .is_err()
    );
    assert_eq!(harness.store.half_created().await.unwrap().len(), 1);
    harness.run();
    eventually("everything to be purged", async || {
        harness.store.known_images().await.unwrap().len() == 1
    })
    .await;
    harness.snapshot("data", "before").await;
    harness.assert_idle().await;
}

#[tokio::test]
async fn it_is_taken_even_if_the_client_goes_away() {
    let harness = Harness::new().await;
    harness.volume("data").await;
    harness.run();
    let gate = harness.node.hold("create_snapshot");
    let client = harness.taking("data", "before");
    harness.called("create_snapshot", 1).await;
    client.abort();
    // The job that gives up what nobody makes leaves this one alone.
    tokio::time::sleep(Duration::from_millis(100)).await;
    gate.add_permits(1);
    eventually("the snapshot", async || {
        harness
            .control
            .snapshot(&harness.who, "before")
            .await
            .is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_slow_measurement_does_not_hold_up_the_answer() {
    let harness = Harness::new().await;
    harness.volume("data").await;
    let gate = harness.node.hold("measure");
    let taken = soon(harness.snapshot("data", "before")).await;
    assert_eq!(taken.snapshot.flattened_size, 0);
    gate.add_permits(1000);
    harness.run();
    eventually("the numbers", async || {
        let found = harness.control.snapshot(&harness.who, "before").await;
        found.unwrap().snapshot.flattened_size == PIECE_BYTES
    })
    .await;
}

#[tokio::test]
async fn pages_of_snapshots() {
    let harness = Harness::new().await;
    harness.volume("data").await;
    let mut slugs = Vec::new();
    for n in 0..5 {
        slugs.push(format!("snapshot-{n}"));
        harness.snapshot("data", &slugs[n]).await;
    }
    let mut seen = Vec::new();
    let mut request = PageRequest {
        limit: Some(2),
        ..PageRequest::default()
    };
    loop {
        let page = harness.control.snapshots(&harness.who, request.clone());
        let page = page.await.unwrap();
        seen.extend(page.items.into_iter().map(|found| found.snapshot.slug));
        request.cursor = page.next_cursor;
        if request.cursor.is_none() {
            break;
        }
    }
    assert_eq!(seen, slugs);
    let request = PageRequest {
        search: Some("-3".to_owned()),
        ..PageRequest::default()
    };
    let page = harness.control.snapshots(&harness.who, request).await;
    assert_eq!(page.unwrap().items.len(), 1);
    let theirs = harness
        .control
        .snapshots(&harness.stranger, PageRequest::default());
    assert_eq!(theirs.await.unwrap().items, []);
}
