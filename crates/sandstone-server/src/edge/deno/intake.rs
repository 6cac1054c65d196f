//! What comes in on a connection, before the WebSocket library sees it.
//!
//! A client may say that a frame of 256 MiB follows, send all but a byte, and wait; and the
//! library keeps the buffer of the longest frame that came. So frames are cut here: the library
//! gets the same bytes in frames of [`FRAME_MAX_BYTES`], and a new buffer for each message. A
//! message has to arrive at some pace, and few long ones arrive at a time on the whole server.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::PollSemaphore;

use super::wire::{FRAME_MAX_BYTES, MESSAGE_MAX_BYTES};

/// Where frames begin is read from here; most of a long frame goes past it.
const HEAD_BUFFER_BYTES: usize = 4 << 10;

/// Longest beginning of a frame: RFC 6455, section 5.2, with a length of 8 bytes and a mask.
const HEAD_MAX_BYTES: usize = 14;

/// How long a message may be waited for, whatever its length.
const PATIENCE: Duration = Duration::from_secs(60);

/// How much longer for each MiB that has come: 4 Mbit/s, which is a slow line.
const PATIENCE_PER_MIB: Duration = Duration::from_secs(2);

/// A message beyond this needs one of [`LONG_MESSAGES_MAX`] rights to arrive.
const LONG_MESSAGE_BYTES: u64 = 4 << 20;

/// Long messages that arrive at once on the whole server: 2 GiB, if all are of the longest kind.
const LONG_MESSAGES_MAX: usize = 8;

/// The bits of a frame's first byte (RFC 6455, section 5.2).
const FIN: u8 = 0x80;
const CONTROL: u8 = 0x08;

/// The rights of the whole server to receive long messages.
#[derive(Debug, Clone)]
pub(in crate::edge) struct LongMessages(Arc<Semaphore>);

impl Default for LongMessages {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(LONG_MESSAGES_MAX)))
    }
}

/// The reading half of a connection, with what is written passed on as it is.
#[derive(Debug)]
pub(super) struct Intake<S> {
    connection: BufReader<S>,
    head: Head,
    frame: Frame,
    /// Of the message that is arriving, what has come.
    received: u64,
    /// And what is known to come.
    announced: u64,
    clock: Clock,
    rights: PollSemaphore,
    right: Option<OwnedSemaphorePermit>,
}

/// The beginning of a frame, on its way in or out.
#[derive(Debug, Default)]
struct Head {
    bytes: [u8; HEAD_MAX_BYTES],
    length: usize,
    /// Bytes of it that the library has been given; none while it is read.
    given: Option<usize>,
}

/// What follows the head.
#[derive(Debug, Default)]
struct Frame {
    first: u8,
    mask: Option<[u8; 4]>,
    /// Bytes still to come of the piece whose head was given.
    piece: u64,
    /// Bytes still to come after that.
    rest: u64,
}

/// How long the client has been waited for.
#[derive(Debug, Default)]
struct Clock {
    spent: Duration,
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl Head {
    /// How long it is, as far as its first bytes tell.
    fn wanted(&self) -> usize {
        if self.length < 2 {
            return 2;
        }
        let length = match self.bytes[1] & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mask = if self.bytes[1] & 0x80 == 0 { 0 } else { 4 };
        2 + length + mask
    }

    /// The frame that it begins, before any of that is cut off.
    fn read(&self) -> Frame {
        let number = |bytes: &[u8]| {
            bytes
                .iter()
                .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
        };
        let rest = match self.bytes[1] & 0x7f {
            126 => number(&self.bytes[2..4]),
            127 => number(&self.bytes[2..10]),
            short => u64::from(short),
        };
        let is_masked = self.bytes[1] & 0x80 != 0;
        Frame {
            first: self.bytes[0],
            mask: self.bytes[..self.length]
                .last_chunk()
                .copied()
                .filter(|_| is_masked),
            piece: 0,
            rest,
        }
    }

    /// Writes the head of the next piece.
    fn write(&mut self, frame: &Frame, first: u8) {
        let mask = if frame.mask.is_some() { 0x80 } else { 0 };
        self.bytes[0] = first;
        self.length = if let Ok(short @ 0..126) = u8::try_from(frame.piece) {
            self.bytes[1] = mask | short;
            2
        } else if let Ok(length) = u16::try_from(frame.piece) {
            self.bytes[1] = mask | 126;
            self.bytes[2..4].copy_from_slice(&length.to_be_bytes());
            4
        } else {
            self.bytes[1] = mask | 127;
            self.bytes[2..10].copy_from_slice(&frame.piece.to_be_bytes());
            10
        };
        if let Some(mask) = frame.mask {
            self.bytes[self.length..self.length + 4].copy_from_slice(&mask);
            self.length += 4;
        }
        self.given = Some(0);
    }
}

impl Clock {
    /// Something came.
    fn stop(&mut self) {
        if let Some((since, _)) = self.waiting.take() {
            self.spent += since.elapsed();
        }
    }

