//! The peer: a WebSocket server that answers the SDKs at once, with messages as long as ours, and
//! does nothing. What a client takes with it is the client's own cost.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::ws::{Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use axum::http::HeaderValue;
use axum::response::Response;
use axum::routing::get;
use axum::serve::ListenerExt;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use crate::server::Access;

/// An id of the form that the SDKs want.
const SANDBOX_ID: &str = "sbx_ord_00000000000000000000";
/// The only stream to the client.
const STREAM: u64 = 1 << 40;

/// A running peer. It ends when it is dropped.
#[derive(Debug)]
pub(super) struct Bare {
    _runtime: Runtime,
    pub(super) access: Access,
}

impl Bare {
    pub(super) fn start() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let listener = runtime
            .block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
            .context("listening for the peer")?;
        let address: SocketAddr = listener.local_addr()?;
        let listener = listener.tap_io(|stream| {
            let _ = stream.set_nodelay(true);
        });
        let router = Router::new().route("/api/v3/sandboxes/create", get(create));
        runtime.spawn(async move { axum::serve(listener, router).await });
        let access = Access {
            address,
            token: "ddo_none".to_owned(),
        };
        Ok(Self {
            _runtime: runtime,
            access,
        })
    }
}

async fn create(upgrade: WebSocketUpgrade) -> Response {
    let mut response = upgrade
        .read_buffer_size(16 << 10)
        .on_upgrade(|socket| async move {
            // The client ends the connection whenever it likes.
            let _ = serve(socket).await;
        });
    let id = HeaderValue::from_static(SANDBOX_ID);
    response.headers_mut().insert("x-deno-sandbox-id", id);
    response
}

async fn serve(mut socket: WebSocket) -> Result<()> {
    // What an upload has brought, and which call waits for its end.
    let (mut chunk, mut chunks, mut writing) = (Utf8Bytes::default(), 0_u64, None);
    let mut is_reading = false;
    while let Some(message) = socket.recv().await {
        let Message::Text(text) = message? else {
            continue;
        };
        if text.len() > 4096 {
            (chunk, chunks) = (text, chunks + 1);
            continue;
        }
        let Ok(message) = serde_json::from_str::<Value>(&text) else {
            continue;
        };
        let id = message["id"].clone();
        let (id, value) = match message["method"].as_str().unwrap_or_default() {
            "writeFile" => {
                (writing, chunks) = (Some(id), 0);
                continue;
            }
            "$sandbox.stream.end" => match writing.take() {
                Some(id) => (id, Value::Null),
                None => continue,
            },
            "spawn" => {
                is_reading = message["params"]["stdout"] == "piped";
                let stream = is_reading.then_some(STREAM);
                (
                    id,
                    json!({"pid": 7, "stdoutStreamId": stream, "stderrStreamId": null}),
                )
            }
            "processWait" => {
                if std::mem::take(&mut is_reading) {
                    send_back(&mut socket, &chunk, chunks).await?;
                }
                (
                    id,
                    json!({"success": true, "code": 0, "signal": null, "oom": null}),
                )
            }
            "stat" => (id, file_info()),
            "readTextFile" => (id, "x".repeat(1000).into()),
            _ if id.is_null() => continue,
            _ => (id, Value::Null),
        };
        let answer = json!({"jsonrpc": "2.0", "id": id, "result": {"ok": value}}).to_string();
        socket.send(Message::Text(answer.into())).await?;
    }
    Ok(())
}

/// As many chunks as came, each as long as the last that came.
async fn send_back(socket: &mut WebSocket, chunk: &str, chunks: u64) -> Result<()> {
    let note = |method: &str, more: Value| {
        let mut params = json!({"streamId": STREAM});
        if let Some(data) = more.as_str() {
            params["data"] = data.into();
        }
        let method = format!("$sandbox.stream.{method}");
        let text = json!({"jsonrpc": "2.0", "method": method, "params": params}).to_string();
        Utf8Bytes::from(text)
    };
    let data = serde_json::from_str::<Value>(chunk).context("an upload comes first")?;
    let data = note("enqueue", data["params"]["data"].clone());
    socket
        .send(Message::Text(note("start", Value::Null)))
        .await?;
    for _ in 0..chunks {
        socket.send(Message::Text(data.clone())).await?;
    }
    socket.send(Message::Text(note("end", Value::Null))).await?;
    Ok(())
}

fn file_info() -> Value {
    let date = "2026-01-01T00:00:00.000Z";
    json!({
        "isFile": true, "isDirectory": false, "isSymlink": false, "isBlockDevice": false,
        "isCharDevice": false, "isFifo": false, "isSocket": false, "size": 1000, "mode": 33188,
        "uid": 1000, "gid": 1000, "nlink": 1, "ino": 123_456, "dev": 64, "rdev": 0,
        "blksize": 4096, "blocks": 8, "atime": date, "mtime": date, "ctime": date,
        "birthtime": date,
    })
}
