//! Snapshots, forks and roots as the official SDKs ask for them.

use std::sync::atomic::Ordering;

use sandstone_node_api::Root;
use serde_json::{Value, json};

use super::harness::Harness;

/// Takes a snapshot of a volume.
async fn snapshot(harness: &Harness, volume: &str, slug: &str) -> Value {
    let path = format!("/api/v2/volumes/{volume}/snapshot");
    // The JavaScript SDK may send its options along.
    let body = json!({"slug": slug, "token": "x", "org": null});
    harness.done("POST", &path, Some(body)).await
}

/// Makes a volume that a sandbox can boot from.
async fn bootable(harness: &Harness, slug: &str) -> Value {
    let body =
        json!({"slug": slug, "region": "ord", "capacity": "1GB", "from": "builtin:debian-13"});
    harness.done("POST", "/api/v2/volumes", Some(body)).await
}

#[tokio::test]
async fn a_snapshot_has_exactly_the_keys_that_the_sdks_read() {
    let harness = Harness::new().await;
    let volume = harness.volume("data").await;
    let taken = snapshot(&harness, "data", "monday").await;
    let id = taken["id"].as_str().unwrap();
    assert!(id.starts_with("snp_ord_"), "{id}");
    assert_eq!(
        taken,
        json!({
            "id": id,
            "slug": "monday",
            "region": "ord",
            "allocated_size": 0,
            "flattened_size": 0,
            "is_bootable": false,
            "volume": {"id": volume["id"], "slug": "data"},
        })
    );
    for name in [id, "monday"] {
        let path = format!("/api/v2/snapshots/{name}");
        assert_eq!(harness.done("GET", &path, None).await, taken);
    }
    let answer = harness.rest("DELETE", "/api/v2/snapshots/monday", None);
    assert_eq!(answer.await.status, 204);
    let gone = (404, "SNAPSHOT_NOT_FOUND");
    for path in [
        "/api/v2/snapshots/monday",
        &format!("/api/v2/snapshots/{id}"),
    ] {
        harness.refused("GET", path, None, gone).await;
        harness.refused("DELETE", path, None, gone).await;
    }
}

