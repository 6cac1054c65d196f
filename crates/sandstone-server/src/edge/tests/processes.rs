//! Processes and their streams.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::client::Socket;
use super::harness::{Harness, eventually};

fn bash(script: &str) -> Value {
    json!({"command": "bash", "args": ["-c", script], "stdout": "piped", "stderr": "piped"})
}

/// The kinds and the bytes of the messages of one stream.
fn stream(messages: &[Value], id: &Value) -> (Vec<String>, Vec<u8>) {
    let mut kinds = Vec::new();
    let mut bytes = Vec::new();
    for message in messages
        .iter()
        .filter(|message| message["params"]["streamId"] == *id)
    {
        let method = message["method"].as_str().unwrap();
        let kind = method.strip_prefix("$sandbox.stream.").unwrap();
        if kind == "enqueue" {
            let data = message["params"]["data"].as_str().unwrap();
            let chunk = STANDARD.decode(data).unwrap();
            assert!(!chunk.is_empty(), "trap 3");
            bytes.extend(chunk);
        }
        if kinds.last().map(String::as_str) != Some(kind) {
            kinds.push(kind.to_owned());
        }
    }
    (kinds, bytes)
}

async fn wait(socket: &mut Socket, spawned: &Value) -> Value {
    socket
        .call("processWait", json!({"pid": spawned["pid"]}))
        .await
}

#[tokio::test]
async fn trap_15_output_and_its_end_come_before_the_exit() {
    let harness = Harness::new().await;
    let (mut socket, _) = harness.session().await;
    let spawned = socket
        .call(
            "spawn",
            bash("head -c 1000000 /dev/zero; echo no >&2; exit 3"),
        )
        .await;
    let exit = wait(&mut socket, &spawned).await;
    assert_eq!(
        exit,
        json!({"success": false, "code": 3, "signal": null, "oom": null})
    );
    let (kinds, bytes) = stream(&socket.seen, &spawned["stdoutStreamId"]);
    assert_eq!(kinds, ["start", "enqueue", "end"]);
    assert_eq!(bytes, vec![0; 1_000_000]);
    let (kinds, bytes) = stream(&socket.seen, &spawned["stderrStreamId"]);
    assert_eq!((kinds.len(), bytes.as_slice()), (3, &b"no\n"[..]));
    // Any number of times.
    assert_eq!(wait(&mut socket, &spawned).await["code"], 3);
}

#[tokio::test]
async fn trap_15_output_that_lags_behind_the_exit_still_comes_first() {
    let harness = Harness::new().await;
    let (mut socket, _) = harness.session().await;
    let spawned = socket
        .call("spawn", bash("(sleep 0.05; echo late) &"))
        .await;
    wait(&mut socket, &spawned).await;
    let (kinds, bytes) = stream(&socket.seen, &spawned["stdoutStreamId"]);
    assert_eq!(kinds, ["start", "enqueue", "end"]);
    assert_eq!(bytes, b"late\n");
}

#[tokio::test]
async fn trap_15_a_grandchild_does_not_delay_the_exit() {
    let harness = Harness::new().await;
    let (mut socket, _) = harness.session().await;
    let spawned = socket.call("spawn", bash("sleep 1 & echo out")).await;
    let begun = Instant::now();
    assert_eq!(wait(&mut socket, &spawned).await["success"], true);
    assert!(begun.elapsed() < Duration::from_millis(800));
    let (kinds, bytes) = stream(&socket.seen, &spawned["stdoutStreamId"]);
    assert_eq!(
        (kinds.len(), bytes.as_slice()),
        (2, &b"out\n"[..]),
        "no end yet"
    );
    let end = socket.message().await;
    assert_eq!(end["method"], "$sandbox.stream.end");
}

#[tokio::test]
async fn trap_4_output_waits_for_process_wait_or_a_while() {
    let harness = Harness::new().await;
    let (mut socket, _) = harness.session().await;
    let quiet = json!({"command": "echo", "args": ["x"], "stdout": "piped", "stderr": "null"});
    let spawned = socket.call("spawn", quiet).await;
    assert!(socket.seen.is_empty(), "nothing before the answer");
    assert_eq!(spawned["stderrStreamId"], Value::Null);
    assert!(
        socket.is_silent_for(Duration::from_millis(150)).await,
        "nothing before it is ready"
    );
    assert_eq!(socket.message().await["method"], "$sandbox.stream.start");
    assert_eq!(socket.message().await["method"], "$sandbox.stream.enqueue");
    assert_eq!(socket.message().await["method"], "$sandbox.stream.end");
    wait(&mut socket, &spawned).await;
}

