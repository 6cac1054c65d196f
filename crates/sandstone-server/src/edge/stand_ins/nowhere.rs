//! A sandbox that is nowhere: what is asked is answered out of the request alone, and nothing on
//! this machine is run, read or changed. For clients that may ask for anything: the files that
//! they would remove are those of whoever runs the tests.
//!
//! What a path or a program is called decides what becomes of it: `missing` and `denied` fail,
//! `dir`, `link` and `fifo` are what they say, `large` is long. Every process ends by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sandstone_protocol::frame::FrameKind;
use sandstone_protocol::message::{
    self, Answer, DialTarget, Entry, ExitStatus, Failure, FileKind, HandleOperation, Metadata,
    Reply, Request, SocketStreams, Spawn, WalkEntry,
};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use super::agent::{Shared, Source, Sources};

/// Longest life of a process.
const LIFE: Duration = Duration::from_millis(4);

/// Processes have small ids, which come again, so that a client can guess them.
const PIDS: u32 = 8;

/// Variables that are kept.
const VARIABLES_MAX: usize = 64;

/// What a server says, by the length of its name.
const RESPONSES: [&[u8]; 8] = [
    b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-a: \xe9\r\n\r\nhi",
    b"HTTP/1.1 302 Found\r\nlocation: /else\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 307 Temporary\r\nlocation: https://a.dir:1/\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\ntrailer: x\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\n\x1f\x8b\x08\0\0\0\0\0\0\x03\xcb\xc8\x04\0",
    b"HTTP/1.0 204 \r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\ncut",
    b"nothing of the kind\r\n\r\n",
];

/// The processes of one stand-in.
#[derive(Debug, Default)]
pub(super) struct Processes {
    started: AtomicU32,
    kills: std::sync::Mutex<std::collections::HashMap<u32, oneshot::Sender<i32>>>,
}

/// Carries a request out, and replies.
pub(super) async fn serve(shared: &Arc<Shared>, id: u32, request: Request, sources: Sources) {
    let reply = match request {
        Request::Spawn(spawn) => spawn_process(shared, spawn, sources),
        Request::Wait { pid } => shared.wait(pid).await,
        Request::Kill { pid, signal } => kill(shared, pid, signal),
        Request::ReadFile { path, sink } => {
            let reply = named(&path).map(|()| Answer::Done);
            if reply.is_ok() {
                say(shared, sink, &content(&path)).await;
            }
            reply
        }
        Request::WriteFile { path, source, .. } => {
            let reply = named(&path);
            match (reply, sources.input) {
                (Ok(()), Some(input)) => take(shared, source, input).await,
                (Err(failure), _) => Err(failure),
                (Ok(()), None) => Err(errno(22)),
            }
        }
        Request::Dial {
            target,
            source,
            sink,
        } => dial(shared, &target, (source, sources.input), sink),
        Request::Walk { path, sink, .. } => return list(shared, id, &path, sink).await,
        Request::ExpandGlob { glob, sink, .. } => return list(shared, id, &glob, sink).await,
        Request::EnvSet { name, value } => {
            let mut environment = shared.environment.lock().unwrap();
            if environment.len() < VARIABLES_MAX || environment.contains_key(&name) {
                environment.insert(name, value);
            }
            Ok(Answer::Done)
        }
        Request::EnvDelete { name } => {
            shared.environment.lock().unwrap().remove(&name);
            Ok(Answer::Done)
        }
        Request::EnvGet { name } => {
            let environment = shared.environment.lock().unwrap();
            Ok(Answer::Variable(environment.get(&name).cloned()))
        }
        Request::EnvAll => Ok(Answer::Variables(
            shared.environment.lock().unwrap().clone(),
        )),
        other => file(other),
    };
    shared.reply(id, &reply).await;
}

/// What needs neither a stream nor a process.
fn file(request: Request) -> Reply {
    match request {
        Request::ReadDir { path } => named(&path).map(|()| {
            let entry = |name: &str| Entry {
                name: name.to_owned(),
                kind: kind(name),
            };
            Answer::Entries(["a", "dir", "link", &path].map(entry).into())
        }),
        Request::Stat { path, follow } => named(&path).map(|()| metadata(&path, follow)),
        Request::ReadLink { path } | Request::RealPath { path } => {
            named(&path).map(|()| Answer::Path(path))
        }
        Request::MakeTemporary(make) => {
            Ok(Answer::Path(format!("{}1{}", make.prefix, make.suffix)))
        }
        Request::Umask { mask } => Ok(Answer::Umask(mask.unwrap_or(0o22))),
        Request::MakeDir { path, .. } | Request::Remove { path, .. } => {
            named(&path).map(|()| Answer::Done)
        }
        Request::Open { path, .. } => named(&path).map(|()| Answer::Opened { kind: kind(&path) }),
        Request::Handle { operation, .. } => Ok(match operation {
            HandleOperation::Read { length } if length % 2 == 0 => {
                Answer::Bytes(vec![b'x'; length.min(1 << 16) as usize])
            }
            HandleOperation::Read { .. } => Answer::Bytes(Vec::new()),
            HandleOperation::Write { bytes } => Answer::Written {
                bytes: u32::try_from(bytes.len().div_ceil(2)).unwrap(),
            },
            HandleOperation::Seek { offset, .. } => Answer::Position(offset.unsigned_abs()),
            HandleOperation::Stat => metadata("", true),
            HandleOperation::Sync { .. }
            | HandleOperation::Truncate { .. }
            | HandleOperation::Lock { .. }
            | HandleOperation::Unlock
            | HandleOperation::SetTimes { .. } => Answer::Done,
        }),
        _ => Ok(Answer::Done),
    }
}

