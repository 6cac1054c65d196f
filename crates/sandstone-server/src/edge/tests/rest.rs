//! REST calls.

use std::sync::atomic::Ordering;

use sandstone_core::Clock;
use serde_json::{Value, json};

use super::client::request;
use super::harness::Harness;

#[tokio::test]
async fn every_route_but_health_wants_a_token() {
    let harness = Harness::new().await;
    for (method, path) in [
        ("GET", "/api/v2/volumes"),
        ("POST", "/api/v2/volumes"),
        ("DELETE", "/api/v2/volumes/x"),
        ("GET", "/api/v2/snapshots"),
        ("POST", "/api/v2/volumes/x/snapshot"),
        ("GET", "/v1/volumes"),
        ("DELETE", "/v1/volumes/x"),
        ("POST", "/v1/volumes/x/fork"),
        ("GET", "/v1/snapshots"),
        ("POST", "/v1/snapshots/x/restore"),
        ("GET", "/v1/pool"),
        ("POST", "/v1/pool/clean"),
        ("GET", "/api/v2/sandboxes"),
        ("DELETE", "/api/v3/sandbox/x"),
        ("PATCH", "/api/v3/sandbox/x"),
        ("GET", "/api/v2/apps"),
        ("GET", "/api/v3/sandboxes/create"),
    ] {
        for headers in [
            &[][..],
            &[("authorization", "Bearer ddo_wrong-wrong-wrong")],
        ] {
            let answer = request(harness.address, method, path, headers, None).await;
            assert_eq!(answer.status, 401, "{method} {path}");
            assert_eq!(answer.json()["code"], "INVALID_TOKEN");
            assert_eq!(answer.header("x-deno-trace-id").unwrap().len(), 32);
        }
    }
    let answer = request(harness.address, "GET", "/healthz", &[], None).await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "ok"));
    harness.node.is_unready.store(true, Ordering::SeqCst);
    let answer = request(harness.address, "GET", "/healthz", &[], None).await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.json()["message"], "the image is being made");
}

