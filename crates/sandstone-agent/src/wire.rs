//! Frames on a socket: one writer at a time, one reader.

use std::io::{self, BufReader, IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

use sandstone_protocol::frame::{
    Frame, FrameError, FrameKind, HEADER_BYTES, SMALL_PAYLOAD_MAX_BYTES, decode_header,
    encode_header,
};

use crate::lock::lock;

/// Bytes read from the socket at once.
const READ_BYTES: usize = 64 << 10;

/// The sending half of a connection. Blocks while the host does not read, which bounds what is
/// under way.
#[derive(Debug)]
pub(crate) struct Sender {
    /// Nothing once closed, so that whoever still holds the sender does not hold the socket.
    socket: Mutex<Option<UnixStream>>,
}

/// The connection is closed; whatever was to be sent is of no use any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Closed;

impl Sender {
    /// Sends on `socket`.
    pub(crate) fn new(socket: UnixStream) -> Self {
        Self {
            socket: Mutex::new(Some(socket)),
        }
    }

    /// Sends one frame whole.
    ///
    /// # Errors
    /// [`Closed`]; the connection is closed by the first error.
    pub(crate) fn send(&self, kind: FrameKind, id: u32, payload: &[u8]) -> Result<(), Closed> {
        let header = encode_header(kind, id, payload.len());
        let mut socket = lock(&self.socket);
        let open = socket.as_ref().ok_or(Closed)?;
        if write_both(open, &header, payload).is_err() {
            // Half a frame may be out: nothing sensible can follow. The reader wakes up too.
            let _ = open.shutdown(Shutdown::Both);
            *socket = None;
            return Err(Closed);
        }
        Ok(())
    }

    /// Closes this half. Nobody may be blocked in [`Self::send`] for long any more.
    pub(crate) fn close(&self) {
        *lock(&self.socket) = None;
    }
}

fn write_both(mut socket: &UnixStream, header: &[u8], payload: &[u8]) -> io::Result<()> {
    let mut sent = 0;
    while sent < header.len() + payload.len() {
        let head = &header[sent.min(header.len())..];
        let body = &payload[sent.saturating_sub(header.len())..];
        match socket.write_vectored(&[IoSlice::new(head), IoSlice::new(body)]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => sent += written,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Why no frame can be read any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReceiveError {
    /// The socket ended or failed.
    #[error("the connection is lost")]
    Socket(#[from] io::Error),
    /// What came is not a frame.
    #[error("not a frame")]
    Frame(#[from] FrameError),
    /// A reply, which no host sends.
    #[error("a reply from the host")]
    Reply,
}

/// The receiving half of a connection.
#[derive(Debug)]
pub(crate) struct Receiver {
    socket: BufReader<UnixStream>,
}

impl Receiver {
    /// Receives on `socket`.
    pub(crate) fn new(socket: UnixStream) -> Self {
        Self {
            socket: BufReader::with_capacity(READ_BYTES, socket),
        }
    }

    /// The socket itself.
    pub(crate) fn socket(&self) -> &UnixStream {
        self.socket.get_ref()
    }

    /// Blocks until a whole frame is here.
    ///
    /// # Errors
    /// [`ReceiveError`]; the connection must be closed.
    pub(crate) fn receive(&mut self) -> Result<Frame, ReceiveError> {
        let mut header = [0; HEADER_BYTES];
        self.socket.read_exact(&mut header)?;
        let (kind, id, length) = decode_header(&header)?;
        // Not read at all: it can be as long as a request.
        if kind == FrameKind::Reply {
            return Err(ReceiveError::Reply);
        }
        // Grows with what arrives, not with what was announced.
        let mut payload = Vec::with_capacity(length.min(SMALL_PAYLOAD_MAX_BYTES));
        (&mut self.socket)
            .take(length as u64)
            .read_to_end(&mut payload)?;
        if payload.len() < length {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok(Frame { kind, id, payload })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_cross_and_rubbish_does_not() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (sender, mut receiver) = (Sender::new(ours), Receiver::new(theirs));
        sender.send(FrameKind::Data, 3, b"hello").unwrap();
        sender.send(FrameKind::End, 3, b"").unwrap();
        let data = receiver.receive().unwrap();
        assert_eq!((data.kind, data.id), (FrameKind::Data, 3));
        assert_eq!(data.payload, b"hello");
        assert_eq!(receiver.receive().unwrap(), Frame::empty(FrameKind::End, 3));

        sender
            .send(FrameKind::Reset, 3, &vec![0; SMALL_PAYLOAD_MAX_BYTES + 1])
            .unwrap_or(());
        assert!(matches!(
            receiver.receive(),
            Err(ReceiveError::Frame(FrameError::Length(_)))
        ));
        drop(receiver);
        assert_eq!(sender.send(FrameKind::End, 1, b""), Err(Closed));
        assert_eq!(sender.send(FrameKind::End, 1, b""), Err(Closed));
    }

    #[test]
    fn half_a_frame_is_an_error() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(&[200, 0, 0, 0, 2, 1, 0, 0, 0, 1, 2])
            .unwrap();
        drop(ours);
        assert!(matches!(
            Receiver::new(theirs).receive(),
            Err(ReceiveError::Socket(_))
        ));
    }
}