fn errno(number: i32) -> Failure {
    Failure {
        errno: Some(number),
        message: std::io::Error::from_raw_os_error(number).to_string(),
    }
}

/// Whether there is something of this name.
fn named(path: &str) -> Result<(), Failure> {
    if path.contains("missing") {
        Err(errno(2))
    } else if path.contains("denied") {
        Err(errno(13))
    } else {
        Ok(())
    }
}

fn kind(path: &str) -> FileKind {
    let kinds = [
        ("dir", FileKind::Directory),
        ("link", FileKind::Symlink),
        ("fifo", FileKind::Fifo),
    ];
    let found = kinds.iter().find(|(part, _)| path.contains(part));
    found.map_or(FileKind::File, |(_, kind)| *kind)
}

fn content(path: &str) -> Vec<u8> {
    let times = if path.contains("large") { 1 << 14 } else { 1 };
    path.repeat(times).into_bytes()
}

fn metadata(path: &str, follow: bool) -> Answer {
    Answer::Metadata(Metadata {
        kind: if follow { FileKind::File } else { kind(path) },
        size: content(path).len() as u64,
        mode: 0o100_644,
        uid: 1,
        gid: 1,
        nlink: 1,
        inode: u64::MAX,
        device: 1,
        rdev: 0,
        block_size: 4096,
        blocks: 8,
        accessed_ms: i64::MIN,
        modified_ms: i64::MAX,
        changed_ms: -1,
        created_ms: None,
    })
}

/// Sends all there is; whether somebody takes it.
async fn say_some(shared: &Shared, sink: u32, bytes: &[u8]) -> bool {
    for chunk in bytes.chunks(16 << 10) {
        if !shared.send_data(sink, chunk).await {
            return false;
        }
    }
    true
}

/// Sends all there is, and its end.
async fn say(shared: &Shared, sink: u32, bytes: &[u8]) {
    if !say_some(shared, sink, bytes).await {
        shared.forget(sink);
        return;
    }
    shared.send(FrameKind::End, sink, Vec::new()).await;
    shared.forget(sink);
}

/// Takes all there is to its end.
async fn take(shared: &Shared, id: u32, mut source: Source) -> Reply {
    let outcome = loop {
        match source.recv().await {
            Some(Some(bytes)) => shared.grant(id, bytes.len()).await,
            Some(None) => break Ok(Answer::Done),
            None => break Err(errno(125)),
        }
    };
    shared.forget(id);
    outcome
}

/// Starts something, which ends with the stand-in at the latest.
fn detach(shared: &Arc<Shared>, work: impl Future<Output = ()> + Send + 'static) {
    let end = shared.end.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = work => {}
            () = end.cancelled() => {}
        }
    });
}

async fn list(shared: &Arc<Shared>, id: u32, path: &str, sink: u32) {
    let found = named(path);
    shared
        .reply(id, &found.clone().map(|()| Answer::Done))
        .await;
    if found.is_ok() {
        let entry = |name: &str| {
            message::encode(&WalkEntry {
                path: format!("{path}/{name}"),
                name: name.to_owned(),
                kind: kind(name),
            })
        };
        for name in ["a", "dir", "é", path] {
            if !shared.send_data(sink, &entry(name)).await {
                break;
            }
        }
        shared.send(FrameKind::End, sink, Vec::new()).await;
    }
    shared.forget(sink);
}

fn dial(
    shared: &Arc<Shared>,
    target: &DialTarget,
    (id, input): (u32, Option<Source>),
    sink: u32,
) -> Reply {
    let name = match target {
        DialTarget::Port(port) => port.to_string(),
        DialTarget::Host(host, port) => format!("{host}:{port}"),
        DialTarget::Unix(path) => path.clone(),
    };
    named(&name)?;
    let response = RESPONSES[name.len() % RESPONSES.len()];
    let (mine, Some(mut input)) = (shared.clone(), input) else {
        return Err(errno(22));
    };
    detach(shared, async move {
        // A server speaks when it was spoken to.
        if let Some(Some(bytes)) = input.recv().await {
            mine.grant(id, bytes.len()).await;
            tokio::join!(say(&mine, sink, response), take(&mine, id, input))
                .1
                .ok();
        } else {
            mine.forget(id);
            mine.forget(sink);
        }
    });
    Ok(Answer::Done)
}

