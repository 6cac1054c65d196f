//! What sandboxes start from, and the control plane's own sandboxes.

use std::collections::BTreeMap;

use sandstone_api::{ImageId, SandboxId, VolumeId};
use sandstone_core::{Memory, StopReason};

use super::fixture::{Fixture, at, path, region, suffix, volume_id};
use crate::{BegunRoot, BegunSandbox, NewSource, NewVolume, StoreError};

impl Fixture {
    async fn begin_root(
        &self,
        number: u32,
        root: &str,
        volumes: &[(&str, &str)],
    ) -> Result<BegunSandbox, StoreError> {
        let mut new = self.new_sandbox(number, volumes);
        new.root = Some(root.to_owned());
        self.store.begin_sandbox(&new, at(i64::from(number))).await
    }

    async fn maintain(&self, number: u32, image: ImageId) -> Result<SandboxId, StoreError> {
        self.store
            .begin_maintenance(
                suffix(number),
                self.ours,
                image,
                Memory::default(),
                path("/mnt/image"),
                at(i64::from(number)),
            )
            .await
    }
}

#[tokio::test]
async fn a_sandbox_starts_from_a_volume_or_a_snapshot() {
    let fixture = Fixture::new().await;
    let store = &fixture.store;
    let system = fixture.bootable(1, "system").await;
    let data = fixture.volume(2, "data").await;
    let snapshot = fixture.snapshot(3, "system", "snap").await;
    let base = store
        .begin_sandbox(&fixture.new_sandbox(10, &[]), at(10))
        .await;
    assert_eq!(base.unwrap().root, BegunRoot::Base);

    let begun = fixture
        .begin_root(11, "system", &[("/data", "data")])
        .await
        .unwrap();
    assert_eq!(begun.root, BegunRoot::Volume(system.id));
    assert_eq!(begun.mounts, [(data.id, path("/data"))]);
    match fixture.begin_root(12, &system.id.to_string(), &[]).await {
        Err(StoreError::VolumeIsMounted {
            volume, sandbox, ..
        }) => {
            assert_eq!((volume, sandbox), (system.id, begun.id));
        }
        other => panic!("{other:?}"),
    }
    let holder = store.volume(fixture.ours, "system").await.unwrap().sandbox;
    assert_eq!(holder, Some(begun.id));
    let deleted = store.delete_volume(fixture.ours, "system", at(12)).await;
    assert!(matches!(deleted, Err(StoreError::VolumeIsMounted { .. })));
    let stop = store
        .begin_stop(begun.id, StopReason::Killed)
        .await
        .unwrap();
    assert_eq!(stop.volumes, [system.id, data.id]);
    store.sandbox_released(begun.id, at(13)).await.unwrap();
    assert_eq!(
        store.volume(fixture.ours, "system").await.unwrap().sandbox,
        None
    );

    // Many run from one snapshot.
    for (number, name) in [(14, "snap"), (15, &*snapshot.id.to_string())] {
        let begun = fixture.begin_root(number, name, &[]).await.unwrap();
        assert_eq!(begun.root, BegunRoot::Snapshot(snapshot.id));
        assert_eq!(begun.mounts, []);
    }
}

#[tokio::test]
async fn a_root_must_be_there_and_hold_a_system() {
    let fixture = Fixture::new().await;
    let store = &fixture.store;
    fixture.bootable(1, "system").await;
    let data = fixture.volume(2, "data").await;
    let plain = fixture.snapshot(3, "data", "plain").await;
    let damaged = fixture.snapshot(4, "system", "damaged").await;
    store
        .record_checksum(damaged.id, "sha256:00", at(5))
        .await
        .unwrap();
    store.record_check(damaged.id, false, at(6)).await.unwrap();
    let far = NewVolume {
        source: NewSource::Base,
        ..fixture.new_volume(VolumeId::new(region("ams"), suffix(7)), "far")
    };
    fixture.available(&far, at(7)).await;
    let mut foreign = fixture.new_volume(volume_id(8), "foreign");
    foreign.organisation = fixture.theirs;
    foreign.source = NewSource::Base;
    fixture.available(&foreign, at(8)).await;

    let before = fixture.dump().await;
    for missing in ["nope", "foreign", "", &foreign.id.to_string()] {
        match fixture.begin_root(10, missing, &[]).await {
            Err(StoreError::RootNotFound { name }) => assert_eq!(name, missing),
            other => panic!("{missing}: {other:?}"),
        }
    }
    for (root, image) in [("data", ImageId::from(data.id)), ("plain", plain.id.into())] {
        match fixture.begin_root(10, root, &[]).await {
            Err(StoreError::NotBootable { name, id }) => {
                assert_eq!((name.as_str(), id), (root, image));
            }
            other => panic!("{root}: {other:?}"),
        }
    }
    assert!(matches!(
        fixture.begin_root(10, "damaged", &[]).await,
        Err(StoreError::SnapshotDamaged { id, .. }) if id == damaged.id
    ));
    assert!(matches!(
        fixture.begin_root(10, "system", &[("/x", "system")]).await,
        Err(StoreError::VolumeNamedTwice { slug }) if slug.as_str() == "system"
    ));
    // The root decides where it is.
    match fixture.begin_root(10, "far", &[("/x", "data")]).await {
        Err(StoreError::RegionMismatch {
            slug,
            region: is_in,
            wanted,
        }) => assert_eq!(
            (slug.as_str(), is_in, wanted),
            ("data", region("ord"), region("ams"))
        ),
        other => panic!("{other:?}"),
    }
    assert_eq!(fixture.dump().await, before);
    let begun = fixture.begin_root(10, "far", &[]).await.unwrap();
    assert_eq!(begun.id.region(), region("ams"));
}

