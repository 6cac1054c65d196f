//! A client of the official SDKs' dialect that says anything whatever, beside one that behaves:
//! over a real server with a real database, whose sandboxes are nowhere.
//!
//! What it says is lines, so that inputs can be read and written by hand. A line is a letter and
//! what belongs to it:
//!
//! ```text
//! n, o                connect to the neighbour's sandbox, or to one's own; else create one
//! u                   be Python
//! h NAME: VALUE       a header, instead of the usual one of that name
//! j JSON, r BASE64    the configuration, before or after its encoding
//! k                   give up before the answer
//! m METHOD PARAMS     a call
//! t TEXT, b BYTES     a message
//! f DIGIT TEXT        a message in so many fragments, with pings between
//! s ID, d ID, x ID    a stream of ours begins, ends, fails
//! e ID DIGIT BYTES    a chunk of it, doubled so many times
//! c NUMBER            the server's stream of this number is not wanted any more
//! p BYTES, w BYTES    a ping; bytes without a frame
//! y, z                wait for all messages to be read, or for all calls to be answered
//! q BYTES, a          close; or go without a word. Else the client waits and closes.
//! ```

#![no_main]

mod script;
mod watch;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use sandstone_server::edge::stand_ins::client::Socket;
use sandstone_server::edge::stand_ins::harness::Harness;
use script::{Action, Door, Script};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::runtime::{Handle, Runtime};
use tokio::time::{sleep, timeout};
use watch::Watch;

/// How long the server may take for anything. Its own bounds on what is done here are shorter.
const LIMIT: Duration = Duration::from_secs(10);

/// How long the client waits for calls that need not be answered soon.
const PATIENCE: Duration = Duration::from_millis(12);

/// How many inputs there are from one look at the neighbour to the next.
const NEIGHBOUR_EVERY: u64 = 16;

static WORLD: OnceLock<World> = OnceLock::new();

fuzz_target!(|data: &[u8]| {
    let world = WORLD.get_or_init(World::new);
    world.runtime.block_on(world.run(&Script::parse(data)));
});

/// What all inputs share. A panic of any task ends the process: libFuzzer's hook does that.
struct World {
    runtime: Runtime,
    server: Harness,
    neighbour: Mutex<Socket>,
    neighbour_id: String,
    /// Tasks that there are while nobody but the neighbour is there.
    tasks: usize,
    inputs: AtomicU64,
}

impl World {
    fn new() -> Self {
        // One thread: an input does the same each time.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let (server, neighbour, neighbour_id, tasks) = runtime.block_on(async {
            let server = Harness::nowhere().await;
            for slug in ["data", "tools"] {
                server.volume(slug).await;
            }
            let (mut neighbour, id) = server.session().await;
            neighbour.call("envGet", json!({"key": "A"})).await;
            sleep(Duration::from_millis(500)).await;
            let tasks = Handle::current().metrics().num_alive_tasks();
            (server, neighbour, id, tasks)
        });
        Self {
            runtime,
            server,
            neighbour: Mutex::new(neighbour),
            neighbour_id,
            tasks,
            inputs: AtomicU64::new(0),
        }
    }

    async fn run(&self, script: &Script) {
        match script.door {
            Door::Create => {
                let path = "/api/v3/sandboxes/create";
                if let Some((stream, _)) = self.enter(path, script).await {
                    self.talk(stream, script).await;
                }
            }
            Door::Neighbour => {
                let path = format!("/api/v3/sandbox/{}/connect", self.neighbour_id);
                if let Some((stream, _)) = self.enter(&path, script).await {
                    self.talk(stream, script).await;
                }
            }
            Door::Own => {
                let path = "/api/v3/sandboxes/create";
                if let Some((_primary, id)) = self.enter(path, script).await {
                    let path = format!("/api/v3/sandbox/{id}/connect");
                    if let Some((stream, _)) = self.enter(&path, script).await {
                        self.talk(stream, script).await;
                    }
                }
            }
        }
        self.settle(script.is_session).await;
        if self.inputs.fetch_add(1, Ordering::Relaxed) % NEIGHBOUR_EVERY == 0 {
            let mut neighbour = self.neighbour.lock().expect("one thread");
            neighbour.call("envGet", json!({"key": "A"})).await;
            assert_eq!(neighbour.seen.len(), 0, "what is another's came here");
            self.server.forget_stopped().await;
        }
    }

    /// Shakes hands. The socket and the id of the sandbox, unless the server refuses.
    async fn enter(&self, path: &str, script: &Script) -> Option<(BufReader<TcpStream>, String)> {
        let stream = TcpStream::connect(self.server.address).await.expect("room");
        stream.set_nodelay(true).expect("TCP");
        let mut stream = BufReader::new(stream);
        stream.write_all(&script.request(path)).await.expect("room");
        if script.gives_up {
            return None;
        }
        let head = timeout(LIMIT, read_head(&mut stream)).await;
        let head = head.expect("no answer to a handshake");
        let status: u16 = head[9..12].parse().expect("a status");
        if status == 101 {
            let id = head
                .lines()
                .find_map(|line| line.strip_prefix("x-deno-sandbox-id: "));
            return Some((stream, id.expect("an id").to_owned()));
        }
        // Nothing that is done here is the server's fault.
        assert!((400..500).contains(&status), "{head}");
        let mut body = Vec::new();
        let rest = timeout(LIMIT, stream.read_to_end(&mut body)).await;
        let _ = rest.expect("a refused connection stays");
        if head.contains("application/json") {
            let refusal: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
            assert!(refusal["code"].is_string() && refusal["message"].is_string());
        }
        None
    }

    /// Does what the script says, and watches what comes.
    async fn talk(&self, stream: BufReader<TcpStream>, script: &Script) {
        assert!(stream.buffer().is_empty(), "the server speaks first");
        let (mut read, write) = stream.into_inner().into_split();
        let write = Writer::new(write);
        let watch = Watch::new(script.is_python);
        let reading = watch::read(&mut read, &write, &watch);
        let writing = act(&write, script, &watch);
        let mut reading = std::pin::pin!(reading);
        let says_nothing_more = tokio::select! {
            () = &mut reading => true,
            is_abrupt = writing => is_abrupt,
        };
        if !says_nothing_more {
            let ended = timeout(LIMIT, reading).await;
            ended.expect("the server does not close");
        }
    }

    /// Waits until nothing is left of the client.
    async fn settle(&self, is_session: bool) {
        let deadline = Instant::now() + LIMIT;
        let metrics = Handle::current().metrics();
        loop {
            let running = self.server.node.ids();
            let others = running.iter().filter(|id| **id != self.neighbour_id);
            if !is_session {
                for id in others {
                    let path = format!("/api/v3/sandboxes/{id}");
                    self.server.rest("DELETE", &path, None).await;
                }
            }
            let is_there = running.contains(&self.neighbour_id);
            assert!(is_there, "the neighbour's sandbox is gone");
            if running.len() == 1 && metrics.num_alive_tasks() <= self.tasks {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "left of a client: {running:?}, {} tasks instead of {}",
                metrics.num_alive_tasks(),
                self.tasks
            );
            sleep(Duration::from_millis(1)).await;
        }
    }
}

