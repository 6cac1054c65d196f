//! Handshakes, the ends of sockets, and what keeps a sandbox alive.

use std::sync::atomic::Ordering;
use std::time::Duration;

use sandstone_core::CONNECTIONS_PER_SANDBOX_MAX;
use serde_json::json;
use tokio::time::{sleep, timeout};

use super::client::{Frame, Socket};
use super::harness::{Harness, PYTHON, TOKEN};

#[tokio::test]
async fn both_handshakes_say_the_id() {
    let harness = Harness::new().await;
    let (_primary, id) = harness.session().await;
    assert!(id.starts_with("sbx_ord_"), "{id}");
    let (mut second, answer) = harness.connect(&id).await.unwrap();
    assert_eq!(answer.header("x-deno-sandbox-id"), Some(id.as_str()));
    assert!(answer.header("x-deno-trace-id").is_some());
    second.call("envToObject", json!({})).await;
}

#[tokio::test]
async fn refused_handshakes_are_complete_answers() {
    let harness = Harness::new().await;
    let unknown = harness.connect("sbx_ord_00000000000000000000").await;
    let unknown = unknown.err().unwrap();
    assert_eq!(unknown.status, 404);
    assert_eq!(unknown.json()["code"], "SANDBOX_NOT_FOUND");
    let bad_token = [("authorization", "Bearer nonsense")];
    let refused = Socket::open(harness.address, "/api/v3/sandboxes/create", &bad_token).await;
    let refused = refused.err().unwrap();
    assert_eq!(refused.status, 401);
    assert_eq!(refused.json()["code"], "INVALID_TOKEN");
    let malformed = harness
        .try_create(&json!({"allow_net": ["a b"]}), &[])
        .await;
    let malformed = malformed.err().unwrap();
    assert_eq!(malformed.status, 400);
    harness.node.is_unready.store(true, Ordering::SeqCst);
    let unready = harness.try_create(&json!({}), &[]).await.err().unwrap();
    assert_eq!(unready.status, 503);
    assert_eq!(unready.json()["code"], "NOT_READY");
    for answer in [unknown, refused, malformed, unready] {
        assert_eq!(answer.header("connection"), Some("close"));
        assert!(answer.header("content-length").is_some());
        assert!(answer.header("x-deno-trace-id").is_some());
    }
    let plain = harness.rest("GET", "/api/v3/sandboxes/create", None).await;
    assert_eq!(plain.status, 400, "not a WebSocket");
    assert_eq!(harness.node.running(), 0);
}

#[tokio::test]
async fn a_configuration_may_be_long() {
    let harness = Harness::new().await;
    let config = json!({"env": {"LONG": "x".repeat(45_000)}});
    let (mut socket, _) = harness.create(&config, &[]).await;
    let value = socket.call("envGet", json!({"key": "LONG"})).await;
    assert_eq!(value.as_str().unwrap().len(), 45_000);
}

#[tokio::test]
async fn the_region_comes_from_the_configuration() {
    let harness = Harness::new().await;
    let (_socket, id) = harness.create(&json!({"region": "ams"}), &[]).await;
    assert!(id.starts_with("sbx_ams_"), "{id}");
}

#[tokio::test]
async fn a_session_ends_with_its_primary_connection_only() {
    let harness = Harness::new().await;
    let (primary, id) = harness.session().await;
    let (second, _) = harness.connect(&id).await.unwrap();
    second.close().await;
    sleep(Duration::from_millis(100)).await;
    assert_eq!(harness.node.running(), 1, "the second one does not matter");
    let (mut second, _) = harness.connect(&id).await.unwrap();
    primary.close().await;
    let frame = second.frame().await;
    assert_eq!(
        frame,
        Frame::Close(1001, "sandbox session ended".to_owned())
    );
    harness.wait_for_running(0).await;
    assert_eq!(harness.connect(&id).await.err().unwrap().status, 404);

    let (primary, _) = harness.session().await;
    // Gone without a word.
    drop(primary);
    harness.wait_for_running(0).await;
}

#[tokio::test]
async fn a_sandbox_with_a_lifetime_outlives_its_connections() {
    let harness = Harness::new().await;
    let (primary, id) = harness.create(&json!({"timeout": "5m"}), &[]).await;
    primary.close().await;
    sleep(Duration::from_millis(100)).await;
    let (mut socket, _) = harness.connect(&id).await.unwrap();
    socket.call("envToObject", json!({})).await;
    drop(socket);
    let path = format!("/api/v3/sandboxes/{id}");
    assert_eq!(harness.rest("DELETE", &path, None).await.status, 204);
    assert_eq!(harness.node.running(), 0);
}