#[tokio::test]
async fn trap_4_python_sends_all_its_input_first() {
    let harness = Harness::new().await;
    let mut socket = harness.python().await;
    socket.notify("start", json!({"streamId": 1})).await;
    let mut cat = bash("cat");
    cat["stdinStreamId"] = json!(1);
    cat["stdin"] = json!("piped");
    let spawned = socket.call("spawn", cat).await;
    for _ in 0..20 {
        let data = STANDARD.encode(vec![b'x'; 100_000]);
        socket
            .notify("enqueue", json!({"streamId": 1, "data": data}))
            .await;
    }
    assert!(
        socket.is_silent_for(Duration::from_millis(400)).await,
        "the input has not ended"
    );
    socket.notify("end", json!({"streamId": 1})).await;
    assert_eq!(wait(&mut socket, &spawned).await["success"], true);
    let (kinds, bytes) = stream(&socket.seen, &spawned["stdoutStreamId"]);
    assert_eq!(kinds, ["start", "enqueue", "end"]);
    assert_eq!(bytes.len(), 2_000_000);
}

#[tokio::test]
async fn trap_1_no_two_connections_use_the_same_stream() {
    let harness = Harness::new().await;
    let mut ids = Vec::new();
    for _ in 0..2 {
        let (mut socket, _) = harness.session().await;
        let spawned = socket.call("spawn", bash("true")).await;
        ids.push(spawned["stdoutStreamId"].as_u64().unwrap());
        ids.push(spawned["stderrStreamId"].as_u64().unwrap());
    }
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 4);
}

#[tokio::test]
async fn trap_2_a_cancelled_stream_says_nothing_more() {
    let harness = Harness::new().await;
    let (mut socket, _) = harness.session().await;
    let mut yes = bash("yes");
    yes["stderr"] = json!("null");
    let spawned = socket.call("spawn", yes).await;
    let id = &spawned["stdoutStreamId"];
    let waiting = socket
        .send_call("processWait", json!({"pid": spawned["pid"]}))
        .await;
    while socket.message().await["method"] != "$sandbox.stream.enqueue" {}
    let reason = json!({"constructorName": "Error", "message": "enough"});
    socket
        .notify("cancel", json!({"streamId": id, "reason": reason}))
        .await;
    // The process finds its pipe closed.
    let exit = socket.answer(waiting).await;
    assert_eq!(exit["result"]["ok"]["signal"], "SIGPIPE");
    let (kinds, _) = stream(&socket.seen, id);
    assert!(!kinds.iter().any(|kind| kind == "end"), "{kinds:?}");
    assert!(socket.is_silent_for(Duration::from_millis(200)).await);
}

#[tokio::test]
async fn trap_16_late_input_is_dropped_silently() {
    let harness = Harness::new().await;
    let (mut socket, _) = harness.session().await;
    socket.notify("start", json!({"streamId": 0})).await;
    let mut deaf = bash("exec 0<&-; exit 0");
    deaf["stdinStreamId"] = json!(0);
    let spawned = socket.call("spawn", deaf).await;
    wait(&mut socket, &spawned).await;
    for _ in 0..50 {
        let data = STANDARD.encode(vec![b'x'; 100_000]);
        socket
            .notify("enqueue", json!({"streamId": 0, "data": data}))
            .await;
    }
    socket.notify("end", json!({"streamId": 0})).await;
    socket.call("envToObject", json!({})).await;
    let told = socket
        .seen
        .iter()
        .any(|message| message["params"]["streamId"] == 0);
    assert!(!told, "{:?}", socket.seen);
    let error = socket
        .call_error("spawn", json!({"command": "cat", "stdinStreamId": 99}))
        .await;
    assert_eq!(error["code"], "EBADF");
}

#[tokio::test]
async fn trap_17_a_dead_process_and_a_missing_program() {
    let harness = Harness::new().await;
    let (mut socket, _) = harness.session().await;
    let spawned = socket.call("spawn", bash("exec sleep 5")).await;
    let pid = &spawned["pid"];
    socket
        .call("processKill", json!({"pid": pid, "signal": "SIGTERM"}))
        .await;
    let exit = wait(&mut socket, &spawned).await;
    assert_eq!(exit["code"], 143);
    assert_eq!(exit["signal"], "SIGTERM");
    for (method, params) in [
        ("processKill", json!({"pid": pid})),
        ("processKill", json!({"pid": 4_000_000})),
        ("processWait", json!({"pid": 4_000_000})),
    ] {
        let error = socket.call_error(method, params).await;
        assert_eq!(error["constructorName"], "TypeError");
        assert_eq!(error["code"], "ENOENT");
    }
    let error = socket
        .call_error("processKill", json!({"pid": pid, "signal": "SIGBREAK"}))
        .await;
    assert_eq!(error["code"], Value::Null);
    let error = socket
        .call_error("spawn", json!({"command": "no-such-program"}))
        .await;
    assert_eq!(error["constructorName"], "NotFound");
}