fn kill(shared: &Shared, pid: u32, signal: i32) -> Reply {
    let killed = shared.processes.kills.lock().unwrap().remove(&pid);
    match killed.map(|kill| kill.send(signal)) {
        Some(Ok(())) => Ok(Answer::Done),
        _ => Err(errno(3)),
    }
}

fn spawn_process(shared: &Arc<Shared>, spawn: Spawn, sources: Sources) -> Reply {
    named(&spawn.command)?;
    let pid = shared.processes.started.fetch_add(1, Ordering::Relaxed) % PIDS + 1;
    let (killed, kill) = oneshot::channel();
    shared.processes.kills.lock().unwrap().insert(pid, killed);
    let (exited, exit) = watch::channel(None);
    shared.exits.lock().unwrap().insert(pid, exit);
    let mine = shared.clone();
    detach(shared, async move {
        let run = timeout(LIFE, run(&mine, &spawn, sources));
        let status = tokio::select! {
            outcome = run => ExitStatus {
                code: Some(i32::from(outcome.is_err())),
                signal: None,
            },
            Ok(signal) = kill => ExitStatus {
                code: None,
                signal: Some(signal),
            },
        };
        exited.send_replace(Some(status));
        let streams = [
            spawn.stdout,
            spawn.stderr,
            spawn.socket.map(|socket| socket.sink),
        ];
        for sink in streams.into_iter().flatten() {
            mine.send(FrameKind::End, sink, Vec::new()).await;
            mine.forget(sink);
        }
        let inputs = [spawn.stdin, spawn.socket.map(|socket| socket.source)];
        for source in inputs.into_iter().flatten() {
            mine.forget(source);
        }
    });
    Ok(Answer::Spawned { pid })
}

/// Says its arguments, then everything that it is told, and complains on its standard error.
async fn run(shared: &Shared, spawn: &Spawn, sources: Sources) {
    let Sources { input, socket } = sources;
    let output = async {
        // No data at all would break the protocol.
        let text = format!("{}\n", spawn.args.join(" "));
        if let Some(sink) = spawn.stdout {
            say_some(shared, sink, text.as_bytes()).await;
        }
        let (Some(mut input), Some(id)) = (input, spawn.stdin) else {
            return;
        };
        while let Some(Some(bytes)) = input.recv().await {
            if let Some(sink) = spawn.stdout {
                shared.send_data(sink, &bytes).await;
            }
            shared.grant(id, bytes.len()).await;
        }
    };
    let errors = async {
        if let Some(sink) = spawn.stderr {
            let text = b"Restarting! File change detected: \"/a\"\n";
            shared.send_data(sink, text).await;
        }
    };
    let conversation = async {
        if let (Some(socket), Some(streams)) = (socket, spawn.socket) {
            converse(shared, socket, streams).await;
        }
    };
    tokio::join!(output, errors, conversation);
}

/// A REPL that answers each message with one of its own. Values are the code itself, so that a
/// client can have any.
async fn converse(shared: &Shared, mut socket: Source, streams: SocketStreams) {
    let mut last = String::new();
    let mut bytes = Vec::new();
    while let Some(Some(more)) = socket.recv().await {
        shared.grant(streams.source, more.len()).await;
        bytes.extend(more);
        while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
            let length = u32::from_le_bytes(*length) as usize;
            let Some(message) = rest.get(..length) else {
                break;
            };
            let question: serde_json::Value = serde_json::from_slice(message).unwrap();
            let code = question["code"].as_str().unwrap_or_default().to_owned();
            let answer = if question["output"] == true {
                serde_json::json!({"type": "RunSuccess", "output": last})
            } else {
                let answer = match code.as_bytes().first() {
                    Some(b'!') => serde_json::json!({"type": "RunFailure"}),
                    Some(b'?') => serde_json::json!({"type": "Error", "error": code}),
                    Some(b'.') => return,
                    _ => serde_json::json!({"type": "RunSuccess"}),
                };
                if !code.contains("sandstone.repl") {
                    last = code;
                }
                answer
            };
            let answer = answer.to_string();
            let mut frame = u32::try_from(answer.len()).unwrap().to_le_bytes().to_vec();
            frame.extend(answer.as_bytes());
            if !shared.send_data(streams.sink, &frame).await {
                return;
            }
            bytes.drain(..4 + length);
        }
    }
}
