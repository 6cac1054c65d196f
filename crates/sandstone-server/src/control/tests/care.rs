//! Looking after snapshots: checksums, damage, packing.

use std::time::Duration;

use sandstone_api::{ErrorCode, SnapshotDetail};

use super::harness::{Harness, assert_code, eventually, soon};
use super::node::{broken, key};
use crate::control::{NewSandbox, Source};

const WEEK_MS: i64 = 7 * 24 * 60 * 60 * 1000;

async fn shown(harness: &Harness, name: &str) -> SnapshotDetail {
    let found = harness.control.snapshot(&harness.who, name).await;
    found.unwrap()
}

#[tokio::test]
async fn a_checksum_is_recorded_soon_and_compared_later() {
    let harness = Harness::configured(|config| {
        // Woken, not waited for.
        config.checks_every = Duration::from_secs(3600);
    })
    .await;
    harness.run();
    harness.volume("data").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    // A failure is made up for by the next pass.
    harness.node.fail("checksum_snapshot", broken());
    let taken = harness.snapshot("data", "before").await;
    assert_eq!(
        (taken.checksum, taken.health.as_str()),
        (None, "unrecorded")
    );
    harness.called("checksum_snapshot", 1).await;
    harness.snapshot("data", "next").await;
    for name in ["before", "next"] {
        eventually("the checksum", async || {
            shown(&harness, name).await.checksum.is_some()
        })
        .await;
        let found = shown(&harness, name).await;
        assert_eq!(found.health, "intact");
        assert_eq!(found.checked_at.unwrap(), "2023-11-14T22:13:20.000Z");
    }
}

#[tokio::test]
async fn damage_is_found_and_nothing_new_comes_of_it() {
    let harness = Harness::new().await;
    let (control, who) = (&harness.control, &harness.who);
    harness.bootable("data").await;
    harness.run();
    let id = harness.snapshot("data", "before").await.snapshot.id;
    let other = harness.snapshot("data", "other").await.snapshot.id;
    for name in ["before", "other"] {
        eventually("the checksum", async || {
            shown(&harness, name).await.checksum.is_some()
        })
        .await;
    }
    let reads = harness.node.count("checksum_snapshot");
    harness.node.damage(&id);
    harness.clock.advance(WEEK_MS - 1);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(harness.node.count("checksum_snapshot"), reads);
    harness.clock.advance(1);
    eventually("the damage to be found", async || {
        shown(&harness, "before").await.health == "damaged"
    })
    .await;
    eventually("the other to be read", async || {
        shown(&harness, "other").await.checked_at.unwrap() == "2023-11-21T22:13:20.000Z"
    })
    .await;
    assert_eq!(shown(&harness, &other).await.health, "intact");
    let root = NewSandbox {
        root: Some("before".to_owned()),
        ..Harness::new_sandbox(&[])
    };
    let fork = Harness::new_fork("fork", Source::Snapshot("before".into()));
    for error in [
        assert_code(harness.make(fork).await, ErrorCode::SnapshotDamaged),
        assert_code(harness.create(root).await, ErrorCode::SnapshotDamaged),
    ] {
        assert!(error.message.contains("`before`"), "{error}");
    }
    // It can be looked at, and got rid of.
    control.delete_snapshot(who, "before").await.unwrap();
}

#[tokio::test]
async fn a_client_can_have_it_verified() {
    let harness = Harness::new().await;
    let (control, who) = (&harness.control, &harness.who);
    harness.volume("data").await;
    let id = harness.snapshot("data", "before").await.snapshot.id;
    // The first time there is nothing to compare with.
    let first = control.verify_snapshot(who, "before").await.unwrap();
    assert_eq!(first.health, "intact");
    harness.clock.advance(1000);
    let second = control.verify_snapshot(who, &id).await.unwrap();
    assert_eq!(second.checksum, first.checksum);
    assert_eq!(second.checked_at.unwrap(), "2023-11-14T22:13:21.000Z");
    harness.node.damage(&id);
    let third = control.verify_snapshot(who, &id).await.unwrap();
    assert_eq!(
        (third.health.as_str(), third.checksum),
        ("damaged", first.checksum)
    );
    harness.node.fail("checksum_snapshot", broken());
    let failed = control.verify_snapshot(who, &id).await;
    assert_code(failed, ErrorCode::Internal);

    // One at a time.
    let gate = harness.node.hold("checksum_snapshot");
    let reads = harness.node.count("checksum_snapshot");
    let verifying: Vec<_> = (0..3)
        .map(|_| {
            let (control, who) = (control.clone(), who.clone());
            tokio::spawn(async move { control.verify_snapshot(&who, "before").await })
        })
        .collect();
    harness.called("checksum_snapshot", reads + 1).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(harness.node.count("checksum_snapshot"), reads + 1);
    gate.add_permits(3);
    for verified in verifying {
        soon(verified).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn fragmented_snapshots_are_packed_once() {
    let harness = Harness::new().await;
    let volume = harness.volume("data").await;
    let fragment = |extents| {
        let mut state = harness.node.state();
        state
            .images
            .get_mut(&key(volume.id.parse::<sandstone_api::VolumeId>().unwrap()))
            .unwrap()
            .extents = extents;
    };
    fragment(1000);
    harness.snapshot("data", "smooth").await;
    fragment(5000);
    let taken = harness.snapshot("data", "rough").await;
    assert_eq!(taken.extents, 5000);
    harness.node.fail("pack_snapshot", broken());
    harness.run();
    eventually("the packing", async || {
        shown(&harness, "rough").await.extents == 1
    })
    .await;
    assert_eq!(harness.node.count("pack_snapshot"), 2);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(harness.node.count("pack_snapshot"), 2);
    for name in ["smooth", "rough"] {
        assert_eq!(shown(&harness, name).await.health, "intact");
    }
    // What packing spoils does not go unnoticed.
    harness.node.state().spoils_packed = true;
    harness.snapshot("data", "spoilt").await;
    eventually("the damage to be found", async || {
        shown(&harness, "spoilt").await.health == "damaged"
    })
    .await;
    harness.node.assert_sound();
}

#[tokio::test]
async fn what_is_packed_is_not_purged() {
    let harness = Harness::configured(|config| config.deletion_grace_ms = 0).await;
    let volume = harness.volume("data").await;
    let key = key(volume.id.parse::<sandstone_api::VolumeId>().unwrap());
    harness.node.state().images.get_mut(&key).unwrap().extents = 5000;
    let id = harness.snapshot("data", "rough").await.snapshot.id;
    let gate = harness.node.hold("pack_snapshot");
    harness.run();
    harness.called("pack_snapshot", 1).await;
    harness
        .control
        .delete_snapshot(&harness.who, "rough")
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(harness.node.count("remove_image"), 0);
    gate.add_permits(1);
    eventually("the purge", async || harness.node.image(&id).is_none()).await;
    harness.node.assert_sound();
}
