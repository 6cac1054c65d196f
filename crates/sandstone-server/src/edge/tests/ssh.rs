//! What clients are told about SSH.

use sandstone_store::SSH_USERS_MAX;
use serde_json::json;

use super::harness::Harness;

#[tokio::test]
async fn both_dialects_say_where_and_as_whom() {
    let harness = Harness::new().await;
    let (_primary, id) = harness.create(&json!({"ssh": true}), &[]).await;
    let deno = format!("/api/v3/sandbox/{id}/expose/ssh");
    let own = format!("/v1/sandboxes/{id}/ssh");
    let mut names = Vec::new();
    for path in [&deno, &own] {
        let access = harness.done("POST", path, Some(json!({}))).await;
        assert_eq!(access["hostname"], "ssh.example.com");
        assert_eq!(access["port"], 2222);
        names.push(access["username"].as_str().unwrap().to_owned());
    }
    assert_ne!(names[0], names[1]);
    for path in ["/api/v3/sandbox/x/expose/ssh", "/v1/sandboxes/x/ssh"] {
        let missing = (404, "SANDBOX_NOT_FOUND");
        harness.refused("POST", path, None, missing).await;
    }
    for _ in names.len()..SSH_USERS_MAX as usize {
        harness.done("POST", &own, None).await;
    }
    for path in [&deno, &own] {
        let limit = (429, "SSH_USER_LIMIT");
        let refused = harness.refused("POST", path, None, limit).await;
        assert!(refused["message"].as_str().unwrap().contains(&id));
        assert!(refused["hint"].is_string());
    }
    harness
        .rest("DELETE", &format!("/api/v3/sandbox/{id}"), None)
        .await;
    for path in [&deno, &own] {
        let ended = (404, "SANDBOX_NOT_FOUND");
        harness.refused("POST", path, None, ended).await;
    }
}
