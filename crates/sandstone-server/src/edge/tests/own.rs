//! Our own API.

use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use super::harness::{Harness, SPACE};

async fn create(harness: &Harness, body: Value) -> Value {
    harness.done("POST", "/v1/volumes", Some(body)).await
}

fn slugs(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().unwrap().iter();
    items.map(|item| item["slug"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_volume_shows_all_that_is_known() {
    let harness = Harness::new().await;
    // The region is the server's default one.
    let made = create(&harness, json!({"slug": "data", "capacity": "1GB"})).await;
    assert_eq!(made["region"], "ord");
    assert_eq!(made["state"], "available");
    assert_eq!(made["sandbox"], Value::Null);
    assert_eq!(made["deleted_at"], Value::Null);
    assert!(made["created_at"].as_str().unwrap().ends_with('Z'));
    assert_eq!(harness.done("GET", "/v1/volumes/data", None).await, made);

    let config = json!({"volumes": {"/data": "data"}});
    let (socket, sandbox) = harness.create(&config, &[]).await;
    let shown = harness.done("GET", "/v1/volumes/data", None).await;
    assert_eq!(shown["sandbox"], json!(sandbox));
    let mounted = (409, "VOLUME_IS_MOUNTED");
    let refused = harness.refused("DELETE", "/v1/volumes/data", None, mounted);
    let message = refused.await["message"].as_str().unwrap().to_owned();
    assert!(message.contains(&sandbox), "{message}");
    let body = json!({"capacity": "2GB"});
    harness
        .refused("POST", "/v1/volumes/data/grow", Some(body), mounted)
        .await;
    // Copies are made of volumes in use, and say what that cost.
    let body = json!({"slug": "copy"});
    let fork = harness
        .done("POST", "/v1/volumes/data/fork", Some(body))
        .await;
    assert_eq!(fork["write_stall_us"], 1234);
    assert_eq!(fork["capacity"], made["capacity"]);
    let body = json!({"slug": "monday"});
    let path = "/v1/volumes/data/snapshot";
    let taken = harness.done("POST", path, Some(body)).await;
    assert_eq!(taken["write_stall_us"], 1234);
    assert_eq!(taken["consistency"], "filesystem");
    socket.close().await;
    harness.wait_for_running(0).await;
}

#[tokio::test]
async fn lists_have_cursors_in_their_bodies() {
    let harness = Harness::new().await;
    for slug in ["aa", "bb", "cc"] {
        create(&harness, json!({"slug": slug, "capacity": "1GB"})).await;
    }
    let first = harness.done("GET", "/v1/volumes?limit=2", None).await;
    assert_eq!(slugs(&first), ["aa", "bb"]);
    let cursor = first["next_cursor"].as_str().unwrap();
    let path = format!("/v1/volumes?limit=2&cursor={cursor}");
    let second = harness.done("GET", &path, None).await;
    assert_eq!(slugs(&second), ["cc"]);
    assert_eq!(second["next_cursor"], Value::Null);
    let found = harness.done("GET", "/v1/volumes?search=b", None).await;
    assert_eq!(slugs(&found), ["bb"]);
    assert_eq!(
        harness.done("GET", "/v1/snapshots", None).await,
        json!({"items": [], "next_cursor": null})
    );
    for query in ["limit=x", "cursor=!", "deleted=perhaps"] {
        for list in ["volumes", "snapshots"] {
            let path = format!("/v1/{list}?{query}");
            harness
                .refused("GET", &path, None, (400, "INVALID_REQUEST"))
                .await;
        }
    }
}

#[tokio::test]
async fn what_was_deleted_comes_back() {
    let harness = Harness::new().await;
    let volume = create(&harness, json!({"slug": "data", "capacity": "1GB"})).await;
    let body = json!({"slug": "monday"});
    let path = "/v1/volumes/data/snapshot";
    let snapshot = harness.done("POST", path, Some(body)).await;
    for (list, object, not_found) in [
        ("volumes", &volume, (404, "VOLUME_NOT_FOUND")),
        ("snapshots", &snapshot, (404, "SNAPSHOT_NOT_FOUND")),
    ] {
        let slug = object["slug"].as_str().unwrap();
        let id = object["id"].as_str().unwrap();
        let path = format!("/v1/{list}/{slug}");
        let deleted = harness.done("DELETE", &path, None).await;
        assert_eq!(deleted["state"], "deleted");
        assert!(deleted["purge_at"].is_string(), "{deleted}");
        harness.refused("GET", &path, None, not_found).await;
        let shown = harness.done("GET", &format!("/v1/{list}"), None).await;
        assert!(slugs(&shown).is_empty());
        let path = format!("/v1/{list}?deleted=true");
        let shown = harness.done("GET", &path, None).await;
        assert_eq!(slugs(&shown), [slug]);

        // Somebody else has the name now.
        create(&harness, json!({"slug": slug, "capacity": "1GB"})).await;
        let path = format!("/v1/{list}/{id}/restore");
        let taken = (409, "SLUG_ALREADY_IN_USE");
        harness.refused("POST", &path, None, taken).await;
        let bad = json!({"slug": "-"});
        let invalid = (400, "INVALID_REQUEST");
        harness.refused("POST", &path, Some(bad), invalid).await;
        let body = json!({"slug": format!("{slug}-2")});
        let restored = harness.done("POST", &path, Some(body)).await;
        assert_eq!(restored["id"], id);
        assert_eq!(restored["state"], "available");
        let nowhere = format!("/v1/{list}/nope/restore");
        harness.refused("POST", &nowhere, None, not_found).await;
    }
}

#[tokio::test]
async fn volumes_grow_and_fork() {
    let harness = Harness::new().await;
    create(&harness, json!({"slug": "data", "capacity": "1GB"})).await;
    let grow = "/v1/volumes/data/grow";
    let grown = harness
        .done("POST", grow, Some(json!({"capacity": "2GB"})))
        .await;
    assert_eq!(grown["capacity"], 2_000_000_000);
    for (body, expected) in [
        (json!({"capacity": "1GB"}), (400, "CAPACITY_BELOW_BASE")),
        (json!({"capacity": "21GB"}), (400, "INVALID_REQUEST")),
        (json!({"capacity": "much"}), (400, "INVALID_REQUEST")),
        (json!({}), (400, "INVALID_REQUEST")),
    ] {
        harness.refused("POST", grow, Some(body), expected).await;
    }
    let fork = "/v1/volumes/data/fork";
    let body = json!({"slug": "large", "capacity": "3GB"});
    let forked = harness.done("POST", fork, Some(body)).await;
    assert_eq!(forked["capacity"], 3_000_000_000_u64);
    // The same by its long form.
    let forked = create(&harness, json!({"slug": "same", "from_volume": "data"})).await;
    assert_eq!(forked["capacity"], 2_000_000_000);
    for (path, body, expected) in [
        (
            fork,
            json!({"slug": "small", "capacity": "1GB"}),
            (400, "CAPACITY_BELOW_BASE"),
        ),
        (fork, json!({}), (400, "INVALID_REQUEST")),
        (fork, json!({"slug": "data"}), (409, "SLUG_ALREADY_IN_USE")),
        (
            "/v1/volumes/nope/fork",
            json!({"slug": "x1"}),
            (404, "VOLUME_NOT_FOUND"),
        ),
        (
            "/v1/volumes",
            json!({"slug": "x1", "from": "a", "from_volume": "b"}),
            (400, "INVALID_REQUEST"),
        ),
        (
            "/v1/volumes",
            json!({"slug": "x1"}),
            (400, "INVALID_REQUEST"),
        ),
    ] {
        harness.refused("POST", path, Some(body), expected).await;
    }
    harness.node.is_full.store(true, Ordering::SeqCst);
    let body = Some(json!({"capacity": "4GB"}));
    harness
        .refused("POST", grow, body, (507, "POOL_FULL"))
        .await;
}

#[tokio::test]
async fn snapshots_are_verified() {
    let harness = Harness::new().await;
    create(&harness, json!({"slug": "data", "capacity": "1GB"})).await;
    let body = json!({"slug": "monday"});
    let path = "/v1/volumes/data/snapshot";
    harness.done("POST", path, Some(body)).await;
    let verify = "/v1/snapshots/monday/verify";
    *harness.node.checksum.lock().unwrap() = "sha256:aa".to_owned();
    let verified = harness.done("POST", verify, None).await;
    assert_eq!(verified["health"], "intact");
    assert_eq!(verified["checksum"], "sha256:aa");
    *harness.node.checksum.lock().unwrap() = "sha256:bb".to_owned();
    let verified = harness.done("POST", verify, None).await;
    assert_eq!(verified["health"], "damaged");
    assert_eq!(verified["checksum"], "sha256:aa");
    let body = json!({"slug": "fork", "from": "monday"});
    let damaged = (409, "SNAPSHOT_DAMAGED");
    harness
        .refused("POST", "/v1/volumes", Some(body), damaged)
        .await;
}

#[tokio::test]
async fn the_pool_is_shown_and_cleaned() {
    let harness = Harness::new().await;
    let kept = create(&harness, json!({"slug": "data", "capacity": "1GB"})).await;
    let lost = create(&harness, json!({"slug": "lost", "capacity": "1GB"})).await;
    let suffix = |volume: &Value| volume["id"].as_str().unwrap()[8..].to_owned();
    {
        let mut images = harness.node.images.lock().unwrap();
        images.volumes.retain(|name| *name != suffix(&lost));
        images.snapshots.push("00000000000000000000".to_owned());
    }
    let pool = harness.done("GET", "/v1/pool", None).await;
    assert_eq!(pool["total"], json!(SPACE.total));
    assert_eq!(pool["free"], json!(SPACE.free));
    assert_eq!(pool["low"], json!(SPACE.low));
    assert_eq!(pool["critical"], json!(SPACE.critical));
    let unknown = pool["unknown_images"].as_array().unwrap();
    assert_eq!(unknown.len(), 1);
    assert_eq!(pool["missing_images"], json!([lost["id"]]));
    let cleaned = harness.done("POST", "/v1/pool/clean", None).await;
    assert_eq!(cleaned["removed"], json!(unknown));
    let images = harness.node.images.lock().unwrap().clone();
    assert_eq!(images.volumes, [suffix(&kept)]);
    assert!(images.snapshots.is_empty());
}
