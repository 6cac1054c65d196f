//! The life of one socket: reading messages until somebody ends it, then ending it well.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::SplitStream;
use sandstone_api::SandboxId;
use sandstone_core::StopReason;
use sandstone_node_api::AgentClient;
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{Instant, sleep, timeout};
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::super::Edge;
use super::client::Client;
use super::error::RemoteError;
use super::incoming::{self, Incoming, Malformed};
use super::outbox::{self, Item, Outbox};
use super::primary::Primary;
use super::rpc;
use super::session::Session;
use super::wire::Socket;
use crate::control::Principal;

/// Calls of one connection that may be open at once.
const OPEN_CALLS_MAX: usize = 10_000;

/// Memory of the open calls of one connection, in bytes, and one call more: then the socket is not
/// read on until some are answered. Only calls that bring content count.
const OPEN_CALL_BYTES: u32 = 256 << 20;

/// A call that takes less memory than this brings nothing to speak of.
const SHORT_CALL_BYTES: usize = 4 << 10;

/// A message from this length on is read on a thread of its own.
const LONG_MESSAGE_BYTES: usize = 2 << 20;

/// Pings and pongs that a client may send in [`CONTROL_PERIOD`]. The SDKs send one in 20 seconds;
/// each ping makes an answer that waits until the client reads.
const CONTROL_FRAMES_MAX: u32 = 1000;

/// The period of [`CONTROL_FRAMES_MAX`].
const CONTROL_PERIOD: Duration = Duration::from_secs(10);

/// How long open calls may take to be answered when the socket ends (trap 6).
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// How long the closing handshake may take.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// How long a client that closes waits for its sandbox's volumes: less than the 10 s after which
/// the Python SDK gives its socket up.
const RELEASE_LIMIT: Duration = Duration::from_secs(8);

/// How long a sandbox whose agent is gone may take to be reported as stopped.
const AGENT_LOST_GRACE: Duration = Duration::from_secs(5);

/// Close codes, as the JavaScript SDK describes them.
mod code {
    pub(super) const GOING_AWAY: u16 = 1001;
    pub(super) const PROTOCOL_ERROR: u16 = 1002;
    pub(super) const POLICY: u16 = 1008;
    pub(super) const TOO_LONG: u16 = 1009;
    pub(super) const INTERNAL_ERROR: u16 = 1011;
    pub(super) const INVALID_JSON: u16 = 4000;
    pub(super) const INVALID_RPC: u16 = 4001;
}

/// Why a socket ends.
#[derive(Debug)]
enum End {
    /// The client closed it.
    Client,
    /// The connection broke.
    Broken,
    /// The sandbox stops.
    Stopped(StopReason),
    /// The sandbox does not answer any more.
    AgentLost,
    /// The client sent something that is not a message.
    Malformed(Malformed),
    /// The client does nothing but ping.
    ControlFlood,
    /// The client does not send the rest of a message.
    TooSlow,
    /// The client broke the WebSocket protocol, or sent too much at once.
    Unreadable { is_too_long: bool },
    /// A bug on our side.
    Panicked,
}