    /// Nothing has come; ready when that has lasted for too long.
    fn poll_over(&mut self, received: u64, cx: &mut Context<'_>) -> Poll<()> {
        let mib = u32::try_from(received >> 20).unwrap_or(u32::MAX);
        let allowed = PATIENCE + PATIENCE_PER_MIB.saturating_mul(mib);
        let spent = self.spent;
        let (_, sleep) = self.waiting.get_or_insert_with(|| {
            let now = Instant::now();
            let until = now + allowed.saturating_sub(spent);
            (now, Box::pin(sleep_until(until)))
        });
        sleep.as_mut().poll(cx)
    }
}

impl<S: AsyncRead + Unpin> Intake<S> {
    pub(super) fn new(connection: S, long: &LongMessages) -> Self {
        Self {
            connection: BufReader::with_capacity(HEAD_BUFFER_BYTES, connection),
            head: Head::default(),
            frame: Frame::default(),
            received: 0,
            announced: 0,
            clock: Clock::default(),
            rights: PollSemaphore::new(long.0.clone()),
            right: None,
        }
    }

    /// A frame begins.
    fn begin_frame(&mut self) {
        self.frame = self.head.read();
        if self.frame.first & CONTROL == 0 {
            self.announced = self.announced.saturating_add(self.frame.rest);
        }
        self.next_piece(self.frame.first & !FIN);
    }

    /// Cuts a piece off the frame. `first` is its first byte, without the end mark.
    fn next_piece(&mut self, first: u8) {
        let frame = &mut self.frame;
        // The library refuses a frame that is too long, by its length alone.
        let is_cut = frame.rest > FRAME_MAX_BYTES as u64 && frame.rest <= MESSAGE_MAX_BYTES as u64;
        frame.piece = if is_cut {
            // A multiple of four, so that the mask fits on the next piece as well.
            FRAME_MAX_BYTES as u64
        } else {
            frame.rest
        };
        frame.rest -= frame.piece;
        let end = if frame.rest == 0 {
            frame.first & FIN
        } else {
            0
        };
        self.head.write(frame, first | end);
        if frame.piece == 0 {
            self.end_piece();
        }
    }

    /// All bytes of a piece are given, or there are none.
    fn end_piece(&mut self) {
        if self.frame.first & (FIN | CONTROL) == FIN && self.frame.rest == 0 {
            self.received = 0;
            self.announced = 0;
            self.clock = Clock::default();
            self.right = None;
        }
    }

    /// The right to receive what is announced.
    fn poll_right(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.announced > LONG_MESSAGE_BYTES && self.right.is_none() {
            self.right = ready!(self.rights.poll_acquire(cx));
        }
        Poll::Ready(())
    }

    /// Bytes of the frame, into `buffer`.
    fn poll_payload(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let left = usize::try_from(self.frame.piece).unwrap_or(usize::MAX);
        let wanted = left.min(buffer.remaining());
        let mut part = ReadBuf::new(buffer.initialize_unfilled_to(wanted));
        ready!(Pin::new(&mut self.connection).poll_read(cx, &mut part))?;
        let read = part.filled().len();
        buffer.advance(read);
        self.frame.piece -= read as u64;
        if self.frame.first & CONTROL == 0 {
            self.received += read as u64;
        }
        if self.frame.piece == 0 {
            self.end_piece();
        }
        Poll::Ready(Ok(()))
    }

