//! The streams between a client and a maintenance sandbox. A client that does nothing is cut off,
//! because meanwhile the volume is held.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, Stream, StreamExt};
use sandstone_api::{ApiError, ErrorCode};
use sandstone_node_api::AgentClient;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};

/// How long a client may send or take nothing.
const IDLE_LIMIT: Duration = Duration::from_secs(60);

/// How long one file or archive may take in all: the largest volume at one megabyte a second.
const TOTAL_LIMIT: Duration = Duration::from_secs(6 * 60 * 60);

/// Pieces on their way to a client. Each has at most 128 KiB.
const PIECES_AHEAD: usize = 4;

/// What is read on from a client that was refused, so that it hears why instead of finding its
/// connection reset while it still sends.
const LINGER_MAX_BYTES: usize = 64 << 20;
const LINGER_LIMIT: Duration = Duration::from_secs(10);

/// Bytes that a client sends. An error means that not all were there.
pub type Upload = BoxStream<'static, io::Result<Bytes>>;

/// Bytes for a client. Without `None` at the end they are not all there.
pub struct Download(mpsc::Receiver<Option<Bytes>>);

impl fmt::Debug for Download {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Download").finish_non_exhaustive()
    }
}

impl Download {
    /// The bytes; an error at the end when they are not all there, which the client must be able
    /// to see. To drop the stream is to want no more.
    pub fn into_stream(self) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        stream::unfold(Some(self.0), |pieces| async move {
            let mut pieces = pieces?;
            match pieces.recv().await {
                Some(Some(piece)) => Some((Ok(piece), Some(pieces))),
                Some(None) => None,
                None => Some((Err(aborted("the transfer failed")), None)),
            }
        })
    }
}

/// The sandbox's end of a [`Download`]. Dropping it without [`Outgoing::finish`] breaks the
/// download off.
#[derive(Debug)]
pub(in crate::control) struct Outgoing {
    pieces: mpsc::Sender<Option<Bytes>>,
    agent: Arc<AgentClient>,
    until: Instant,
}

/// A way to a client, from now on for a bounded time and while the sandbox lives.
pub(in crate::control) fn download(agent: &Arc<AgentClient>) -> (Outgoing, Download) {
    let (pieces, receiver) = mpsc::channel(PIECES_AHEAD);
    let outgoing = Outgoing {
        pieces,
        agent: agent.clone(),
        until: Instant::now() + TOTAL_LIMIT,
    };
    (outgoing, Download(receiver))
}

impl Outgoing {
    /// Sends a piece, when the client has taken earlier ones.
    ///
    /// # Errors
    /// When it has gone or took nothing for too long, or the sandbox has gone.
    pub(in crate::control) async fn send(&self, bytes: Bytes) -> io::Result<()> {
        tokio::select! {
            biased;
            sent = self.pass(Some(bytes)) => sent,
            () = self.agent.closed() => Err(aborted("the sandbox was ended")),
        }
    }

    /// Says that this was all. The sandbox is not needed for that.
    ///
    /// # Errors
    /// When the client has gone or took nothing for too long.
    pub(in crate::control) async fn finish(self) -> io::Result<()> {
        self.pass(None).await
    }

    async fn pass(&self, piece: Option<Bytes>) -> io::Result<()> {
        let limit = self.until.min(Instant::now() + IDLE_LIMIT);
        match timeout_at(limit, self.pieces.send(piece)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(aborted("the client went away")),
            Err(_) => Err(timed_out()),
        }
    }
}

/// The sandbox's end of an [`Upload`].
pub(in crate::control) struct Incoming {
    /// Taken at its end.
    upload: Option<Upload>,
    until: Instant,
    /// Dropping may happen outside a task.
    runtime: Handle,
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming").finish_non_exhaustive()
    }
}

impl Incoming {
    /// Reads from a client, from now on for a bounded time.
    pub(in crate::control) fn new(upload: Upload) -> Self {
        Self {
            upload: Some(upload),
            until: Instant::now() + TOTAL_LIMIT,
            runtime: Handle::current(),
        }
    }

    /// The next piece, `None` at the end.
    ///
    /// # Errors
    /// When the client has gone, or sent nothing for too long.
    pub(in crate::control) async fn next(&mut self) -> io::Result<Option<Bytes>> {
        let Some(upload) = &mut self.upload else {
            return Ok(None);
        };
        let limit = self.until.min(Instant::now() + IDLE_LIMIT);
        let piece = match timeout_at(limit, upload.next()).await {
            Ok(Some(Ok(piece))) => return Ok(Some(piece)),
            Ok(Some(Err(_))) => Err(aborted("the client went away")),
            Ok(None) => Ok(None),
            Err(_) => Err(timed_out()),
        };
        self.upload = None;
        piece
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        let Some(mut upload) = self.upload.take() else {
            return;
        };
        self.runtime.spawn(timeout(LINGER_LIMIT, async move {
            let mut left = LINGER_MAX_BYTES;
            while let Some(Ok(piece)) = upload.next().await {
                match left.checked_sub(piece.len()) {
                    Some(rest) => left = rest,
                    None => return,
                }
            }
        }));
    }
}

fn aborted(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, why)
}

fn timed_out() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the client was idle for too long")
}

/// What a client hears whose upload broke off, if it is there to hear it.
pub(in crate::control) fn incomplete(error: &io::Error) -> ApiError {
    match error.kind() {
        io::ErrorKind::TimedOut => ApiError::new(
            ErrorCode::TimedOut,
            format!("nothing was sent for {IDLE_LIMIT:?}, or too little in all"),
        ),
        _ => ApiError::new(ErrorCode::InvalidRequest, "the body is incomplete"),
    }
}
