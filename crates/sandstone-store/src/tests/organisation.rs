use super::fixture::{Fixture, at, slug, suffix};
use crate::{OrganisationId, StoreError, TokenHash};

#[tokio::test]
async fn an_organisation_is_made_once() {
    let fixture = Fixture::new().await;
    let before = fixture.dump().await;
    let candidate = OrganisationId::new(suffix(9));
    let name = slug("ours");
    let again = fixture.store.ensure_organisation(candidate, &name, at(5));
    assert_eq!(again.await.unwrap(), fixture.ours);
    assert_eq!(fixture.dump().await, before);
}

#[tokio::test]
async fn a_token_speaks_for_one_organisation() {
    let fixture = Fixture::new().await;
    let store = &fixture.store;
    let token = TokenHash::of("ddo_secret");
    assert_eq!(store.organisation_of_token(&token).await.unwrap(), None);
    for _ in 0..2 {
        store.add_token(fixture.ours, &token, at(1)).await.unwrap();
    }
    assert_eq!(
        store.organisation_of_token(&token).await.unwrap(),
        Some(fixture.ours)
    );
    let before = fixture.dump().await;
    assert!(matches!(
        store.add_token(fixture.theirs, &token, at(2)).await,
        Err(StoreError::TokenTaken)
    ));
    assert_eq!(fixture.dump().await, before);
    assert!(!before.contains("ddo_secret"), "only the hash is kept");
    let other = TokenHash::of("ddo_secre");
    assert_eq!(store.organisation_of_token(&other).await.unwrap(), None);
}

#[test]
fn the_hash_is_sha_256() {
    assert_eq!(
        format!("{:?}", TokenHash::of("abc")),
        "TokenHash(\"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\")"
    );
}
