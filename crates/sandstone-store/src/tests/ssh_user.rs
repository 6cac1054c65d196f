use sandstone_core::StopReason;

use super::fixture::{Fixture, at};
use crate::{SSH_USERS_MAX, StoreError};

#[tokio::test]
async fn a_name_opens_its_sandbox_until_that_begins_to_stop() {
    let fixture = Fixture::new().await;
    let store = &fixture.store;
    let one = fixture.running(&fixture.new_sandbox(1, &[]), at(1)).await;
    let two = fixture.running(&fixture.new_sandbox(2, &[]), at(2)).await;
    for (id, name) in [(one, "first"), (one, "second"), (two, "third")] {
        let added = store.add_ssh_user(fixture.ours, id, name, at(3)).await;
        added.unwrap();
    }
    let opens = async |name| store.sandbox_of_ssh_user(name).await.unwrap();
    assert_eq!(opens("first").await, Some(one));
    assert_eq!(opens("second").await, Some(one));
    assert_eq!(opens("third").await, Some(two));
    let id = one.to_string();
    for unknown in ["", "First", "first ", &id] {
        assert_eq!(opens(unknown).await, None, "{unknown:?}");
    }

    store.begin_stop(one, StopReason::Killed).await.unwrap();
    assert_eq!(opens("first").await, None);
    assert_eq!(opens("second").await, None);
    assert_eq!(opens("third").await, Some(two));
    let rows: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM ssh_users")
        .fetch_one(store.read())
        .await
        .unwrap();
    assert_eq!(rows, 1);
}

#[tokio::test]
async fn the_database_does_not_hold_the_names_themselves() {
    let fixture = Fixture::new().await;
    let store = &fixture.store;
    let id = fixture.running(&fixture.new_sandbox(1, &[]), at(1)).await;
    store
        .add_ssh_user(fixture.ours, id, "a-name-to-look-for", at(2))
        .await
        .unwrap();
    store.close().await;
    for entry in std::fs::read_dir(fixture.directory.path()).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        let found = bytes
            .windows(18)
            .any(|window| window == b"a-name-to-look-for");
        assert!(!found);
    }
}

#[tokio::test]
async fn names_are_for_the_owners_running_sandboxes_and_bounded() {
    let fixture = Fixture::new().await;
    let store = &fixture.store;
    let id = fixture.running(&fixture.new_sandbox(1, &[]), at(1)).await;
    let foreign = store.add_ssh_user(fixture.theirs, id, "x", at(2)).await;
    assert!(matches!(foreign, Err(StoreError::SandboxNotFound(_))));
    let starting = fixture.begin(2, &[]).await.unwrap();
    let early = store.add_ssh_user(fixture.ours, starting, "x", at(2)).await;
    assert!(matches!(early, Err(StoreError::SandboxNotFound(_))));

    for number in 0..SSH_USERS_MAX {
        let name = format!("user{number}");
        let added = store.add_ssh_user(fixture.ours, id, &name, at(3)).await;
        added.unwrap();
    }
    let refused = store.add_ssh_user(fixture.ours, id, "more", at(4)).await;
    assert!(matches!(refused, Err(StoreError::TooManySshUsers(refused)) if refused == id));
    assert_eq!(store.sandbox_of_ssh_user("more").await.unwrap(), None);

    fixture.stop(id, at(5)).await;
    let late = store.add_ssh_user(fixture.ours, id, "late", at(6)).await;
    assert!(matches!(late, Err(StoreError::SandboxNotFound(_))));
    assert_eq!(store.forget_stopped(at(9), 10).await.unwrap(), 1);
}