#[tokio::test]
async fn what_is_not_there_is_said_in_json() {
    let harness = Harness::new().await;
    for (method, path, status, code) in [
        ("GET", "/nowhere", 404, "ROUTE_NOT_FOUND"),
        ("GET", "/api/v2/sandbox/ws", 404, "ROUTE_NOT_FOUND"),
        ("PUT", "/api/v2/volumes", 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/api/v2/volumes/nope", 404, "VOLUME_NOT_FOUND"),
        ("GET", "/api/v2/volumes/%FF", 400, "INVALID_REQUEST"),
        ("GET", "/api/v2/snapshots/nope", 404, "SNAPSHOT_NOT_FOUND"),
        (
            "DELETE",
            "/api/v2/snapshots/nope",
            404,
            "SNAPSHOT_NOT_FOUND",
        ),
        ("PUT", "/api/v2/snapshots", 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/v1/nowhere", 404, "ROUTE_NOT_FOUND"),
        ("PUT", "/v1/volumes", 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/v1/volumes/nope", 404, "VOLUME_NOT_FOUND"),
        ("GET", "/v1/snapshots/nope", 404, "SNAPSHOT_NOT_FOUND"),
        (
            "POST",
            "/v1/snapshots/nope/verify",
            404,
            "SNAPSHOT_NOT_FOUND",
        ),
        ("GET", "/api/v2/apps/x/logs", 501, "NOT_SUPPORTED"),
        ("GET", "/api/v2/revisions/x", 501, "NOT_SUPPORTED"),
        ("POST", "/api/v2/sandboxes/x/deploy", 501, "NOT_SUPPORTED"),
        (
            "POST",
            "/api/v3/sandbox/x/expose/http",
            404,
            "SANDBOX_NOT_FOUND",
        ),
        (
            "POST",
            "/api/v3/sandbox/x/expose/ssh",
            404,
            "SANDBOX_NOT_FOUND",
        ),
        ("DELETE", "/api/v3/sandbox/x", 404, "SANDBOX_NOT_FOUND"),
        (
            "DELETE",
            "/api/v3/sandboxes/sbx_ord_00000000000000000000",
            404,
            "SANDBOX_NOT_FOUND",
        ),
        ("GET", "/v1/sandboxes/x/exposures", 404, "SANDBOX_NOT_FOUND"),
        ("DELETE", "/v1/sandboxes/x", 404, "SANDBOX_NOT_FOUND"),
    ] {
        let answer = harness.rest(method, path, None).await;
        assert_eq!(answer.status, status, "{method} {path}");
        assert_eq!(answer.json()["code"], code, "{method} {path}");
    }
    let answer = harness.rest("GET", "/api/v2/snapshots", None).await;
    assert_eq!((answer.status, answer.json()), (200, json!([])));
}

#[tokio::test]
async fn a_volume_has_exactly_eight_keys() {
    let harness = Harness::new().await;
    let made = harness.volume("data").await;
    let mut keys: Vec<_> = made.as_object().unwrap().keys().cloned().collect();
    keys.sort();
    assert_eq!(
        keys,
        [
            "base_snapshot",
            "capacity",
            "estimated_allocated_size",
            "estimated_flattened_size",
            "id",
            "is_bootable",
            "region",
            "slug"
        ]
    );
    assert_eq!(made["capacity"], 1_000_000_000);
    let id = made["id"].as_str().unwrap();
    for name in [id, "data", "%64ata"] {
        let path = format!("/api/v2/volumes/{name}");
        assert_eq!(harness.rest("GET", &path, None).await.json(), made);
    }
    let body = json!({"slug": "data", "region": "ord", "capacity": "1GB"});
    let again = harness.rest("POST", "/api/v2/volumes", Some(body)).await;
    assert_eq!(again.status, 409);
    assert_eq!(again.json()["code"], "SLUG_ALREADY_IN_USE");
    assert_eq!(
        harness
            .rest("DELETE", "/api/v2/volumes/data", None)
            .await
            .status,
        204
    );
    assert_eq!(
        harness
            .rest("GET", "/api/v2/volumes/data", None)
            .await
            .status,
        404
    );
}

#[tokio::test]
async fn bad_bodies_are_refused() {
    let harness = Harness::new().await;
    for body in [json!([]), json!("x"), json!({}), json!("x".repeat(70_000))] {
        let answer = harness.rest("POST", "/api/v2/volumes", Some(body)).await;
        assert_eq!(answer.status, 400);
        assert_eq!(answer.json()["code"], "INVALID_REQUEST");
    }
    let answer = harness.rest("POST", "/api/v2/volumes", None).await;
    assert_eq!(answer.status, 400, "no body at all");
}

#[tokio::test]
async fn trap_12_pages_follow_each_other_as_both_sdks_ask() {
    let harness = Harness::new().await;
    for slug in ["aa", "bb", "cc"] {
        harness.volume(slug).await;
    }
    let first = harness.rest("GET", "/api/v2/volumes?limit=2", None).await;
    assert_eq!(first.json().as_array().unwrap().len(), 2);
    let link = first.header("link").unwrap();
    let url = link.strip_prefix('<').unwrap();
    let url = url.strip_suffix(">; rel=\"next\"").unwrap();
    assert!(
        url.starts_with("http://localhost:1/api/v2/volumes?cursor="),
        "{url}"
    );
    // JavaScript takes the cursor out of the URL, Python sends the URL.
    let cursor = url.split("cursor=").nth(1).unwrap();
    let cursor = cursor.split('&').next().unwrap();
    let encoded = url
        .replace('%', "%25")
        .replace([':', '/'], "%2F")
        .replacen("http%2F", "http%3A", 1)
        .replace('?', "%3F")
        .replace('&', "%26")
        .replace('=', "%3D");
    for cursor in [cursor, &encoded] {
        let path = format!("/api/v2/volumes?limit=2&cursor={cursor}");
        let second = harness.rest("GET", &path, None).await;
        assert_eq!(second.status, 200, "{path} {}", second.body);
        assert_eq!(second.json().as_array().unwrap().len(), 1);
        assert_eq!(second.header("link"), None, "the last page");
    }
    let answer = harness.rest("GET", "/api/v2/volumes?limit=x", None).await;
    assert_eq!(answer.status, 400);
    let answer = harness.rest("GET", "/api/v2/volumes?search=b", None).await;
    assert_eq!(answer.json()[0]["slug"], "bb");
}

#[tokio::test]
async fn sandboxes_are_listed_by_label_and_extended() {
    let harness = Harness::new().await;
    let config = json!({"labels": {"a": "b"}, "timeout": "1m"});
    let (_socket, id) = harness.create(&config, &[]).await;
    for (path, found) in [
        ("/api/v2/sandboxes?labels%5Ba%5D=b", 1),
        ("/api/v2/sandboxes?labels%5Ba%5D=c", 0),
        ("/api/v3/sandboxes?labels=%7B%27a%27%3A+%27b%27%7D", 1),
        ("/api/v3/sandboxes?labels=%7B%27a%27%3A+%27c%27%7D", 0),
        ("/api/v3/sandboxes", 1),
    ] {
        let answer = harness.rest("GET", path, None).await;
        assert_eq!(answer.json().as_array().unwrap().len(), found, "{path}");
    }
    let listed = harness.rest("GET", "/api/v2/sandboxes", None).await.json();
    assert_eq!(listed[0]["id"], json!(id));
    assert_eq!(listed[0]["status"], "running");
    assert_eq!(listed[0]["stoppedAt"], Value::Null);
    assert!(listed[0]["createdAt"].is_string());

    let path = format!("/api/v3/sandbox/{id}");
    let wanted = harness.clock.now().as_millis() + 300_000;
    let answer = harness
        .rest("PATCH", &path, Some(json!({"stop_at_ms": wanted})))
        .await;
    assert_eq!(answer.json()["stop_at_ms"], json!(wanted));
    let answer = harness.rest("PATCH", &path, Some(json!({}))).await;
    assert_eq!(answer.status, 400);
}
