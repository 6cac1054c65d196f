//! The host's end of the agent protocol: many calls and streams over one connection.
//!
//! The agent is not trusted. It can answer nonsense or nothing, but it cannot make the host keep
//! more than one window of bytes per stream, a bounded answer per call and a bounded queue of
//! frames that it does not take. A frame that breaks the protocol closes the connection.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use sandstone_protocol::frame::{Frame, PAYLOAD_MAX_BYTES, WINDOW_BYTES};
use sandstone_protocol::message::{
    self, Answer, Failure, REQUESTS_MAX, Reply, Request, STREAMS_MAX, StreamId,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, oneshot, watch};

/// How long the agent may take to say hello. It runs already, so a second is generous.
const HELLO_LIMIT: Duration = Duration::from_secs(5);

/// Streams of this connection at once. Some less than the agent takes, so that it is the one who
/// asks too much that is refused here, and not somebody's request there.
const OPEN_STREAMS_MAX: usize = STREAMS_MAX - 96;

/// A longer reply is decoded where it keeps no other task waiting, bytes: it takes milliseconds.
const LARGE_REPLY_BYTES: usize = 1 << 20;

/// `E2BIG`.
const TOO_BIG: i32 = 7;

/// `EAGAIN`.
const TRY_AGAIN: i32 = 11;

mod dial;
mod incoming;
mod outgoing;
mod stream;

use incoming::exchange_hellos;
use outgoing::Outgoing;

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
    wake_writer: Notify,
    /// Wakes those who wait to send data when there is room for it again.
    room: Notify,
    closed: watch::Sender<bool>,
}

struct State {
    next_id: u32,
    outgoing: Outgoing,
    /// Requests that have no reply; also those whose caller has gone, if they were sent.
    calls: HashMap<u32, Call>,
    inbound: HashMap<u32, Inbound>,
    outbound: HashMap<u32, Outbound>,
    /// Why the connection ended.
    end: Option<String>,
}

struct Call {
    /// Takes the encoded reply.
    reply: oneshot::Sender<Bytes>,
    reply_max_bytes: usize,
}

struct Inbound {
    chunks: VecDeque<Bytes>,
    /// Bytes the agent may still send.
    window: u32,
    end: Option<Result<(), StreamError>>,
    wake: Arc<Notify>,
}

struct Outbound {
    /// Bytes we may send, never more than a window.
    credit: u32,
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
                outgoing: Outgoing::default(),
                calls: HashMap::new(),
                inbound: HashMap::new(),
                outbound: HashMap::new(),
                end: None,
            }),
            wake_writer: Notify::new(),
            room: Notify::new(),
            closed: watch::Sender::new(false),
        });
        let (read, write) = tokio::io::split(stream);
        tokio::spawn(incoming::pump(
            Arc::downgrade(&shared),
            shared.closed.subscribe(),
            read,
            write,
        ));
        Ok(Arc::new(Self { shared }))
    }

    /// Asks the agent and waits for its answer, however long that takes. Dropping the future
    /// forgets the answer; the agent still acts if the request was sent.
    ///
    /// # Errors
    /// [`AgentError`]; `E2BIG` for a request that is too long, `EAGAIN` when too much is under way.
    pub async fn call(&self, request: Request) -> Result<Answer, AgentError> {
        let (pending, reply) = self.begin(&request)?;
        drop(request);
        let outcome = reply.await;
        drop(pending);
        let Ok(payload) = outcome else {
            return Err(AgentError::Lost(self.shared.end_reason()));
        };
        match decode_reply(payload).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(failure)) => Err(AgentError::Refused(failure)),
            Err(reason) => {
                self.shared.close(&reason);
                Err(AgentError::Lost(reason))
            }
        }
    }

    fn begin(
        &self,
        request: &Request,
    ) -> Result<(Pending<'_>, oneshot::Receiver<Bytes>), AgentError> {
        let payload = message::encode(request);
        let streams = request.streams();
        let mut state = self.shared.lock();
        if let Some(end) = &state.end {
            return Err(AgentError::Lost(end.clone()));
        }
        let id = state.take_id();
        if let Err(failure) = state.queue_request(id, payload, &streams) {
            state.give_up(&streams, &failure);
            return Err(AgentError::Refused(failure));
        }
        let (sender, receiver) = oneshot::channel();
        let call = Call {
            reply: sender,
            reply_max_bytes: request.reply_max_bytes(),
        };
        state.calls.insert(id, call);
        self.shared.wake_writer.notify_one();
        let shared = &self.shared;
        Ok((Pending { shared, id }, receiver))
    }

    /// A stream that a request is about to hand to the agent for writing. When too many are open
    /// it has ended already, and the request is refused with `EAGAIN`.
    #[must_use]
    pub fn inbound(&self) -> InboundStream {
        let wake = Arc::new(Notify::new());
        let mut state = self.shared.lock();
        let id = state.take_id();
        let is_refused = !state.has_room_for_stream();
        if !is_refused {
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
        }
        InboundStream::new(self.shared.clone(), id, wake, is_refused)
    }

    /// A stream that a request is about to hand to the agent for reading. When too many are open
    /// it has ended already, and the request is refused with `EAGAIN`.
    #[must_use]
    pub fn outbound(&self) -> OutboundStream {
        let wake = Arc::new(Notify::new());
        let mut state = self.shared.lock();
        let id = state.take_id();
        let is_refused = !state.has_room_for_stream();
        if !is_refused {
            let end = state.end.as_ref().map(|_| StreamError::Lost);
            state.outbound.insert(
                id,
                Outbound {
                    credit: WINDOW_BYTES,
                    end,
                    wake: wake.clone(),
                },
            );
        }
        OutboundStream::new(self.shared.clone(), id, wake, is_refused)
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

/// A request whose answer somebody waits for.
struct Pending<'a> {
    shared: &'a Shared,
    id: u32,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        // One that was sent will be answered, so its id stays known until then.
        if state.outgoing.withdraw(self.id) {
            state.calls.remove(&self.id);
        }
    }
}

