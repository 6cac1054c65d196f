//! What a client says, read from any bytes.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

/// How often a chunk is doubled at most: a line of 1 KiB becomes 512.
const DOUBLINGS_MAX: u32 = 9;

/// Bytes of one chunk at most, so that an input stays below what makes the server hold up a client
/// that is faster than its file (4 MiB).
const CHUNK_MAX_BYTES: usize = 64 << 10;

/// Lines that count.
const LINES_MAX: usize = 48;

/// The headers of every handshake, unless the script has others.
const HEADERS: [(&str, &str); 6] = [
    ("host", "localhost"),
    ("authorization", "Bearer ddo_0123456789abcdef"),
    ("connection", "Upgrade"),
    ("upgrade", "websocket"),
    ("sec-websocket-version", "13"),
    ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

/// Which socket is asked for.
pub enum Door {
    Create,
    Neighbour,
    Own,
}

/// What is done once the socket is open.
pub enum Action {
    Ping(Vec<u8>),
    /// Bytes as they are.
    Wild(Vec<u8>),
    /// A message of this opcode.
    Message(u8, Vec<u8>),
    /// A text in so many fragments.
    Fragments(usize, Vec<u8>),
    /// The server's stream of this number.
    Cancel(usize),
    Sync,
    Wait,
    Close(Vec<u8>),
    Leave,
}

pub struct Script {
    pub door: Door,
    /// Whether a sandbox that it makes ends with its connection.
    pub is_session: bool,
    pub is_python: bool,
    pub gives_up: bool,
    pub actions: Vec<Action>,
    headers: Vec<(Vec<u8>, Vec<u8>)>,
    configuration: Vec<u8>,
}

impl Script {
    pub fn parse(data: &[u8]) -> Self {
        let mut script = Self {
            door: Door::Create,
            is_session: true,
            is_python: false,
            gives_up: false,
            actions: Vec::new(),
            headers: Vec::new(),
            configuration: STANDARD.encode("{}").into_bytes(),
        };
        let lines = data.split(|byte| *byte == b'\n').take(LINES_MAX);
        for line in lines {
            if let Some((&letter, rest)) = line.split_first() {
                script.add(letter, rest.strip_prefix(b" ").unwrap_or(rest));
            }
        }
        script
    }

    fn add(&mut self, letter: u8, rest: &[u8]) {
        let calls = self.actions.len();
        let mut act = |action| self.actions.push(action);
        let text = |text: String| Action::Message(1, text.into_bytes());
        match letter {
            b'n' => self.door = Door::Neighbour,
            b'o' => self.door = Door::Own,
            b'u' => {
                let agent = b"Python/3.11 websockets/17.4";
                self.headers.push((b"user-agent".to_vec(), agent.to_vec()));
                self.is_python = true;
            }
            b'h' => {
                if let Some((name, value)) = split(rest, b':') {
                    let name: Vec<u8> = name
                        .iter()
                        .filter(|byte| is_token(**byte))
                        .copied()
                        .collect();
                    let value = value.iter().filter(|byte| **byte >= b' ' && **byte != 0x7f);
                    let is_agent = name.eq_ignore_ascii_case(b"user-agent");
                    if !name.is_empty() && !is_agent {
                        self.headers.push((name, value.copied().collect()));
                    }
                }
            }
            b'j' => {
                self.configuration = STANDARD.encode(rest).into_bytes();
                self.is_session = is_session(rest);
            }
            b'r' => {
                let header = rest.iter().filter(|byte| **byte >= b' ' && **byte != 0x7f);
                self.configuration = header.copied().collect();
                self.is_session = false;
            }
            b'k' => self.gives_up = true,
            b'm' => {
                let (method, params) = split(rest, b' ').unwrap_or((rest, b"{}"));
                let method = Value::String(String::from_utf8_lossy(method).into_owned());
                let params = match serde_json::from_slice::<serde::de::IgnoredAny>(params) {
                    Ok(_) => String::from_utf8_lossy(params).into_owned(),
                    Err(_) => "null".to_owned(),
                };
                act(text(format!(
                    r#"{{"jsonrpc":"2.0","id":{calls},"method":{method},"params":{params}}}"#
                )));
            }
            b't' => act(Action::Message(1, rest.to_vec())),
            b'b' => act(Action::Message(2, rest.to_vec())),
            b'f' => {
                let (count, rest) = number(rest);
                act(Action::Fragments(
                    usize::try_from(count % 10).unwrap_or(0),
                    rest.to_vec(),
                ));
            }
            b's' => act(text(note("start", number(rest).0, ""))),
            b'd' => act(text(note("end", number(rest).0, ""))),
            b'x' => act(text(note(
                "error",
                number(rest).0,
                r#","error":{"message":"x"}"#,
            ))),
            b'e' => {
                let (id, rest) = number(rest);
                let (doublings, bytes) = number(rest);
                let times = 1 << u32::try_from(doublings).unwrap_or(0).min(DOUBLINGS_MAX);
                let mut bytes = bytes.repeat(times);
                bytes.truncate(CHUNK_MAX_BYTES);
                let data = format!(r#","data":"{}""#, STANDARD.encode(bytes));
                act(text(note("enqueue", id, &data)));
            }
            b'c' => act(Action::Cancel(usize::try_from(number(rest).0).unwrap_or(0))),
            b'p' => act(Action::Ping(rest[..rest.len().min(125)].to_vec())),
            b'w' => act(Action::Wild(rest.to_vec())),
            b'y' => act(Action::Sync),
            b'z' => act(Action::Wait),
            b'q' => act(Action::Close(rest[..rest.len().min(125)].to_vec())),
            b'a' => act(Action::Leave),
            _ => {}
        }
    }

    /// The handshake.
    pub fn request(&self, path: &str) -> Vec<u8> {
        let mut request = format!("GET {path} HTTP/1.1\r\n").into_bytes();
        let mut header = |name: &[u8], value: &[u8]| {
            request.extend([name, b": ", value, b"\r\n"].concat());
        };
        for (name, value) in HEADERS {
            let is_given = |(given, _): &(Vec<u8>, _)| given.eq_ignore_ascii_case(name.as_bytes());
            if !self.headers.iter().any(is_given) {
                header(name.as_bytes(), value.as_bytes());
            }
        }
        header(b"x-deno-sandbox-config", &self.configuration);
        for (name, value) in &self.headers {
            header(name, value);
        }
        request.extend(b"\r\n");
        request
    }
}

/// Whether a configuration says that the sandbox ends with its connection.
fn is_session(configuration: &[u8]) -> bool {
    let value: Value = serde_json::from_slice(configuration).unwrap_or_default();
    let is_session = matches!(&value["timeout"], Value::Null)
        || matches!(&value["timeout"], Value::String(text) if text == "session");
    value["stop_at_ms"].is_null() && is_session && value.is_object()
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'
}

fn split(bytes: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let found = bytes.iter().position(|byte| *byte == at)?;
    Some((&bytes[..found], &bytes[found + 1..]))
}

/// The number at the front, and what follows it and a space.
fn number(bytes: &[u8]) -> (u64, &[u8]) {
    let digits = bytes
        .iter()
        .take_while(|byte| byte.is_ascii_digit())
        .count();
    let (digits, rest) = bytes.split_at(digits);
    let number = str::from_utf8(digits).unwrap_or_default().parse();
    (number.unwrap_or(0), rest.strip_prefix(b" ").unwrap_or(rest))
}

/// A note about a stream.
pub fn note(kind: &str, stream: u64, more: &str) -> String {
    format!(
        r#"{{"jsonrpc":"2.0","method":"$sandbox.stream.{kind}","params":{{"streamId":{stream}{more}}}}}"#
    )
}

/// A frame. A mask of zeros leaves the payload as it is.
pub fn frame(head: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![head];
    match payload.len() {
        length @ 0..126 => frame.push(0x80 | length as u8),
        length @ 126..65536 => {
            frame.push(0x80 | 126);
            frame.extend((length as u16).to_be_bytes());
        }
        length => {
            frame.push(0x80 | 127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}

/// A text in so many frames and one more, with a ping after each but the last.
pub fn fragments(count: usize, text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let size = (text.len() / (count + 1)).max(1);
    let mut rest = text;
    for n in 0..count {
        let (part, after) = rest.split_at(size.min(rest.len()));
        bytes.extend(frame(u8::from(n == 0), part));
        bytes.extend(frame(0x89, b"between"));
        rest = after;
    }
    bytes.extend(frame(0x80 | u8::from(count == 0), rest));
    bytes
}
