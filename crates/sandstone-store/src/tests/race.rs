//! Many callers at once.

use futures_util::future::join_all;

use super::fixture::{Fixture, at, volume_id};
use crate::StoreError;

const RACERS: u32 = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_sandbox_gets_the_volume() {
    let fixture = Fixture::new().await;
    fixture.volume(1, "data").await;
    let tasks = (0..RACERS).map(|number| {
        let store = fixture.store.clone();
        let new = fixture.new_sandbox(100 + number, &[("/data", "data")]);
        tokio::spawn(async move { store.begin_sandbox(&new, at(0)).await })
    });
    let results: Vec<_> = join_all(tasks)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    let winners: Vec<_> = results.iter().flatten().collect();
    assert_eq!(winners.len(), 1);
    for refused in results.iter().filter_map(|result| result.as_ref().err()) {
        assert!(matches!(
            refused,
            StoreError::VolumeIsMounted { sandbox, .. } if *sandbox == winners[0].id
        ));
    }
    assert_eq!(fixture.attachments().await.len(), 1);
    assert_eq!(fixture.store.unfinished_sandboxes().await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_volume_or_snapshot_gets_the_slug() {
    let fixture = Fixture::new().await;
    fixture.volume(900, "origin").await;
    let tasks = (0..RACERS).map(|number| {
        let store = fixture.store.clone();
        let volume = fixture.new_volume(volume_id(number), "data");
        let snapshot = fixture.new_snapshot(number, "origin", "data");
        tokio::spawn(async move {
            if number % 2 == 0 {
                store.begin_volume(&volume, at(0)).await.map(drop)
            } else {
                store.begin_snapshot(&snapshot, at(0)).await.map(drop)
            }
        })
    });
    let results: Vec<_> = join_all(tasks)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    assert_eq!(results.iter().flatten().count(), 1);
    for refused in results.iter().filter_map(|result| result.as_ref().err()) {
        assert!(matches!(refused, StoreError::SlugTaken(_)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_deleted_volume_is_either_restored_or_purged() {
    let fixture = Fixture::new().await;
    let store = &fixture.store;
    for number in 0..RACERS {
        let volume = fixture.volume(number, "data").await;
        let deleted = store.delete_volume(fixture.ours, "data", at(1)).await;
        deleted.unwrap();
        let other = store.clone();
        let purge = tokio::spawn(async move {
            let begun = other.begin_purge(volume.id.into(), at(1), at(2)).await;
            begun.unwrap()
        });
        let restored = store.restore_volume(fixture.ours, "data", None, at(0), at(2));
        let restored = restored.await;
        let purged = purge.await.unwrap();
        assert_ne!(restored.is_ok(), purged, "{restored:?}");
        if restored.is_ok() {
            let deleted = store.delete_volume(fixture.ours, "data", at(3)).await;
            deleted.unwrap();
            assert!(
                store
                    .begin_purge(volume.id.into(), at(3), at(3))
                    .await
                    .unwrap()
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_volume_is_either_deleted_or_attached() {
    let fixture = Fixture::new().await;
    for number in 0..RACERS {
        fixture.volume(number, "data").await;
        let store = fixture.store.clone();
        let ours = fixture.ours;
        let delete =
            tokio::spawn(async move { store.delete_volume(ours, "data", at(1)).await.is_ok() });
        let begun = fixture.begin(100 + number, &[("/data", "data")]).await;
        let deleted = delete.await.unwrap();
        assert_ne!(begun.is_ok(), deleted);
        if let Ok(id) = begun {
            fixture.stop(id, at(2)).await;
            let gone = fixture
                .store
                .delete_volume(fixture.ours, "data", at(3))
                .await;
            gone.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_caller_who_goes_away_leaves_no_transaction_open() {
    let fixture = Fixture::new().await;
    fixture.volume(1, "data").await;
    for number in 0..RACERS {
        let store = fixture.store.clone();
        let new = fixture.new_sandbox(100 + number, &[("/data", "data")]);
        let task = tokio::spawn(async move { store.begin_sandbox(&new, at(0)).await });
        for _ in 0..number {
            tokio::task::yield_now().await;
        }
        task.abort();
        let _ = task.await;
        // Whatever became of it, the database is whole and can be written.
        for sandbox in fixture.store.unfinished_sandboxes().await.unwrap() {
            fixture.stop(sandbox.id, at(1)).await;
        }
    }
    fixture.begin(999, &[("/data", "data")]).await.unwrap();
}
