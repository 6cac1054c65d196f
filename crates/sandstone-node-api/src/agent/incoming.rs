//! Frames from the agent: hellos, then the reader of a connection.

use std::io;
use std::sync::Weak;

use bytes::{Bytes, BytesMut};
use sandstone_protocol::frame::{Frame, FrameKind, HEADER_BYTES, WINDOW_BYTES, decode_header};
use sandstone_protocol::message::{self, Failure, Hello};
use sandstone_protocol::{GENERATION, GENERATION_MIN};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

use super::outgoing::write_frames;
use super::{Shared, State, StreamError};

/// A frame whose payload has not been read: kind, id and length.
pub(super) type Header = (FrameKind, u32, usize);

pub(super) async fn exchange_hellos<S>(stream: &mut S) -> io::Result<()>
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
    let (kind, _, length) = read_header(stream).await?;
    if kind != FrameKind::Hello {
        return Err(io::Error::other("the agent did not begin with a hello"));
    }
    let payload = read_payload(stream, length).await?;
    let theirs: Hello = message::decode("hello", &payload).map_err(io::Error::other)?;
    if theirs.generation < GENERATION_MIN {
        return Err(io::Error::other(format!(
            "the agent speaks generation {}, we need {GENERATION_MIN}",
            theirs.generation
        )));
    }
    Ok(())
}

pub(super) async fn read_header<R>(stream: &mut R) -> io::Result<Header>
where
    R: AsyncRead + Unpin,
{
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header).await?;
    decode_header(&header).map_err(io::Error::other)
}

pub(super) async fn read_payload<R>(stream: &mut R, length: usize) -> io::Result<Bytes>
where
    R: AsyncRead + Unpin,
{
    let mut payload = BytesMut::with_capacity(length);
    let mut rest = (&mut *stream).take(length as u64);
    while payload.len() < length {
        if rest.read_buf(&mut payload).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(payload.freeze())
}

/// Serves one connection until either side ends it. Holds `shared` only while it acts, so that
/// dropping the last client ends it.
pub(super) async fn pump<R, W>(
    shared: Weak<Shared>,
    mut closed: watch::Receiver<bool>,
    read: R,
    write: W,
) where
    R: AsyncRead + Send + Unpin + 'static,
    W: AsyncWrite + Send + Unpin + 'static,
{
    let writer = tokio::spawn(write_frames(shared.clone(), closed.clone(), write));
    let reason = tokio::select! {
        reason = read_frames(&shared, read) => reason,
        _ = closed.wait_for(|closed| *closed) => "the connection was closed".to_owned(),
    };
    tracing::debug!(%reason, "agent connection ended");
    if let Some(shared) = shared.upgrade() {
        shared.close(&reason);
    }
    // `close` ended the writer, whatever it was doing.
    let _ = writer.await;
}

/// Why there is no next frame.
async fn read_frames<R>(shared: &Weak<Shared>, mut read: R) -> String
where
    R: AsyncRead + Unpin,
{
    let gone = || "nobody is left".to_owned();
    let mut next = async || -> Result<(), String> {
        let header = read_header(&mut read).await.map_err(text)?;
        let (kind, id, length) = header;
        shared.upgrade().ok_or_else(gone)?.lock().admit(header)?;
        let payload = read_payload(&mut read, length).await.map_err(text)?;
        let shared = shared.upgrade().ok_or_else(gone)?;
        shared.lock().receive(kind, id, payload)
    };
    loop {
        if let Err(reason) = next().await {
            return reason;
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn text(error: io::Error) -> String {
    error.to_string()
}

impl State {
    /// Whether such a frame may come now, before its payload is read; the reason if not.
    fn admit(&self, (kind, id, length): Header) -> Result<(), String> {
        match kind {
            FrameKind::Reply => {
                let call = self
                    .calls
                    .get(&id)
                    .filter(|_| !self.outgoing.has_request(id));
                let call = call.ok_or_else(|| format!("a reply to {id}, which is no request"))?;
                if length > call.reply_max_bytes {
                    return Err(format!("a reply of {length} bytes to request {id}"));
                }
                Ok(())
            }
            FrameKind::Hello | FrameKind::Request => Err(format!("unexpected {kind:?} frame")),
            FrameKind::Data | FrameKind::End | FrameKind::Credit | FrameKind::Reset => Ok(()),
        }
    }

    /// Acts on one frame of the agent; the reason when it breaks the protocol.
    fn receive(&mut self, kind: FrameKind, id: u32, payload: Bytes) -> Result<(), String> {
        match kind {
            FrameKind::Reply => {
                if let Some(call) = self.calls.remove(&id) {
                    // The caller may have gone; then nobody wants the answer.
                    let _ = call.reply.send(payload);
                }
            }
            FrameKind::Data => {
                if let Some(stream) = self.inbound.get_mut(&id)
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
                if let Some(stream) = self.inbound.get_mut(&id) {
                    stream.end.get_or_insert(Ok(()));
                    stream.wake.notify_one();
                }
            }
            FrameKind::Credit => {
                let grant: [u8; 4] = payload
                    .as_ref()
                    .try_into()
                    .map_err(|_| "malformed credit".to_owned())?;
                if let Some(stream) = self.outbound.get_mut(&id) {
                    // Nobody can grant what was not sent.
                    stream.credit = stream
                        .credit
                        .checked_add(u32::from_le_bytes(grant))
                        .filter(|credit| *credit <= WINDOW_BYTES)
                        .ok_or_else(|| format!("stream {id} is granted more than its window"))?;
                    stream.wake.notify_one();
                }
            }
            FrameKind::Reset => {
                let failure = message::decode::<Failure>("reset", &payload).ok();
                if let Some(stream) = self.inbound.get_mut(&id) {
                    stream.end.get_or_insert(Err(StreamError::Reset(failure)));
                    stream.wake.notify_one();
                } else if let Some(stream) = self.outbound.get_mut(&id) {
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
