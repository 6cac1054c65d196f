//! Databases of earlier versions.

use std::borrow::Cow;

use sandstone_core::ImageState;
use sqlx::migrate::Migrator;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};

use super::fixture::{at, suffix, volume_id};
use crate::{ImagesPage, NewSource, NewVolume, OrganisationId, Store, StoreError, Usage};

static ALL: Migrator = sqlx::migrate!("migrations/sqlite");

/// A database as the first version left it: volumes in each of its states, `vol_…n` the nth.
async fn first_version(file: &std::path::Path, organisation: &str) {
    let options = SqliteConnectOptions::new()
        .filename(file)
        .create_if_missing(true);
    let pool = SqlitePool::connect_with(options).await.unwrap();
    let first = Migrator {
        migrations: Cow::Owned(ALL.iter().take(1).cloned().collect()),
        ..Migrator::DEFAULT
    };
    first.run(&pool).await.unwrap();
    sqlx::query("INSERT INTO organisations VALUES ($1, 'ours', 0)")
        .bind(organisation)
        .execute(&pool)
        .await
        .unwrap();
    for (number, slug, state, measured_at, deleted_at) in [
        (1, "data", "available", Some(10), None),
        (2, "half", "creating", None, None),
        (3, "data", "deleted", Some(5), Some(100)),
        (4, "gone", "purged", None, Some(50)),
    ] {
        sqlx::query(
            "INSERT INTO volumes (id, organisation, slug, region, capacity, state, allocated, \
                 flattened, measured_at, attach_token, created_at, deleted_at) \
             VALUES ($1, $2, $3, 'ord', 1000000000, $4, 11, 22, $5, 3, $6, $7)",
        )
        .bind(volume_id(number).to_string())
        .bind(organisation)
        .bind(slug)
        .bind(state)
        .bind(measured_at)
        .bind(number)
        .bind(deleted_at)
        .execute(&pool)
        .await
        .unwrap();
    }
    sqlx::query(
        "INSERT INTO sandboxes (id, organisation, region, state, lifetime, memory, labels, \
             created_at) \
         VALUES ('sbx_ord_00000000000000000009', $1, 'ord', 'running', 'session', 1, '{}', 7)",
    )
    .bind(organisation)
    .execute(&pool)
    .await
    .unwrap();
    sqlx::query(
        "INSERT INTO attachments VALUES ($1, 3, 'sbx_ord_00000000000000000009', '/data', \
             'attached', 7)",
    )
    .bind(volume_id(1).to_string())
    .execute(&pool)
    .await
    .unwrap();
    pool.close().await;
}

#[tokio::test]
async fn a_database_of_the_first_version_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("state.db");
    let ours = OrganisationId::new(suffix(1));
    first_version(&file, &ours.to_string()).await;
    let store = Store::open(&file).await.unwrap();

    let volume = store.volume(ours, "data").await.unwrap();
    assert_eq!((volume.id, volume.is_bootable), (volume_id(1), false));
    assert_eq!(
        (volume.base_snapshot, volume.growing_to, volume.failure),
        (None, None, None)
    );
    let usage = Usage {
        allocated: 11,
        flattened: 22,
    };
    assert_eq!((volume.usage, volume.measured_at), (usage, Some(at(10))));
    let sandbox = store.unfinished_sandboxes().await.unwrap()[0].clone();
    assert_eq!(volume.sandbox, Some(sandbox.id));
    assert_eq!(store.sandbox(ours, sandbox.id).await.unwrap(), sandbox);

    // Its slug is taken, and so is that of the one that is being made.
    let new = |number, slug: &str| NewVolume {
        id: volume_id(number),
        organisation: ours,
        slug: slug.parse().unwrap(),
        capacity: None,
        source: NewSource::Volume("data".to_owned()),
    };
    for slug in ["data", "half"] {
        let refused = store.begin_volume(&new(9, slug), at(200)).await;
        assert!(matches!(refused, Err(StoreError::SlugTaken(_))), "{slug}");
    }
    assert_eq!(store.half_created().await.unwrap(), [volume_id(2).into()]);
    let failed = store.finish_volume(volume_id(2), Err("lost".to_owned()), at(200));
    assert_eq!(failed.await.unwrap().state, ImageState::Failed);
    store.begin_volume(&new(9, "half"), at(201)).await.unwrap();

    // What was deleted comes back; what was purged does not.
    let page = ImagesPage {
        limit: 9,
        after: None,
        search: None,
        deleted: true,
    };
    let deleted = store.list_volumes(ours, page).await.unwrap();
    assert_eq!(deleted.len(), 1);
    let other = Some("other".parse().unwrap());
    let restored = store
        .restore_volume(ours, "data", other, at(99), at(202))
        .await;
    assert_eq!(restored.unwrap().id, volume_id(3));
    let gone = store
        .restore_volume(ours, "gone", None, at(0), at(203))
        .await;
    assert!(matches!(gone, Err(StoreError::NotRestorable { .. })));

    // Each old volume is a family of its own.
    let families: Vec<(String, String)> =
        sqlx::query_as("SELECT id, family FROM volumes WHERE source IS NULL")
            .fetch_all(store.read())
            .await
            .unwrap();
    assert_eq!(families.len(), 4);
    assert!(families.iter().all(|(id, family)| id == family));
}
