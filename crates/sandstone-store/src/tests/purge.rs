use sandstone_api::ImageId;
use sandstone_core::ImageState;

use super::fixture::{Fixture, TAKEN, at, snapshot_id, volume_id};
use crate::{NewSource, NewVolume, StoreError};

#[tokio::test]
async fn purging_waits_for_the_grace_period() {
    let fixture = Fixture::new().await;
    let (store, ours) = (&fixture.store, fixture.ours);
    for (number, name) in [(1, "first"), (2, "second"), (3, "third")] {
        fixture.volume(number, name).await;
    }
    fixture.snapshot(4, "third", "fourth").await;
    store.delete_volume(ours, "first", at(100)).await.unwrap();
    store
        .delete_snapshot(ours, "fourth", at(150))
        .await
        .unwrap();
    store.delete_volume(ours, "second", at(200)).await.unwrap();
    let all: [ImageId; 3] = [
        volume_id(1).into(),
        snapshot_id(4).into(),
        volume_id(2).into(),
    ];
    let due = async |before, limit| store.images_to_purge(at(before), limit).await.unwrap();
    assert_eq!(due(99, 9).await, []);
    assert_eq!(due(100, 9).await, all[..1]);
    assert_eq!(due(1000, 9).await, all);
    assert_eq!(due(1000, 2).await, all[..2]);

    let first = all[0];
    let early = store.finish_purge(first, at(1000)).await;
    assert!(matches!(early, Err(StoreError::Denied { .. })));
    assert!(!store.begin_purge(first, at(99), at(1000)).await.unwrap());
    // Beginning again is how it is taken up after a crash, whatever the time.
    for before in [100, 0] {
        assert!(
            store
                .begin_purge(first, at(before), at(1000))
                .await
                .unwrap()
        );
    }
    assert_eq!(due(0, 9).await, [first]);
    assert!(
        store
            .known_images()
            .await
            .unwrap()
            .contains(&(first, ImageState::Purging))
    );
    for _ in 0..2 {
        store.finish_purge(first, at(1001)).await.unwrap();
    }
    assert!(!store.begin_purge(first, at(1000), at(1002)).await.unwrap());
    assert_eq!(due(1000, 9).await, all[1..]);
    let known = store.known_images().await.unwrap();
    assert!(known.iter().all(|(id, _)| *id != first));
    assert_eq!(known.len(), 3);
}

#[tokio::test]
async fn what_could_not_be_made_goes_at_once() {
    let fixture = Fixture::new().await;
    let store = &fixture.store;
    let new = fixture.new_volume(volume_id(1), "data");
    store.begin_volume(&new, at(500)).await.unwrap();
    assert!(
        !store
            .begin_purge(new.id.into(), at(999), at(999))
            .await
            .unwrap()
    );
    store
        .finish_volume(new.id, Err("no room".to_owned()), at(500))
        .await
        .unwrap();
    assert_eq!(
        store.images_to_purge(at(0), 9).await.unwrap(),
        [new.id.into()]
    );
    assert!(
        store
            .begin_purge(new.id.into(), at(0), at(501))
            .await
            .unwrap()
    );
    store.finish_purge(new.id.into(), at(502)).await.unwrap();
    assert_eq!(store.known_images().await.unwrap(), []);
}

#[tokio::test]
async fn an_image_stays_while_it_is_copied() {
    let fixture = Fixture::new().await;
    let (store, ours) = (&fixture.store, fixture.ours);
    let volume = fixture.volume(1, "data").await;
    let snapshot = fixture.new_snapshot(2, "data", "snap");
    let snapshot = store.begin_snapshot(&snapshot, at(2)).await.unwrap();
    store.delete_volume(ours, "data", at(3)).await.unwrap();
    assert_eq!(store.images_to_purge(at(9), 9).await.unwrap(), []);
    assert!(
        !store
            .begin_purge(volume.id.into(), at(9), at(9))
            .await
            .unwrap()
    );
    store
        .finish_snapshot(snapshot.id, Ok(TAKEN), at(4))
        .await
        .unwrap();
    assert!(
        store
            .begin_purge(volume.id.into(), at(9), at(9))
            .await
            .unwrap()
    );

    let fork = NewVolume {
        source: NewSource::Snapshot("snap".to_owned()),
        ..fixture.new_volume(volume_id(5), "fork")
    };
    store.begin_volume(&fork, at(5)).await.unwrap();
    store.delete_snapshot(ours, "snap", at(6)).await.unwrap();
    assert!(
        !store
            .begin_purge(snapshot.id.into(), at(9), at(9))
            .await
            .unwrap()
    );
    // Whatever comes of the copy.
    store
        .finish_volume(fork.id, Err("broken".to_owned()), at(7))
        .await
        .unwrap();
    let due = store.images_to_purge(at(9), 9).await.unwrap();
    assert_eq!(due, [volume.id.into(), snapshot.id.into(), fork.id.into()]);
    assert!(
        store
            .begin_purge(snapshot.id.into(), at(9), at(9))
            .await
            .unwrap()
    );
}
