//! The host's end of the agent protocol: many calls and streams over one connection.
//!
//! The agent is not trusted. It can answer nonsense or nothing, but it cannot make the host keep
//! more than one window of bytes per stream, and a frame that breaks the protocol closes the
//! connection.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use sandstone_protocol::frame::{
    Frame, FrameKind, HEADER_BYTES, PAYLOAD_MAX_BYTES, WINDOW_BYTES, decode_header,
};
use sandstone_protocol::message::{self, Answer, Failure, Hello, Reply, Request};
use sandstone_protocol::{GENERATION, GENERATION_MIN};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, oneshot, watch};

/// How long the agent may take to say hello. It runs already, so a second is generous.
const HELLO_LIMIT: Duration = Duration::from_secs(5);

mod dial;
mod stream;

pub use dial::AgentSocket;
pub use stream::{InboundStream, OutboundStream, StreamError};

/// A call did not give an answer.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The agent did what it was asked and failed.
    #[error(transparent)]
    Refused(Failure),
    /// The connection is gone, or the agent broke the protocol.
    #[error("the connection to the sandbox is lost: {0}")]
    Lost(String),
}

/// A connection to the agent of one sandbox. Cheap to share; the connection closes when the last
/// handle is dropped.
pub struct AgentClient {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// Wakes the writer.
    outgoing: Notify,
    closed: watch::Sender<bool>,
}

struct State {
    next_id: u32,
    /// Encoded frames on their way out. Data is bounded by the credit of the streams, requests by
    /// the number of callers.
    queue: VecDeque<Bytes>,
    calls: HashMap<u32, oneshot::Sender<Reply>>,
    inbound: HashMap<u32, Inbound>,
    outbound: HashMap<u32, Outbound>,
    /// Why the connection ended.
    end: Option<String>,
}

struct Inbound {
    chunks: VecDeque<Bytes>,
    /// Bytes the agent may still send.
    window: u32,
    end: Option<Result<(), StreamError>>,
    wake: Arc<Notify>,
}

struct Outbound {
    credit: u64,
    end: Option<StreamError>,
    wake: Arc<Notify>,
}

impl fmt::Debug for AgentClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentClient")
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}

impl AgentClient {
    /// Takes over a fresh connection: exchanges hellos and starts to serve it.
    ///
    /// # Errors
    /// [`AgentError::Lost`] when the agent does not say hello in time or speaks no generation we
    /// know.
    pub async fn connect<S>(mut stream: S) -> Result<Arc<Self>, AgentError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        tokio::time::timeout(HELLO_LIMIT, exchange_hellos(&mut stream))
            .await
            .map_err(|_| AgentError::Lost("the agent did not say hello in time".to_owned()))?
            .map_err(|error| AgentError::Lost(error.to_string()))?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                next_id: 0,
                queue: VecDeque::new(),
                calls: HashMap::new(),
                inbound: HashMap::new(),
                outbound: HashMap::new(),
                end: None,
            }),
            outgoing: Notify::new(),
            closed: watch::Sender::new(false),
        });
        let (read, write) = tokio::io::split(stream);
        tokio::spawn(pump(
            Arc::downgrade(&shared),
            shared.closed.subscribe(),
            read,
            write,
        ));
        Ok(Arc::new(Self { shared }))
    }

    /// Asks the agent and waits for its answer, however long that takes. Dropping the future
    /// forgets the answer; the agent still acts.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn call(&self, request: Request) -> Result<Answer, AgentError> {
        let payload = message::encode(&request);
        if payload.len() > PAYLOAD_MAX_BYTES {
            // E2BIG: no name and no list of arguments may be that long.
            return Err(AgentError::Refused(Failure {
                errno: Some(7),
                message: format!("a request of {} bytes is too long", payload.len()),
            }));
        }
        let (sender, receiver) = oneshot::channel();
        {
            let mut state = self.shared.lock();
            if let Some(end) = &state.end {
                return Err(AgentError::Lost(end.clone()));
            }
            let id = state.take_id();
            state.calls.insert(id, sender);
            state.push(&Frame {
                kind: FrameKind::Request,
                id,
                payload,
            });
        }
        self.shared.outgoing.notify_one();
        match receiver.await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(failure)) => Err(AgentError::Refused(failure)),
            Err(_) => Err(AgentError::Lost(self.shared.end_reason())),
        }
    }

    /// A stream that a request is about to hand to the agent for writing.
    #[must_use]
    pub fn inbound(&self) -> InboundStream {
        let wake = Arc::new(Notify::new());
        let mut state = self.shared.lock();
        let id = state.take_id();
        let end = state.end.as_ref().map(|_| Err(StreamError::Lost));
        state.inbound.insert(
            id,
            Inbound {
                chunks: VecDeque::new(),
                window: WINDOW_BYTES,
                end,
                wake: wake.clone(),
            },
        );
        InboundStream::new(self.shared.clone(), id, wake)
    }

    /// A stream that a request is about to hand to the agent for reading.
    #[must_use]
    pub fn outbound(&self) -> OutboundStream {
        let wake = Arc::new(Notify::new());
        let mut state = self.shared.lock();
        let id = state.take_id();
        let end = state.end.as_ref().map(|_| StreamError::Lost);
        state.outbound.insert(
            id,
            Outbound {
                credit: u64::from(WINDOW_BYTES),
                end,
                wake: wake.clone(),
            },
        );
        OutboundStream::new(self.shared.clone(), id, wake)
    }

    /// An id that nothing else on this connection has, for a file that a request opens.
    #[must_use]
    pub fn fresh_id(&self) -> u32 {
        self.shared.lock().take_id()
    }

    /// Whether the connection is gone.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        *self.shared.closed.borrow()
    }

    /// Waits until the connection is gone.
    pub async fn closed(&self) {
        let mut closed = self.shared.closed.subscribe();
        // The sender lives in `shared`, which we hold, so this cannot fail.
        let _ = closed.wait_for(|closed| *closed).await;
    }
}