#[tokio::test]
async fn snapshots_are_listed_in_pages_and_searched() {
    let harness = Harness::new().await;
    harness.volume("data").await;
    for slug in ["aa", "bb", "cc"] {
        snapshot(&harness, "data", slug).await;
    }
    let first = harness.rest("GET", "/api/v2/snapshots?limit=2", None).await;
    let slugs = |page: &Value| -> Vec<String> {
        let items = page.as_array().unwrap().iter();
        items
            .map(|item| item["slug"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(slugs(&first.json()), ["aa", "bb"]);
    let link = first.header("link").unwrap();
    let url = link.strip_prefix("<http://localhost:1").unwrap();
    let path = url.strip_suffix(">; rel=\"next\"").unwrap();
    assert!(path.starts_with("/api/v2/snapshots?cursor="), "{path}");
    let second = harness.rest("GET", path, None).await;
    assert_eq!(slugs(&second.json()), ["cc"]);
    assert_eq!(second.header("link"), None, "the last page");
    let found = harness.done("GET", "/api/v2/snapshots?search=b", None);
    assert_eq!(slugs(&found.await), ["bb"]);
    for query in ["limit=x", "limit=0", "cursor=nonsense"] {
        let path = format!("/api/v2/snapshots?{query}");
        harness
            .refused("GET", &path, None, (400, "INVALID_REQUEST"))
            .await;
    }
}

#[tokio::test]
async fn what_cannot_be_taken() {
    let harness = Harness::new().await;
    harness.volume("data").await;
    let path = "/api/v2/volumes/data/snapshot";
    for slug in [json!(null), json!(1), json!(""), json!("-x"), json!("A b")] {
        let body = json!({ "slug": slug });
        harness
            .refused("POST", path, Some(body), (400, "INVALID_REQUEST"))
            .await;
    }
    // One name space for volumes and snapshots.
    let taken = (409, "SLUG_ALREADY_IN_USE");
    let body = json!({"slug": "data"});
    harness.refused("POST", path, Some(body), taken).await;
    snapshot(&harness, "data", "monday").await;
    let body = json!({"slug": "monday"});
    harness.refused("POST", path, Some(body), taken).await;
    let body = json!({"slug": "monday", "region": "ord", "capacity": "1GB"});
    harness
        .refused("POST", "/api/v2/volumes", Some(body), taken)
        .await;
    let body = json!({"slug": "other"});
    let nowhere = "/api/v2/volumes/nope/snapshot";
    harness
        .refused("POST", nowhere, Some(body), (404, "VOLUME_NOT_FOUND"))
        .await;
    harness.node.is_full.store(true, Ordering::SeqCst);
    let body = json!({"slug": "other"});
    harness
        .refused("POST", path, Some(body), (507, "POOL_FULL"))
        .await;
}

#[tokio::test]
async fn volumes_are_made_from_images_and_snapshots() {
    let harness = Harness::new().await;
    let base = bootable(&harness, "tools").await;
    assert_eq!(base["is_bootable"], true);
    assert_eq!(base["base_snapshot"], Value::Null);
    let taken = snapshot(&harness, "tools", "tools-1").await;
    assert_eq!(taken["is_bootable"], true);
    let body = json!({"slug": "fork", "region": "ord", "capacity": "2GB", "from": "tools-1"});
    let fork = harness.done("POST", "/api/v2/volumes", Some(body)).await;
    assert_eq!(fork["is_bootable"], true);
    assert_eq!(
        fork["base_snapshot"],
        json!({"id": taken["id"], "slug": "tools-1"})
    );
    for (from, capacity, expected) in [
        ("builtin:debian-12", "1GB", (400, "UNKNOWN_BASE")),
        ("builtin:", "1GB", (400, "UNKNOWN_BASE")),
        ("nope", "1GB", (404, "SNAPSHOT_NOT_FOUND")),
        ("", "1GB", (404, "SNAPSHOT_NOT_FOUND")),
        ("tools", "1GB", (404, "SNAPSHOT_NOT_FOUND")),
        ("tools-1", "300MB", (400, "CAPACITY_BELOW_BASE")),
        ("builtin:debian-13", "300MB", (400, "CAPACITY_BELOW_BASE")),
    ] {
        let body = json!({"slug": "bad", "region": "ord", "capacity": capacity, "from": from});
        harness
            .refused("POST", "/api/v2/volumes", Some(body), expected)
            .await;
    }
    let body = json!({"slug": "bad", "region": "ams", "capacity": "1GB", "from": "tools-1"});
    harness
        .refused(
            "POST",
            "/api/v2/volumes",
            Some(body),
            (409, "REGION_MISMATCH"),
        )
        .await;
}

#[tokio::test]
async fn sandboxes_boot_from_volumes_and_snapshots() {
    let harness = Harness::new().await;
    let volume = bootable(&harness, "tools").await;
    let taken = snapshot(&harness, "tools", "tools-1").await;
    harness.volume("data").await;
    // As both SDKs send it; several sandboxes share a snapshot, a volume has one.
    let root = |name: &Value| json!({"root": {"volume": name}, "volumes": []});
    let (on_volume, _) = harness.create(&root(&json!("tools")), &[]).await;
    let (first, _) = harness.create(&root(&taken["id"]), &[]).await;
    let (second, _) = harness.create(&json!({"root": "tools-1"}), &[]).await;
    {
        let roots = harness.node.roots.lock().unwrap();
        let id = |object: &Value| object["id"].as_str().unwrap().to_owned();
        assert!(matches!(roots[0], Root::Volume(root) if root.to_string() == id(&volume)));
        for root in &roots[1..] {
            assert!(matches!(root, Root::Snapshot(root) if root.to_string() == id(&taken)));
        }
    }
    for (config, status, code) in [
        (root(&json!("tools")), 409, "VOLUME_IS_MOUNTED"),
        (root(&json!("data")), 409, "NOT_BOOTABLE"),
        (root(&json!("nope")), 404, "SNAPSHOT_NOT_FOUND"),
        (root(&json!(7)), 400, "INVALID_REQUEST"),
        (json!({"root": ["tools-1"]}), 400, "INVALID_REQUEST"),
        (
            json!({"root": "tools-1", "region": "ams"}),
            409,
            "REGION_MISMATCH",
        ),
    ] {
        let refused = harness.try_create(&config, &[]).await.err().unwrap();
        assert_eq!(refused.status, status, "{config} {}", refused.body);
        assert_eq!(refused.json()["code"], code, "{config}");
    }
    for socket in [on_volume, first, second] {
        socket.close().await;
    }
    harness.wait_for_running(0).await;
}