fn too_many_streams() -> Failure {
    Failure {
        errno: Some(TRY_AGAIN),
        message: format!("this sandbox has {OPEN_STREAMS_MAX} streams open; end some"),
    }
}

/// Decodes a reply; the reason when it is none.
async fn decode_reply(payload: Bytes) -> Result<Reply, String> {
    let is_large = payload.len() > LARGE_REPLY_BYTES;
    let decode = move || message::decode("reply", &payload).map_err(|error| error.to_string());
    if !is_large {
        return decode();
    }
    let decoding = tokio::task::spawn_blocking(decode);
    decoding.await.map_err(|error| error.to_string())?
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
        self.end(&mut self.lock(), reason);
    }

    /// The connection is over.
    fn end(&self, state: &mut State, reason: &str) {
        if state.end.is_some() {
            return;
        }
        state.end = Some(reason.to_owned());
        state.outgoing = Outgoing::default();
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
        self.closed.send_replace(true);
    }

    /// Queues a frame of a stream.
    fn push(&self, state: &mut State, frame: &Frame) {
        if state.end.is_some() {
            return;
        }
        match state.outgoing.push(frame) {
            Ok(()) => self.wake_writer.notify_one(),
            Err(outgoing::Full) => self.end(state, "the sandbox takes too little"),
        }
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

    fn has_room_for_stream(&self) -> bool {
        self.inbound.len() + self.outbound.len() < OPEN_STREAMS_MAX
    }

    /// Queues a request unless it is too long or too much is under way.
    fn queue_request(
        &mut self,
        id: u32,
        payload: Vec<u8>,
        streams: &[StreamId],
    ) -> Result<(), Failure> {
        let refuse = |errno, message: String| {
            let errno = Some(errno);
            Err(Failure { errno, message })
        };
        if payload.len() > PAYLOAD_MAX_BYTES {
            // No name and no list of arguments may be that long.
            let message = format!("a request of {} bytes is too long", payload.len());
            return refuse(TOO_BIG, message);
        }
        let is_open = |id| self.inbound.contains_key(id) || self.outbound.contains_key(id);
        if !streams.iter().all(is_open) {
            return Err(too_many_streams());
        }
        if self.calls.len() >= REQUESTS_MAX {
            let message = format!("this sandbox has {REQUESTS_MAX} requests to answer");
            return refuse(TRY_AGAIN, message);
        }
        self.outgoing.push_request(id, payload).or_else(|_| {
            refuse(
                TRY_AGAIN,
                "this sandbox does not take its requests".to_owned(),
            )
        })
    }

    /// Ends the streams of a request that was refused, as the agent does.
    fn give_up(&mut self, streams: &[StreamId], failure: &Failure) {
        let reset = || StreamError::Reset(Some(failure.clone()));
        for id in streams {
            if let Some(stream) = self.inbound.get_mut(id) {
                stream.end.get_or_insert_with(|| Err(reset()));
                stream.wake.notify_one();
            }
            if let Some(stream) = self.outbound.get_mut(id) {
                stream.end.get_or_insert_with(reset);
                stream.wake.notify_one();
            }
        }
    }
}

#[cfg(test)]
mod tests;