#[tokio::test]
async fn trap_11_python_variables_have_both_names() {
    let harness = Harness::new().await;
    let mut python = harness.python().await;
    let mut params = bash("echo $MY_VAR");
    params["env"] = json!({"MYVar": "mine"});
    let spawned = python.call("spawn", params.clone()).await;
    wait(&mut python, &spawned).await;
    assert_eq!(
        stream(&python.seen, &spawned["stdoutStreamId"]).1,
        b"mine\n"
    );
    let (mut javascript, _) = harness.session().await;
    let spawned = javascript.call("spawn", params).await;
    wait(&mut javascript, &spawned).await;
    assert_eq!(
        stream(&javascript.seen, &spawned["stdoutStreamId"]).1,
        b"\n"
    );
}

#[tokio::test]
async fn a_process_goes_on_when_its_client_has_gone() {
    let harness = Harness::new().await;
    for name in ["waited for", "not waited for"] {
        let (mut socket, _) = harness.create(&json!({"timeout": "5m"}), &[]).await;
        let done = harness.path(name);
        let script = format!("sleep 0.2; head -c 3000000 /dev/zero && touch '{done}'");
        let spawned = socket.call("spawn", bash(&script)).await;
        if name == "waited for" {
            let pid = &spawned["pid"];
            socket.send_call("processWait", json!({ "pid": pid })).await;
            assert_eq!(socket.message().await["method"], "$sandbox.stream.start");
        }
        drop(socket);
        eventually(|| std::path::Path::new(&done).exists()).await;
    }
}

#[tokio::test]
async fn a_slow_reader_holds_the_process_up_and_loses_nothing() {
    let harness = Harness::new().await;
    let (mut socket, _) = harness.session().await;
    let done = harness.path("done");
    let script = format!("head -c 60000000 /dev/zero; touch {done}");
    let spawned = socket.call("spawn", bash(&script)).await;
    let waiting = socket
        .send_call("processWait", json!({"pid": spawned["pid"]}))
        .await;
    sleep(Duration::from_millis(500)).await;
    assert!(!std::path::Path::new(&done).exists(), "nothing holds it up");
    let mut received = 0;
    loop {
        let message = socket.message().await;
        if message["id"] == json!(waiting) {
            break;
        }
        let data = message["params"]["data"].as_str().unwrap_or_default();
        received += STANDARD.decode(data).unwrap().len();
    }
    assert_eq!(received, 60_000_000);
}

#[tokio::test]
async fn the_environment_belongs_to_the_sandbox() {
    let harness = Harness::new().await;
    let (mut socket, id) = harness.create(&json!({"env": {"A": "1"}}), &[]).await;
    socket
        .call("envSet", json!({"key": "B", "value": "2"}))
        .await;
    let (mut second, _) = harness.connect(&id).await.unwrap();
    let all = second.call("envToObject", json!({})).await;
    let all: BTreeMap<String, String> = serde_json::from_value(all).unwrap();
    assert_eq!((all["A"].as_str(), all["B"].as_str()), ("1", "2"));
    assert_eq!(second.call("envGet", json!({"key": "B"})).await, "2");
    second.call("envDelete", json!({"key": "B"})).await;
    second.call("envDelete", json!({"key": "B"})).await;
    assert_eq!(
        second.call("envGet", json!({"key": "B"})).await,
        Value::Null
    );
    let error = second
        .call_error("envSet", json!({"key": "A=B", "value": "2"}))
        .await;
    assert_eq!(error["constructorName"], "TypeError");
}

#[tokio::test]
async fn short_calls_that_become_large_take_room() {
    let harness = Harness::new().await;
    let (mut socket, id) = harness.session().await;
    let sleep_for = json!({"command": "sleep", "args": ["60"], "stdout": "null", "stderr": "null"});
    let pid = socket.call("spawn", sleep_for).await["pid"].clone();
    // Less than 4 KiB each, of which some 380 KB are made.
    let content = vec![json!({"": 0}); 480];
    let mut waiting = Vec::new();
    for _ in 0..800 {
        let params = json!({"pid": pid, "content": content});
        waiting.push(socket.send_call("processWait", params).await);
    }
    let after = socket.send_call("envToObject", json!({})).await;
    assert!(socket.is_silent_for(Duration::from_millis(500)).await);
    let (mut other, _) = harness.connect(&id).await.unwrap();
    other
        .call("processKill", json!({"pid": pid, "signal": "SIGKILL"}))
        .await;
    let mut answers = 0;
    while socket.message().await["id"] != json!(after) {
        answers += 1;
    }
    assert!(answers > 0, "of {} calls", waiting.len());
}
