//! The WebSocket library, and how it is kept from holding on to memory.
//!
//! It writes from one buffer, moves the rest of it to the front after each write, and keeps it at
//! the length of the longest frame ever sent: a file of 75 MiB would stay with its connection. So
//! long messages go out as several frames (RFC 6455, section 5.4), which the clients put together.
//! It reads into a buffer of the same kind; [`Intake`] cuts the frames that come.

use std::iter;

use bytes::Bytes;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::{Message, Role, WebSocketConfig};

use super::intake::{Intake, LongMessages};

/// Longest message. The SDKs put a whole file, as base64, into one.
pub(super) const MESSAGE_MAX_BYTES: usize = 256 << 20;

/// Longest frame that goes out, and that the library sees come in: a chunk of a stream, which is
/// 64 KiB in base64, is one.
pub(super) const FRAME_MAX_BYTES: usize = 128 << 10;

/// Read buffer of a socket. Idle sockets are many, so it is smaller than the library's.
const READ_BUFFER_BYTES: usize = 16 << 10;

/// From so many bytes on the library writes what it has.
const WRITE_BUFFER_BYTES: usize = 32 << 10;

/// Most bytes that wait in a socket's own buffer: a frame or two, and the pongs of a client that
/// asks for them without reading. Past them the library refuses to write, which ends the connection.
const WRITE_BUFFER_MAX_BYTES: usize = 1 << 20;

/// The socket of a client.
pub(super) type Socket = WebSocketStream<Intake<TokioIo<Upgraded>>>;

/// A socket on a connection whose handshake is done.
pub(super) async fn socket(connection: Upgraded, long: &LongMessages) -> Socket {
    let intake = Intake::new(TokioIo::new(connection), long);
    WebSocketStream::from_raw_socket(intake, Role::Server, Some(config())).await
}

pub(super) fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_MAX_BYTES))
        .max_frame_size(Some(MESSAGE_MAX_BYTES))
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(WRITE_BUFFER_BYTES)
        .max_write_buffer_size(WRITE_BUFFER_MAX_BYTES)
}

/// The frames of a text: one, unless it is long.
pub(super) fn frames(text: String) -> impl Iterator<Item = Message> {
    let mut rest = Some(Bytes::from(text));
    let mut kind = Data::Text;
    iter::from_fn(move || {
        let mut frame = rest.take()?;
        if frame.len() > FRAME_MAX_BYTES {
            // Not inside a character: a reader may check each frame by itself.
            let is_start = |at: &usize| frame[*at] & 0xc0 != 0x80;
            let end = (1..=FRAME_MAX_BYTES).rev().find(is_start)?;
            rest = Some(frame.split_off(end));
        }
        let opcode = OpCode::Data(std::mem::replace(&mut kind, Data::Continue));
        Some(Message::Frame(Frame::message(
            frame,
            opcode,
            rest.is_none(),
        )))
    })
}

#[cfg(test)]
mod tests {
    use futures_util::{SinkExt, StreamExt};

    use super::*;

    #[tokio::test]
    async fn a_long_text_goes_out_in_frames_that_make_it_again() {
        let (ours, theirs) = tokio::io::duplex(1 << 10);
        let mut server = WebSocketStream::from_raw_socket(ours, Role::Server, Some(config())).await;
        let mut client = WebSocketStream::from_raw_socket(theirs, Role::Client, None).await;
        // Three bytes each: the bound is inside one.
        let long = "€".repeat(WRITE_BUFFER_MAX_BYTES);
        for text in [String::new(), "short".to_owned(), long] {
            let count = frames(text.clone()).count();
            assert_eq!(count > 1, text.len() > FRAME_MAX_BYTES);
            for frame in frames(text.clone()) {
                let Message::Frame(frame) = &frame else {
                    panic!("{frame:?}");
                };
                assert!(frame.payload().len() <= FRAME_MAX_BYTES);
                assert!(std::str::from_utf8(frame.payload()).is_ok());
            }
            let sending = async {
                for frame in frames(text.clone()) {
                    // More than the library's buffer may take: it must not pile up there.
                    server.feed(frame).await.unwrap();
                }
                server.flush().await.unwrap();
            };
            let ((), got) = tokio::join!(sending, client.next());
            assert!(got.unwrap().unwrap() == Message::Text(text.into()));
        }
    }
}
