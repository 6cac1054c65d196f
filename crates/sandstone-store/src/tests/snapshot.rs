use sandstone_core::{Consistency, Health, ImageState};

use super::fixture::{Fixture, GB, TAKEN, at, path, snapshot_id};
use crate::{NewSnapshot, SnapshotMade, StoreError};

#[tokio::test]
async fn a_snapshot_is_seen_only_while_it_is_available() {
    let fixture = Fixture::new().await;
    let (store, ours) = (&fixture.store, fixture.ours);
    let volume = fixture.bootable(1, "system").await;
    let new = fixture.new_snapshot(2, "system", "snap");
    let begun = store.begin_snapshot(&new, at(2)).await.unwrap();
    assert_eq!(begun.id, snapshot_id(2));
    assert_eq!(begun.volume, (volume.id, volume.slug.clone()));
    assert_eq!((begun.capacity, begun.is_bootable), (GB, true));
    assert_eq!(
        (begun.state, begun.consistency),
        (ImageState::Creating, None)
    );
    assert_eq!(begun.health, Health::Unrecorded);
    assert!(store.snapshot(ours, "snap").await.is_err());
    assert_eq!(store.half_created().await.unwrap(), [begun.id.into()]);

    let made = SnapshotMade {
        consistency: Consistency::Crash,
        stall_us: 1234,
    };
    let made = store
        .finish_snapshot(begun.id, Ok(made), at(3))
        .await
        .unwrap();
    assert_eq!(made.consistency, Some(Consistency::Crash));
    assert_eq!((made.stall_us, made.state), (1234, ImageState::Available));
    for name in ["snap", &begun.id.to_string()] {
        assert_eq!(store.snapshot(ours, name).await.unwrap(), made);
        assert!(store.snapshot(fixture.theirs, name).await.is_err());
    }
    let again = store.finish_snapshot(begun.id, Ok(TAKEN), at(4)).await;
    assert!(matches!(again, Err(StoreError::Denied { .. })));

    let deleted = store.delete_snapshot(ours, "snap", at(5)).await.unwrap();
    assert_eq!(deleted.deleted_at, Some(at(5)));
    assert!(store.snapshot(ours, "snap").await.is_err());
    assert_eq!(store.any_snapshot(begun.id).await.unwrap(), deleted);
    assert!(store.any_snapshot(snapshot_id(99)).await.is_err());
    let never = store.finish_snapshot(snapshot_id(99), Ok(TAKEN), at(4));
    assert!(matches!(
        never.await,
        Err(StoreError::SnapshotNotFound { .. })
    ));
}

#[tokio::test]
async fn a_volume_can_be_attached_or_deleted_meanwhile() {
    let fixture = Fixture::new().await;
    let (store, ours) = (&fixture.store, fixture.ours);
    let volume = fixture.volume(1, "data").await;
    let sandbox = fixture.begin(7, &[("/data", "data")]).await.unwrap();
    fixture.snapshot(2, "data", "first").await;
    fixture.stop(sandbox, at(8)).await;
    let new = fixture.new_snapshot(3, &volume.id.to_string(), "second");
    let begun = store.begin_snapshot(&new, at(9)).await.unwrap();
    store.delete_volume(ours, "data", at(10)).await.unwrap();
    let made = store.finish_snapshot(begun.id, Ok(TAKEN), at(11)).await;
    assert_eq!(made.unwrap().volume, (volume.id, volume.slug));
    // And there it ends: the volume is not to be seen.
    let third = fixture.new_snapshot(4, "data", "third");
    let gone = store.begin_snapshot(&third, at(12)).await;
    assert!(matches!(gone, Err(StoreError::VolumeNotFound { name }) if name == "data"));
}

#[tokio::test]
async fn only_ones_own_volumes_are_taken() {
    let fixture = Fixture::new().await;
    let volume = fixture.volume(1, "data").await;
    let before = fixture.dump().await;
    for name in ["data", &volume.id.to_string()] {
        let new = NewSnapshot {
            organisation: fixture.theirs,
            ..fixture.new_snapshot(2, name, "snap")
        };
        let begun = fixture.store.begin_snapshot(&new, at(2)).await;
        assert!(matches!(begun, Err(StoreError::VolumeNotFound { .. })));
    }
    assert_eq!(fixture.dump().await, before);
}

#[tokio::test]
async fn a_snapshot_is_deleted_while_sandboxes_run_from_it() {
    let fixture = Fixture::new().await;
    let (store, ours) = (&fixture.store, fixture.ours);
    fixture.bootable(1, "system").await;
    let snapshot = fixture.snapshot(2, "system", "snap").await;
    let mut new = fixture.new_sandbox(3, &[]);
    new.root = Some("snap".to_owned());
    let runs = fixture.running(&new, at(3)).await;
    let reads = store
        .begin_maintenance(
            super::fixture::suffix(4),
            ours,
            snapshot.id.into(),
            sandstone_core::Memory::default(),
            path("/mnt/image"),
            at(4),
        )
        .await
        .unwrap();
    store.delete_snapshot(ours, "snap", at(5)).await.unwrap();
    for sandbox in [runs, reads] {
        assert_eq!(store.images_to_purge(at(9), 9).await.unwrap(), []);
        assert!(
            !store
                .begin_purge(snapshot.id.into(), at(9), at(9))
                .await
                .unwrap()
        );
        fixture.stop(sandbox, at(10)).await;
    }
    assert!(
        store
            .begin_purge(snapshot.id.into(), at(9), at(11))
            .await
            .unwrap()
    );
}
