//! The byte streams of a connection, as callers hold them.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use sandstone_protocol::frame::{DATA_MAX_BYTES, Frame, FrameKind, WINDOW_BYTES};
use sandstone_protocol::message::Failure;
use tokio::sync::Notify;

use super::{Outbound, Shared, too_many_streams};

/// Consumed bytes are granted again in steps of this size, so that small reads do not each cost
/// a frame. A quarter of the window keeps the writer busy.
const CREDIT_STEP_BYTES: u32 = WINDOW_BYTES / 4;

/// A stream did not end well.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StreamError {
    /// The agent gave it up; the reason, if it said one.
    #[error("the sandbox gave up the stream")]
    Reset(Option<Failure>),
    /// The connection is gone.
    #[error("the connection to the sandbox is lost")]
    Lost,
}

/// Bytes from the agent. Dropping it before its end resets the stream.
pub struct InboundStream {
    shared: Arc<Shared>,
    id: u32,
    wake: Arc<Notify>,
    ungranted: u32,
    /// There are too many; nobody has been told.
    is_refused: bool,
}

impl fmt::Debug for InboundStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InboundStream")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl InboundStream {
    pub(super) fn new(shared: Arc<Shared>, id: u32, wake: Arc<Notify>, is_refused: bool) -> Self {
        Self {
            shared,
            id,
            wake,
            ungranted: 0,
            is_refused,
        }
    }

    /// The id to put into the request.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The next bytes, `None` at the end. Cancel-safe. At most one window is buffered while
    /// nobody calls this.
    pub async fn next(&mut self) -> Option<Result<Bytes, StreamError>> {
        if std::mem::take(&mut self.is_refused) {
            return Some(Err(refusal()));
        }
        loop {
            let woken = self.wake.notified();
            {
                let state = &mut *self.shared.lock();
                let stream = state.inbound.get_mut(&self.id)?;
                if let Some(chunk) = stream.chunks.pop_front() {
                    self.ungranted += u32::try_from(chunk.len()).unwrap_or(u32::MAX);
                    if self.ungranted >= CREDIT_STEP_BYTES && stream.end.is_none() {
                        stream.window += self.ungranted;
                        let grant = Frame::credit(self.id, self.ungranted);
                        self.shared.push(state, &grant);
                        self.ungranted = 0;
                    }
                    return Some(Ok(chunk));
                }
                match stream.end.clone() {
                    Some(Ok(())) => {
                        state.inbound.remove(&self.id);
                        return None;
                    }
                    Some(Err(error)) => {
                        state.inbound.remove(&self.id);
                        return Some(Err(error));
                    }
                    None => {}
                }
            }
            woken.await;
        }
    }
}

impl Drop for InboundStream {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if state
            .inbound
            .remove(&self.id)
            .is_some_and(|stream| stream.end.is_none())
        {
            let reset = Frame::empty(FrameKind::Reset, self.id);
            self.shared.push(&mut state, &reset);
        }
    }
}

/// Bytes for the agent. Dropping it without [`OutboundStream::finish`] resets the stream.
pub struct OutboundStream {
    shared: Arc<Shared>,
    id: u32,
    wake: Arc<Notify>,
    finished: bool,
    /// There are too many.
    is_refused: bool,
}

impl fmt::Debug for OutboundStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutboundStream")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl OutboundStream {
    pub(super) fn new(shared: Arc<Shared>, id: u32, wake: Arc<Notify>, is_refused: bool) -> Self {
        Self {
            shared,
            id,
            wake,
            finished: false,
            is_refused,
        }
    }

    /// The id to put into the request.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Sends all of `bytes`, waiting for credit and for the connection as needed. Not cancel-safe:
    /// a dropped call may have sent a part.
    ///
    /// # Errors
    /// [`StreamError`] when the agent does not want more.
    pub async fn send(&mut self, mut bytes: Bytes) -> Result<(), StreamError> {
        while !bytes.is_empty() {
            let woken = self.wake.notified();
            let room = self.shared.room.notified();
            {
                let state = &mut *self.shared.lock();
                let stream = state.outbound.get_mut(&self.id);
                let stream = stream.ok_or_else(|| self.absence())?;
                if let Some(end) = &stream.end {
                    return Err(end.clone());
                }
                let most = bytes.len().min(DATA_MAX_BYTES);
                let length = stream.credit.min(u32::try_from(most).unwrap_or(u32::MAX));
                if length > 0 && state.outgoing.takes_data() {
                    stream.credit -= length;
                    let data = Frame {
                        kind: FrameKind::Data,
                        id: self.id,
                        payload: bytes.split_to(length as usize).to_vec(),
                    };
                    self.shared.push(state, &data);
                    continue;
                }
            }
            tokio::select! {
                () = woken => {}
                () = room => {}
            }
        }
        Ok(())
    }

    /// Says that nothing more comes.
    ///
    /// # Errors
    /// [`StreamError`] when the agent had given the stream up before.
    pub async fn finish(mut self) -> Result<(), StreamError> {
        self.finished = true;
        let mut state = self.shared.lock();
        match state.outbound.remove(&self.id) {
            Some(Outbound { end: None, .. }) => {
                let end = Frame::empty(FrameKind::End, self.id);
                self.shared.push(&mut state, &end);
                Ok(())
            }
            Some(Outbound {
                end: Some(error), ..
            }) => Err(error),
            None => Err(self.absence()),
        }
    }

    /// Why there is no such stream.
    fn absence(&self) -> StreamError {
        if self.is_refused {
            refusal()
        } else {
            StreamError::Lost
        }
    }
}

fn refusal() -> StreamError {
    StreamError::Reset(Some(too_many_streams()))
}

impl Drop for OutboundStream {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        let mut state = self.shared.lock();
        if state
            .outbound
            .remove(&self.id)
            .is_some_and(|stream| stream.end.is_none())
        {
            let reset = Frame::empty(FrameKind::Reset, self.id);
            self.shared.push(&mut state, &reset);
        }
    }
}
