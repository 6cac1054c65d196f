//! Frames on their way to the agent.
//!
//! The agent can stop reading while clients go on asking and writing, so all that waits here is
//! bounded: data waits with its writer, a request is refused, and what is neither ends the
//! connection. Whoever stops reading for [`STALL_LIMIT`] loses it as well.

use std::collections::{HashMap, VecDeque};
use std::sync::Weak;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use sandstone_protocol::frame::{Frame, FrameKind};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

use super::Shared;

/// Data is not added to more than this, bytes. A few streams in full flow; the socket's own buffer
/// is far smaller.
const DATA_LIMIT_BYTES: usize = 8 << 20;

/// Requests are not added beyond this, bytes: four of the largest.
const REQUEST_LIMIT_BYTES: usize = 64 << 20;

/// Nothing is added beyond this, bytes. Grants, ends and resets are a few bytes each, so that only
/// somebody who opens and drops streams without end gets here.
const LIMIT_BYTES: usize = 96 << 20;

/// What a frame costs beside its content, bytes: its place in the queue and its allocation.
const FRAME_COST_BYTES: usize = 64;

/// How long the agent may take no byte of what there is for it. Its reader waits for no disk and
/// no process.
pub(super) const STALL_LIMIT: Duration = Duration::from_secs(60);

/// Encoded frames in the order in which they go.
#[derive(Default)]
pub(super) struct Outgoing {
    queue: VecDeque<Entry>,
    /// Requests that are in the queue. Who gives one up takes it out of here only.
    requests: HashMap<u32, Vec<u8>>,
    /// Bytes of all of it, with [`FRAME_COST_BYTES`] for each place in the queue.
    cost: usize,
}

enum Entry {
    /// The request with this id, unless it was given up.
    Request(u32),
    Frame(Vec<u8>),
}

/// There is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

impl Outgoing {
    /// Queues a request.
    pub(super) fn push_request(&mut self, id: u32, payload: Vec<u8>) -> Result<(), Full> {
        if self.cost + payload.len() > REQUEST_LIMIT_BYTES {
            return Err(Full);
        }
        let kind = FrameKind::Request;
        let frame = Frame { kind, id, payload }.encode();
        self.cost += frame.len() + FRAME_COST_BYTES;
        self.queue.push_back(Entry::Request(id));
        self.requests.insert(id, frame);
        Ok(())
    }

    /// Queues any other frame. [`Full`] ends the connection: these frames cannot be left out.
    pub(super) fn push(&mut self, frame: &Frame) -> Result<(), Full> {
        let frame = frame.encode();
        self.cost += frame.len() + FRAME_COST_BYTES;
        self.queue.push_back(Entry::Frame(frame));
        if self.cost > LIMIT_BYTES {
            return Err(Full);
        }
        Ok(())
    }

    /// Takes a request back; whether it had not been sent.
    pub(super) fn withdraw(&mut self, id: u32) -> bool {
        let frame = self.requests.remove(&id);
        // Its place in the queue stays until the writer comes to it, and is paid for until then.
        self.cost -= frame.as_ref().map_or(0, Vec::len);
        frame.is_some()
    }

    /// Whether a request has not been sent.
    pub(super) fn has_request(&self, id: u32) -> bool {
        self.requests.contains_key(&id)
    }

    /// Whether there is room for a data frame.
    pub(super) fn takes_data(&self) -> bool {
        self.cost < DATA_LIMIT_BYTES
    }

    /// The next frame.
    fn pop(&mut self) -> Option<Vec<u8>> {
        loop {
            let frame = match self.queue.pop_front()? {
                Entry::Request(id) => self.requests.remove(&id),
                Entry::Frame(frame) => Some(frame),
            };
            self.cost -= FRAME_COST_BYTES + frame.as_ref().map_or(0, Vec::len);
            if frame.is_some() {
                return frame;
            }
        }
    }
}

/// Writes what is queued until the connection is closed, which it does if the agent does not read.
pub(super) async fn write_frames<W>(
    shared: Weak<Shared>,
    mut closed: watch::Receiver<bool>,
    write: W,
) where
    W: AsyncWrite + Unpin,
{
    let reason = tokio::select! {
        reason = write_until_failure(&shared, write) => reason,
        _ = closed.wait_for(|closed| *closed) => return,
    };
    if let Some(shared) = shared.upgrade() {
        shared.close(reason);
    }
}

async fn write_until_failure<W>(shared: &Weak<Shared>, mut write: W) -> &'static str
where
    W: AsyncWrite + Unpin,
{
    /// Frames are gathered into writes of about this size.
    const BATCH_BYTES: usize = 256 << 10;
    loop {
        let mut batch = BytesMut::new();
        {
            let Some(shared) = shared.upgrade() else {
                return "nobody is left";
            };
            let woken = shared.wake_writer.notified();
            {
                let mut state = shared.lock();
                let had_room = state.outgoing.takes_data();
                while batch.len() < BATCH_BYTES
                    && let Some(frame) = state.outgoing.pop()
                {
                    batch.extend_from_slice(&frame);
                }
                if !had_room && state.outgoing.takes_data() {
                    shared.room.notify_waiters();
                }
            }
            if batch.is_empty() {
                woken.await;
                continue;
            }
        }
        while batch.has_remaining() {
            match tokio::time::timeout(STALL_LIMIT, write.write_buf(&mut batch)).await {
                Ok(Ok(count)) if count > 0 => {}
                Ok(_) => return "the sandbox does not read any more",
                Err(_) => return "the sandbox does not read",
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_that_are_given_up_make_room() {
        let mut outgoing = Outgoing::default();
        let large = || vec![0; 15 << 20];
        for id in 1..=4 {
            assert_eq!(outgoing.push_request(id, large()), Ok(()));
        }
        assert_eq!(outgoing.push_request(5, large()), Err(Full));
        assert!(!outgoing.has_request(5));
        assert!(outgoing.withdraw(2));
        assert!(!outgoing.withdraw(2));
        assert_eq!(outgoing.push_request(6, large()), Ok(()));
        for id in [1_u32, 3, 4, 6] {
            assert!(outgoing.has_request(id));
            assert_eq!(outgoing.pop().unwrap()[5..9], id.to_le_bytes());
            assert!(!outgoing.withdraw(id));
        }
        assert!(outgoing.pop().is_none());
        assert_eq!(outgoing.cost, 0);
    }

    #[test]
    fn frames_that_cost_nothing_have_an_end() {
        let mut outgoing = Outgoing::default();
        let reset = Frame::empty(FrameKind::Reset, 1);
        let count = (0..).take_while(|_| outgoing.push(&reset).is_ok()).count();
        assert!((1 << 20..1 << 21).contains(&count), "{count}");
        // So do the places of requests that were given up.
        let mut outgoing = Outgoing::default();
        let mut ids = 1..;
        while let Some(id) = ids.next()
            && outgoing.push_request(id, Vec::new()).is_ok()
        {
            outgoing.withdraw(id);
        }
        assert!((1 << 19..1 << 21).contains(&outgoing.queue.len()));
    }
}
