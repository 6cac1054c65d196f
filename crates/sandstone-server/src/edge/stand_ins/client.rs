//! A bare HTTP and WebSocket client, so that the tests see exactly what is on the wire.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(20);

/// An answer to a request.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("not JSON: {}", self.body))
    }
}

/// Sends one request and reads its answer.
pub async fn request(
    server: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<Value>,
) -> Answer {
    let mut stream = BufReader::new(TcpStream::connect(server).await.unwrap());
    let body = body.map(|body| body.to_string()).unwrap_or_default();
    let mut text = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost:1\r\ncontent-length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    text.push_str(&body);
    stream.write_all(text.as_bytes()).await.unwrap();
    timeout(LIMIT, read_answer(&mut stream)).await.unwrap()
}

async fn read_answer(stream: &mut BufReader<TcpStream>) -> Answer {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.lines();
    let status = lines.next().unwrap()[9..12].parse().unwrap();
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let length = headers
        .iter()
        .find(|(name, _)| name == "content-length")
        .map_or(0, |(_, length)| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    Answer {
        status,
        headers,
        body: String::from_utf8(body).unwrap(),
    }
}

/// An open WebSocket that behaves as one of the SDKs does.
#[derive(Debug)]
pub struct Socket {
    stream: BufReader<TcpStream>,
    next_id: u64,
    /// Messages that came while an answer was awaited.
    pub seen: Vec<Value>,
}

/// What comes in.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    Text(String),
    Close(u16, String),
}

impl Socket {
    /// Shakes hands; the server's answer if it is not 101.
    pub async fn open(
        server: SocketAddr,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<(Self, Answer), Answer> {
        let mut stream = BufReader::new(TcpStream::connect(server).await.unwrap());
        let mut text = format!(
            "GET {path} HTTP/1.1\r\nhost: localhost:1\r\nconnection: Upgrade\r\n\
             upgrade: websocket\r\nsec-websocket-version: 13\r\n\
             sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        );
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        stream.write_all(text.as_bytes()).await.unwrap();
        let answer = timeout(LIMIT, read_answer(&mut stream)).await.unwrap();
        if answer.status != 101 {
            return Err(answer);
        }
        let socket = Self {
            stream,
            next_id: 0,
            seen: Vec::new(),
        };
        Ok((socket, answer))
    }

    async fn write_frame(&mut self, opcode: u8, payload: &[u8]) {
        let mut frame = vec![0x80 | opcode];
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
        // A mask of zeros leaves the payload as it is.
        frame.extend([0; 4]);
        frame.extend(payload);
        self.stream.write_all(&frame).await.unwrap();
    }

    pub async fn send_text(&mut self, text: &str) {
        self.write_frame(1, text.as_bytes()).await;
    }

    /// Closes as JavaScript does, without a code, and waits for the server's half.
    pub async fn close(mut self) {
        self.write_frame(8, &[]).await;
        while !matches!(self.frame().await, Frame::Close(..)) {}
    }

    pub async fn frame(&mut self) -> Frame {
        timeout(LIMIT, self.read_frame()).await.unwrap()
    }

    async fn read_frame(&mut self) -> Frame {
        let mut text = Vec::new();
        loop {
            let first = self.stream.read_u8().await.unwrap();
            let (is_last, opcode) = (first & 0x80 != 0, first & 0x0f);
            let length = match self.stream.read_u8().await.unwrap() {
                126 => usize::from(self.stream.read_u16().await.unwrap()),
                127 => usize::try_from(self.stream.read_u64().await.unwrap()).unwrap(),
                length => usize::from(length),
            };
            let mut payload = vec![0; length];
            self.stream.read_exact(&mut payload).await.unwrap();
            match opcode {
                0 | 1 => {
                    assert_eq!(opcode == 0, !text.is_empty(), "a frame of another message");
                    text.extend(payload);
                    if is_last {
                        return Frame::Text(String::from_utf8(text).unwrap());
                    }
                }
                8 if payload.is_empty() => return Frame::Close(1005, String::new()),
                8 => {
                    let code = u16::from_be_bytes([payload[0], payload[1]]);
                    let reason = String::from_utf8(payload[2..].to_vec()).unwrap();
                    return Frame::Close(code, reason);
                }
                9 => self.write_frame(10, &payload).await,
                _ => {}
            }
        }
    }

    /// Waits until something comes, and takes none of it.
    pub async fn begins(&mut self) {
        let begun = timeout(LIMIT, self.stream.fill_buf()).await.unwrap();
        assert!(!begun.unwrap().is_empty(), "closed");
    }

    /// The next message.
    pub async fn message(&mut self) -> Value {
        match self.frame().await {
            Frame::Text(text) => serde_json::from_str(&text).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    /// Whether nothing comes for a while.
    pub async fn is_silent_for(&mut self, time: Duration) -> bool {
        timeout(time, self.read_frame()).await.is_err()
    }

    /// Sends a call; its id.
    pub async fn send_call(&mut self, method: &str, params: Value) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let call = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
        self.send_text(&call.to_string()).await;
        id
    }

    pub async fn notify(&mut self, method: &str, params: Value) {
        let message = json!({
            "jsonrpc": "2.0", "method": format!("$sandbox.stream.{method}"), "params": params,
        });
        self.send_text(&message.to_string()).await;
    }

    /// Waits for an answer; other messages go to `seen`.
    pub async fn answer(&mut self, id: u64) -> Value {
        loop {
            let message = self.message().await;
            if message["id"] == json!(id) {
                return message;
            }
            self.seen.push(message);
        }
    }

    /// Calls and expects a value.
    pub async fn call(&mut self, method: &str, params: Value) -> Value {
        let id = self.send_call(method, params).await;
        let answer = self.answer(id).await;
        let result = answer["result"].as_object().unwrap();
        assert!(result.contains_key("ok"), "{method}: {answer}");
        result["ok"].clone()
    }

    /// Calls and expects an error.
    pub async fn call_error(&mut self, method: &str, params: Value) -> Value {
        let id = self.send_call(method, params).await;
        let answer = self.answer(id).await;
        assert!(answer["result"]["error"].is_object(), "{method}: {answer}");
        answer["result"]["error"].clone()
    }
}
