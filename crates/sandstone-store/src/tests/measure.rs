use sandstone_api::ImageId;

use super::fixture::{Fixture, at, snapshot_id, volume_id};
use crate::{NewSource, NewVolume, Usage};

impl Fixture {
    async fn to_measure(&self) -> Vec<ImageId> {
        self.store.images_to_measure().await.unwrap()
    }

    async fn measure_all(&self, now: i64) {
        for id in self.to_measure().await {
            let usage = Usage::default();
            let recorded = self.store.record_measured(id, usage, 1, at(now));
            recorded.await.unwrap();
        }
    }
}

#[tokio::test]
async fn sizes_are_recorded_while_the_image_lives() {
    let fixture = Fixture::new().await;
    let (store, ours) = (&fixture.store, fixture.ours);
    let volume = fixture.volume(1, "data").await;
    let snapshot = fixture.snapshot(2, "data", "snap").await;
    assert_eq!((volume.usage, snapshot.usage), Default::default());
    let usage = Usage {
        allocated: 10,
        flattened: 20,
    };
    for id in [volume.id.into(), snapshot.id.into()] {
        store.record_measured(id, usage, 30, at(5)).await.unwrap();
    }
    let volume = store.volume(ours, "data").await.unwrap();
    assert_eq!((volume.usage, volume.measured_at), (usage, Some(at(5))));
    let snapshot = store.snapshot(ours, "snap").await.unwrap();
    assert_eq!((snapshot.usage, snapshot.measured_at), (usage, Some(at(5))));
    assert_eq!(snapshot.extents, 30);

    store.delete_volume(ours, "data", at(6)).await.unwrap();
    store.delete_snapshot(ours, "snap", at(6)).await.unwrap();
    let before = fixture.dump().await;
    for id in [volume.id.into(), snapshot.id.into(), volume_id(99).into()] {
        let recorded = store.record_measured(id, Usage::default(), 0, at(7));
        recorded.await.unwrap();
    }
    assert_eq!(fixture.dump().await, before);
}

#[tokio::test]
async fn a_family_is_measured_when_a_member_changes() {
    let fixture = Fixture::new().await;
    let (store, ours) = (&fixture.store, fixture.ours);
    fixture.volume(1, "data").await;
    fixture.volume(2, "other").await;
    let (data, other) = (volume_id(1).into(), volume_id(2).into());
    assert_eq!(fixture.to_measure().await, [data, other]);
    fixture.measure_all(10).await;
    assert_eq!(fixture.to_measure().await, []);

    // A snapshot and a fork of it: now they are three.
    let snapshot = snapshot_id(20).into();
    let fork = volume_id(30).into();
    fixture.snapshot(20, "data", "snap").await;
    assert_eq!(fixture.to_measure().await, [data, snapshot]);
    fixture.measure_all(25).await;
    let new = NewVolume {
        capacity: None,
        source: NewSource::Snapshot("snap".to_owned()),
        ..fixture.new_volume(volume_id(30), "fork")
    };
    fixture.available(&new, at(30)).await;
    assert_eq!(fixture.to_measure().await, [data, snapshot, fork]);
    // A measurement that began before the change may have missed it.
    fixture.measure_all(30).await;
    assert_eq!(fixture.to_measure().await, [data, snapshot, fork]);
    fixture.measure_all(31).await;
    assert_eq!(fixture.to_measure().await, []);

    // While one is attached, and once after.
    let sandbox = fixture.begin(40, &[("/f", "fork")]).await.unwrap();
    for _ in 0..2 {
        assert_eq!(fixture.to_measure().await, [data, snapshot, fork]);
        fixture.measure_all(45).await;
    }
    fixture.stop(sandbox, at(50)).await;
    assert_eq!(fixture.to_measure().await, [data, snapshot, fork]);
    fixture.measure_all(51).await;
    assert_eq!(fixture.to_measure().await, []);

    // A deleted one keeps its extents until it is purged.
    store.delete_snapshot(ours, "snap", at(60)).await.unwrap();
    assert_eq!(fixture.to_measure().await, []);
    assert!(store.begin_purge(snapshot, at(60), at(61)).await.unwrap());
    assert_eq!(fixture.to_measure().await, []);
    store.finish_purge(snapshot, at(62)).await.unwrap();
    assert_eq!(fixture.to_measure().await, [data, fork]);
    fixture.measure_all(63).await;

    // One that comes back later is not as it was.
    store.delete_volume(ours, "fork", at(70)).await.unwrap();
    store.delete_volume(ours, "data", at(70)).await.unwrap();
    assert!(store.begin_purge(data, at(70), at(71)).await.unwrap());
    store.finish_purge(data, at(72)).await.unwrap();
    assert_eq!(fixture.to_measure().await, []);
    let restored = store
        .restore_volume(ours, "fork", None, at(0), at(73))
        .await;
    restored.unwrap();
    assert_eq!(fixture.to_measure().await, [fork]);
}

#[tokio::test]
async fn packing_changes_the_sizes_of_relatives() {
    let fixture = Fixture::new().await;
    fixture.volume(1, "data").await;
    let snapshot = fixture.snapshot(2, "data", "snap").await;
    fixture.measure_all(5).await;
    fixture
        .store
        .record_packed(snapshot.id, at(6))
        .await
        .unwrap();
    let family = [volume_id(1).into(), snapshot.id.into()];
    assert_eq!(fixture.to_measure().await, family);
}
