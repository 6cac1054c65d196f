//! The server dies between two steps, and the next one takes up its work.
//!
//! A call of the node that hangs before its work stands for a server that died after it had
//! recorded an intent; one that hangs after its work for a server that died before it recorded the
//! outcome.

use std::sync::Arc;

use sandstone_api::{ErrorCode, ImageId};
use sandstone_core::{Clock, ImageState, Memory, MountPath, SandboxState, StopReason};
use tokio::sync::Semaphore;

use super::harness::{Harness, assert_code, eventually, gigabytes};
use crate::control::Source;

/// Where the node's call hangs when the server dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    Before,
    After,
}

const BOTH: [When; 2] = [When::Before, When::After];

impl When {
    fn hold(self, harness: &Harness, call: &'static str) -> Arc<Semaphore> {
        match self {
            Self::Before => harness.node.hold(call),
            Self::After => harness.node.hold_after(call),
        }
    }
}

/// The server dies; the next one has recovered. Whatever the old one's tasks wait for never comes.
async fn die(harness: Harness) -> Harness {
    let harness = harness.crash().await;
    harness.node.forget_calls();
    harness.control.recover().await.unwrap();
    harness
}

/// Waits until the call hangs where it should.
async fn hangs(harness: &Harness, call: &'static str, times: usize) {
    harness.called(call, times).await;
    // Time to get from its beginning to its end.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn while_a_volume_is_made_or_forked() {
    for when in BOTH {
        for source in [
            Source::Empty,
            Source::Base,
            Source::Snapshot("before".into()),
            Source::Volume("data".into()),
        ] {
            let harness = Harness::new().await;
            harness.volume("data").await;
            harness.snapshot("data", "before").await;
            let _gate = when.hold(&harness, "create_volume");
            let new = crate::control::NewVolume {
                source: source.clone(),
                ..Harness::new_volume("half")
            };
            let client = harness.making(new.clone());
            hangs(&harness, "create_volume", 2).await;
            let images = if when == When::Before { 2 } else { 3 };
            assert_eq!(harness.node.state().images.len(), images);
            // Dies, and again while it recovers.
            let harness = harness.crash().await;
            let harness = die(harness).await;
            assert!(!client.is_finished());
            assert_eq!(harness.store.half_created().await.unwrap(), []);
            assert_eq!(harness.store.known_images().await.unwrap().len(), 2);
            assert_eq!(harness.node.state().images.len(), 2, "{when:?} {source:?}");
            let found = harness.control.volume(&harness.who, "half").await;
            assert_code(found, ErrorCode::VolumeNotFound);
            harness.make(new).await.unwrap();
            harness.node.assert_sound();
        }
    }
}

#[tokio::test]
async fn while_a_snapshot_is_taken() {
    for when in BOTH {
        let harness = Harness::new().await;
        let volume = harness.volume("data").await;
        let alive = harness.timed_sandbox(&["data"], 60_000);
        let alive = harness.create(alive).await.unwrap();
        let _gate = when.hold(&harness, "create_snapshot");
        let _client = harness.taking("data", "half");
        hangs(&harness, "create_snapshot", 1).await;
        let harness = die(harness).await;
        assert_eq!(harness.store.half_created().await.unwrap(), []);
        assert_eq!(harness.node.state().images.len(), 1, "{when:?}");
        assert!(harness.node.image(&volume.id).is_some());
        let found = harness.control.snapshot(&harness.who, "half").await;
        assert_code(found, ErrorCode::SnapshotNotFound);
        // The sandbox has not noticed.
        assert_eq!(harness.row(alive).await.state, SandboxState::Running);
        harness.snapshot("data", "half").await;
        harness.node.assert_sound();
    }
}

#[tokio::test]
async fn while_something_is_purged() {
    for when in BOTH {
        let harness = Harness::configured(|config| config.deletion_grace_ms = 0).await;
        let volume = harness.volume("data").await;
        harness.snapshot("data", "before").await;
        let image: ImageId = volume.id.parse().unwrap();
        harness
            .control
            .delete_volume(&harness.who, "data")
            .await
            .unwrap();
        let _gate = when.hold(&harness, "remove_image");
        let control = harness.control.clone();
        let _purge = tokio::spawn(async move { control.purge_image(image).await });
        hangs(&harness, "remove_image", 1).await;
        let harness = die(harness).await;
        let late = harness
            .control
            .restore_volume(&harness.who, &volume.id, None);
        assert_code(late.await, ErrorCode::NotRestorable);
        harness.run();
        eventually("the end of the purge", async || {
            harness.store.known_images().await.unwrap().len() == 1
        })
        .await;
        assert_eq!(harness.node.state().images.len(), 1, "{when:?}");
        harness.node.assert_sound();
    }
}

