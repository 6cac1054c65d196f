use sandstone_api::{SandboxId, VolumeId};
use sandstone_core::{StopReason, VolumeState};

use super::fixture::{Fixture, at, region, suffix, volume_id};
use crate::{StoreError, Usage, VolumePosition, VolumesPage};

#[tokio::test]
async fn a_volume_is_seen_only_while_it_is_available() {
    let fixture = Fixture::new().await;
    let store = &fixture.store;
    let new = fixture.new_volume(volume_id(1), "data");
    let begun = store.begin_volume(&new, at(10)).await.unwrap();
    assert_eq!(begun.state, VolumeState::Creating);
    assert!(store.volume(fixture.ours, "data").await.is_err());
    assert_eq!(store.half_created_volumes().await.unwrap(), [new.id]);

    let made = store.finish_volume(new.id, true, at(11)).await.unwrap();
    assert_eq!(made.state, VolumeState::Available);
    assert_eq!(store.half_created_volumes().await.unwrap(), []);
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
        let _ = store.finish_volume(first.id, true, at(3)).await;
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
    // A volume that could not be made frees its slug too.
    store.finish_volume(second.id, false, at(6)).await.unwrap();
    fixture.volume(4, "data").await;
}

#[tokio::test]
async fn finishing_twice_is_refused() {
    let fixture = Fixture::new().await;
    let volume = fixture.volume(1, "data").await;
    let before = fixture.dump().await;
    for made in [true, false] {
        let again = fixture.store.finish_volume(volume.id, made, at(9)).await;
        assert!(matches!(again, Err(StoreError::Denied { .. })));
    }
    let purged = fixture.store.purge_volume(volume.id, at(9)).await;
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
async fn purging_waits_for_the_grace_period() {
    let fixture = Fixture::new().await;
    let store = &fixture.store;
    for (number, name) in [(1, "first"), (2, "second"), (3, "third")] {
        let volume = fixture.volume(number, name).await;
        if number < 3 {
            let now = at(100 * i64::from(number));
            store.delete_volume(fixture.ours, name, now).await.unwrap();
        }
        assert_eq!(volume.id, volume_id(number));
    }
    assert_eq!(store.volumes_to_purge(at(99), 9).await.unwrap(), []);
    let due = store.volumes_to_purge(at(100), 9).await.unwrap();
    assert_eq!(due, [volume_id(1)]);
    let due = store.volumes_to_purge(at(1000), 9).await.unwrap();
    assert_eq!(due, [volume_id(1), volume_id(2)]);
    let due = store.volumes_to_purge(at(1000), 1).await.unwrap();
    assert_eq!(due, [volume_id(1)]);
    for _ in 0..2 {
        store.purge_volume(volume_id(1), at(1001)).await.unwrap();
    }
    let due = store.volumes_to_purge(at(1000), 9).await.unwrap();
    assert_eq!(due, [volume_id(2)]);
}

#[tokio::test]
async fn usage_is_recorded_while_the_volume_lives() {
    let fixture = Fixture::new().await;
    let store = &fixture.store;
    let volume = fixture.volume(1, "data").await;
    assert_eq!(volume.usage, Usage::default());
    let usage = Usage {
        allocated: 10,
        flattened: 20,
    };
    store.record_usage(volume.id, usage, at(5)).await.unwrap();
    let measured = store.volume(fixture.ours, "data").await.unwrap();
    assert_eq!((measured.usage, measured.measured_at), (usage, Some(at(5))));
    store
        .delete_volume(fixture.ours, "data", at(6))
        .await
        .unwrap();
    let before = fixture.dump().await;
    let other = Usage::default();
    store.record_usage(volume.id, other, at(7)).await.unwrap();
    store
        .record_usage(volume_id(99), other, at(7))
        .await
        .unwrap();
    assert_eq!(fixture.dump().await, before);
}

#[tokio::test]
async fn pages_follow_each_other_without_gaps() {
    let fixture = Fixture::new().await;
    let store = &fixture.store;
    let mut names = Vec::new();
    for number in 0..7 {
        let name = format!("volume-{number}");
        let new = fixture.new_volume(volume_id(number), &name);
        // Several volumes of one instant: the id decides.
        fixture.available(&new, at(i64::from(number / 3))).await;
        names.push(name);
    }
    store
        .delete_volume(fixture.ours, "volume-2", at(9))
        .await
        .unwrap();
    names.remove(2);
    for limit in 1..9 {
        let mut seen = Vec::new();
        let mut after: Option<VolumePosition> = None;
        loop {
            let page = VolumesPage {
                limit,
                after,
                search: None,
            };
            let items = store.list_volumes(fixture.ours, page).await.unwrap();
            assert!(items.len() <= limit as usize);
            let Some(last) = items.last() else { break };
            after = Some(last.position());
            seen.extend(items.into_iter().map(|volume| volume.slug.to_string()));
        }
        assert_eq!(seen, names, "pages of {limit}");
    }
    let page = VolumesPage {
        limit: 9,
        after: None,
        search: None,
    };
    assert_eq!(store.list_volumes(fixture.theirs, page).await.unwrap(), []);
}

#[tokio::test]
async fn search_takes_text_literally() {
    let fixture = Fixture::new().await;
    for (number, name) in [(1, "train-cache"), (2, "cache"), (3, "data")] {
        fixture.volume(number, name).await;
    }
    for (search, expected) in [
        ("", &["train-cache", "cache", "data"][..]),
        ("cache", &["train-cache", "cache"]),
        ("CACHE", &["train-cache", "cache"]),
        ("n-c", &["train-cache"]),
        ("%", &[]),
        ("_", &[]),
        ("d_ta", &[]),
        ("\\", &[]),
        ("'", &[]),
        ("x", &[]),
        (&*"%".repeat(100_000), &[]),
    ] {
        let page = VolumesPage {
            limit: 9,
            after: None,
            search: Some(search),
        };
        let found = fixture
            .store
            .list_volumes(fixture.ours, page)
            .await
            .unwrap();
        let slugs: Vec<_> = found.iter().map(|volume| volume.slug.as_str()).collect();
        assert_eq!(slugs, expected, "{search:?}");
    }
}

#[tokio::test]
async fn a_volume_that_was_never_there_is_not_found() {
    let fixture = Fixture::new().await;
    let before = fixture.dump().await;
    let store = &fixture.store;
    let id: VolumeId = volume_id(5);
    assert!(store.finish_volume(id, true, at(1)).await.is_err());
    assert!(store.purge_volume(id, at(1)).await.is_err());
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
