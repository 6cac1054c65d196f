//! Network policies and secrets, and that the latter go.

use sandstone_core::{NetworkPolicy, Placeholder, Secret, StopReason};

use super::fixture::{Fixture, at};
use crate::StoreError;

fn policy() -> NetworkPolicy {
    let patterns = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    let placeholder = Placeholder::from_random([1; 16]);
    let hosts = patterns(&["api.example.com", "*.example.org:8443"]);
    NetworkPolicy {
        allow: Some(patterns(&[
            "*.example.com:443",
            "192.0.2.1",
            "[2001:db8::1]:80",
        ])),
        secrets: vec![Secret::new("KEY", hosts, "top-secret-value".into(), placeholder).unwrap()],
    }
}

#[tokio::test]
async fn a_policy_is_kept_and_its_secrets_go_when_the_sandbox_begins_to_stop() {
    let fixture = Fixture::new().await;
    let store = &fixture.store;
    let mut new = fixture.new_sandbox(1, &[]);
    new.network = policy();
    let id = store.begin_sandbox(&new, at(1)).await.unwrap().id;
    assert_eq!(store.network_policy(id).await.unwrap(), policy());
    store.begin_stop(id, StopReason::Killed).await.unwrap();
    let left = store.network_policy(id).await.unwrap();
    assert_eq!(left.allow, policy().allow);
    assert!(left.secrets.is_empty());
    store.sandbox_released(id, at(2)).await.unwrap();
    assert_eq!(store.forget_stopped(at(3), 10).await.unwrap(), 1);
    assert!(matches!(
        store.network_policy(id).await,
        Err(StoreError::SandboxNotFound(_))
    ));
}

#[tokio::test]
async fn a_sandbox_without_a_policy_is_open_and_an_empty_list_is_kept() {
    let fixture = Fixture::new().await;
    let store = &fixture.store;
    let open = store
        .begin_sandbox(&fixture.new_sandbox(1, &[]), at(1))
        .await;
    assert!(
        store
            .network_policy(open.unwrap().id)
            .await
            .unwrap()
            .is_open()
    );
    let mut new = fixture.new_sandbox(2, &[]);
    new.network.allow = Some(Vec::new());
    let closed = store.begin_sandbox(&new, at(1)).await.unwrap().id;
    assert_eq!(store.network_policy(closed).await.unwrap(), new.network);
}
