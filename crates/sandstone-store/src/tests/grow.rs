use super::fixture::{Fixture, GB, at, capacity, volume_id};
use crate::{NewSource, NewVolume, StoreError};

#[tokio::test]
async fn a_volume_grows_by_an_intent_first() {
    let fixture = Fixture::new().await;
    let (store, ours) = (&fixture.store, fixture.ours);
    let volume = fixture.volume(1, "data").await;
    let same = store.begin_grow(ours, "data", capacity(GB), at(2)).await;
    assert_eq!(same.unwrap(), volume);
    assert_eq!(store.growing_volumes().await.unwrap(), []);

    for _ in 0..2 {
        let begun = store
            .begin_grow(ours, "data", capacity(2 * GB), at(2))
            .await;
        let begun = begun.unwrap();
        assert_eq!((begun.capacity, begun.growing_to), (GB, Some(2 * GB)));
        assert_eq!(store.volume(ours, "data").await.unwrap(), begun);
    }
    assert_eq!(
        store.growing_volumes().await.unwrap(),
        [(volume.id, 2 * GB)]
    );
    let failed = store.finish_grow(volume.id, Err(())).await.unwrap();
    assert_eq!(failed, volume);

    store
        .begin_grow(ours, "data", capacity(3 * GB), at(3))
        .await
        .unwrap();
    for result in [Ok(()), Ok(()), Err(())] {
        let grown = store.finish_grow(volume.id, result).await.unwrap();
        assert_eq!((grown.capacity, grown.growing_to), (3 * GB, None));
    }
    match store.begin_grow(ours, "data", capacity(GB), at(4)).await {
        Err(StoreError::CapacityBelowSource {
            asked,
            least,
            source_name,
        }) => assert_eq!(
            (asked.bytes(), least.bytes(), source_name.as_str()),
            (GB, 3 * GB, "data")
        ),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn nothing_else_happens_to_it_meanwhile() {
    let fixture = Fixture::new().await;
    let (store, ours) = (&fixture.store, fixture.ours);
    let volume = fixture.bootable(1, "data").await;
    let grow = async |bytes| store.begin_grow(ours, "data", capacity(bytes), at(5)).await;
    let is_busy = |error| match error {
        StoreError::VolumeIsBusy { volume: id, slug } => {
            assert_eq!((id, slug.as_str()), (volume.id, "data"));
        }
        other => panic!("{other:?}"),
    };

    // Not while it is attached.
    let sandbox = fixture.begin(7, &[("/data", "data")]).await.unwrap();
    let refused = grow(2 * GB).await;
    assert!(matches!(refused, Err(StoreError::VolumeIsMounted { .. })));
    fixture.stop(sandbox, at(8)).await;
    // Not while it is copied.
    let snapshot = fixture.new_snapshot(2, "data", "snap");
    let snapshot = store.begin_snapshot(&snapshot, at(9)).await.unwrap();
    is_busy(grow(2 * GB).await.unwrap_err());
    store
        .finish_snapshot(snapshot.id, Err("gone".to_owned()), at(9))
        .await
        .unwrap();

    grow(2 * GB).await.unwrap();
    let before = fixture.dump().await;
    is_busy(grow(3 * GB).await.unwrap_err());
    is_busy(fixture.begin(8, &[("/data", "data")]).await.unwrap_err());
    let mut rooted = fixture.new_sandbox(8, &[]);
    rooted.root = Some("data".to_owned());
    is_busy(store.begin_sandbox(&rooted, at(9)).await.unwrap_err());
    let again = fixture.new_snapshot(3, "data", "again");
    is_busy(store.begin_snapshot(&again, at(9)).await.unwrap_err());
    let fork = NewVolume {
        source: NewSource::Volume("data".to_owned()),
        ..fixture.new_volume(volume_id(4), "fork")
    };
    is_busy(store.begin_volume(&fork, at(9)).await.unwrap_err());
    assert_eq!(fixture.dump().await, before);

    // Deleting always works; the image waits.
    store.delete_volume(ours, "data", at(10)).await.unwrap();
    assert_eq!(
        store.growing_volumes().await.unwrap(),
        [(volume.id, 2 * GB)]
    );
    assert!(
        !store
            .begin_purge(volume.id.into(), at(99), at(99))
            .await
            .unwrap()
    );
    store.finish_grow(volume.id, Ok(())).await.unwrap();
    assert!(
        store
            .begin_purge(volume.id.into(), at(99), at(99))
            .await
            .unwrap()
    );
}