/// Serves a socket to its end. It is a client of `who`.
pub(super) async fn run(
    socket: Socket,
    edge: Arc<Edge>,
    who: Principal,
    id: SandboxId,
    agent: Arc<AgentClient>,
    client: Client,
    primary: Option<Primary>,
) {
    tracing::debug!("connected");
    let stopped = edge.control.stopped(id);
    let (sink, mut incoming) = socket.split();
    let (outbox, queue) = Outbox::new();
    let session = Arc::new(Session::new(edge, who, id, client, agent, outbox));
    let writer_gone = CancellationToken::new();
    let (stall_limit, ended) = (session.edge.stall_limit, session.ended.clone());
    let writer = tokio::spawn(
        outbox::write(sink, queue, stall_limit, ended, writer_gone.clone()).in_current_span(),
    );
    let mut calls = JoinSet::new();
    let end = read(&session, &mut incoming, &mut calls, stopped, &writer_gone).await;
    tracing::debug!(?end, "disconnecting");

    if let Some(frame) = end.frame() {
        if client == Client::Python {
            session.closing.cancel();
            let answered = async { while calls.join_next().await.is_some() {} };
            let _ = timeout(ANSWER_LIMIT, answered).await;
        }
        calls.shutdown().await;
        let _ = timeout(CLOSE_LIMIT, async {
            if session.outbox.send(Item::Close(frame)).await.is_ok() {
                // After an error nothing more can be read, but the frame is to go out all the same.
                writer_gone.cancelled().await;
                finish_handshake(&mut incoming).await;
            }
        })
        .await;
    } else {
        calls.shutdown().await;
        if matches!(end, End::Client) {
            if let Some(primary) = &primary {
                // A client that closes and at once uses its volumes again finds them free: our
                // half of the closing handshake goes out only now.
                let _ = timeout(RELEASE_LIMIT, primary.end()).await;
            }
            let _ = timeout(CLOSE_LIMIT, finish_handshake(&mut incoming)).await;
        }
    }
    session.uploads.close();
    session.handles.close(&session.agent);
    session.ended.cancel();
    let _ = writer.await;
}

/// Reads until the other side is done as well. Reading also sends our half of the handshake.
async fn finish_handshake(incoming: &mut SplitStream<Socket>) {
    while let Some(Ok(_)) = incoming.next().await {}
}

/// Reads messages until the socket is to end; never waits for the client to take an answer.
async fn read(
    session: &Arc<Session>,
    incoming: &mut SplitStream<Socket>,
    calls: &mut JoinSet<()>,
    stopped: impl Future<Output = StopReason>,
    writer_gone: &CancellationToken,
) -> End {
    let agent = session.agent.clone();
    let agent_lost = async {
        agent.closed().await;
        sleep(AGENT_LOST_GRACE).await;
    };
    let room = Arc::new(Semaphore::new(OPEN_CALL_BYTES as usize));
    let over = async {
        tokio::select! {
            biased;
            reason = stopped => End::Stopped(reason),
            () = agent_lost => End::AgentLost,
            () = writer_gone.cancelled() => End::Broken,
        }
    };
    let mut over = std::pin::pin!(over);
    let mut control = Pace::new(CONTROL_FRAMES_MAX, CONTROL_PERIOD);
    loop {
        let message = tokio::select! {
            biased;
            end = &mut over => return end,
            Some(outcome) = calls.join_next() => match outcome {
                Ok(()) => continue,
                Err(error) => {
                    tracing::error!(%error, "a call ended without an answer");
                    return End::Panicked;
                }
            },
            message = incoming.next() => message,
        };
        let text = match message {
            Some(Ok(Message::Text(text))) => text,
            Some(Ok(Message::Binary(bytes))) => match bytes.try_into() {
                Ok(text) => text,
                Err(_) => return End::Malformed(Malformed::NotJson),
            },
            // We asked for it.
            Some(Ok(Message::Pong(payload))) if session.echoes.answer(&payload) => continue,
            Some(Ok(Message::Ping(_) | Message::Pong(_))) if control.admits() => continue,
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => return End::ControlFlood,
            Some(Ok(Message::Close(_))) => return End::Client,
            // The library only ever writes these.
            Some(Ok(Message::Frame(_))) => continue,
            Some(Err(error)) => {
                tracing::debug!(%error, "cannot read");
                return match error {
                    tungstenite::Error::Io(error) if error.kind() == io::ErrorKind::TimedOut => {
                        End::TooSlow
                    }
                    tungstenite::Error::Capacity(_) => End::Unreadable { is_too_long: true },
                    _ => End::Unreadable { is_too_long: false },
                };
            }
            None => return End::Broken,
        };
        if text.as_str() == "ping" {
            // Trap 8: only JavaScript sends this, and only it may get the answer.
            if session.client == Client::JavaScript {
                session.outbox.offer("pong".to_owned());
            }
            continue;
        }
        let parsed = if text.len() < LONG_MESSAGE_BYTES {
            incoming::parse(&text)
        } else {
            // A second of work for the longest, in which this thread could serve nobody else.
            match spawn_blocking(move || incoming::parse(&text)).await {
                Ok(parsed) => parsed,
                Err(_) => return End::Panicked,
            }
        };
        match parsed {
            Ok(Incoming::Call(call)) if calls.len() >= OPEN_CALLS_MAX => {
                let error = RemoteError::new(
                    "Error",
                    format!("{OPEN_CALLS_MAX} calls are open on this connection already"),
                )
                .with_code("EAGAIN");
                tokio::select! {
                    biased;
                    // The client may not read at all.
                    end = &mut over => return end,
                    () = rpc::refuse(session, call, error) => {}
                }
            }
            Ok(Incoming::Call(call)) => {
                let permit = if call.memory < SHORT_CALL_BYTES {
                    None
                } else {
                    let memory = u32::try_from(call.memory).unwrap_or(u32::MAX);
                    tokio::select! {
                        biased;
                        end = &mut over => return end,
                        permit = room.clone().acquire_many_owned(memory.min(OPEN_CALL_BYTES)) => {
                            permit.ok()
                        }
                    }
                };
                let begun = rpc::begin(session, call, permit);
                calls.spawn(rpc::serve(session.clone(), begun).in_current_span());
            }
            Ok(Incoming::Chunk { stream, bytes }) => session.uploads.push(stream, bytes).await,
            Ok(Incoming::Notification { method, params }) => {
                rpc::notify(session, &method, params).await;
            }
            Ok(Incoming::Answer) => {}
            Err(why) => return End::Malformed(why),
        }
    }
}