#[tokio::test]
async fn a_client_that_gives_up_while_creating_leaves_nothing() {
    let harness = Harness::new().await;
    harness.node.start_ms.store(300, Ordering::SeqCst);
    let config = json!({"timeout": "5m"});
    let creating = harness.try_create(&config, &[]);
    assert!(timeout(Duration::from_millis(100), creating).await.is_err());
    sleep(Duration::from_millis(300)).await;
    harness.wait_for_running(0).await;
    let list = harness.rest("GET", "/api/v2/sandboxes", None).await.json();
    assert_eq!(list[0]["status"], "stopped");
}

#[tokio::test]
async fn a_kill_closes_every_socket_of_the_sandbox() {
    let harness = Harness::new().await;
    let (mut primary, id) = harness.session().await;
    let (mut second, _) = harness.connect(&id).await.unwrap();
    primary
        .send_call("spawn", json!({"command": "sleep", "args": ["5"]}))
        .await;
    let path = format!("/api/v3/sandbox/{id}");
    assert_eq!(harness.rest("DELETE", &path, None).await.status, 204);
    for socket in [&mut primary, &mut second] {
        let close = loop {
            match socket.frame().await {
                Frame::Text(_) => {}
                close => break close,
            }
        };
        assert_eq!(close, Frame::Close(1001, "sandbox killed".to_owned()));
    }
}

#[tokio::test]
async fn trap_6_python_gets_every_answer_before_the_close() {
    let harness = Harness::new().await;
    let (mut socket, id) = harness.create(&json!({}), &[PYTHON]).await;
    let sleep_for = json!({"command": "sleep", "args": ["5"], "stdout": "null", "stderr": "null"});
    let pid = socket.call("spawn", sleep_for).await["pid"].clone();
    let waiting = [
        socket.send_call("processWait", json!({"pid": pid})).await,
        socket.send_call("processWait", json!({"pid": pid})).await,
    ];
    socket.call("envToObject", json!({})).await;
    harness
        .rest("DELETE", &format!("/api/v3/sandboxes/{id}"), None)
        .await;
    for id in waiting {
        let answer = socket.answer(id).await;
        assert!(answer["result"]["error"].is_object(), "{answer}");
    }
    assert!(matches!(socket.frame().await, Frame::Close(1001, _)));
}

#[tokio::test]
async fn trap_8_only_javascript_gets_a_pong() {
    let harness = Harness::new().await;
    let (mut javascript, _) = harness.session().await;
    javascript.send_text("ping").await;
    assert_eq!(javascript.frame().await, Frame::Text("pong".to_owned()));
    let mut python = harness.python().await;
    python.send_text("ping").await;
    assert!(python.is_silent_for(Duration::from_millis(200)).await);
}

/// How long the Python SDK waits for a REST call, and for the closing of its socket.
const PYTHON_PATIENCE: Duration = Duration::from_secs(10);

#[tokio::test]
async fn trap_9_a_volume_that_is_slow_to_come_free_holds_nobody_up_for_ten_seconds() {
    let harness = Harness::new().await;
    harness.volume("slow").await;
    let volumes = json!({"volumes": {"/data": "slow"}});
    let (socket, _) = harness.create(&volumes, &[PYTHON]).await;
    harness.node.stop_ms.store(15_000, Ordering::SeqCst);
    let deletion = async {
        // The sandbox is ending by then.
        sleep(Duration::from_millis(200)).await;
        harness.rest("DELETE", "/api/v2/volumes/slow", None).await
    };
    let both = timeout(PYTHON_PATIENCE, async {
        tokio::join!(socket.close(), deletion)
    });
    let ((), deletion) = both.await.expect("the SDK has given up");
    assert_eq!(deletion.status, 409, "{}", deletion.body);
}

#[tokio::test]
async fn nonsense_closes_the_socket_with_a_code_of_its_own() {
    let harness = Harness::new().await;
    for (text, code) in [("{", 4000), ("[]", 4001), ("{}", 4001)] {
        let (mut socket, _) = harness.session().await;
        socket.send_text(text).await;
        match socket.frame().await {
            Frame::Close(given, _) => assert_eq!(given, code, "{text}"),
            other => panic!("{other:?}"),
        }
    }
    harness.wait_for_running(0).await;
}

