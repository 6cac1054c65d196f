use sandstone_api::{SandboxId, VolumeId};
use sandstone_core::{ImageState, StopReason};

use super::fixture::{Fixture, at, region, suffix, volume_id};
use crate::{Origin, StoreError};

#[tokio::test]
async fn a_volume_is_seen_only_while_it_is_available() {
    let fixture = Fixture::new().await;
    let store = &fixture.store;
    let new = fixture.new_volume(volume_id(1), "data");
    let (begun, origin) = store.begin_volume(&new, at(10)).await.unwrap();
    assert_eq!((begun.state, origin), (ImageState::Creating, Origin::Empty));
    assert!(store.volume(fixture.ours, "data").await.is_err());
    assert_eq!(store.half_created().await.unwrap(), [new.id.into()]);

    let made = store.finish_volume(new.id, Ok(()), at(11)).await.unwrap();
    assert_eq!(made.state, ImageState::Available);
    assert_eq!(store.half_created().await.unwrap(), []);
    for name in ["data", &new.id.to_string()] {
        let found = store.volume(fixture.ours, name).await.unwrap();
        assert_eq!(found, made, "{name}");
    }
    assert!(matches!(
        store.volume(fixture.theirs, "data").await,
        Err(StoreError::VolumeNotFound { name }) if name == "data"
    ));

    let deleted = store.delete_volume(fixture.ours, "data", at(12));
    assert_eq!(deleted.await.unwrap().deleted_at, Some(at(12)));
    for name in ["data", &new.id.to_string()] {
        assert!(store.volume(fixture.ours, name).await.is_err());
        let again = store.delete_volume(fixture.ours, name, at(13)).await;
        assert!(matches!(again, Err(StoreError::VolumeNotFound { .. })));
    }
}

#[tokio::test]
async fn a_slug_belongs_to_one_living_volume() {
    let fixture = Fixture::new().await;
    let store = &fixture.store;
    let first = fixture.new_volume(volume_id(1), "data");
    store.begin_volume(&first, at(1)).await.unwrap();
    let second = fixture.new_volume(volume_id(2), "data");
    for _ in 0..2 {
        let before = fixture.dump().await;
        assert!(matches!(
            store.begin_volume(&second, at(2)).await,
            Err(StoreError::SlugTaken(slug)) if slug.as_str() == "data"
        ));
        assert_eq!(fixture.dump().await, before);
        let _ = store.finish_volume(first.id, Ok(()), at(3)).await;
    }
    // Another organisation has its own names.
    let mut foreign = fixture.new_volume(volume_id(3), "data");
    foreign.organisation = fixture.theirs;
    store.begin_volume(&foreign, at(2)).await.unwrap();

    store
        .delete_volume(fixture.ours, "data", at(4))
        .await
        .unwrap();
    store.begin_volume(&second, at(5)).await.unwrap();
    // A volume that could not be made frees its slug too, and keeps the reason.
    let failed = store.finish_volume(second.id, Err("no room".to_owned()), at(6));
    let failed = failed.await.unwrap();
    assert_eq!(failed.state, ImageState::Failed);
    assert_eq!(failed.failure.as_deref(), Some("no room"));
    fixture.volume(4, "data").await;
}

#[tokio::test]
async fn finishing_twice_is_refused() {
    let fixture = Fixture::new().await;
    let volume = fixture.volume(1, "data").await;
    let before = fixture.dump().await;
    for outcome in [Ok(()), Err("broken".to_owned())] {
        let again = fixture.store.finish_volume(volume.id, outcome, at(9)).await;
        assert!(matches!(again, Err(StoreError::Denied { .. })));
    }
    let purged = fixture.store.finish_purge(volume.id.into(), at(9)).await;
    assert!(matches!(purged, Err(StoreError::Denied { .. })));
    assert_eq!(fixture.dump().await, before);
}

#[tokio::test]
async fn a_held_volume_is_not_deleted() {
    let fixture = Fixture::new().await;
    let store = &fixture.store;
    fixture.volume(1, "data").await;
    let id = fixture.begin(7, &[("/data", "data")]).await.unwrap();
    let is_mounted = async |expected: bool| {
        let before = fixture.dump().await;
        match store.delete_volume(fixture.ours, "data", at(9)).await {
            Err(StoreError::VolumeIsMounted {
                sandbox, releasing, ..
            }) => assert_eq!((sandbox, releasing), (id, expected)),
            other => panic!("{other:?}"),
        }
        assert_eq!(fixture.dump().await, before);
    };
    is_mounted(false).await;
    store.sandbox_started(id).await.unwrap();
    is_mounted(false).await;
    store.begin_stop(id, StopReason::Killed).await.unwrap();
    is_mounted(true).await;
    store.sandbox_released(id, at(8)).await.unwrap();
    store
        .delete_volume(fixture.ours, "data", at(9))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_volume_that_was_never_there_is_not_found() {
    let fixture = Fixture::new().await;
    let before = fixture.dump().await;
    let store = &fixture.store;
    let id: VolumeId = volume_id(5);
    assert!(store.finish_volume(id, Ok(()), at(1)).await.is_err());
    assert!(store.finish_purge(id.into(), at(1)).await.is_err());
    assert!(!store.begin_purge(id.into(), at(1), at(1)).await.unwrap());
    assert!(store.finish_grow(id, Ok(())).await.is_err());
    assert!(
        store
            .delete_volume(fixture.ours, "nope", at(1))
            .await
            .is_err()
    );
    let sandbox = SandboxId::new(region("ord"), suffix(5));
    assert!(store.sandbox_started(sandbox).await.is_err());
    assert!(store.begin_stop(sandbox, StopReason::Killed).await.is_err());
    assert!(store.sandbox_released(sandbox, at(1)).await.is_err());
    assert_eq!(fixture.dump().await, before);
}