/// How many events there may be in a period.
struct Pace {
    max: u32,
    period: Duration,
    since: Instant,
    count: u32,
}

impl Pace {
    fn new(max: u32, period: Duration) -> Self {
        Self {
            max,
            period,
            since: Instant::now(),
            count: 0,
        }
    }

    /// Counts one event; whether it is within the bound.
    fn admits(&mut self) -> bool {
        if self.since.elapsed() >= self.period {
            self.since = Instant::now();
            self.count = 0;
        }
        self.count += 1;
        self.count <= self.max
    }
}

impl End {
    /// What to tell the client; nothing when it closed the socket itself or is gone.
    fn frame(&self) -> Option<CloseFrame> {
        let (code, reason) = match self {
            Self::Client | Self::Broken => return None,
            Self::Stopped(reason) => (code::GOING_AWAY, stop_text(*reason)),
            Self::AgentLost => (code::INTERNAL_ERROR, "the sandbox does not answer"),
            Self::Malformed(Malformed::NotJson) => (code::INVALID_JSON, "Invalid JSON"),
            Self::Malformed(Malformed::NotRpc) => (code::INVALID_RPC, "Invalid JSON-RPC"),
            Self::Malformed(Malformed::TooComplex) => (code::TOO_LONG, "message too complex"),
            Self::ControlFlood => (code::POLICY, "too many pings"),
            Self::TooSlow => (code::POLICY, "message too slow"),
            Self::Unreadable { is_too_long: true } => (code::TOO_LONG, "message too long"),
            Self::Unreadable { is_too_long: false } => (code::PROTOCOL_ERROR, "protocol error"),
            Self::Panicked => (code::INTERNAL_ERROR, "internal error"),
        };
        Some(CloseFrame {
            code: code.into(),
            reason: reason.into(),
        })
    }
}

fn stop_text(reason: StopReason) -> &'static str {
    match reason {
        StopReason::Killed => "sandbox killed",
        StopReason::SessionEnded => "sandbox session ended",
        StopReason::TimedOut => "sandbox timeout",
        StopReason::StartFailed => "sandbox could not start",
        StopReason::Exited => "sandbox exited",
        StopReason::ServerStopped => "server is stopping",
        StopReason::ServerLost => "server was restarted",
    }
}