#[tokio::test]
async fn trap_5_unknown_methods_and_bad_parameters() {
    let harness = Harness::new().await;
    let (mut javascript, _) = harness.session().await;
    let error = javascript.call_error("stat", json!({})).await;
    assert_eq!(error["constructorName"], "TypeError");
    let editor = json!({"path": "/", "extensions": []});
    let error = javascript.call_error("vscode", editor).await;
    assert_eq!(error["constructorName"], "NotSupported");
    let mut python = harness.python().await;
    for (method, params, message) in [
        ("download", json!({}), "Method not found"),
        ("stat", json!({"path": null}), "Invalid params"),
        ("stat", json!([]), "Invalid params"),
    ] {
        let id = python.send_call(method, params).await;
        assert_eq!(python.answer(id).await["error"]["message"], message);
    }
}

#[tokio::test]
async fn the_connections_of_one_sandbox_are_bounded() {
    let harness = Harness::new().await;
    let (_primary, id) = harness.session().await;
    let (_other, other_id) = harness.session().await;
    let mut sockets = Vec::new();
    // The first is the one that created it.
    for _ in 1..CONNECTIONS_PER_SANDBOX_MAX {
        sockets.push(harness.connect(&id).await.unwrap().0);
    }
    let refused = harness.connect(&id).await.err().unwrap();
    assert_eq!(refused.status, 429);
    let body = refused.json();
    assert_eq!(body["code"], "CONNECTION_LIMIT");
    let message = body["message"].as_str().unwrap();
    assert!(message.contains(&id) && message.contains("64"), "{message}");
    assert!(body["hint"].is_string());
    // Its neighbour is not concerned, and a place that is free again is given again.
    harness.connect(&other_id).await.unwrap();
    sockets.pop().unwrap().close().await;
    for attempt in 0.. {
        match harness.connect(&id).await {
            Ok((mut socket, _)) => {
                socket.call("envToObject", json!({})).await;
                break;
            }
            Err(answer) => assert!(answer.status == 429 && attempt < 100),
        }
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_lost_agent_is_not_waited_for() {
    let harness = Harness::new().await;
    let (mut socket, _) = harness.session().await;
    let spawn = json!({"command": "sleep", "args": ["5"], "stdout": "piped", "stderr": "null"});
    let spawned = socket.call("spawn", spawn).await;
    let wait = socket
        .send_call("processWait", json!({"pid": spawned["pid"]}))
        .await;
    socket.call("envToObject", json!({})).await;
    harness.node.break_agents();
    let answer = socket.answer(wait).await;
    assert_eq!(answer["result"]["error"]["code"], "ECONNABORTED");
    let error = socket.call_error("envToObject", json!({})).await;
    assert_eq!(error["code"], "ECONNABORTED");
}

#[tokio::test]
async fn volumes_are_held_while_the_sandbox_runs() {
    let harness = Harness::new().await;
    harness.volume("data").await;
    let config = json!({"volumes": [{"volume": "data", "path": "/data"}]});
    let (primary, id) = harness.create(&config, &[]).await;
    let refused = harness.rest("DELETE", "/api/v2/volumes/data", None).await;
    assert_eq!(refused.status, 409);
    let body = refused.json();
    assert_eq!(body["code"], "VOLUME_IS_MOUNTED");
    let told = format!("{} {}", body["message"], body["hint"]);
    assert!(told.contains(&id), "{told}");
    let second = harness.try_create(&config, &[]).await.err().unwrap();
    assert_eq!(second.status, 409);
    primary.close().await;
    harness.wait_for_running(0).await;
    let again = harness.try_create(&config, &[]).await;
    assert!(again.is_ok());
}

#[tokio::test]
async fn tokens_and_secrets_are_not_answered() {
    let harness = Harness::new().await;
    let body = json!({"slug": "-", "region": "ord", "capacity": "1GB", "token": TOKEN});
    let answer = harness.rest("POST", "/api/v2/volumes", Some(body)).await;
    assert!(!answer.body.contains(TOKEN));
    let config = json!({"secrets": {"KEY": {"hosts": ["a b"], "value": "hush"}}});
    let answer = harness.try_create(&config, &[]).await.err().unwrap();
    assert_eq!(answer.status, 400);
    assert!(!answer.body.contains("hush"));
}