    /// Reads on until a head is complete; false at the end of the connection.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        while self.head.length < self.head.wanted() {
            let bytes = ready!(Pin::new(&mut self.connection).poll_fill_buf(cx))?;
            if bytes.is_empty() {
                return Poll::Ready(Ok(false));
            }
            let head = &mut self.head;
            let count = bytes.len().min(head.wanted() - head.length);
            head.bytes[head.length..head.length + count].copy_from_slice(&bytes[..count]);
            head.length += count;
            Pin::new(&mut self.connection).consume(count);
        }
        Poll::Ready(Ok(true))
    }

    fn poll_bytes(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if let Some(given) = self.head.given {
                let rest = &self.head.bytes[given..self.head.length];
                let count = rest.len().min(buffer.remaining());
                buffer.put_slice(&rest[..count]);
                if count < rest.len() {
                    self.head.given = Some(given + count);
                } else {
                    self.head = Head::default();
                }
                return Poll::Ready(Ok(()));
            } else if self.frame.piece > 0 {
                return self.poll_payload(cx, buffer);
            } else if self.frame.rest > 0 {
                // A continuation.
                self.next_piece(0);
            } else if ready!(self.poll_head(cx))? {
                self.begin_frame();
            } else {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Intake<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.head.given.is_none() {
            // Whoever waits for others is not late.
            ready!(this.poll_right(cx));
        }
        if let Poll::Ready(read) = this.poll_bytes(cx, buffer) {
            this.clock.stop();
            return Poll::Ready(read);
        }
        // Only the time in which the client is waited for counts: it is not read from while there
        // is no room for what it sends.
        if this.announced > 0 && this.clock.poll_over(this.received, cx).is_ready() {
            let why = "the client does not send the rest of its message";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, why)));
        }
        Poll::Pending
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Intake<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, SinkExt, StreamExt};
    use tokio::io::{AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::timeout;
    use tokio_tungstenite::WebSocketStream;
    use tokio_tungstenite::tungstenite::protocol::{Message, Role};
    use tokio_tungstenite::tungstenite::{Error, error::CapacityError};

    use super::super::wire::config;
    use super::*;

    /// A server's socket, and the client's end of its connection.
    async fn socket(long: &LongMessages) -> (WebSocketStream<Intake<DuplexStream>>, DuplexStream) {
        let (ours, theirs) = duplex(1000);
        let config = config().max_frame_size(Some(FRAME_MAX_BYTES));
        let intake = Intake::new(ours, long);
        let server = WebSocketStream::from_raw_socket(intake, Role::Server, Some(config)).await;
        (server, theirs)
    }

    /// The head of a text that is masked with zeros.
    fn head(length: u32) -> [u8; 14] {
        let mut head = [0; 14];
        (head[0], head[1]) = (FIN | 1, 0x80 | 127);
        head[6..10].copy_from_slice(&length.to_be_bytes());
        head
    }

    #[tokio::test]
    async fn the_library_sees_no_long_frame_and_the_same_messages() {
        let (mut server, theirs) = socket(&LongMessages::default()).await;
        let mut client = WebSocketStream::from_raw_socket(theirs, Role::Client, None).await;
        let lengths = [0, 1, 125, 126, 65535, 65536, FRAME_MAX_BYTES]
            .into_iter()
            .chain([1, 2, 3, 4, 5].map(|more| FRAME_MAX_BYTES + more))
            .chain([5 * FRAME_MAX_BYTES + 17, LONG_MESSAGE_BYTES as usize + 1]);
        for length in lengths {
            let text: String = ('a'..='z').cycle().take(length).collect();
            let messages = [
                Message::Text(text.clone().into()),
                Message::Ping("x".into()),
                Message::Binary(text.into()),
            ];
            for message in messages {
                let (sent, got) = tokio::join!(client.send(message.clone()), server.next());
                sent.unwrap();
                assert!(got.unwrap().unwrap() == message, "{length}");
            }
        }
    }

    #[tokio::test]
    async fn a_message_in_pieces_of_the_client_is_one_message() {
        let (mut server, mut client) = socket(&LongMessages::default()).await;
        // A ping comes between the two halves.
        let bytes = [
            &[1, 0x81, 0, 0, 0, 0, b'a'][..],
            &[FIN | 9, 0x80, 0, 0, 0, 0],
            &[FIN, 0x81, 0, 0, 0, 0, b'b'],
        ];
        client.write_all(&bytes.concat()).await.unwrap();
        assert_eq!(
            server.next().await.unwrap().unwrap(),
            Message::Ping("".into())
        );
        assert_eq!(server.get_ref().announced, 1);
        assert_eq!(
            server.next().await.unwrap().unwrap(),
            Message::Text("ab".into())
        );
        assert_eq!(server.get_ref().announced, 0);
    }

    #[tokio::test]
    async fn a_frame_that_is_too_long_is_refused_by_its_head() {
        let (mut server, mut client) = socket(&LongMessages(Arc::new(Semaphore::new(0)))).await;
        let length = u32::try_from(MESSAGE_MAX_BYTES + 1).unwrap();
        client.write_all(&head(length)).await.unwrap();
        let refused = server.next().await.unwrap();
        assert!(matches!(
            refused,
            Err(Error::Capacity(CapacityError::MessageTooLong { .. }))
        ));
    }

    #[tokio::test(start_paused = true)]
    async fn the_rest_of_a_message_is_not_waited_for_for_ever() {
        let (mut server, mut client) = socket(&LongMessages::default()).await;
        let hour = Duration::from_secs(3600);
        assert!(timeout(hour, server.next()).await.is_err(), "idle");
        let begun = Instant::now();
        let length = 1 << 20;
        let sending = async {
            client.write_all(&head(length + 1)).await.unwrap();
            client.write_all(&[b'a'; 1000]).await.unwrap();
            // Time in which the client is waited for adds up.
            tokio::time::sleep(PATIENCE / 2).await;
            let rest = vec![b'a'; length as usize - 1000];
            client.write_all(&rest).await.unwrap();
        };
        let (got, ()) = tokio::join!(server.next(), sending);
        let Err(Error::Io(error)) = got.unwrap() else {
            panic!("not refused");
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let taken = begun.elapsed();
        let allowed = PATIENCE + PATIENCE_PER_MIB;
        assert!(
            taken >= allowed && taken < allowed + Duration::from_millis(100),
            "{taken:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn few_long_messages_arrive_at_once() {
        let long = LongMessages(Arc::new(Semaphore::new(1)));
        let (mut first, mut first_client) = socket(&long).await;
        let (mut second, mut second_client) = socket(&long).await;
        let length = u32::try_from(LONG_MESSAGE_BYTES + 1).unwrap();
        first_client.write_all(&head(length)).await.unwrap();
        assert!(first.next().now_or_never().is_none());
        let content = vec![b'a'; length as usize];
        let short = [FIN | 1, 0x81, 0, 0, 0, 0, b'a'];
        let sending = async {
            second_client.write_all(&short).await.unwrap();
            second_client.write_all(&head(length)).await.unwrap();
            second_client.write_all(&content).await.unwrap();
        };
        let waiting = async {
            let got = second.next().await.unwrap().unwrap();
            assert_eq!(got, Message::Text("a".into()), "a short one needs no right");
            second.next().await.unwrap().unwrap()
        };
        let mut waiting = std::pin::pin!(async { tokio::join!(sending, waiting).1 });
        // As long as the first is waited for, and not a moment of it is counted.
        assert!(timeout(PATIENCE / 2, &mut waiting).await.is_err());
        let (sent, got) = tokio::join!(first_client.write_all(&content), first.next());
        sent.unwrap();
        assert_eq!(got.unwrap().unwrap().len(), content.len());
        assert_eq!(waiting.await.len(), content.len());
        assert_eq!(long.0.available_permits(), 1);
    }
}