async fn read_head(stream: &mut BufReader<TcpStream>) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("a whole answer"));
    }
    String::from_utf8(head).expect("text")
}

/// Whether the client is gone without a word at the end.
async fn act(write: &Writer, script: &Script, watch: &Watch) -> bool {
    for action in &script.actions {
        let sent = match action {
            Action::Ping(payload) => {
                write
                    .lock()
                    .await
                    .write_all(&script::frame(0x89, payload))
                    .await
            }
            Action::Wild(bytes) => {
                watch.goes_wild();
                write.lock().await.write_all(bytes).await
            }
            Action::Message(opcode, text) => {
                watch.said(text);
                write
                    .lock()
                    .await
                    .write_all(&script::frame(0x80 | opcode, text))
                    .await
            }
            Action::Fragments(count, text) => {
                watch.said(text);
                write
                    .lock()
                    .await
                    .write_all(&script::fragments(*count, text))
                    .await
            }
            Action::Cancel(number) => {
                let text = script::note("cancel", watch.stream(*number), ",\"reason\":null");
                write
                    .lock()
                    .await
                    .write_all(&script::frame(0x81, text.as_bytes()))
                    .await
            }
            Action::Sync => sync(write, watch).await,
            Action::Wait => {
                let _ = timeout(PATIENCE, watch.all_answered()).await;
                Ok(())
            }
            Action::Leave => return true,
            Action::Close(payload) => {
                let _ = write
                    .lock()
                    .await
                    .write_all(&script::frame(0x88, payload))
                    .await;
                return watch.is_wild();
            }
        };
        if sent.is_err() {
            return watch.is_wild();
        }
    }
    if sync(write, watch).await.is_ok() && !watch.is_wild() {
        let _ = write
            .lock()
            .await
            .write_all(&script::frame(0x88, &[]))
            .await;
    }
    watch.is_wild()
}

/// Waits until the server has read everything so far. As long as it reads, it answers.
async fn sync(write: &Writer, watch: &Watch) -> std::io::Result<()> {
    let (id, text) = watch.sync();
    write
        .lock()
        .await
        .write_all(&script::frame(0x81, text.as_bytes()))
        .await?;
    if watch.is_wild() {
        let _ = timeout(PATIENCE, watch.answered(&id)).await;
        return Ok(());
    }
    let answered = timeout(LIMIT, watch.answered(&id)).await;
    answered.expect("the server does not answer any more");
    Ok(())
}

/// What the reading half is.
type Reader = OwnedReadHalf;

/// The writing half, which those that speak and those that answer pings share.
type Writer = tokio::sync::Mutex<OwnedWriteHalf>;