impl Drop for AgentClient {
    fn drop(&mut self) {
        self.shared.close("the connection was closed");
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end_reason(&self) -> String {
        self.lock()
            .end
            .clone()
            .unwrap_or_else(|| "no answer came".to_owned())
    }

    fn close(&self, reason: &str) {
        {
            let mut state = self.lock();
            if state.end.is_some() {
                return;
            }
            state.end = Some(reason.to_owned());
            state.calls.clear();
            for stream in state.inbound.values_mut() {
                if stream.end.is_none() {
                    stream.end = Some(Err(StreamError::Lost));
                }
                stream.wake.notify_one();
            }
            for stream in state.outbound.values_mut() {
                stream.end.get_or_insert(StreamError::Lost);
                stream.wake.notify_one();
            }
        }
        self.closed.send_replace(true);
        self.outgoing.notify_one();
    }

    /// Acts on one frame of the agent; the reason when it breaks the protocol.
    fn receive(&self, kind: FrameKind, id: u32, payload: Bytes) -> Result<(), String> {
        let mut state = self.lock();
        match kind {
            FrameKind::Reply => {
                let reply: Reply =
                    message::decode("reply", &payload).map_err(|error| error.to_string())?;
                if let Some(call) = state.calls.remove(&id) {
                    // The caller may have gone; then nobody wants the answer.
                    let _ = call.send(reply);
                }
            }
            FrameKind::Data => {
                if let Some(stream) = state.inbound.get_mut(&id)
                    && stream.end.is_none()
                {
                    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
                    stream.window = stream
                        .window
                        .checked_sub(length)
                        .ok_or_else(|| format!("stream {id} exceeds its credit"))?;
                    stream.take_in(payload);
                    stream.wake.notify_one();
                }
            }
            FrameKind::End => {
                if let Some(stream) = state.inbound.get_mut(&id) {
                    stream.end.get_or_insert(Ok(()));
                    stream.wake.notify_one();
                }
            }
            FrameKind::Credit => {
                let grant: [u8; 4] = payload
                    .as_ref()
                    .try_into()
                    .map_err(|_| "malformed credit".to_owned())?;
                if let Some(stream) = state.outbound.get_mut(&id) {
                    stream.credit += u64::from(u32::from_le_bytes(grant));
                    stream.wake.notify_one();
                }
            }
            FrameKind::Reset => {
                let failure = message::decode::<Failure>("reset", &payload).ok();
                if let Some(stream) = state.inbound.get_mut(&id) {
                    stream.end.get_or_insert(Err(StreamError::Reset(failure)));
                    stream.wake.notify_one();
                } else if let Some(stream) = state.outbound.get_mut(&id) {
                    stream.end.get_or_insert(StreamError::Reset(failure));
                    stream.wake.notify_one();
                }
            }
            FrameKind::Hello | FrameKind::Request => {
                return Err(format!("unexpected {kind:?} frame"));
            }
        }
        Ok(())
    }
}

impl Inbound {
    /// Keeps `payload`. Small pieces are joined, so that a flood of one-byte frames costs bytes
    /// and not allocations.
    fn take_in(&mut self, payload: Bytes) {
        const SMALL: usize = 4096;
        if payload.len() < SMALL
            && let Some(last) = self.chunks.back_mut()
            && last.len() < SMALL
        {
            let mut joined = BytesMut::with_capacity(last.len() + payload.len());
            joined.extend_from_slice(last);
            joined.extend_from_slice(&payload);
            *last = joined.freeze();
        } else {
            self.chunks.push_back(payload);
        }
    }
}

impl State {
    /// The next unused id. Four thousand million per connection are never used up.
    fn take_id(&mut self) -> u32 {
        self.next_id += 1;
        self.next_id
    }

