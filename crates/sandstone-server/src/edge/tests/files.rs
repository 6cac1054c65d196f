//! Files by path.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::harness::Harness;

#[tokio::test]
async fn whole_files_both_ways() {
    let harness = Harness::new().await;
    let (mut socket, _) = harness.session().await;
    let path = harness.path("file");
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| n as u8).collect();
    let content = STANDARD.encode(&bytes);
    let written = socket
        .call("writeFile", json!({"path": path, "content": content}))
        .await;
    assert_eq!(written, Value::Null);
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    assert_eq!(
        socket.call("readFile", json!({"path": path})).await,
        content
    );
    let error = socket
        .call_error("readTextFile", json!({"path": path}))
        .await;
    assert_eq!(error["constructorName"], "InvalidData");

    let options = json!({"mode": 0o600});
    socket
        .call(
            "writeTextFile",
            json!({"path": path, "content": "héllo", "options": options}),
        )
        .await;
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let options = json!({"append": true});
    socket
        .call(
            "writeTextFile",
            json!({"path": path, "content": "!", "options": options}),
        )
        .await;
    assert_eq!(
        socket.call("readTextFile", json!({"path": path})).await,
        "héllo!"
    );
    let options = json!({"createNew": true});
    let error = socket
        .call_error(
            "writeTextFile",
            json!({"path": path, "content": "", "options": options}),
        )
        .await;
    assert_eq!(error["code"], "EEXIST");
    let error = socket
        .call_error("writeTextFile", json!({"path": path}))
        .await;
    assert!(
        error["message"].as_str().unwrap().contains("content"),
        "{error}"
    );
}

#[tokio::test]
async fn a_file_may_come_as_a_stream_before_or_after_its_call() {
    let harness = Harness::new().await;
    let (mut socket, _) = harness.session().await;
    for (name, data_first) in [("a", true), ("b", false)] {
        let path = harness.path(name);
        let stream = json!({"streamId": 0});
        socket.notify("start", stream.clone()).await;
        let call = json!({"path": path, "contentStreamId": 0});
        let mut id = None;
        if !data_first {
            id = Some(socket.send_call("writeFile", call.clone()).await);
        }
        for _ in 0..100 {
            let data = STANDARD.encode(vec![7; 65_536]);
            socket
                .notify("enqueue", json!({"streamId": 0, "data": data}))
                .await;
        }
        socket.notify("end", stream).await;
        let id = match id {
            Some(id) => id,
            None => socket.send_call("writeFile", call).await,
        };
        assert_eq!(socket.answer(id).await["result"], json!({"ok": null}));
        assert_eq!(std::fs::read(&path).unwrap(), vec![7; 6_553_600]);
        assert!(socket.seen.is_empty(), "no cancel");
    }
}

#[tokio::test]
async fn a_stream_that_cannot_be_written_is_cancelled() {
    let harness = Harness::new().await;
    let (mut socket, _) = harness.session().await;
    socket.notify("start", json!({"streamId": 3})).await;
    let path = harness.path("no/such/directory");
    let error = socket
        .call_error("writeFile", json!({"path": path, "contentStreamId": 3}))
        .await;
    assert_eq!(error["code"], "ENOENT");
    let cancel = match socket.seen.pop() {
        Some(message) => message,
        None => socket.message().await,
    };
    assert_eq!(cancel["method"], "$sandbox.stream.cancel");
    assert_eq!(cancel["params"]["streamId"], 3);
    // The flood that was under way is dropped.
    socket
        .notify("enqueue", json!({"streamId": 3, "data": "eA=="}))
        .await;
    socket.call("envToObject", json!({})).await;
}

#[tokio::test]
async fn a_stream_that_fails_fails_the_call() {
    let harness = Harness::new().await;
    let (mut socket, _) = harness.session().await;
    for (id, error) in [(1, json!("it broke")), (2, json!({"message": "it broke"}))] {
        socket.notify("start", json!({"streamId": id})).await;
        let call = json!({"path": harness.path("file"), "contentStreamId": id});
        let call = socket.send_call("writeFile", call).await;
        socket
            .notify("error", json!({"streamId": id, "error": error}))
            .await;
        let answer = socket.answer(call).await;
        let message = answer["result"]["error"]["message"].as_str().unwrap();
        assert!(message.contains("it broke"), "{message}");
    }
}

#[tokio::test]
async fn trap_7_python_gets_an_error_instead_of_a_long_answer() {
    let harness = Harness::new().await;
    let mut socket = harness.python().await;
    let path = harness.path("file");
    std::fs::write(&path, vec![b'x'; 785_000]).unwrap();
    let content = socket.call("readFile", json!({"path": path})).await;
    assert_eq!(content.as_str().unwrap().len(), 1_046_668);
    std::fs::write(&path, vec![b'x'; 800_000]).unwrap();
    let error = socket.call_error("readFile", json!({"path": path})).await;
    assert_eq!(error["constructorName"], "RangeError");
    std::fs::write(&path, vec![1; 500_000]).unwrap();
    let error = socket
        .call_error("readTextFile", json!({"path": path}))
        .await;
    assert_eq!(error["constructorName"], "RangeError", "longer as JSON");
}

