//! What is the same for volumes and snapshots.

use super::fixture::{Fixture, at, snapshot_id, volume_id};
use crate::{ImagePosition, ImagesPage, StoreError};

#[derive(Debug, Clone, Copy)]
enum Kind {
    Volumes,
    Snapshots,
}

const KINDS: [Kind; 2] = [Kind::Volumes, Kind::Snapshots];

fn page<'a>(search: Option<&'a str>) -> ImagesPage<'a> {
    ImagesPage {
        limit: 9,
        after: None,
        search,
        deleted: false,
    }
}

/// The slugs and positions on a page of ours.
async fn list(fixture: &Fixture, kind: Kind, page: ImagesPage<'_>) -> Vec<(String, ImagePosition)> {
    let store = &fixture.store;
    match kind {
        Kind::Volumes => {
            let items = store.list_volumes(fixture.ours, page).await.unwrap();
            let item = items
                .iter()
                .map(|one| (one.slug.to_string(), one.position()));
            item.collect()
        }
        Kind::Snapshots => {
            let items = store.list_snapshots(fixture.ours, page).await.unwrap();
            let item = items
                .iter()
                .map(|one| (one.slug.to_string(), one.position()));
            item.collect()
        }
    }
}

async fn slugs(fixture: &Fixture, kind: Kind, page: ImagesPage<'_>) -> Vec<String> {
    let items = list(fixture, kind, page).await;
    items.into_iter().map(|(slug, _)| slug).collect()
}

/// An available volume or snapshot made at `now`. Snapshots are of the volume `origin`.
async fn make(fixture: &Fixture, kind: Kind, number: u32, name: &str, now: i64) {
    let store = &fixture.store;
    match kind {
        Kind::Volumes => {
            let new = fixture.new_volume(volume_id(number), name);
            fixture.available(&new, at(now)).await;
        }
        Kind::Snapshots => {
            let new = fixture.new_snapshot(number, "origin", name);
            let begun = store.begin_snapshot(&new, at(now)).await.unwrap();
            let made = Ok(super::fixture::TAKEN);
            store
                .finish_snapshot(begun.id, made, at(now))
                .await
                .unwrap();
        }
    }
}

async fn delete(fixture: &Fixture, kind: Kind, name: &str, now: i64) -> Result<(), StoreError> {
    let (store, ours) = (&fixture.store, fixture.ours);
    match kind {
        Kind::Volumes => store.delete_volume(ours, name, at(now)).await.map(drop),
        Kind::Snapshots => store.delete_snapshot(ours, name, at(now)).await.map(drop),
    }
}

async fn prepared(kind: Kind) -> Fixture {
    let fixture = Fixture::new().await;
    if matches!(kind, Kind::Snapshots) {
        fixture.volume(900, "origin").await;
    }
    fixture
}

#[tokio::test]
async fn pages_follow_each_other_without_gaps() {
    for kind in KINDS {
        let fixture = prepared(kind).await;
        let mut names = Vec::new();
        for number in 0..7 {
            let name = format!("image-{number}");
            // Several of one instant: the id decides.
            make(&fixture, kind, number, &name, i64::from(number / 3)).await;
            names.push(name);
        }
        delete(&fixture, kind, "image-2", 9).await.unwrap();
        names.remove(2);
        for limit in 1..9 {
            let mut seen = Vec::new();
            let mut after = None;
            loop {
                let page = ImagesPage {
                    limit,
                    after,
                    ..page(None)
                };
                let items = list(&fixture, kind, page).await;
                assert!(items.len() <= limit as usize);
                let Some((_, last)) = items.last() else { break };
                after = Some(*last);
                seen.extend(items.into_iter().map(|(slug, _)| slug));
            }
            assert_eq!(seen, names, "{kind:?}, pages of {limit}");
        }
        let deleted = ImagesPage {
            deleted: true,
            ..page(None)
        };
        assert_eq!(slugs(&fixture, kind, deleted).await, ["image-2"]);
        let store = &fixture.store;
        for page in [page(None), deleted] {
            assert_eq!(store.list_volumes(fixture.theirs, page).await.unwrap(), []);
            assert_eq!(
                store.list_snapshots(fixture.theirs, page).await.unwrap(),
                []
            );
        }
    }
}

#[tokio::test]
async fn search_takes_text_literally() {
    for kind in KINDS {
        let fixture = prepared(kind).await;
        for (number, name) in [(1, "train-cache"), (2, "cache"), (3, "data")] {
            make(&fixture, kind, number, name, i64::from(number)).await;
        }
        for (search, expected) in [
            ("a", &["train-cache", "cache", "data"][..]),
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
            let found = slugs(&fixture, kind, page(Some(search))).await;
            assert_eq!(found, expected, "{kind:?} {search:?}");
        }
    }
}

#[tokio::test]
async fn volumes_and_snapshots_share_their_names() {
    let fixture = Fixture::new().await;
    let store = &fixture.store;
    fixture.volume(1, "data").await;
    let taken = |result: Result<(), StoreError>, name: &str| match result {
        Err(StoreError::SlugTaken(slug)) => assert_eq!(slug.as_str(), name),
        other => panic!("{other:?}"),
    };
    let before = fixture.dump().await;
    let same = fixture.new_snapshot(2, "data", "data");
    taken(store.begin_snapshot(&same, at(2)).await.map(drop), "data");
    assert_eq!(fixture.dump().await, before);

    // One that is being taken holds its name already.
    let snapshot = fixture.new_snapshot(3, "data", "copy");
    let begun = store.begin_snapshot(&snapshot, at(3)).await.unwrap();
    let volume = fixture.new_volume(volume_id(4), "copy");
    taken(store.begin_volume(&volume, at(4)).await.map(drop), "copy");
    let failed = store.finish_snapshot(begun.id, Err("no room".to_owned()), at(5));
    assert_eq!(failed.await.unwrap().failure.as_deref(), Some("no room"));
    fixture.available(&volume, at(6)).await;
    assert_eq!(begun.id, snapshot_id(3));

    // A name of one kind does not find the other.
    assert!(store.snapshot(fixture.ours, "copy").await.is_err());
    let other = store.delete_snapshot(fixture.ours, "data", at(7)).await;
    assert!(matches!(other, Err(StoreError::SnapshotNotFound { name }) if name == "data"));
}
