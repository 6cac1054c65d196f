//! Random histories of a few volumes and sandboxes, with crashes, checked after every step.

use std::collections::HashMap;

use proptest::prelude::*;
use sandstone_api::{SandboxId, VolumeId};
use sandstone_core::StopReason;

use super::fixture::{Fixture, at, volume_id};

const SLUGS: [&str; 3] = ["aa", "bb", "cc"];

#[derive(Debug, Clone)]
enum Step {
    BeginVolume(usize),
    FinishVolume(usize, bool),
    DeleteVolume(usize),
    Purge,
    BeginSandbox(Vec<usize>),
    Started(usize),
    BeginStop(usize),
    Released(usize),
    Forget,
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    let slug = 0..SLUGS.len();
    let any = 0..1000_usize;
    prop_oneof![
        2 => slug.clone().prop_map(Step::BeginVolume),
        3 => (any.clone(), prop::bool::weighted(0.8)).prop_map(|(n, made)| Step::FinishVolume(n, made)),
        1 => slug.clone().prop_map(Step::DeleteVolume),
        1 => Just(Step::Purge),
        4 => prop::collection::vec(slug, 0..3).prop_map(Step::BeginSandbox),
        4 => any.clone().prop_map(Step::Started),
        3 => any.clone().prop_map(Step::BeginStop),
        3 => any.prop_map(Step::Released),
        1 => Just(Step::Forget),
        1 => Just(Step::Crash),
    ]
}

#[derive(Default)]
struct Known {
    volumes: Vec<VolumeId>,
    sandboxes: Vec<SandboxId>,
    /// The largest token ever seen on each volume, and who had it.
    tokens: HashMap<String, (i64, String)>,
}

/// Does one step; refusals are fine, they are judged by what they leave behind.
async fn apply(fixture: Fixture, known: &mut Known, step: &Step, clock: i64) -> Fixture {
    let pick = |all: &[SandboxId], n: usize| all.get(n % all.len().max(1)).copied();
    let store = &fixture.store;
    let now = at(clock);
    match step {
        Step::BeginVolume(slug) => {
            let id = volume_id(clock.try_into().unwrap());
            let new = fixture.new_volume(id, SLUGS[*slug]);
            if store.begin_volume(&new, now).await.is_ok() {
                known.volumes.push(id);
            }
        }
        Step::FinishVolume(n, made) => {
            if let Some(id) = known.volumes.get(n % known.volumes.len().max(1)) {
                let _ = store.finish_volume(*id, *made, now).await;
            }
        }
        Step::DeleteVolume(slug) => {
            let _ = store.delete_volume(fixture.ours, SLUGS[*slug], now).await;
        }
        Step::Purge => {
            for id in store.volumes_to_purge(now, 9).await.unwrap() {
                store.purge_volume(id, now).await.unwrap();
            }
        }
        Step::BeginSandbox(slugs) => {
            let paths = ["/p0", "/p1", "/p2"];
            let volumes: Vec<_> = paths
                .into_iter()
                .zip(slugs.iter().map(|slug| SLUGS[*slug]))
                .collect();
            if let Ok(id) = fixture.begin(clock.try_into().unwrap(), &volumes).await {
                known.sandboxes.push(id);
            }
        }
        Step::Started(n) => {
            if let Some(id) = pick(&known.sandboxes, *n) {
                let _ = store.sandbox_started(id).await;
            }
        }
        Step::BeginStop(n) => {
            if let Some(id) = pick(&known.sandboxes, *n) {
                let _ = store.begin_stop(id, StopReason::Killed).await;
            }
        }
        Step::Released(n) => {
            if let Some(id) = pick(&known.sandboxes, *n) {
                let _ = store.sandbox_released(id, now).await;
            }
        }
        Step::Forget => {
            store.forget_stopped(now, 2).await.unwrap();
        }
        Step::Crash => return fixture.crash().await,
    }
    fixture
}

async fn check(fixture: &Fixture, known: &mut Known) {
    let mut holders = HashMap::new();
    for (volume, token, sandbox, holds) in fixture.attachments().await {
        if holds {
            let other = holders.insert(volume.clone(), sandbox.clone());
            assert_eq!(other, None, "two holders of {volume}");
        }
        let seen = known.tokens.entry(volume).or_default();
        match token.cmp(&seen.0) {
            std::cmp::Ordering::Greater => *seen = (token, sandbox),
            std::cmp::Ordering::Equal => assert_eq!(sandbox, seen.1, "a token was used twice"),
            std::cmp::Ordering::Less => {}
        }
    }
    let newest: Vec<(String, i64)> = sqlx::query_as("SELECT id, attach_token FROM volumes")
        .fetch_all(fixture.store.read())
        .await
        .unwrap();
    for (volume, token) in newest {
        let seen = known.tokens.get(&volume).map_or(0, |(token, _)| *token);
        assert_eq!(token, seen, "the token of {volume} does not grow by use");
    }
    // Whoever holds a volume is not stopped, and the volume is there.
    let broken: i64 = sqlx::query_scalar(
        "SELECT COUNT(*) FROM attachments a JOIN sandboxes s ON s.id = a.sandbox \
             JOIN volumes v ON v.id = a.volume \
         WHERE a.state <> 'detached' AND (s.state = 'stopped' OR v.state <> 'available')",
    )
    .fetch_one(fixture.store.read())
    .await
    .unwrap();
    assert_eq!(broken, 0);
}

/// What a server does when it starts again.
async fn recover(fixture: &Fixture, clock: i64) {
    let store = &fixture.store;
    for id in store.half_created_volumes().await.unwrap() {
        store.finish_volume(id, false, at(clock)).await.unwrap();
    }
    for sandbox in store.unfinished_sandboxes().await.unwrap() {
        let begun = store.begin_stop(sandbox.id, StopReason::ServerLost).await;
        assert!(!begun.unwrap().already_stopped);
        store.sandbox_released(sandbox.id, at(clock)).await.unwrap();
    }
}

proptest! {
    // Every step is a few fsyncs; this takes some seconds and reaches every pair of steps.
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_history_is_sound_and_ends(steps in prop::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut known = Known::default();
            let mut fixture = Fixture::new().await;
            let mut clock = 100;
            for step in &steps {
                clock += 1;
                fixture = apply(fixture, &mut known, step, clock).await;
                check(&fixture, &mut known).await;
            }
            let fixture = fixture.crash().await;
            recover(&fixture, clock + 1).await;
            check(&fixture, &mut known).await;
            assert!(fixture.attachments().await.iter().all(|(_, _, _, holds)| !holds));
            assert!(fixture.store.unfinished_sandboxes().await.unwrap().is_empty());
            assert!(fixture.store.half_created_volumes().await.unwrap().is_empty());
            // Every name that is visible can be used again at once.
            for slug in SLUGS {
                if fixture.store.volume(fixture.ours, slug).await.is_ok() {
                    fixture.store.delete_volume(fixture.ours, slug, at(clock + 2)).await.unwrap();
                }
            }
        });
    }
}