#[tokio::test]
async fn while_a_volume_grows() {
    for when in BOTH {
        for is_deleted in [false, true] {
            let harness = Harness::new().await;
            let volume = harness.volume("data").await;
            let _gate = when.hold(&harness, "grow_volume");
            let _client = harness.growing("data", gigabytes(2));
            hangs(&harness, "grow_volume", 1).await;
            if is_deleted {
                let deleted = harness.control.delete_volume(&harness.who, "data");
                deleted.await.unwrap();
            }
            let harness = die(harness).await;
            assert_eq!(harness.store.growing_volumes().await.unwrap(), []);
            if is_deleted {
                let restored = harness.control.restore_volume(&harness.who, "data", None);
                restored.await.unwrap();
            }
            let found = harness.control.volume(&harness.who, "data").await;
            assert_eq!(found.unwrap().volume.capacity, 2_000_000_000, "{when:?}");
            let image = harness.node.image(&volume.id).unwrap();
            assert_eq!(image.capacity, 2_000_000_000);
            harness.sandbox(&["data"]).await;
            harness.node.assert_sound();
        }
    }
}

#[tokio::test]
async fn while_a_sandbox_starts_or_stops() {
    for when in BOTH {
        for call in ["start_sandbox", "stop_sandbox"] {
            let harness = Harness::new().await;
            harness.volume("data").await;
            let _gate = when.hold(&harness, call);
            let client = harness.creating(harness.timed_sandbox(&["data"], 60_000));
            if call == "start_sandbox" {
                hangs(&harness, call, 1).await;
            } else {
                let id = client.await.unwrap().unwrap();
                let _stop = harness.stopping(id, StopReason::Killed);
                hangs(&harness, call, 1).await;
            }
            let id = harness.store.unfinished_sandboxes().await.unwrap()[0].id;
            let harness = die(harness).await;
            assert_eq!(harness.row(id).await.state, SandboxState::Stopped);
            assert!(harness.node.state().sandboxes.is_empty());
            let id = harness.sandbox(&["data"]).await;
            harness.control.end_session(id).await;
            harness.node.assert_sound();
        }
    }
}

#[tokio::test]
async fn after_a_delete_or_a_restore() {
    let harness = Harness::new().await;
    harness.volume("data").await;
    harness.snapshot("data", "before").await;
    let (control, who) = (&harness.control, &harness.who);
    control.delete_volume(who, "data").await.unwrap();
    control.delete_snapshot(who, "before").await.unwrap();
    control.restore_snapshot(who, "before", None).await.unwrap();
    let harness = die(harness).await;
    let (control, who) = (&harness.control, &harness.who);
    assert_code(control.volume(who, "data").await, ErrorCode::VolumeNotFound);
    control.snapshot(who, "before").await.unwrap();
    control.restore_volume(who, "data", None).await.unwrap();
    assert_eq!(harness.node.state().images.len(), 2);
}

#[tokio::test]
async fn while_a_maintenance_sandbox_fills_a_volume() {
    let harness = Harness::new().await;
    let volume = harness.volume("data").await;
    let now = harness.clock.now();
    let organisation = harness.row(harness.sandbox(&[]).await).await.organisation;
    let suffix = |text: &str| text.parse().unwrap();
    let half = sandstone_store::NewVolume {
        id: sandstone_api::VolumeId::new(
            super::harness::region("ord"),
            suffix("1at5nn58e77rtd11e3k3"),
        ),
        organisation,
        slug: "half".parse().unwrap(),
        capacity: Some(gigabytes(1)),
        source: sandstone_store::NewSource::Import { is_bootable: false },
    };
    let made = harness.control.make_volume(&half).await.unwrap();
    let mut ids = Vec::new();
    for (random, image) in [
        ("1at5nn58e77rtd11e3k4", ImageId::from(half.id)),
        ("1at5nn58e77rtd11e3k5", volume.id.parse().unwrap()),
    ] {
        let begin = async || {
            let path = MountPath::parse("/mnt/image").unwrap();
            let memory = Memory::default();
            let id = harness
                .store
                .begin_maintenance(
                    suffix(random),
                    organisation,
                    image,
                    memory,
                    path.clone(),
                    now,
                )
                .await?;
            Ok(sandstone_node_api::SandboxSpec {
                id,
                memory,
                root: sandstone_node_api::Root::Base,
                mounts: vec![sandstone_node_api::Mount { image, path }],
                environment: [].into(),
                network: sandstone_core::NetworkPolicy::default(),
            })
        };
        let unclaimed = harness.control.start(suffix(random), begin).await;
        ids.push(unclaimed.unwrap().claim());
    }
    let listed = harness.control.sandboxes(&harness.who, &[].into()).await;
    assert_eq!(listed.unwrap().len(), 1, "they are hidden");
    // Before it died, the server could not end the first one either.
    harness.node.fail("stop_sandbox", super::node::broken());
    let harness = harness.crash().await;
    drop(made);
    harness.control.recover().await.unwrap();
    harness.run();
    for id in ids {
        assert_eq!(harness.ended(id).await, StopReason::ServerLost);
    }
    eventually("the half-filled volume to go", async || {
        let known = harness.store.known_images().await.unwrap();
        known == [(volume.id.parse().unwrap(), ImageState::Available)]
    })
    .await;
    assert_eq!(harness.node.state().images.len(), 1);
    harness.sandbox(&["data"]).await;
    harness.node.assert_sound();
}
