//! Changes by path, and open files.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::client::Socket;
use super::harness::{Harness, eventually};

async fn open(socket: &mut Socket, path: &str, options: Value) -> u64 {
    let params = json!({"path": path, "options": options});
    socket.call("open", params).await["fileHandleId"]
        .as_u64()
        .unwrap()
}

/// The answer to a call, which may have come while another was awaited.
async fn late_answer(socket: &mut Socket, id: u64) -> Value {
    let is_answer = |message: &Value| message["id"] == json!(id);
    match socket.seen.iter().position(is_answer) {
        Some(index) => socket.seen.remove(index),
        None => socket.answer(id).await,
    }
}

/// How many descriptors of this process are open on `path`.
fn descriptors(path: &str) -> usize {
    std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter(|target| target.to_str() == Some(path))
        .count()
}

#[tokio::test]
async fn changes_by_path() {
    let harness = Harness::new().await;
    let (mut socket, _) = harness.session().await;
    let (one, two) = (harness.path("one"), harness.path("two"));
    std::fs::write(&one, "x").unwrap();
    let rename = json!({"oldPath": one, "newPath": two});
    assert_eq!(socket.call("rename", rename.clone()).await, Value::Null);
    let error = socket.call_error("rename", rename).await;
    assert_eq!(error["code"], "ENOENT");
    assert_eq!(
        error["message"],
        format!("No such file or directory (os error 2): rename '{one}' -> '{two}'")
    );
    for time in [json!("2023-11-14T22:13:20.500Z"), json!(1_700_000_000.5)] {
        let times = json!({"path": two, "atime": time, "mtime": time});
        socket.call("utime", times).await;
        let modified = std::fs::metadata(&two).unwrap().modified().unwrap();
        let since = modified.duration_since(std::time::UNIX_EPOCH).unwrap();
        assert_eq!(since, Duration::new(1_700_000_000, 500_000_000));
    }
}

#[tokio::test]
async fn an_open_file_is_read_written_and_moved_in() {
    let harness = Harness::new().await;
    for (mut socket, at_end, length) in [
        (harness.session().await.0, Value::Null, "len"),
        (harness.python().await, json!(""), "size"),
    ] {
        let path = harness.path("file");
        let id = socket.call("create", json!({"path": path})).await["fileHandleId"].clone();
        assert_eq!(id, 1);
        let data = STANDARD.encode("0123456789");
        let written = socket
            .call("fileWrite", json!({"fileHandleId": 1, "data": data}))
            .await;
        assert_eq!(written, json!({"bytesWritten": 10}));
        for (offset, whence, position) in [(json!(-4), 2, 6), (json!("2"), 0, 2), (json!(1), 1, 3)]
        {
            let seek = json!({"fileHandleId": 1, "offset": offset, "whence": whence});
            let position = json!({ "position": position });
            assert_eq!(socket.call("fileSeek", seek).await, position);
        }
        let read = json!({"fileHandleId": 1, "length": 100});
        let data = socket.call("fileRead", read.clone()).await;
        assert_eq!(data, json!({"data": STANDARD.encode("3456789")}));
        assert_eq!(socket.call("fileRead", read).await, json!({"data": at_end}));
        let none = socket
            .call("fileRead", json!({"fileHandleId": 1, "length": 0}))
            .await;
        assert_eq!(none, json!({"data": ""}), "nothing asked for is no end");
        socket
            .call("fileTruncate", json!({"fileHandleId": 1, length: 4}))
            .await;
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "0123");
        socket
            .call("fileTruncate", json!({"fileHandleId": 1, length: null}))
            .await;
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "");
        socket.call("fileClose", json!({"fileHandleId": 1})).await;
        for method in ["fileClose", "fileStat", "fileLock"] {
            let error = socket.call_error(method, json!({"fileHandleId": 1})).await;
            assert_eq!(error["constructorName"], "BadResource");
            assert_eq!(error["code"], "EBADF");
        }
        let wrong = json!({"path": path, "options": {"read": true, "create": true}});
        assert_eq!(socket.call_error("open", wrong).await["code"], "EINVAL");
    }
}

#[tokio::test]
async fn calls_on_one_file_keep_their_order() {
    let harness = Harness::new().await;
    let (mut socket, _) = harness.session().await;
    let path = harness.path("file");
    let id = open(&mut socket, &path, json!({"append": true, "create": true})).await;
    let mut expected = String::new();
    for number in 0..300 {
        let text = format!("{number},");
        expected += &text;
        let data = STANDARD.encode(text);
        socket
            .send_call("fileWrite", json!({"fileHandleId": id, "data": data}))
            .await;
    }
    // Nobody waits for the writes: the close comes after all of them.
    socket.call("fileClose", json!({"fileHandleId": id})).await;
    assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
}

#[tokio::test]
async fn files_are_closed_with_their_session_and_no_other() {
    let harness = Harness::new().await;
    let (mut socket, id) = harness.session().await;
    let mut other = harness.connect(&id).await.unwrap().0;
    let path = harness.path("file");
    std::fs::write(&path, "").unwrap();
    open(&mut socket, &path, json!({"read": true})).await;
    for number in 1..=1000 {
        assert_eq!(open(&mut other, &path, json!({"read": true})).await, number);
    }
    assert_eq!(descriptors(&path), 1001);
    drop(other);
    eventually(|| descriptors(&path) == 1).await;
    let of_the_other = json!({"fileHandleId": 2});
    assert_eq!(
        socket.call_error("fileStat", of_the_other).await["code"],
        "EBADF"
    );
}

#[tokio::test]
async fn a_lock_that_waits_is_released() {
    let harness = Harness::new().await;
    let (mut socket, id) = harness.session().await;
    let mut other = harness.connect(&id).await.unwrap().0;
    let path = harness.path("file");
    std::fs::write(&path, "").unwrap();
    let holder = open(&mut other, &path, json!({"read": true})).await;
    let exclusive = |id: u64| json!({"fileHandleId": id, "exclusive": true, "abortId": id});
    other.call("fileLock", exclusive(holder)).await;

    let first = open(&mut socket, &path, json!({"read": true})).await;
    let waits = socket.send_call("fileLock", exclusive(first)).await;
    let second = open(&mut socket, &path, json!({"read": true})).await;
    let read = json!({"fileHandleId": second, "length": 1});
    socket.call("fileRead", read).await;
    socket
        .call("fileClose", json!({"fileHandleId": first}))
        .await;
    let error = &late_answer(&mut socket, waits).await["result"]["error"];
    assert_eq!(error["code"], "EBADF");

    let waits = socket.send_call("fileLock", exclusive(second)).await;
    socket.call("abort", json!({"abortId": second})).await;
    let error = &late_answer(&mut socket, waits).await["result"]["error"];
    assert_eq!(error["name"], "AbortError");

    // The end of the session that has it releases it.
    let third = open(&mut socket, &path, json!({"read": true})).await;
    let waits = socket.send_call("fileLock", exclusive(third)).await;
    drop(other);
    assert_eq!(
        late_answer(&mut socket, waits).await["result"],
        json!({"ok": null})
    );
}
