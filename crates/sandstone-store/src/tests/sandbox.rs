use std::collections::BTreeMap;

use sandstone_api::VolumeId;
use sandstone_core::{Labels, Lifetime, SandboxState, StopReason};

use super::fixture::{Fixture, at, path, region, suffix, volume_id};
use crate::{StopBegun, StoreError};

#[tokio::test]
async fn a_sandbox_reserves_its_volumes_in_order() {
    let fixture = Fixture::new().await;
    let store = &fixture.store;
    let (a, b) = (fixture.volume(1, "aa").await, fixture.volume(2, "bb").await);
    let new = fixture.new_sandbox(7, &[("/x", "bb"), ("/x/y", &a.id.to_string())]);
    let begun = store.begin_sandbox(&new, at(5)).await.unwrap();
    assert_eq!(begun.mounts, [(b.id, path("/x")), (a.id, path("/x/y"))]);
    let sandbox = store.sandbox(fixture.ours, begun.id).await.unwrap();
    assert_eq!(sandbox.state, SandboxState::Starting);
    assert_eq!(sandbox.created_at, at(5));
    assert!(store.sandbox(fixture.theirs, begun.id).await.is_err());

    store.sandbox_started(begun.id).await.unwrap();
    let sandbox = store.sandbox(fixture.ours, begun.id).await.unwrap();
    assert_eq!(sandbox.state, SandboxState::Running);
    let before = fixture.dump().await;
    assert!(matches!(
        store.sandbox_started(begun.id).await,
        Err(StoreError::Denied { .. })
    ));
    assert_eq!(fixture.dump().await, before);
}

#[tokio::test]
async fn all_volumes_are_reserved_or_none() {
    let fixture = Fixture::new().await;
    fixture.volume(1, "free").await;
    fixture.volume(2, "taken").await;
    let mut far = fixture.new_volume(VolumeId::new(region("ams"), suffix(3)), "far");
    fixture.available(&far, at(3)).await;
    far.organisation = fixture.theirs;
    far.id = volume_id(4);
    far.slug = "foreign".parse().unwrap();
    fixture.available(&far, at(4)).await;
    let holder = fixture.begin(6, &[("/t", "taken")]).await.unwrap();

    let before = fixture.dump().await;
    let refused = async |second| {
        let volumes = [("/free", "free"), ("/second", second)];
        fixture.begin(7, &volumes).await
    };
    for missing in ["nope", "foreign", &volume_id(4).to_string(), ""] {
        match fixture
            .begin(7, &[("/free", "free"), ("/x", missing)])
            .await
        {
            Err(StoreError::VolumeNotFound { name }) => assert_eq!(name, missing),
            other => panic!("{missing}: {other:?}"),
        }
    }
    match refused("taken").await {
        Err(StoreError::VolumeIsMounted {
            volume,
            slug,
            sandbox,
            releasing,
        }) => assert_eq!(
            (volume, slug.as_str(), sandbox, releasing),
            (volume_id(2), "taken", holder, false)
        ),
        other => panic!("{other:?}"),
    }
    match refused("far").await {
        Err(StoreError::RegionMismatch {
            slug,
            region: is_in,
            wanted,
        }) => assert_eq!(
            (slug.as_str(), is_in, wanted),
            ("far", region("ams"), region("ord"))
        ),
        other => panic!("{other:?}"),
    }
    for twice in ["free", &volume_id(1).to_string()] {
        assert!(matches!(
            fixture.begin(7, &[("/a", "free"), ("/b", twice)]).await,
            Err(StoreError::VolumeNamedTwice { slug }) if slug.as_str() == "free"
        ));
    }
    assert_eq!(fixture.dump().await, before);
}

#[tokio::test]
async fn the_region_follows_the_volumes() {
    let fixture = Fixture::new().await;
    let far = fixture.new_volume(VolumeId::new(region("ams"), suffix(3)), "far");
    fixture.available(&far, at(3)).await;
    for (number, asked, volumes, expected) in [
        (10, None, &[][..], Some("ord")),
        (11, Some("fra"), &[], Some("fra")),
        (12, Some("ord"), &[("/far", "far")], None),
        (13, None, &[("/far", "far")], Some("ams")),
    ] {
        let mut new = fixture.new_sandbox(number, volumes);
        new.region = asked.map(region);
        let begun = fixture.store.begin_sandbox(&new, at(9)).await;
        match expected {
            Some(expected) => assert_eq!(begun.unwrap().id.region(), region(expected)),
            None => assert!(matches!(begun, Err(StoreError::RegionMismatch { .. }))),
        }
    }
}

#[tokio::test]
async fn the_first_stopper_decides_the_reason() {
    let fixture = Fixture::new().await;
    let store = &fixture.store;
    let volume = fixture.volume(1, "data").await;
    let new = fixture.new_sandbox(7, &[("/data", "data")]);
    let id = fixture.running(&new, at(7)).await;
    assert!(matches!(
        store.sandbox_released(id, at(8)).await,
        Err(StoreError::Denied { .. })
    ));
    for reason in [StopReason::TimedOut, StopReason::Killed] {
        let begun = store.begin_stop(id, reason).await.unwrap();
        let expected = StopBegun {
            reason: StopReason::TimedOut,
            already_stopped: false,
            volumes: vec![volume.id],
        };
        assert_eq!(begun, expected);
        // Not free before the node says so.
        assert!(matches!(
            fixture.begin(8, &[("/data", "data")]).await,
            Err(StoreError::VolumeIsMounted {
                releasing: true,
                ..
            })
        ));
    }
    assert!(store.sandbox_started(id).await.is_err());
    for now in [20, 30] {
        store.sandbox_released(id, at(now)).await.unwrap();
    }
    let sandbox = store.sandbox(fixture.ours, id).await.unwrap();
    assert_eq!(sandbox.state, SandboxState::Stopped);
    assert_eq!(sandbox.stopped_at, Some(at(20)));
    assert_eq!(sandbox.stop_reason, Some(StopReason::TimedOut));
    let before = fixture.dump().await;
    let late = store.begin_stop(id, StopReason::Exited).await.unwrap();
    assert!(late.already_stopped);
    assert_eq!(late.reason, StopReason::TimedOut);
    assert_eq!(fixture.dump().await, before);
    fixture.begin(8, &[("/data", "data")]).await.unwrap();
}

