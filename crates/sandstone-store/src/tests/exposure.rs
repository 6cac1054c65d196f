use sandstone_api::SandboxId;
use sandstone_core::{EXPOSURES_PER_SANDBOX_MAX, ExposureName, ExposureTarget, StopReason};

use super::fixture::{Fixture, at};
use crate::{Exposure, StoreError};

fn name(number: usize) -> ExposureName {
    let mut bytes = [0; ExposureName::RANDOM_BYTES];
    bytes[0] = u8::try_from(number % 33).unwrap();
    bytes[1] = u8::try_from(number / 33).unwrap();
    ExposureName::from_random(bytes)
}

fn unbound(sandbox: SandboxId, number: usize) -> Exposure {
    Exposure {
        name: name(number),
        sandbox,
        target: None,
        created_at: at(i64::try_from(number).unwrap()),
    }
}

#[tokio::test]
async fn a_name_leads_where_it_was_bound_last() {
    let fixture = Fixture::new().await;
    let (store, ours) = (&fixture.store, fixture.ours);
    let id = fixture.begin(1, &[]).await.unwrap();
    let early = store.add_exposure(ours, &unbound(id, 1)).await;
    assert!(matches!(early, Err(StoreError::SandboxNotFound(found)) if found == id));
    store.sandbox_started(id).await.unwrap();

    store.add_exposure(ours, &unbound(id, 1)).await.unwrap();
    assert_eq!(
        store.exposure(&name(1)).await.unwrap(),
        Some(unbound(id, 1))
    );
    let process = ExposureTarget::Process {
        pid: 7,
        socket: "/tmp/x.sock".to_owned(),
    };
    for target in [ExposureTarget::Port(65535), process] {
        store
            .bind_exposure(ours, id, &name(1), &target)
            .await
            .unwrap();
        let found = store.exposure(&name(1)).await.unwrap().unwrap();
        assert_eq!(found.target, Some(target));
    }
    let mut second = unbound(id, 2);
    second.target = Some(ExposureTarget::Port(8000));
    store.add_exposure(ours, &second).await.unwrap();
    let names = async || -> Vec<ExposureName> {
        let listed = store.exposures(ours, id).await.unwrap();
        listed.into_iter().map(|exposure| exposure.name).collect()
    };
    assert_eq!(names().await, [name(1), name(2)]);
    store.remove_exposure(ours, id, &name(1)).await.unwrap();
    assert_eq!(names().await, [name(2)]);
    let again = store.remove_exposure(ours, id, &name(1)).await;
    assert!(matches!(again, Err(StoreError::ExposureNotFound(_))));
}

#[tokio::test]
async fn names_belong_to_one_sandbox_of_one_organisation() {
    let fixture = Fixture::new().await;
    let (store, ours) = (&fixture.store, fixture.ours);
    let mut ids = Vec::new();
    for number in [1, 2] {
        let id = fixture.begin(number, &[]).await.unwrap();
        store.sandbox_started(id).await.unwrap();
        ids.push(id);
    }
    store.add_exposure(ours, &unbound(ids[0], 1)).await.unwrap();
    let before = fixture.dump().await;
    let target = ExposureTarget::Port(80);
    let stolen = store.bind_exposure(ours, ids[1], &name(1), &target).await;
    assert!(matches!(stolen, Err(StoreError::ExposureNotFound(_))));
    let stolen = store.remove_exposure(ours, ids[1], &name(1)).await;
    assert!(matches!(stolen, Err(StoreError::ExposureNotFound(_))));
    let theirs = fixture.theirs;
    let foreign = store.bind_exposure(theirs, ids[0], &name(1), &target).await;
    assert!(matches!(foreign, Err(StoreError::SandboxNotFound(_))));
    let foreign = store.add_exposure(theirs, &unbound(ids[0], 2)).await;
    assert!(matches!(foreign, Err(StoreError::SandboxNotFound(_))));
    assert!(store.exposures(theirs, ids[0]).await.is_err());
    // Names are random; should two ever be the same, the second is refused.
    assert!(store.add_exposure(ours, &unbound(ids[1], 1)).await.is_err());
    assert_eq!(fixture.dump().await, before);
}

#[tokio::test]
async fn names_end_when_their_sandbox_begins_to_stop() {
    let fixture = Fixture::new().await;
    let (store, ours) = (&fixture.store, fixture.ours);
    let id = fixture.begin(1, &[]).await.unwrap();
    store.sandbox_started(id).await.unwrap();
    store.add_exposure(ours, &unbound(id, 1)).await.unwrap();
    store.begin_stop(id, StopReason::Killed).await.unwrap();
    assert_eq!(store.exposure(&name(1)).await.unwrap(), None);
    assert!(store.exposures(ours, id).await.unwrap().is_empty());
    let late = store.add_exposure(ours, &unbound(id, 2)).await;
    assert!(matches!(late, Err(StoreError::SandboxNotFound(_))));
    store.sandbox_released(id, at(9)).await.unwrap();
    assert_eq!(store.forget_stopped(at(10), 10).await.unwrap(), 1);
}

#[tokio::test]
async fn a_sandbox_has_so_many_names_and_no_more() {
    let fixture = Fixture::new().await;
    let (store, ours) = (&fixture.store, fixture.ours);
    let id = fixture.begin(1, &[]).await.unwrap();
    store.sandbox_started(id).await.unwrap();
    for number in 0..EXPOSURES_PER_SANDBOX_MAX {
        store
            .add_exposure(ours, &unbound(id, number))
            .await
            .unwrap();
    }
    let refused = store
        .add_exposure(ours, &unbound(id, EXPOSURES_PER_SANDBOX_MAX))
        .await;
    assert!(matches!(refused, Err(StoreError::TooManyExposures(_))));
    store.remove_exposure(ours, id, &name(0)).await.unwrap();
    let free = unbound(id, EXPOSURES_PER_SANDBOX_MAX);
    store.add_exposure(ours, &free).await.unwrap();
}
