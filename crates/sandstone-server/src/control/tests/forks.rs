//! Volumes made from base images, snapshots and other volumes, and sandboxes that boot from them.

use sandstone_api::{ErrorCode, Slug};
use sandstone_core::StopReason;
use sandstone_node_api::NodeError;

use super::harness::{Harness, assert_code, eventually, gigabytes, region, soon};
use super::node::{Failure, STALL_US};
use crate::control::{NewSandbox, NewVolume, Source};

fn from_snapshot(slug: &str, source: &str) -> NewVolume {
    Harness::new_fork(slug, Source::Snapshot(source.to_owned()))
}

fn from_volume(slug: &str, source: &str) -> NewVolume {
    Harness::new_fork(slug, Source::Volume(source.to_owned()))
}

#[tokio::test]
async fn a_fork_goes_its_own_way() {
    let harness = Harness::new().await;
    let volume = harness.bootable("data").await;
    assert!(volume.is_bootable);
    let snapshot = harness.snapshot("data", "before").await.snapshot;
    let taken = harness.node.image(&snapshot.id).unwrap().pieces;
    harness.node.write(&volume.id);
    let mut forks = Vec::new();
    for (slug, name) in [("one", "before"), ("two", &snapshot.id)] {
        let fork = harness.make(from_snapshot(slug, name)).await.unwrap();
        assert_eq!(fork.write_stall_us, None);
        let base = fork.volume.base_snapshot.unwrap();
        assert_eq!((base.id, base.slug), (snapshot.id.clone(), "before".into()));
        assert!(fork.volume.is_bootable);
        assert_eq!(fork.volume.capacity, volume.capacity);
        assert_eq!(fork.volume.estimated_allocated_size, 0);
        forks.push(fork.volume.id);
    }
    harness.node.write(&forks[0]);
    let pieces = |id: &str| harness.node.image(id).unwrap().pieces;
    assert_eq!(pieces(&forks[1]), taken);
    assert_eq!(pieces(&snapshot.id), taken);
    assert_eq!(pieces(&forks[0]).len(), taken.len() + 1);

    // Of a volume, attached or not, to a larger capacity.
    let now = pieces(&volume.id);
    let fork = harness.make(from_volume("three", "data")).await.unwrap();
    assert_eq!(
        (&fork.volume.base_snapshot, fork.write_stall_us),
        (&None, None)
    );
    harness.sandbox(&["data"]).await;
    let larger = NewVolume {
        capacity: Some(gigabytes(2)),
        ..from_volume("four", &volume.id)
    };
    let larger = harness.make(larger).await.unwrap();
    assert_eq!(larger.write_stall_us, Some(STALL_US));
    assert_eq!(larger.volume.capacity, 2_000_000_000);
    assert_eq!(pieces(&larger.volume.id), now);
    // Only the answer to the fork tells of the stall.
    let shown = harness.control.volume(&harness.who, "four").await.unwrap();
    assert_eq!(shown.write_stall_us, None);

    // Any of the family may go first.
    harness.run();
    let (control, who) = (&harness.control, &harness.who);
    control.delete_snapshot(who, "before").await.unwrap();
    control.delete_volume(who, "one").await.unwrap();
    harness.clock.advance(24 * 60 * 60 * 1000);
    eventually("the purge", async || {
        harness.node.image(&snapshot.id).is_none() && harness.node.image(&forks[0]).is_none()
    })
    .await;
    assert_eq!(pieces(&forks[1]), taken);
    harness.sandbox(&["two", "three"]).await;
    harness.node.assert_sound();
}

#[tokio::test]
async fn sources_that_will_not_do_are_refused() {
    let harness = Harness::new().await;
    let (control, who) = (&harness.control, &harness.who);
    harness.volume("data").await;
    harness.snapshot("data", "before").await;
    let refuse = async |new: NewVolume, code, text: &str| {
        let error = assert_code(harness.make(new).await, code);
        assert!(error.message.contains(text), "{error}");
    };
    use ErrorCode::{
        CapacityBelowBase, InvalidRequest, RegionMismatch, SlugAlreadyInUse, SnapshotNotFound,
        VolumeNotFound,
    };
    refuse(from_snapshot("x0", "nope"), SnapshotNotFound, "`nope`").await;
    refuse(from_snapshot("x0", "data"), SnapshotNotFound, "`data`").await;
    refuse(from_volume("x0", "before"), VolumeNotFound, "`before`").await;
    refuse(from_snapshot("data", "before"), SlugAlreadyInUse, "`data`").await;
    let with_region = |text: &str, new: NewVolume| NewVolume {
        region: Some(region(text)),
        ..new
    };
    for new in [from_snapshot("x0", "before"), from_volume("x0", "data")] {
        refuse(with_region("ams", new.clone()), RegionMismatch, "ord").await;
        refuse(with_region("ams", new.clone()), RegionMismatch, "ams").await;
        refuse(with_region("fra", new.clone()), InvalidRequest, "fra").await;
        let small = NewVolume {
            capacity: Some(
                sandstone_core::VolumeCapacity::new(sandstone_core::CAPACITY_MIN).unwrap(),
            ),
            ..new
        };
        refuse(small, CapacityBelowBase, "300 MB").await;
    }
    let fresh = |source| NewVolume {
        capacity: None,
        ..Harness::new_fork("x0", source)
    };
    refuse(fresh(Source::Empty), InvalidRequest, "capacity").await;
    refuse(fresh(Source::Base), InvalidRequest, "capacity").await;
    let small = NewVolume {
        capacity: Some(sandstone_core::VolumeCapacity::new(sandstone_core::CAPACITY_MIN).unwrap()),
        ..fresh(Source::Base)
    };
    refuse(small, CapacityBelowBase, "1 GB").await;
    let foreign = control.create_volume(&harness.stranger, from_snapshot("x0", "before"));
    assert_code(foreign.await, SnapshotNotFound);
    let foreign = control.create_volume(&harness.stranger, from_volume("x0", "data"));
    assert_code(foreign.await, VolumeNotFound);
    control.delete_snapshot(who, "before").await.unwrap();
    refuse(from_snapshot("x0", "before"), SnapshotNotFound, "`before`").await;
    assert_eq!(harness.node.count("create_volume"), 1);
    harness.assert_idle().await;
}