#[tokio::test]
async fn the_list_shows_what_clients_know() {
    let fixture = Fixture::new().await;
    let store = &fixture.store;
    let labels = |text: &str| Labels::new([("env".to_owned(), text.to_owned())].into()).unwrap();
    let mut ids = Vec::new();
    for number in 1..=5 {
        let mut new = fixture.new_sandbox(number, &[]);
        new.labels = labels(if number % 2 == 0 {
            "even"
        } else {
            "it's \"odd\""
        });
        ids.push(fixture.running(&new, at(i64::from(number))).await);
    }
    fixture.begin(6, &[]).await.unwrap();
    let failed = fixture.begin(7, &[]).await.unwrap();
    store
        .begin_stop(failed, StopReason::StartFailed)
        .await
        .unwrap();
    store.sandbox_released(failed, at(100)).await.unwrap();
    fixture.stop(ids[0], at(50)).await;
    fixture.stop(ids[1], at(51)).await;
    store.begin_stop(ids[2], StopReason::Killed).await.unwrap();

    let everything = BTreeMap::new();
    let list = async |labels: &BTreeMap<String, String>| {
        let found = store.list_sandboxes(fixture.ours, labels, at(50)).await;
        found
            .unwrap()
            .iter()
            .map(|found| found.id)
            .collect::<Vec<_>>()
    };
    assert_eq!(list(&everything).await, [ids[4], ids[3], ids[2], ids[1]]);
    assert_eq!(list(labels("even").as_map()).await, [ids[3], ids[1]]);
    assert_eq!(
        list(labels("it's \"odd\"").as_map()).await,
        [ids[4], ids[2]]
    );
    assert_eq!(list(labels("none").as_map()).await, []);
    let theirs = store.list_sandboxes(fixture.theirs, &everything, at(0));
    assert_eq!(theirs.await.unwrap(), []);

    let unfinished = store.unfinished_sandboxes().await.unwrap();
    let states: Vec<_> = unfinished.iter().map(|sandbox| sandbox.state).collect();
    use SandboxState::{Running, Starting, Stopping};
    assert_eq!(states, [Stopping, Running, Running, Starting]);
}

#[tokio::test]
async fn deadlines_are_found_and_only_move_later() {
    let fixture = Fixture::new().await;
    let store = &fixture.store;
    assert_eq!(store.next_deadline().await.unwrap(), None);
    let session = fixture.running(&fixture.new_sandbox(1, &[]), at(0)).await;
    let mut timed = Vec::new();
    for (number, until) in [(2, 200), (3, 100)] {
        let mut new = fixture.new_sandbox(number, &[]);
        new.lifetime = Lifetime::Until(at(until));
        timed.push(fixture.running(&new, at(0)).await);
    }
    let mut starting = fixture.new_sandbox(4, &[]);
    starting.lifetime = Lifetime::Until(at(1));
    let starting = store.begin_sandbox(&starting, at(0)).await.unwrap().id;
    assert_eq!(store.next_deadline().await.unwrap(), Some(at(100)));
    assert_eq!(store.due_sandboxes(at(99)).await.unwrap(), []);
    assert_eq!(store.due_sandboxes(at(100)).await.unwrap(), [timed[1]]);

    let extend = |id, until| store.extend(fixture.ours, id, at(until));
    assert_eq!(extend(timed[1], 300).await.unwrap(), at(300));
    assert_eq!(extend(timed[1], 250).await.unwrap(), at(300));
    assert_eq!(store.next_deadline().await.unwrap(), Some(at(200)));
    assert_eq!(extend(session, 500).await.unwrap(), at(500));
    let sandbox = store.sandbox(fixture.ours, session).await.unwrap();
    assert_eq!(sandbox.lifetime, Lifetime::Session);

    store
        .begin_stop(timed[0], StopReason::Killed)
        .await
        .unwrap();
    let before = fixture.dump().await;
    for refused in [timed[0], starting] {
        assert!(matches!(
            extend(refused, 900).await,
            Err(StoreError::SandboxNotFound(id)) if id == refused
        ));
    }
    assert!(
        store
            .extend(fixture.theirs, timed[1], at(900))
            .await
            .is_err()
    );
    assert_eq!(fixture.dump().await, before);
}

#[tokio::test]
async fn old_sandboxes_are_forgotten_but_tokens_still_grow() {
    let fixture = Fixture::new().await;
    let store = &fixture.store;
    fixture.volume(1, "data").await;
    for number in 1..=3 {
        let new = fixture.new_sandbox(number, &[("/data", "data")]);
        let id = fixture.running(&new, at(0)).await;
        if number < 3 {
            fixture.stop(id, at(i64::from(number))).await;
        }
    }
    assert_eq!(store.forget_stopped(at(0), 10).await.unwrap(), 0);
    assert_eq!(store.forget_stopped(at(9), 1).await.unwrap(), 1);
    assert_eq!(store.forget_stopped(at(9), 10).await.unwrap(), 1);
    let left = fixture.attachments().await;
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].1, 3);
}
