//! The two ends of streams, with their credit.
//!
//! The thread that moves a stream's bytes sleeps in `poll(2)` on a pipe or file and on a
//! [`Waker`], which the connection's reading thread pulls when credit or data has come.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use sandstone_protocol::frame::WINDOW_BYTES;
use sandstone_protocol::message::StreamId;

use crate::lock::lock;

/// Consumed bytes that are granted anew at once. A quarter of the window, so that the host is
/// never without credit while we keep up, and grants stay rare.
const GRANT_BYTES: u32 = WINDOW_BYTES / 4;

/// Wakes one thread from `poll(2)`.
#[derive(Debug)]
pub(crate) struct Waker(OwnedFd);

impl Waker {
    /// A waker that has not been pulled.
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub(crate) fn new() -> Result<Arc<Self>, Errno> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Arc::new(Self(eventfd(0, flags)?)))
    }

    /// Makes the sleeper look again.
    pub(crate) fn wake(&self) {
        // Fails only when pulled 2^64 times without anyone looking.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Takes back earlier pulls. Do this first, then look at the streams, then sleep.
    pub(crate) fn clear(&self) {
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }

    /// Sleeps until pulled, or until `file` has one of `events`.
    pub(crate) fn sleep(&self, file: Option<(BorrowedFd<'_>, PollFlags)>) {
        let waker = PollFd::from_borrowed_fd(self.0.as_fd(), PollFlags::IN);
        // An error here is an interruption, or memory pressure that passes: the caller looks again.
        let _ = match file {
            None => poll(&mut [waker], None),
            Some((file, events)) => {
                poll(&mut [waker, PollFd::from_borrowed_fd(file, events)], None)
            }
        };
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Our end of a stream to the host.
#[derive(Debug)]
pub(crate) struct Outlet {
    /// The stream.
    pub(crate) id: StreamId,
    /// Bytes the host will take; nothing once it is given up.
    credit: Mutex<Option<u32>>,
    waker: Arc<Waker>,
}

impl Outlet {
    /// A fresh stream with its initial credit.
    pub(crate) fn new(id: StreamId, waker: Arc<Waker>) -> Arc<Self> {
        Arc::new(Self {
            id,
            credit: Mutex::new(Some(WINDOW_BYTES)),
            waker,
        })
    }

    /// What its mover sleeps on.
    pub(crate) fn waker(&self) -> &Arc<Waker> {
        &self.waker
    }

    /// Bytes that may be sent now; nothing once the stream is given up.
    pub(crate) fn credit(&self) -> Option<usize> {
        lock(&self.credit).map(|bytes| bytes as usize)
    }

    /// Takes up to `wanted` bytes of credit; nothing once the stream is given up.
    pub(crate) fn spend(&self, wanted: usize) -> Option<usize> {
        let mut credit = lock(&self.credit);
        let available = (*credit)?;
        let spent = available.min(u32::try_from(wanted).unwrap_or(u32::MAX));
        *credit = Some(available - spent);
        Some(spent as usize)
    }

    /// Adds the host's grant.
    ///
    /// # Errors
    /// [`Overrun`] when the sum is beyond all reason.
    pub(crate) fn grant(&self, bytes: u32) -> Result<(), Overrun> {
        if let Some(credit) = &mut *lock(&self.credit) {
            *credit = credit.checked_add(bytes).ok_or(Overrun)?;
        }
        self.waker.wake();
        Ok(())
    }

    /// The host wants no more, or is gone.
    pub(crate) fn give_up(&self) {
        *lock(&self.credit) = None;
        self.waker.wake();
    }
}

/// The peer went beyond the window. The connection must be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Overrun;

/// Our end of a stream from the host.
#[derive(Debug)]
pub(crate) struct Inlet {
    /// The stream.
    pub(crate) id: StreamId,
    state: Mutex<Incoming>,
    waker: Arc<Waker>,
}

#[derive(Debug)]
struct Incoming {
    /// Received and not consumed; never more than the window.
    queue: VecDeque<u8>,
    /// Bytes the host may still send.
    window: u32,
    /// Bytes consumed and not granted anew.
    owed: u32,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Bytes come and are consumed.
    Open,
    /// Nobody consumes any more: bytes are dropped, and granted anew.
    Discarding,
    /// All bytes are here.
    Ended,
    /// Given up by the host, or with the connection.
    Reset,
}

/// What is at the front of an [`Inlet`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Front {
    /// So many bytes were copied out.
    Bytes(usize),
    /// Nothing yet.
    Empty,
    /// Nothing, and nothing will come.
    Ended,
    /// The stream was given up.
    Reset,
}

impl Inlet {
    /// A fresh stream with its initial window.
    pub(crate) fn new(id: StreamId, waker: Arc<Waker>) -> Arc<Self> {
        Arc::new(Self {
            id,
            state: Mutex::new(Incoming {
                queue: VecDeque::new(),
                window: WINDOW_BYTES,
                owed: 0,
                phase: Phase::Open,
            }),
            waker,
        })
    }

    /// What its mover sleeps on.
    pub(crate) fn waker(&self) -> &Arc<Waker> {
        &self.waker
    }

    /// Takes bytes from the host. Returns a grant to send, or zero.
    ///
    /// # Errors
    /// [`Overrun`] when they were not granted.
    pub(crate) fn push(&self, bytes: &[u8]) -> Result<u32, Overrun> {
        let mut state = lock(&self.state);
        let length = u32::try_from(bytes.len()).map_err(|_| Overrun)?;
        state.window = state.window.checked_sub(length).ok_or(Overrun)?;
        match state.phase {
            Phase::Open => {
                state.queue.extend(bytes);
                self.waker.wake();
                Ok(0)
            }
            Phase::Discarding => Ok(state.consumed(length)),
            Phase::Ended | Phase::Reset => Ok(0),
        }
    }

    /// The host has sent everything.
    pub(crate) fn end(&self) {
        let mut state = lock(&self.state);
        if state.phase == Phase::Open {
            state.phase = Phase::Ended;
        }
        self.waker.wake();
    }

    /// The host gave the stream up, or is gone.
    pub(crate) fn reset(&self) {
        let mut state = lock(&self.state);
        state.phase = Phase::Reset;
        state.queue = VecDeque::new();
        self.waker.wake();
    }

    /// Copies the next bytes into `buffer`, without consuming them.
    pub(crate) fn front(&self, buffer: &mut [u8]) -> Front {
        let state = lock(&self.state);
        let (first, second) = state.queue.as_slices();
        let head = first.len().min(buffer.len());
        buffer[..head].copy_from_slice(&first[..head]);
        let tail = second.len().min(buffer.len() - head);
        buffer[head..head + tail].copy_from_slice(&second[..tail]);
        match (head + tail, state.phase) {
            (_, Phase::Reset) => Front::Reset,
            (0, Phase::Ended) => Front::Ended,
            (0, _) => Front::Empty,
            (length, _) => Front::Bytes(length),
        }
    }

    /// Consumes `length` bytes that [`Self::front`] has copied. Returns a grant to send, or zero.
    pub(crate) fn consume(&self, length: usize) -> u32 {
        let mut state = lock(&self.state);
        let length = length.min(state.queue.len());
        state.queue.drain(..length);
        state.consumed(u32::try_from(length).unwrap_or(u32::MAX))
    }

    /// Drops what is here and what will come. Returns a grant to send, or zero.
    pub(crate) fn discard(&self) -> u32 {
        let mut state = lock(&self.state);
        if state.phase == Phase::Open {
            state.phase = Phase::Discarding;
        }
        let length = std::mem::take(&mut state.queue).len();
        state.consumed(u32::try_from(length).unwrap_or(u32::MAX))
    }
}

impl Incoming {
    fn consumed(&mut self, bytes: u32) -> u32 {
        self.owed += bytes;
        let open = matches!(self.phase, Phase::Open | Phase::Discarding);
        if !open || self.owed < GRANT_BYTES {
            return 0;
        }
        self.window += self.owed;
        std::mem::take(&mut self.owed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inlet() -> Arc<Inlet> {
        Inlet::new(1, Waker::new().unwrap())
    }

    #[test]
    fn credit_is_never_overspent() {
        let outlet = Outlet::new(1, Waker::new().unwrap());
        assert_eq!(outlet.spend(100_000), Some(100_000));
        assert_eq!(outlet.spend(1_000_000), Some(256 * 1024 - 100_000));
        assert_eq!(outlet.spend(1), Some(0));
        outlet.grant(5).unwrap();
        assert_eq!(outlet.spend(9), Some(5));
        outlet.grant(u32::MAX).unwrap();
        assert_eq!(outlet.grant(1), Err(Overrun));
        outlet.give_up();
        assert_eq!(outlet.spend(1), None);
        assert_eq!(outlet.grant(u32::MAX), Ok(()), "crossed on the wire");
        assert_eq!(outlet.credit(), None);
    }

    #[test]
    fn a_full_window_is_taken_and_one_byte_more_refused() {
        let inlet = inlet();
        for _ in 0..4 {
            assert_eq!(inlet.push(&[7; 64 << 10]), Ok(0));
        }
        assert_eq!(inlet.push(&[7]), Err(Overrun));
    }

    #[test]
    fn consumed_bytes_are_granted_in_quarters() {
        let inlet = inlet();
        inlet.push(&[1; 64 << 10]).unwrap();
        inlet.push(&[2; 64 << 10]).unwrap();
        let mut buffer = [0; 8];
        assert_eq!(inlet.front(&mut buffer), Front::Bytes(8));
        assert_eq!(inlet.consume((64 << 10) - 1), 0);
        assert_eq!(inlet.front(&mut buffer), Front::Bytes(8));
        assert_eq!(buffer, [1, 2, 2, 2, 2, 2, 2, 2]);
        assert_eq!(inlet.consume(1), 64 << 10);
        inlet.end();
        assert_eq!(inlet.consume(64 << 10), 0, "an ended stream needs no grant");
        assert_eq!(inlet.front(&mut buffer), Front::Ended);
    }

    #[test]
    fn a_discarding_stream_keeps_granting() {
        let inlet = inlet();
        inlet.push(&[1; 1 << 10]).unwrap();
        assert_eq!(inlet.discard(), 0);
        let granted: u32 = (0..64).map(|_| inlet.push(&[1; 64 << 10]).unwrap()).sum();
        assert_eq!(granted, (64 * 64 + 1) << 10);
        inlet.reset();
        assert_eq!(inlet.front(&mut [0; 1]), Front::Reset);
    }
}
