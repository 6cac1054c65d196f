//! What goes out on one socket: a short queue and the one task that writes it.
//!
//! The queue is the back-pressure: while a client does not read, it fills, the tasks that feed it
//! wait, and nobody takes more bytes from the sandbox.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Sink, SinkExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message};
use tokio_util::sync::CancellationToken;

use super::memory::Held;
use super::wire;

/// Messages on their way.
const QUEUE_MESSAGES: usize = 32;

/// Bytes on their way: a few dozen messages of a stream. A longer message goes alone.
const QUEUE_BYTES: u32 = 4 << 20;

/// How often a ping without content goes out. Its only purpose is that the kernel notices a peer
/// that vanished; nobody waits for the pong, because a busy JavaScript program may be late with it.
const PING_INTERVAL: Duration = Duration::from_secs(30);

/// What a client that takes anything at all takes in a second. A longer message is given more time.
const RATE_MIN_BYTES: u64 = 1 << 20;

/// The sending end.
#[derive(Debug, Clone)]
pub(super) struct Outbox {
    queue: mpsc::Sender<Queued>,
    room: Arc<Semaphore>,
}

/// An item, and what it takes until it is written.
#[derive(Debug)]
pub(super) struct Queued {
    pub(super) item: Item,
    _room: Option<OwnedSemaphorePermit>,
    held: Held,
}

/// Something to send.
#[derive(Debug)]
pub(super) enum Item {
    /// A message.
    Text(String),
    /// A message of a stream, dropped if the client cancels the stream before it goes out.
    Stream {
        text: String,
        cancelled: CancellationToken,
    },
    /// A ping whose pong is waited for.
    Ping(Bytes),
    /// The last message.
    Close(CloseFrame),
}

impl Item {
    fn len(&self) -> usize {
        match self {
            Self::Text(text) | Self::Stream { text, .. } => text.len(),
            Self::Ping(_) | Self::Close(_) => 0,
        }
    }
}

/// The socket is gone; nobody will read what could not be sent.
#[derive(Debug)]
pub(super) struct Gone;

impl Outbox {
    /// A queue and its receiving end, for [`write()`].
    pub(super) fn new() -> (Self, mpsc::Receiver<Queued>) {
        let (queue, receiver) = mpsc::channel(QUEUE_MESSAGES);
        let room = Arc::new(Semaphore::new(QUEUE_BYTES as usize));
        (Self { queue, room }, receiver)
    }

    /// Queues an item, waiting for room.
    pub(super) async fn send(&self, item: Item) -> Result<(), Gone> {
        self.send_large(item, Held::default()).await
    }

    /// The same for an item that has rights to be in memory: they are given back when it is not
    /// there any more.
    pub(super) async fn send_large(&self, item: Item, held: Held) -> Result<(), Gone> {
        let length =
            u32::try_from(item.len()).map_or(QUEUE_BYTES, |length| length.min(QUEUE_BYTES));
        tokio::select! {
            room = self.room.clone().acquire_many_owned(length) => {
                let _room = room.ok();
                self.queue.send(Queued { item, _room, held }).await.map_err(|_| Gone)
            }
            () = self.queue.closed() => Err(Gone),
        }
    }

    /// Queues a message if there is room now.
    pub(super) fn offer(&self, text: String) {
        // Only for messages that the client can do without.
        let _ = self.queue.try_send(Queued {
            item: Item::Text(text),
            _room: None,
            held: Held::default(),
        });
    }
}

/// Writes the queue to `sink` until a close was written, the sink fails or `ended`; or until the
/// client has taken nothing for `stall_limit`, and as long again as its share of bytes may take.
/// Cancels `gone` on its way out.
pub(super) async fn write<S>(
    mut sink: S,
    mut queue: mpsc::Receiver<Queued>,
    stall_limit: Duration,
    ended: CancellationToken,
    gone: CancellationToken,
) where
    S: Sink<Message, Error: std::error::Error> + Unpin,
{
    let _gone = gone.drop_guard();
    let mut ping = interval(PING_INTERVAL);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ping.reset();
    let mut batch = Vec::with_capacity(QUEUE_MESSAGES);
    let writing = async {
        loop {
            tokio::select! {
                count = queue.recv_many(&mut batch, QUEUE_MESSAGES) => {
                    if count == 0 {
                        return Err::<(), _>(Stop::Over);
                    }
                }
                _ = ping.tick() => {
                    let sent = timeout(stall_limit, sink.send(Message::Ping(Bytes::new()))).await;
                    sent.map_err(|_| Stop::Stalled)??;
                    continue;
                }
            }
            let bytes: usize = batch.iter().map(|queued| queued.item.len()).sum();
            let limit = stall_limit + Duration::from_secs(bytes as u64 / RATE_MIN_BYTES);
            timeout(limit, write_batch(&mut sink, &mut batch))
                .await
                .map_err(|_| Stop::Stalled)??;
        }
    };
    tokio::select! {
        // Whether the peer is gone or everything is said, nothing is left to do.
        stop = writing => {
            if let Err(Stop::Stalled) = stop {
                tracing::info!("a client takes nothing: its connection is given up");
            }
        }
        () = ended.cancelled() => {}
    }
}

