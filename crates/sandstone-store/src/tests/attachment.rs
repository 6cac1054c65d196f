use sandstone_core::MountPath;

use super::fixture::{Fixture, path};
use crate::attachment::Place;

#[test]
fn places_have_different_texts() {
    let at = |text: &str| Place::At(path(text));
    for (place, text) in [
        (Place::Root, "/"),
        (at("/data"), "/data"),
        (at("/data/x/"), "/data/x"),
        (at("//mnt"), "/mnt"),
    ] {
        assert_eq!(place.as_str(), text);
    }
    assert!(MountPath::parse("/").is_err());
}

#[tokio::test]
async fn a_root_is_an_attachment_like_others() {
    let fixture = Fixture::new().await;
    fixture.bootable(1, "system").await;
    fixture.volume(2, "data").await;
    let mut new = fixture.new_sandbox(7, &[("/data", "data")]);
    new.root = Some("system".to_owned());
    fixture.running(&new, super::fixture::at(7)).await;
    let rows: Vec<(String, String)> =
        sqlx::query_as("SELECT path, state FROM attachments ORDER BY path")
            .fetch_all(fixture.store.read())
            .await
            .unwrap();
    let attached = |path: &str| (path.to_owned(), "attached".to_owned());
    assert_eq!(rows, [attached("/"), attached("/data")]);
}
