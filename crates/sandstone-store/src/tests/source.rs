//! What volumes are made from.

use sandstone_api::VolumeId;
use sandstone_core::BOOTABLE_CAPACITY_MIN;

use super::fixture::{Fixture, GB, at, capacity, region, slug, suffix, volume_id};
use crate::{NewSource, NewVolume, Origin, StoreError};

fn named(make: fn(String) -> NewSource, name: &str) -> NewSource {
    make(name.to_owned())
}

#[tokio::test]
async fn every_source_gives_what_it_has() {
    let fixture = Fixture::new().await;
    let store = &fixture.store;
    let system = fixture.bootable(1, "system").await;
    let data = fixture.volume(2, "data").await;
    let snapshot = fixture.snapshot(3, "system", "snap").await;
    let import = |is_bootable| NewSource::Import { is_bootable };
    for (number, source, asked, expected) in [
        (10, NewSource::Empty, Some(GB), (Origin::Empty, false, GB)),
        (
            11,
            NewSource::Base,
            Some(2 * GB),
            (Origin::Base, true, 2 * GB),
        ),
        (
            12,
            import(false),
            Some(GB / 2),
            (Origin::Import, false, GB / 2),
        ),
        (13, import(true), Some(GB), (Origin::Import, true, GB)),
        (
            14,
            named(NewSource::Snapshot, "snap"),
            None,
            (Origin::Image(snapshot.id.into()), true, GB),
        ),
        (
            15,
            named(NewSource::Snapshot, &snapshot.id.to_string()),
            Some(3 * GB),
            (Origin::Image(snapshot.id.into()), true, 3 * GB),
        ),
        (
            16,
            named(NewSource::Volume, "data"),
            Some(GB),
            (Origin::Image(data.id.into()), false, GB),
        ),
        (
            17,
            named(NewSource::Volume, "system"),
            None,
            (Origin::Image(system.id.into()), true, GB),
        ),
    ] {
        let new = NewVolume {
            capacity: asked.map(capacity),
            source: source.clone(),
            ..fixture.new_volume(volume_id(number), &format!("volume-{number}"))
        };
        let (volume, origin) = store.begin_volume(&new, at(9)).await.unwrap();
        let found = (origin, volume.is_bootable, volume.capacity);
        assert_eq!(found, expected, "{source:?}");
        let base = matches!(source, NewSource::Snapshot(_)).then(|| (snapshot.id, slug("snap")));
        assert_eq!(volume.base_snapshot, base, "{source:?}");
    }
    // The name is that of the time of the copy.
    store
        .delete_snapshot(fixture.ours, "snap", at(20))
        .await
        .unwrap();
    let restored =
        store.restore_snapshot(fixture.ours, "snap", Some(slug("renamed")), at(0), at(21));
    restored.await.unwrap();
    let made = store
        .finish_volume(volume_id(14), Ok(()), at(22))
        .await
        .unwrap();
    assert_eq!(made.base_snapshot, Some((snapshot.id, slug("snap"))));
}

#[tokio::test]
async fn a_source_must_be_there_and_fit() {
    let fixture = Fixture::new().await;
    let store = &fixture.store;
    let mut big = fixture.new_volume(volume_id(1), "big");
    big.capacity = Some(capacity(2 * GB));
    fixture.available(&big, at(1)).await;
    let damaged = fixture.snapshot(2, "big", "damaged").await;
    store
        .record_checksum(damaged.id, "sha256:00", at(3))
        .await
        .unwrap();
    store.record_check(damaged.id, false, at(4)).await.unwrap();
    fixture.snapshot(3, "big", "intact").await;
    let mut foreign = fixture.new_volume(volume_id(5), "foreign");
    foreign.organisation = fixture.theirs;
    fixture.available(&foreign, at(5)).await;

    let before = fixture.dump().await;
    let begin = async |source, capacity_asked: Option<u64>| {
        let new = NewVolume {
            capacity: capacity_asked.map(capacity),
            source,
            ..fixture.new_volume(volume_id(9), "new")
        };
        store.begin_volume(&new, at(9)).await.unwrap_err()
    };
    for missing in ["nope", "foreign", "intact", "", &volume_id(5).to_string()] {
        let error = begin(named(NewSource::Volume, missing), None).await;
        assert!(matches!(error, StoreError::VolumeNotFound { name } if name == missing));
    }
    for missing in ["nope", "big", ""] {
        let error = begin(named(NewSource::Snapshot, missing), None).await;
        assert!(matches!(error, StoreError::SnapshotNotFound { name } if name == missing));
    }
    for source in [
        NewSource::Empty,
        NewSource::Base,
        NewSource::Import { is_bootable: false },
    ] {
        let error = begin(source, None).await;
        assert!(matches!(error, StoreError::CapacityMissing), "{error:?}");
    }
    let least = BOOTABLE_CAPACITY_MIN.bytes();
    for (source, expected, name) in [
        (NewSource::Base, least, "the base image"),
        (
            NewSource::Import { is_bootable: true },
            least,
            "a bootable archive",
        ),
        (named(NewSource::Snapshot, "intact"), 2 * GB, "intact"),
        (named(NewSource::Volume, "big"), 2 * GB, "big"),
    ] {
        match begin(source, Some(expected - 1)).await {
            StoreError::CapacityBelowSource {
                asked,
                least,
                source_name,
            } => assert_eq!(
                (asked.bytes(), least.bytes(), source_name.as_str()),
                (expected - 1, expected, name)
            ),
            other => panic!("{other:?}"),
        }
    }
    match begin(named(NewSource::Snapshot, "damaged"), None).await {
        StoreError::SnapshotDamaged { slug, id } => {
            assert_eq!((slug.as_str(), id), ("damaged", damaged.id));
        }
        other => panic!("{other:?}"),
    }
    let far = NewVolume {
        id: VolumeId::new(region("ams"), suffix(9)),
        source: named(NewSource::Volume, "big"),
        capacity: None,
        ..fixture.new_volume(volume_id(9), "new")
    };
    match store.begin_volume(&far, at(9)).await {
        Err(StoreError::RegionMismatch {
            slug,
            region: is_in,
            wanted,
        }) => assert_eq!(
            (slug.as_str(), is_in, wanted),
            ("big", region("ord"), region("ams"))
        ),
        other => panic!("{other:?}"),
    }
    assert_eq!(fixture.dump().await, before);
}
