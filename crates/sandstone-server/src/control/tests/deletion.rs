//! Deleting, restoring, purging.

use std::time::Duration;

use sandstone_api::{ErrorCode, ImageId};
use sandstone_core::ImageState;

use super::harness::{Harness, assert_code, eventually, soon};
use super::node::broken;
use crate::control::{PageRequest, Source};

const DAY_MS: i64 = 24 * 60 * 60 * 1000;

#[tokio::test]
async fn what_was_deleted_comes_back() {
    let harness = Harness::new().await;
    let (control, who) = (&harness.control, &harness.who);
    let volume = harness.volume("data").await;
    let piece = harness.node.write(&volume.id);
    let snapshot = harness.snapshot("data", "before").await.snapshot;
    let deleted = control.delete_volume(who, "data").await.unwrap();
    assert_eq!(deleted.state, "deleted");
    assert_eq!(deleted.deleted_at.unwrap(), "2023-11-14T22:13:20.000Z");
    assert_eq!(deleted.purge_at.unwrap(), "2023-11-15T22:13:20.000Z");
    let deleted = control.delete_snapshot(who, "before").await.unwrap();
    assert_eq!(deleted.purge_at.unwrap(), "2023-11-15T22:13:20.000Z");
    let request = PageRequest {
        deleted: true,
        ..PageRequest::default()
    };
    let page = control.volumes(who, request.clone()).await.unwrap();
    assert_eq!(page.items[0].volume.id, volume.id);
    let page = control.snapshots(who, request).await.unwrap();
    assert_eq!(page.items[0].snapshot.id, snapshot.id);
    for name in ["data", &volume.id] {
        let foreign = control.restore_volume(&harness.stranger, name, None);
        assert_code(foreign.await, ErrorCode::VolumeNotFound);
    }

    harness.run();
    harness.clock.advance(DAY_MS - 1);
    let restored = control.restore_volume(who, "data", None).await.unwrap();
    assert_eq!(
        (restored.volume.id.as_str(), restored.state.as_str()),
        (volume.id.as_str(), "available")
    );
    assert_eq!((restored.deleted_at, restored.purge_at), (None, None));
    // Again is fine, by id too.
    control.restore_volume(who, &volume.id, None).await.unwrap();
    // The slug was taken meanwhile: another is needed.
    harness.volume("before").await;
    let taken = control.restore_snapshot(who, &snapshot.id, None).await;
    assert_code(taken, ErrorCode::SlugAlreadyInUse);
    let slug = "again".parse().unwrap();
    let restored = control.restore_snapshot(who, "before", Some(slug)).await;
    assert_eq!(restored.unwrap().snapshot.id, snapshot.id);
    harness.clock.advance(DAY_MS);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(
        harness
            .node
            .image(&volume.id)
            .unwrap()
            .pieces
            .contains(&piece)
    );
    harness.sandbox(&["data"]).await;
    let fork = Harness::new_fork("fork", Source::Snapshot("again".into()));
    harness.make(fork).await.unwrap();
    harness.node.assert_sound();
}

#[tokio::test]
async fn the_newest_of_a_name_comes_back() {
    let harness = Harness::new().await;
    let (control, who) = (&harness.control, &harness.who);
    let mut ids = Vec::new();
    for _ in 0..2 {
        ids.push(harness.volume("data").await.id);
        control.delete_volume(who, "data").await.unwrap();
        harness.clock.advance(1);
    }
    let newest = control.restore_volume(who, "data", None).await.unwrap();
    assert_eq!(newest.volume.id, ids[1]);
    let slug = "older".parse().unwrap();
    let older = control.restore_volume(who, &ids[0], Some(slug)).await;
    assert_eq!(older.unwrap().volume.id, ids[0]);
}

#[tokio::test]
async fn after_the_grace_period_it_is_gone() {
    let harness = Harness::new().await;
    let (control, who) = (&harness.control, &harness.who);
    let volume = harness.volume("data").await;
    let snapshot = harness.snapshot("data", "before").await.snapshot;
    control.delete_volume(who, "data").await.unwrap();
    control.delete_snapshot(who, "before").await.unwrap();
    // Too late, whether the job has come by or not.
    harness.clock.advance(DAY_MS);
    let gone = async || {
        let error = assert_code(
            control.restore_volume(who, "data", None).await,
            ErrorCode::NotRestorable,
        );
        assert!(error.message.contains("`data`"), "{error}");
        let gone = control.restore_snapshot(who, &snapshot.id, None).await;
        assert_code(gone, ErrorCode::NotRestorable);
    };
    gone().await;
    let gate = harness.node.hold("remove_image");
    harness.run();
    harness.called("remove_image", 1).await;
    gone().await;
    gate.add_permits(2);
    eventually("the purge", async || {
        harness.store.known_images().await.unwrap().is_empty()
    })
    .await;
    assert!(harness.node.state().images.is_empty());
    gone().await;
    assert_eq!(harness.node.count("remove_image"), 2, "once each");
    assert_code(
        control.volume(who, &volume.id).await,
        ErrorCode::VolumeNotFound,
    );
    assert_code(
        control.restore_volume(who, "nope", None).await,
        ErrorCode::VolumeNotFound,
    );
}

#[tokio::test]
async fn a_purge_that_was_begun_is_finished() {
    let harness = Harness::configured(|config| config.deletion_grace_ms = 0).await;
    let (control, who) = (&harness.control, &harness.who);
    let id = harness.volume("data").await.id;
    harness.node.fail("remove_image", broken());
    control.delete_volume(who, "data").await.unwrap();
    control.purge_image(id.parse().unwrap()).await.unwrap();
    let known = harness.store.known_images().await.unwrap();
    assert_eq!(known, [(id.parse().unwrap(), ImageState::Purging)]);
    assert!(harness.node.image(&id).is_some());
    // From here on there is no way back.
    let late = control.restore_volume(who, &id, None).await;
    assert_code(late, ErrorCode::NotRestorable);
    harness.run();
    eventually("the purge", async || harness.node.image(&id).is_none()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn restoring_and_purging_at_once_ends_one_way() {
    let harness = Harness::new().await;
    let (mut restored, mut purged) = (0, 0);
    for n in 0..60 {
        let slug = format!("data-{n}");
        let id = harness.volume(&slug).await.id;
        let image: ImageId = id.parse().unwrap();
        harness
            .control
            .delete_volume(&harness.who, &slug)
            .await
            .unwrap();
        // Restorable for one more millisecond, and to be purged after it: whoever of the two
        // looks at the clock first wins.
        harness.clock.advance(DAY_MS - 1);
        let (control, who) = (harness.control.clone(), harness.who.clone());
        let name = id.clone();
        let restore = tokio::spawn(async move {
            let restored = control.restore_volume(&who, &name, None).await;
            restored.is_ok()
        });
        let clock = harness.clock.clone();
        let control = harness.control.clone();
        let purge = tokio::spawn(async move {
            clock.advance(1);
            control.purge_image(image).await.unwrap();
        });
        let is_restored = soon(restore).await.unwrap();
        soon(purge).await.unwrap();
        assert_eq!(harness.node.image(&id).is_some(), is_restored, "{slug}");
        if is_restored {
            let sandbox = harness.sandbox(&[&slug]).await;
            harness.control.end_session(sandbox).await;
            restored += 1;
        } else {
            purged += 1;
        }
    }
    assert_eq!(restored + purged, 60);
    harness.assert_idle().await;
}
