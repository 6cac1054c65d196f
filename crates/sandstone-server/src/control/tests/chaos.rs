//! Many clients at once, some of whom go away, over a node that fails now and then.

use std::sync::Arc;
use std::time::Duration;

use sandstone_core::StopReason;

use super::harness::{Harness, soon};
use super::node::broken;

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
        tokio::task::yield_now().await;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nobody_shares_a_volume_and_nothing_is_left() {
    let harness = Harness::configured(|config| {
        config.release_wait = Duration::from_millis(100);
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
    let mut started = 0;
    for client in clients {
        started += tokio::time::timeout(Duration::from_secs(60), client)
            .await
            .unwrap()
            .unwrap();
    }
    assert!(started > 5, "{started} sandboxes had started");
    harness.node.clear_failures();
    soon(harness.control.stop_all(StopReason::ServerStopped)).await;
    harness.assert_idle().await;
    for slug in SLUGS {
        let gone = harness.control.delete_volume(&harness.who, slug).await;
        gone.unwrap();
    }
}
