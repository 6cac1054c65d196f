//! Many clients at once, some of whom go away, over a node that fails now and then.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sandstone_core::StopReason;

use super::harness::{Harness, eventually, gigabytes, soon};
use super::node::broken;
use crate::control::{PageRequest, Source};

const SLUGS: [&str; 3] = ["aa", "bb", "cc"];

/// A small generator: the same course in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

async fn client(harness: Arc<Harness>, seed: u64) -> u32 {
    let mut dice = Dice(seed * 0x9e37_79b9 + 1);
    let mut started = 0;
    for _ in 0..30 {
        tokio::time::sleep(Duration::from_millis(dice.roll(4))).await;
        let first = SLUGS[usize::try_from(dice.roll(3)).unwrap()];
        let second = SLUGS[usize::try_from(dice.roll(3)).unwrap()];
        let volumes = if first == second {
            vec![first]
        } else {
            vec![first, second]
        };
        match dice.roll(10) {
            0 => harness.node.fail("start_sandbox", broken()),
            1 => harness.node.fail("stop_sandbox", broken()),
            _ => {}
        }
        let creating = harness.creating(Harness::new_sandbox(&volumes));
        if dice.roll(4) == 0 {
            for _ in 0..dice.roll(50) {
                tokio::task::yield_now().await;
            }
            creating.abort();
        }
        let Ok(Ok(id)) = creating.await else {
            continue;
        };
        started += 1;
        let volume = harness.control.volume(&harness.who, first).await.unwrap();
        harness.node.write(&volume.volume.id);
        match dice.roll(3) {
            0 => harness.control.end_session(id).await,
            _ => {
                let stop = harness.stopping(id, StopReason::Killed);
                if dice.roll(2) == 0 {
                    stop.abort();
                }
                // Failures are tried again by the job.
                let _ = stop.await;
                harness.control.end_session(id).await;
            }
        }
    }
    started
}

/// Snapshots and forks the volumes that others use, deletes, restores and enlarges. Returns what
/// each snapshot held when it was taken.
async fn keeper(harness: Arc<Harness>, seed: u64) -> HashMap<String, Vec<u64>> {
    let mut dice = Dice(seed * 0x9e37_79b9 + 1);
    let mut taken = HashMap::new();
    let (control, who) = (&harness.control, &harness.who);
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(dice.roll(4))).await;
        let volume = SLUGS[usize::try_from(dice.roll(3)).unwrap()];
        let snapshot = format!("snapshot-{}", dice.roll(5));
        let fork = format!("fork-{}", dice.roll(3));
        match dice.roll(40) {
            0 => harness.node.fail("create_volume", broken()),
            1 => harness.node.fail("create_snapshot", broken()),
            2 => harness.node.fail("remove_image", broken()),
            3 => harness.node.fail("grow_volume", broken()),
            4 => harness.clock.advance(GRACE_MS),
            _ => {}
        }
        // What is refused, because it is not there or there already, is as good as what is done.
        match dice.roll(9) {
            0 | 1 => {
                let taking = harness.taking(volume, &snapshot);
                if dice.roll(4) == 0 {
                    tokio::task::yield_now().await;
                    taking.abort();
                }
                if let Ok(Ok(detail)) = taking.await
                    && let Some(image) = harness.node.image(&detail.snapshot.id)
                {
                    taken.insert(detail.snapshot.id, image.pieces);
                }
            }
            2 | 3 => {
                let source = match dice.roll(2) {
                    0 => Source::Snapshot(snapshot),
                    _ => Source::Volume(volume.to_owned()),
                };
                let making = harness.making(Harness::new_fork(&fork, source));
                if dice.roll(4) == 0 {
                    tokio::task::yield_now().await;
                    making.abort();
                }
                drop(making.await);
            }
            4 => drop(control.delete_snapshot(who, &snapshot).await),
            5 => drop(control.delete_volume(who, &fork).await),
            6 => drop(control.restore_snapshot(who, &snapshot, None).await),
            7 => drop(control.restore_volume(who, &fork, None).await),
            _ => {
                let capacity = gigabytes(1 + dice.roll(4));
                drop(control.grow_volume(who, volume, capacity).await);
            }
        }
    }
    taken
}

/// Nothing deleted is kept longer, by a clock that the keepers move.
const GRACE_MS: i64 = 5;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nobody_shares_a_volume_and_nothing_is_left() {
    let harness = Harness::configured(|config| {
        config.release_wait = Duration::from_millis(100);
        config.deletion_grace_ms = GRACE_MS;
    })
    .await;
    for slug in SLUGS {
        harness.volume(slug).await;
    }
    harness.run();
    let harness = Arc::new(harness);
    let clients: Vec<_> = (1..=6)
        .map(|seed| tokio::spawn(client(harness.clone(), seed)))
        .collect();
    let keepers: Vec<_> = (7..=9)
        .map(|seed| tokio::spawn(keeper(harness.clone(), seed)))
        .collect();
    let limit = Duration::from_secs(60);
    let mut started = 0;
    for client in clients {
        started += tokio::time::timeout(limit, client).await.unwrap().unwrap();
    }
    assert!(started > 5, "{started} sandboxes had started");
    let mut taken = HashMap::new();
    for keeper in keepers {
        taken.extend(tokio::time::timeout(limit, keeper).await.unwrap().unwrap());
    }
    assert!(taken.len() > 5, "{} snapshots were taken", taken.len());
    harness.node.clear_failures();
    soon(harness.control.stop_all(StopReason::ServerStopped)).await;
    harness.assert_idle().await;
    for (id, pieces) in taken {
        if let Some(image) = harness.node.image(&id) {
            assert_eq!(image.pieces, pieces, "{id} has changed");
        }
    }
    // Every object has an image, and every image an object, until all are gone.
    let (control, who) = (&harness.control, &harness.who);
    eventually("the pool to match", async || {
        let pool = control.pool(who).await.unwrap();
        pool.unknown_images.is_empty() && pool.missing_images.is_empty()
    })
    .await;
    let volumes = control.volumes(who, PageRequest::default()).await.unwrap();
    for found in &volumes.items {
        control.delete_volume(who, &found.volume.id).await.unwrap();
    }
    let snapshots = control.snapshots(who, PageRequest::default()).await;
    for found in &snapshots.unwrap().items {
        control
            .delete_snapshot(who, &found.snapshot.id)
            .await
            .unwrap();
    }
    harness.clock.advance(GRACE_MS);
    eventually("everything to be purged", async || {
        harness.store.known_images().await.unwrap().is_empty()
            && harness.node.state().images.is_empty()
    })
    .await;
    harness.node.assert_sound();
}
