use sandstone_core::ImageState;

use super::fixture::{Fixture, at, slug, volume_id};
use crate::{StoreError, Volume};

impl Fixture {
    async fn restore(
        &self,
        name: &str,
        new_slug: Option<&str>,
        deleted_after: i64,
    ) -> Result<Volume, StoreError> {
        let new_slug = new_slug.map(slug);
        self.store
            .restore_volume(self.ours, name, new_slug, at(deleted_after), at(999))
            .await
    }

    async fn delete(&self, name: &str, now: i64) {
        let deleted = self.store.delete_volume(self.ours, name, at(now)).await;
        deleted.unwrap();
    }
}

fn is_taken(result: Result<Volume, StoreError>, name: &str) {
    match result {
        Err(StoreError::SlugTaken(slug)) => assert_eq!(slug.as_str(), name),
        other => panic!("{other:?}"),
    }
}

fn is_too_late(result: Result<Volume, StoreError>, asked: &str) {
    match result {
        Err(StoreError::NotRestorable { name }) => assert_eq!(name, asked),
        other => panic!("{other:?}"),
    }
}

fn is_unknown(result: Result<Volume, StoreError>, asked: &str) {
    match result {
        Err(StoreError::VolumeNotFound { name }) => assert_eq!(name, asked),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_deleted_volume_comes_back_as_it_was() {
    let fixture = Fixture::new().await;
    let volume = fixture.volume(1, "data").await;
    for name in ["data", &volume.id.to_string()] {
        fixture.delete("data", 100).await;
        assert_eq!(fixture.restore(name, None, 99).await.unwrap(), volume);
        // Again: nothing happens.
        let before = fixture.dump().await;
        assert_eq!(fixture.restore(name, None, 99).await.unwrap(), volume);
        let same = fixture.restore(name, Some("data"), 99).await;
        assert_eq!(same.unwrap(), volume);
        is_unknown(fixture.restore(name, Some("other"), 99).await, name);
        assert_eq!(fixture.dump().await, before);
    }
}

#[tokio::test]
async fn the_newest_of_a_name_comes_back_unless_it_is_too_late() {
    let fixture = Fixture::new().await;
    for number in 1..=3 {
        fixture.volume(number, "data").await;
        fixture.delete("data", 100 * i64::from(number)).await;
    }
    let living = fixture.volume(4, "data").await;
    is_taken(fixture.restore("data", None, 150).await, "data");
    let restored = fixture.restore("data", Some("data-3"), 150).await.unwrap();
    assert_eq!(
        (restored.id, restored.slug.as_str()),
        (volume_id(3), "data-3")
    );
    assert_eq!(
        (restored.state, restored.deleted_at),
        (ImageState::Available, None)
    );
    is_taken(fixture.restore("data", Some("data-3"), 150).await, "data-3");
    fixture.delete("data", 400).await;
    let restored = fixture.restore("data", None, 150).await.unwrap();
    assert_eq!(restored.id, living.id);

    // The oldest: its time was over a moment ago.
    let first = volume_id(1).to_string();
    is_too_late(fixture.restore(&first, Some("first"), 100).await, &first);
    let restored = fixture.restore(&first, Some("first"), 99).await.unwrap();
    assert_eq!(restored.id, volume_id(1));
}

#[tokio::test]
async fn what_is_purged_or_never_was_does_not_come_back() {
    let fixture = Fixture::new().await;
    let store = &fixture.store;
    let volume = fixture.volume(1, "data").await;
    let id = volume.id.to_string();
    is_unknown(fixture.restore("nope", None, 0).await, "nope");
    fixture.delete("data", 100).await;
    let before = fixture.dump().await;
    let foreign = store.restore_volume(fixture.theirs, &id, None, at(0), at(101));
    is_unknown(foreign.await, &id);
    is_too_late(fixture.restore("data", None, 100).await, "data");
    let snapshot = store.restore_snapshot(fixture.ours, "data", None, at(0), at(101));
    assert!(matches!(
        snapshot.await,
        Err(StoreError::SnapshotNotFound { name }) if name == "data"
    ));
    assert_eq!(fixture.dump().await, before);

    assert!(
        store
            .begin_purge(volume.id.into(), at(100), at(101))
            .await
            .unwrap()
    );
    is_too_late(fixture.restore("data", None, 0).await, "data");
    store.finish_purge(volume.id.into(), at(102)).await.unwrap();
    is_too_late(fixture.restore(&id, Some("other"), 0).await, &id);

    // One that could not be made never held anything.
    let new = fixture.new_volume(volume_id(2), "half");
    store.begin_volume(&new, at(1)).await.unwrap();
    is_unknown(fixture.restore("half", None, 0).await, "half");
    store
        .finish_volume(new.id, Err("no room".to_owned()), at(200))
        .await
        .unwrap();
    is_unknown(fixture.restore("half", None, 0).await, "half");
    assert!(
        store
            .begin_purge(new.id.into(), at(0), at(201))
            .await
            .unwrap()
    );
    is_unknown(fixture.restore("half", None, 0).await, "half");
}

#[tokio::test]
async fn snapshots_come_back_too() {
    let fixture = Fixture::new().await;
    let (store, ours) = (&fixture.store, fixture.ours);
    fixture.volume(1, "data").await;
    let snapshot = fixture.snapshot(2, "data", "snap").await;
    store.delete_snapshot(ours, "snap", at(100)).await.unwrap();
    fixture.volume(3, "snap").await;
    let taken = store
        .restore_snapshot(ours, "snap", None, at(0), at(101))
        .await;
    assert!(matches!(taken, Err(StoreError::SlugTaken(slug)) if slug.as_str() == "snap"));
    let other = Some(slug("other"));
    let restored = store
        .restore_snapshot(ours, "snap", other, at(0), at(101))
        .await;
    let restored = restored.unwrap();
    assert_eq!(
        (restored.id, restored.slug.as_str()),
        (snapshot.id, "other")
    );
    assert_eq!(store.snapshot(ours, "other").await.unwrap(), restored);
}
