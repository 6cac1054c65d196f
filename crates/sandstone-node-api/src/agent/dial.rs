//! Connections to servers inside a sandbox.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use sandstone_protocol::frame::DATA_MAX_BYTES;
use sandstone_protocol::message::{Answer, DialTarget, Request};
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, ReadHalf, WriteHalf,
};
use tokio::sync::oneshot;

use super::{AgentClient, AgentError, InboundStream, OutboundStream};

/// A connection to a server inside a sandbox. Shutting it down ends our direction only; dropping
/// it ends the connection, with what has not been sent.
#[derive(Debug)]
pub struct AgentSocket {
    /// Its drop is noticed. It goes before the stream, whose end is then no end of ours.
    _held: oneshot::Sender<()>,
    stream: DuplexStream,
}

impl AgentClient {
    /// Connects to a server inside the sandbox.
    ///
    /// # Errors
    /// [`AgentError::Refused`] when it cannot be reached: `ECONNREFUSED` when nobody listens.
    pub async fn dial(&self, target: DialTarget) -> Result<AgentSocket, AgentError> {
        let inbound = self.inbound();
        let outbound = self.outbound();
        let request = Request::Dial {
            target,
            source: outbound.id(),
            sink: inbound.id(),
        };
        match self.call(request).await? {
            Answer::Done => Ok(AgentSocket::over(inbound, outbound)),
            _ => Err(AgentError::Lost(
                "the agent gave an answer of the wrong kind".to_owned(),
            )),
        }
    }
}

impl AgentSocket {
    /// One socket of two streams, for instance those of a process's socket.
    #[must_use]
    pub fn over(inbound: InboundStream, outbound: OutboundStream) -> Self {
        let (stream, far) = tokio::io::duplex(DATA_MAX_BYTES);
        let (held, dropped) = oneshot::channel();
        tokio::spawn(async move {
            let (read, write) = tokio::io::split(far);
            tokio::select! {
                biased;
                // Dropping the streams before their end resets them.
                _ = dropped => {}
                ((), ()) = async { tokio::join!(send(read, outbound), receive(inbound, write)) } => {}
            }
        });
        Self {
            _held: held,
            stream,
        }
    }
}

async fn send(mut from: ReadHalf<DuplexStream>, mut to: OutboundStream) {
    let mut buffer = vec![0; DATA_MAX_BYTES];
    loop {
        match from.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(length) => {
                if to
                    .send(Bytes::copy_from_slice(&buffer[..length]))
                    .await
                    .is_err()
                {
                    return;
                }
            }
        }
    }
    // A socket that was dropped just now is noticed before its end is told.
    tokio::task::yield_now().await;
    let _ = to.finish().await;
}

async fn receive(mut from: InboundStream, mut to: WriteHalf<DuplexStream>) {
    while let Some(Ok(bytes)) = from.next().await {
        if to.write_all(&bytes).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

impl AsyncRead for AgentSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for AgentSocket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