    fn push(&mut self, frame: &Frame) {
        if self.end.is_none() {
            self.queue.push_back(frame.encode().into());
        }
    }
}

async fn exchange_hellos<S>(stream: &mut S) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let hello = message::encode(&Hello {
        generation: GENERATION,
    });
    stream
        .write_all(
            &Frame {
                kind: FrameKind::Hello,
                id: 0,
                payload: hello,
            }
            .encode(),
        )
        .await?;
    stream.flush().await?;
    let (kind, _, payload) = read_frame(stream).await?;
    if kind != FrameKind::Hello {
        return Err(io::Error::other("the agent did not begin with a hello"));
    }
    let theirs: Hello = message::decode("hello", &payload).map_err(io::Error::other)?;
    if theirs.generation < GENERATION_MIN {
        return Err(io::Error::other(format!(
            "the agent speaks generation {}, we need {GENERATION_MIN}",
            theirs.generation
        )));
    }
    Ok(())
}

async fn read_frame<R>(stream: &mut R) -> io::Result<(FrameKind, u32, Bytes)>
where
    R: AsyncRead + Unpin,
{
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header).await?;
    let (kind, id, length) = decode_header(&header).map_err(io::Error::other)?;
    let mut payload = BytesMut::with_capacity(length);
    let mut rest = (&mut *stream).take(length as u64);
    while payload.len() < length {
        if rest.read_buf(&mut payload).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok((kind, id, payload.freeze()))
}

/// Serves one connection until either side ends it. Holds `shared` only while it acts, so that
/// dropping the last client ends it.
async fn pump<R, W>(shared: Weak<Shared>, mut closed: watch::Receiver<bool>, mut read: R, write: W)
where
    R: AsyncRead + Send + Unpin + 'static,
    W: AsyncWrite + Send + Unpin + 'static,
{
    let writer = tokio::spawn(write_frames(shared.clone(), write));
    let reason = loop {
        let frame = tokio::select! {
            frame = read_frame(&mut read) => frame,
            _ = closed.wait_for(|closed| *closed) => break "the connection was closed".to_owned(),
        };
        let Some(shared) = shared.upgrade() else {
            break "nobody is left".to_owned();
        };
        let outcome = match frame {
            Ok((kind, id, payload)) => shared.receive(kind, id, payload),
            Err(error) => Err(error.to_string()),
        };
        if let Err(reason) = outcome {
            break reason;
        }
    };
    tracing::debug!(%reason, "agent connection ended");
    if let Some(shared) = shared.upgrade() {
        shared.close(&reason);
    }
    // The writer ends by itself: `close` woke it.
    let _ = writer.await;
}

async fn write_frames<W>(shared: Weak<Shared>, mut write: W)
where
    W: AsyncWrite + Unpin,
{
    /// Frames are gathered into writes of about this size.
    const BATCH_BYTES: usize = 256 << 10;
    loop {
        let mut batch = BytesMut::new();
        {
            let Some(shared) = shared.upgrade() else {
                return;
            };
            let woken = shared.outgoing.notified();
            let closed = {
                let mut state = shared.lock();
                while batch.len() < BATCH_BYTES
                    && let Some(frame) = state.queue.pop_front()
                {
                    batch.extend_from_slice(&frame);
                }
                state.end.is_some()
            };
            if batch.is_empty() {
                if closed {
                    return;
                }
                woken.await;
                continue;
            }
        }
        while batch.has_remaining() {
            match write.write_buf(&mut batch).await {
                Ok(count) if count > 0 => {}
                _ => {
                    if let Some(shared) = shared.upgrade() {
                        shared.close("the sandbox does not read any more");
                    }
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