/// Why nothing more is written.
enum Stop {
    /// Everything is said, or the peer is gone.
    Over,
    /// The peer does not read.
    Stalled,
}

impl<E> From<E> for Stop
where
    E: std::error::Error,
{
    fn from(_: E) -> Self {
        Self::Over
    }
}

async fn write_batch<S>(sink: &mut S, batch: &mut Vec<Queued>) -> Result<(), Stop>
where
    S: Sink<Message, Error: std::error::Error> + Unpin,
{
    // Rights are kept until the socket's own buffer is empty.
    let mut rights = Vec::new();
    // The room is given back when an item is in the hands of the kernel, or nearly.
    for Queued { item, _room, held } in batch.drain(..) {
        rights.push(held);
        match item {
            Item::Text(text) => feed_text(sink, text).await?,
            // Trap 2: checked as late as possible, because the client may have cancelled while
            // the message was waiting.
            Item::Stream { cancelled, .. } if cancelled.is_cancelled() => {}
            Item::Stream { text, .. } => feed_text(sink, text).await?,
            Item::Ping(payload) => sink.feed(Message::Ping(payload)).await?,
            Item::Close(frame) => {
                sink.send(Message::Close(Some(frame))).await?;
                return Err(Stop::Over);
            }
        }
    }
    sink.flush().await?;
    Ok(())
}

/// Hands over a text. A long one goes out in frames: while the client does not take them the socket
/// is not ready for the next, so that its own buffer never holds more than a few.
async fn feed_text<S>(sink: &mut S, text: String) -> Result<(), S::Error>
where
    S: Sink<Message> + Unpin,
{
    for frame in wire::frames(text) {
        sink.feed(frame).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn trap_2_nothing_of_a_cancelled_stream_goes_out() {
        let (outbox, queue) = Outbox::new();
        let cancelled = CancellationToken::new();
        let item = |text: &str| Item::Stream {
            text: text.to_owned(),
            cancelled: cancelled.clone(),
        };
        outbox
            .send(item("end of a cancelled stream"))
            .await
            .unwrap();
        outbox.send(Item::Text("other".to_owned())).await.unwrap();
        cancelled.cancel();
        drop(outbox);
        let mut written = Vec::new();
        let sink = futures_util::sink::unfold(&mut written, |written, message: Message| async {
            written.push(message);
            Ok::<_, std::convert::Infallible>(written)
        });
        write(
            std::pin::pin!(sink),
            queue,
            Duration::from_secs(1),
            CancellationToken::new(),
            CancellationToken::new(),
        )
        .await;
        let other: Vec<_> = wire::frames("other".to_owned()).collect();
        assert_eq!(written, other);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_given_up() {
        let (outbox, queue) = Outbox::new();
        let message = "x".repeat(1 << 20);
        outbox.send(Item::Text(message)).await.unwrap();
        let sink = futures_util::sink::unfold((), |(), _: Message| {
            std::future::pending::<Result<(), std::convert::Infallible>>()
        });
        let (ended, gone) = (CancellationToken::new(), CancellationToken::new());
        let begun = tokio::time::Instant::now();
        let limit = Duration::from_secs(60);
        write(std::pin::pin!(sink), queue, limit, ended, gone.clone()).await;
        assert!(gone.is_cancelled());
        // A megabyte has a second more.
        assert_eq!(begun.elapsed(), Duration::from_secs(61));
        assert!(outbox.send(Item::Text(String::new())).await.is_err());
    }
}