#[tokio::test]
async fn huge_files_are_in_memory_a_few_at_a_time() {
    let harness = Harness::new().await;
    let (huge, small) = (harness.path("huge"), harness.path("small"));
    // Much more than the kernel's buffers hold of an answer that nobody takes.
    let file = std::fs::File::create(&huge).unwrap();
    file.set_len(12 << 20).unwrap();
    std::fs::write(&small, "small").unwrap();
    let mut holders = Vec::new();
    let mut longest = Duration::ZERO;
    for _ in 0..4 {
        let (mut socket, _) = harness.session().await;
        let asked = Instant::now();
        socket.send_call("readFile", json!({"path": huge})).await;
        socket.begins().await;
        longest = longest.max(asked.elapsed());
        holders.push(socket);
    }
    let (mut socket, _) = harness.session().await;
    let call = socket.send_call("readFile", json!({"path": huge})).await;
    let text = socket.call("readTextFile", json!({"path": small})).await;
    assert_eq!(text, "small", "others do not wait");
    // It would have begun by then.
    assert!(socket.is_silent_for(3 * longest).await);
    drop(holders.pop());
    let answer = socket.answer(call).await;
    assert_eq!(answer["result"]["ok"].as_str().unwrap().len(), 16_777_216);
}

#[tokio::test]
async fn directories_and_descriptions() {
    let harness = Harness::new().await;
    let (mut socket, _) = harness.session().await;
    let top = harness.path("top");
    let deep = harness.path("top/a/b");
    let error = socket.call_error("mkdir", json!({"path": deep})).await;
    assert_eq!(error["code"], "ENOENT");
    socket
        .call(
            "mkdir",
            json!({"path": deep, "options": {"recursive": true, "mode": null}}),
        )
        .await;
    let error = socket.call_error("mkdir", json!({"path": deep})).await;
    assert_eq!(error["constructorName"], "AlreadyExists");
    std::os::unix::fs::symlink("a", harness.path("top/link")).unwrap();
    let entries = socket.call("readDir", json!({"path": top})).await;
    let link = entries
        .as_array()
        .unwrap()
        .iter()
        .find(|entry| entry["name"] == "link")
        .unwrap();
    assert_eq!(
        *link,
        json!({"name": "link", "isFile": false, "isDirectory": false, "isSymlink": true})
    );
    let path = harness.path("top/link");
    assert_eq!(
        socket.call("stat", json!({"path": path})).await["isDirectory"],
        true
    );
    assert_eq!(
        socket.call("lstat", json!({"path": path})).await["isSymlink"],
        true
    );
    let error = socket.call_error("remove", json!({"path": top})).await;
    assert_eq!(error["code"], "ENOTEMPTY");
    socket
        .call(
            "remove",
            json!({"path": top, "options": {"recursive": true}}),
        )
        .await;
    let error = socket.call_error("stat", json!({"path": top})).await;
    assert_eq!(
        error["message"],
        format!("No such file or directory (os error 2): stat '{top}'")
    );
}

#[tokio::test]
async fn trap_10_an_abort_ends_the_call_with_id_zero() {
    let harness = Harness::new().await;
    let (mut socket, _) = harness.session().await;
    socket.notify("start", json!({"streamId": 0})).await;
    // Waits for a stream that never goes on.
    let call = json!({"path": harness.path("file"), "contentStreamId": 0, "abortId": 0});
    let call = socket.send_call("writeFile", call).await;
    socket.call("envToObject", json!({})).await;
    let abort = socket.send_call("abort", json!({"abortId": 0})).await;
    let answer = socket.answer(call).await;
    let error = &answer["result"]["error"];
    assert_eq!(error["constructorName"], "DOMException");
    assert_eq!(error["name"], "AbortError");
    let is_answered = socket
        .seen
        .iter()
        .any(|message| message["id"] == json!(abort));
    if !is_answered {
        socket.answer(abort).await;
    }
    // Of a call that has ended: fine.
    socket.call("abort", json!({"abortId": 0})).await;
}

#[tokio::test]
async fn many_calls_at_once() {
    let harness = Harness::new().await;
    let (mut socket, _) = harness.session().await;
    let mut open = Vec::new();
    for _ in 0..2000 {
        open.push(socket.send_call("envToObject", json!({})).await);
    }
    let everything = async {
        while !open.is_empty() {
            let id = socket.message().await["id"].as_u64().unwrap();
            open.retain(|other| *other != id);
        }
    };
    tokio::time::timeout(Duration::from_secs(20), everything)
        .await
        .unwrap();
}