#[tokio::test]
async fn the_region_follows_the_source() {
    let harness = Harness::new().await;
    let far = NewVolume {
        region: Some(region("ams")),
        ..Harness::new_volume("far")
    };
    harness.make(far).await.unwrap();
    assert_eq!(
        harness.snapshot("far", "before").await.snapshot.region,
        "ams"
    );
    for new in [from_snapshot("one", "before"), from_volume("two", "far")] {
        assert_eq!(harness.make(new).await.unwrap().volume.region, "ams");
    }
    let near = NewVolume {
        region: None,
        ..Harness::new_volume("near")
    };
    assert_eq!(harness.make(near).await.unwrap().volume.region, "ord");
}

#[tokio::test]
async fn a_source_is_not_purged_while_it_is_copied() {
    let harness = Harness::configured(|config| config.deletion_grace_ms = 0).await;
    harness.volume("data").await;
    let id = harness.snapshot("data", "before").await.snapshot.id;
    harness.run();
    let gate = harness.node.hold("create_volume");
    let fork = harness.making(from_snapshot("fork", "before"));
    harness.called("create_volume", 2).await;
    let (control, who) = (&harness.control, &harness.who);
    control.delete_snapshot(who, "before").await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    assert!(harness.node.image(&id).is_some());
    gate.add_permits(1);
    soon(fork).await.unwrap().unwrap();
    eventually("the purge", async || harness.node.image(&id).is_none()).await;
    harness.node.assert_sound();
}

#[tokio::test]
async fn sandboxes_boot_from_snapshots_and_volumes() {
    let harness = Harness::configured(|config| config.deletion_grace_ms = 0).await;
    let (control, who) = (&harness.control, &harness.who);
    let system = harness.bootable("system").await;
    harness.volume("data").await;
    let snapshot = harness.snapshot("system", "golden").await.snapshot;
    let with_root = |root: &str, volumes: &[&str]| NewSandbox {
        root: Some(root.to_owned()),
        ..Harness::new_sandbox(volumes)
    };
    // Many from one snapshot, one from a volume.
    let first = harness
        .create(with_root("golden", &["data"]))
        .await
        .unwrap();
    let second = harness.create(with_root(&snapshot.id, &[])).await.unwrap();
    let third = harness.create(with_root("system", &[])).await.unwrap();
    let held = control.volume(who, "system").await.unwrap().sandbox;
    assert_eq!(held, Some(third.to_string()));
    {
        let state = harness.node.state();
        let snapshot = snapshot.id.parse().unwrap();
        assert!(state.sandboxes[&first].contains(&snapshot));
        assert_eq!(state.sandboxes[&second], [snapshot]);
        assert_eq!(state.sandboxes[&third], [system.id.parse().unwrap()]);
    }
    let refuse = async |new: NewSandbox, code, text: &str| {
        let error = assert_code(harness.create(new).await, code);
        assert!(error.message.contains(text), "{error}");
    };
    refuse(
        with_root("nope", &[]),
        ErrorCode::SnapshotNotFound,
        "`nope`",
    )
    .await;
    refuse(with_root("data", &[]), ErrorCode::NotBootable, "`data`").await;
    let holder = third.to_string();
    refuse(
        with_root("system", &[]),
        ErrorCode::VolumeIsMounted,
        &holder,
    )
    .await;
    control
        .stop_sandbox(who, third, StopReason::Killed)
        .await
        .unwrap();
    let twice = with_root("system", &["system"]);
    refuse(twice, ErrorCode::InvalidRequest, "`system`").await;
    let far = NewSandbox {
        region: Some(region("ams")),
        ..with_root("golden", &[])
    };
    refuse(far, ErrorCode::RegionMismatch, "`golden`").await;

    // Deleted in use: it stays until the last sandbox has ended.
    harness.run();
    control.delete_snapshot(who, "golden").await.unwrap();
    refuse(
        with_root("golden", &[]),
        ErrorCode::SnapshotNotFound,
        "golden",
    )
    .await;
    control.end_session(first).await;
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    assert!(harness.node.image(&snapshot.id).is_some());
    // A node that still has it mounted is asked again.
    let in_use = NodeError::InUse(snapshot.id.parse().unwrap());
    harness.node.fail("remove_image", Failure::Error(in_use));
    control.end_session(second).await;
    eventually("the purge", async || {
        harness.node.image(&snapshot.id).is_none()
    })
    .await;
    assert!(harness.node.count("remove_image") >= 2);
    harness.assert_idle().await;
}

#[tokio::test]
async fn a_failed_fork_leaves_nothing() {
    let harness = Harness::new().await;
    harness.volume("data").await;
    harness.snapshot("data", "before").await;
    harness.node.fail("create_volume", super::node::broken());
    let failed = harness.make(from_snapshot("fork", "before")).await;
    assert_code(failed, ErrorCode::Internal);
    assert_eq!(harness.node.state().images.len(), 2);
    assert_eq!(harness.store.known_images().await.unwrap().len(), 2);
    let slug: Slug = "fork".parse().unwrap();
    harness.snapshot("data", slug.as_str()).await;
    harness.assert_idle().await;
}
