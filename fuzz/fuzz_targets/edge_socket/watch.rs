//! What a client must be able to rely on, whatever it says itself.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::sync::Notify;

use super::{Reader, Writer, script};

/// Python refuses longer messages.
const PYTHON_MAX_BYTES: usize = 1 << 20;

/// What came and what may still come on one connection.
pub struct Watch {
    is_python: bool,
    /// Ids of calls, as they are written, and how often each is to be answered.
    open: RefCell<HashMap<String, u32>>,
    /// Streams of the server in their order, and whether each is still open.
    streams: RefCell<Vec<(u64, bool)>>,
    syncs: Cell<u32>,
    /// The client has sent bytes that may be a message, or a part of one.
    is_wild: Cell<bool>,
    changed: Notify,
}

/// A message of the server.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Message<'a> {
    #[serde(borrow)]
    jsonrpc: Cow<'a, str>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    result: Option<BTreeMap<String, &'a RawValue>>,
    error: Option<ProtocolError>,
    method: Option<String>,
    params: Option<Params>,
}

#[derive(Deserialize)]
struct ProtocolError {
    #[expect(dead_code, reason = "it has to be there")]
    code: i32,
    message: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Params {
    stream_id: Option<u64>,
    data: Option<String>,
}

impl Watch {
    pub fn new(is_python: bool) -> Self {
        Self {
            is_python,
            open: RefCell::default(),
            streams: RefCell::default(),
            syncs: Cell::new(0),
            is_wild: Cell::new(false),
            changed: Notify::new(),
        }
    }

    /// The client says this.
    pub fn said(&self, text: &[u8]) {
        let Ok(Value::Object(message)) = serde_json::from_slice(text) else {
            return;
        };
        if let Some(id) = message.get("id").filter(|id| !id.is_null()) {
            *self.open.borrow_mut().entry(id.to_string()).or_default() += 1;
        }
    }

    /// What the server takes for a message is not known from now on.
    pub fn goes_wild(&self) {
        self.is_wild.set(true);
    }

    pub fn is_wild(&self) -> bool {
        self.is_wild.get()
    }

    /// A call that tells how far the server has read: its id as it is written, and its text.
    pub fn sync(&self) -> (String, String) {
        self.syncs.set(self.syncs.get() + 1);
        let id = format!("\"sync {}\"", self.syncs.get());
        let text =
            format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"envGet","params":{{"key":"A"}}}}"#);
        self.said(text.as_bytes());
        (id, text)
    }

    /// The id of the server's stream of this number.
    pub fn stream(&self, number: usize) -> u64 {
        let streams = self.streams.borrow();
        streams.get(number).map_or(number as u64, |(id, _)| *id)
    }

    pub async fn answered(&self, id: &str) {
        while self.open.borrow().get(id).is_some_and(|open| *open > 0) {
            self.changed.notified().await;
        }
    }

    pub async fn all_answered(&self) {
        while self.open.borrow().values().any(|open| *open > 0) {
            self.changed.notified().await;
        }
    }

    fn heard(&self, text: &str) {
        if text == "pong" {
            assert!(!self.is_python, "Python fails on this");
            return;
        }
        assert!(
            !self.is_python || text.len() <= PYTHON_MAX_BYTES,
            "too long for Python"
        );
        let message: Message = match serde_json::from_str(text) {
            Ok(message) => message,
            Err(error) => panic!("not a message: {error}: {text}"),
        };
        assert_eq!(message.jsonrpc, "2.0");
        match (message.id, message.method, message.params) {
            (Some(id), None, None) => {
                match (message.result, message.error) {
                    (Some(result), None) => {
                        let kinds: Vec<&str> = result.keys().map(String::as_str).collect();
                        assert!(matches!(kinds[..], ["ok"] | ["error"]), "{text}");
                    }
                    (None, Some(error)) => assert!(!error.message.is_empty(), "{text}"),
                    _ => panic!("neither result nor error: {text}"),
                }
                let mut open = self.open.borrow_mut();
                match open.get_mut(id.get()) {
                    Some(left) if *left > 0 => *left -= 1,
                    _ => assert!(self.is_wild(), "nobody asked: {text}"),
                }
                self.changed.notify_one();
            }
            (None, Some(method), Some(params)) => self.noted(&method, &params, text),
            _ => panic!("neither an answer nor a note: {text}"),
        }
    }

    fn noted(&self, method: &str, params: &Params, text: &str) {
        let kind = match method.strip_prefix("$sandbox.stream.") {
            Some("cancel") => return,
            Some(kind) => kind,
            None => return assert_eq!(method, "$sandbox.deno.watcher.restart", "{text}"),
        };
        let id = params.stream_id.expect("a stream");
        let mut streams = self.streams.borrow_mut();
        let known = streams.iter_mut().find(|(known, _)| *known == id);
        match (kind, known) {
            ("start", None) => streams.push((id, true)),
            ("enqueue", Some((_, true))) => {
                let is_empty = params.data.as_deref().is_none_or(str::is_empty);
                assert!(!is_empty, "a chunk without bytes: {text}");
            }
            ("end" | "error", Some((_, is_open))) if *is_open => *is_open = false,
            _ => panic!("a stream that is not open, or is begun twice: {text}"),
        }
    }
}

/// Reads until the server closes.
pub async fn read(read: &mut Reader, write: &Writer, watch: &Watch) {
    let mut read = BufReader::new(read);
    loop {
        let Ok(head) = read.read_u8().await else {
            return;
        };
        let Ok(length) = read_length(&mut read).await else {
            return;
        };
        let mut payload = vec![0; length];
        if read.read_exact(&mut payload).await.is_err() {
            return;
        }
        match head {
            0x81 => watch.heard(str::from_utf8(&payload).expect("a text")),
            0x88 => return,
            // A ping. When nobody takes the pong, the end is near.
            0x89 => {
                let pong = script::frame(0x8a, &payload);
                let _ = write.lock().await.write_all(&pong).await;
            }
            0x8a => assert!(length <= 125),
            other => panic!("a frame of kind {other:#x}"),
        }
    }
}

async fn read_length(read: &mut BufReader<&mut Reader>) -> std::io::Result<usize> {
    Ok(match read.read_u8().await? {
        126 => usize::from(read.read_u16().await?),
        127 => usize::try_from(read.read_u64().await?).expect("a length"),
        length => {
            assert!(length < 126, "a mask");
            usize::from(length)
        }
    })
}