#[tokio::test]
async fn maintenance_holds_a_volume_like_any_sandbox_and_is_not_seen() {
    let fixture = Fixture::new().await;
    let (store, ours) = (&fixture.store, fixture.ours);
    let volume = fixture.volume(1, "data").await;
    let id = fixture.maintain(2, volume.id.into()).await.unwrap();
    store.sandbox_started(id).await.unwrap();
    assert_eq!(store.volume(ours, "data").await.unwrap().sandbox, Some(id));
    for result in [
        fixture.begin(3, &[("/data", "data")]).await.map(drop),
        fixture.maintain(3, volume.id.into()).await.map(drop),
        store.delete_volume(ours, "data", at(3)).await.map(drop),
    ] {
        assert!(matches!(
            result,
            Err(StoreError::VolumeIsMounted { sandbox, .. }) if sandbox == id
        ));
    }
    let listed = store.list_sandboxes(ours, &BTreeMap::new(), at(0)).await;
    assert_eq!(listed.unwrap(), []);
    assert!(store.sandbox(ours, id).await.is_err());
    assert!(store.extend(ours, id, at(9)).await.is_err());
    // The server itself knows it.
    assert_eq!(store.any_sandbox(id).await.unwrap().id, id);
    assert_eq!(store.unfinished_sandboxes().await.unwrap().len(), 1);
    fixture.stop(id, at(4)).await;
    assert_eq!(store.forget_stopped(at(4), 9).await.unwrap(), 1);
    fixture.begin(5, &[("/data", "data")]).await.unwrap();
}

#[tokio::test]
async fn maintenance_is_for_ones_own_visible_images() {
    let fixture = Fixture::new().await;
    let store = &fixture.store;
    let mut foreign = fixture.new_volume(volume_id(1), "foreign");
    foreign.organisation = fixture.theirs;
    fixture.available(&foreign, at(1)).await;
    let deleted = fixture.volume(2, "deleted").await;
    let snapshot = fixture.snapshot(3, "deleted", "snap").await;
    store
        .delete_volume(fixture.ours, "deleted", at(4))
        .await
        .unwrap();
    store
        .delete_snapshot(fixture.ours, "snap", at(4))
        .await
        .unwrap();
    let before = fixture.dump().await;
    for id in [foreign.id, deleted.id, volume_id(99)] {
        let refused = fixture.maintain(5, id.into()).await;
        assert!(matches!(refused, Err(StoreError::VolumeNotFound { .. })));
    }
    let refused = fixture.maintain(5, snapshot.id.into()).await;
    assert!(matches!(refused, Err(StoreError::SnapshotNotFound { .. })));
    assert_eq!(fixture.dump().await, before);
}

#[tokio::test]
async fn a_volume_is_filled_before_it_is_seen() {
    let fixture = Fixture::new().await;
    let (store, ours) = (&fixture.store, fixture.ours);
    let import = NewVolume {
        source: NewSource::Import { is_bootable: false },
        ..fixture.new_volume(volume_id(1), "import")
    };
    store.begin_volume(&import, at(1)).await.unwrap();
    // A volume that is made otherwise has no image yet.
    let other = fixture.new_volume(volume_id(2), "other");
    store.begin_volume(&other, at(1)).await.unwrap();
    assert!(fixture.maintain(3, other.id.into()).await.is_err());
    for name in ["import", &import.id.to_string()] {
        let client = fixture.begin(3, &[("/data", name)]).await;
        assert!(matches!(client, Err(StoreError::VolumeNotFound { .. })));
    }
    let id = fixture.maintain(4, import.id.into()).await.unwrap();
    store.sandbox_started(id).await.unwrap();
    // The image stays while it is written to, even if nothing comes of it.
    store
        .finish_volume(import.id, Err("cut off".to_owned()), at(5))
        .await
        .unwrap();
    assert!(
        !store
            .begin_purge(import.id.into(), at(9), at(9))
            .await
            .unwrap()
    );
    fixture.stop(id, at(6)).await;
    assert!(
        store
            .begin_purge(import.id.into(), at(9), at(9))
            .await
            .unwrap()
    );

    let import = NewVolume {
        id: volume_id(7),
        ..import
    };
    store.begin_volume(&import, at(7)).await.unwrap();
    let id = fixture.maintain(8, import.id.into()).await.unwrap();
    fixture.stop(id, at(9)).await;
    let made = store.finish_volume(import.id, Ok(()), at(9)).await.unwrap();
    assert_eq!(store.volume(ours, "import").await.unwrap(), made);
}
