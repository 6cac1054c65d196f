//! What a client sent on a channel and the sandbox has not taken yet, and the flow control that
//! bounds it.
//!
//! SSH wants a receiver to grant more window when data was consumed. russh grants it when data
//! *arrives*, and its only brake is to stop reading the connection; but then the client's own
//! grants are not read either, and a filter (`ssh … cat`, with more data than fits in between)
//! would wait for ever: its output for the client's window, its input for its output.
//!
//! So the connection is always read, and russh is told to grant almost nothing while anything is
//! *stalled*: while more than [`STALL_BYTES`] wait on a channel, or [`STALL_TOTAL_BYTES`] on the
//! connection. "Almost nothing" is [`CLOSED_WINDOW`] bytes for each [`PAUSE`]: with no grant at
//! all, russh would never again ask how much to grant.
//!
//! What a client that keeps to its windows can make us hold is the stall limit of the connection,
//! one window for each channel, and one grant that was on its way. Whoever gets us to hold
//! [`HELD_MAX_BYTES`] does not keep to them, and is disconnected.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;

use super::CHANNELS_MAX;

/// Bytes that a client may send ahead on each channel.
pub(super) const WINDOW: u32 = 512 << 10;

/// What is granted at a time while something is stalled. russh grants when less than half of this
/// is left, so it is the least that it still grants.
const CLOSED_WINDOW: u32 = 2;

/// A channel on which this much waits is stalled, until half of it is gone.
const STALL_BYTES: usize = WINDOW as usize;

/// A connection on which this much waits is stalled.
const STALL_TOTAL_BYTES: usize = 4 << 20;

/// A connection on which this much waits is ended: the stall limit, a window for each channel, one
/// more on its way, and three for what trickles in while it is stalled. At [`CLOSED_WINDOW`] bytes
/// for each [`PAUSE`] they fill in two hours at the earliest.
const HELD_MAX_BYTES: usize = STALL_TOTAL_BYTES + (CHANNELS_MAX + 4) * WINDOW as usize;

/// How long the connection is not read after data came while something is stalled; less when room
/// is made meanwhile.
const PAUSE: Duration = Duration::from_millis(10);

/// Data is kept in blocks of about this size, however small the packets are.
const BLOCK_BYTES: usize = 32 << 10;

/// The client has sent more than it was granted.
#[derive(Debug, thiserror::Error)]
#[error("more data was sent than granted")]
pub(super) struct Overrun;

/// What waits on all channels of a connection.
#[derive(Debug, Default)]
pub(super) struct Flow {
    held: AtomicUsize,
    stalled: AtomicUsize,
    room: Notify,
}

impl Flow {
    /// What russh is to fill a channel's window up to.
    pub(super) fn window(&self) -> u32 {
        if self.is_stalled() {
            CLOSED_WINDOW
        } else {
            WINDOW
        }
    }

    fn is_stalled(&self) -> bool {
        self.stalled.load(Ordering::SeqCst) > 0
            || self.held.load(Ordering::SeqCst) >= STALL_TOTAL_BYTES
    }

    /// To be awaited after data came: slows a client down whose data nobody takes.
    pub(super) async fn pause(&self) {
        let room = self.room.notified();
        if self.is_stalled() {
            // Either way the next packet is read.
            let _ = tokio::time::timeout(PAUSE, room).await;
        }
    }
}

/// The end of a channel that the connection fills.
#[derive(Debug)]
pub(super) struct Inbox(Arc<Shared>);

/// The end that the sandbox's side empties. Dropping it discards what waits and what still comes.
#[derive(Debug)]
pub(super) struct InboxReader(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    flow: Arc<Flow>,
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct State {
    blocks: VecDeque<BytesMut>,
    held: usize,
    is_stalled: bool,
    is_ended: bool,
    has_no_reader: bool,
}

/// The inbox of a new channel.
pub(super) fn inbox(flow: &Arc<Flow>) -> (Inbox, InboxReader) {
    let shared = Arc::new(Shared {
        flow: flow.clone(),
        state: Mutex::default(),
        wake: Notify::new(),
    });
    (Inbox(shared.clone()), InboxReader(shared))
}

impl Inbox {
    /// Keeps `data` until it is taken.
    pub(super) fn push(&self, data: &[u8]) -> Result<(), Overrun> {
        {
            let mut state = self.0.lock();
            if state.has_no_reader || state.is_ended {
                return Ok(());
            }
            match state.blocks.back_mut() {
                Some(last) if last.len() + data.len() <= BLOCK_BYTES => {
                    last.extend_from_slice(data);
                }
                _ => state.blocks.push_back(BytesMut::from(data)),
            }
            let held = state.held + data.len();
            self.0.set_held(&mut state, held);
        }
        self.0.wake.notify_one();
        if self.0.flow.held.load(Ordering::SeqCst) > HELD_MAX_BYTES {
            return Err(Overrun);
        }
        Ok(())
    }

    /// Says that nothing more comes.
    pub(super) fn end(&self) {
        self.0.lock().is_ended = true;
        self.0.wake.notify_one();
    }
}

impl InboxReader {
    /// The next bytes, `None` at the end. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        loop {
            let woken = self.0.wake.notified();
            {
                let mut state = self.0.lock();
                if let Some(block) = state.blocks.pop_front() {
                    let held = state.held - block.len();
                    self.0.set_held(&mut state, held);
                    return Some(block.freeze());
                }
                if state.is_ended {
                    return None;
                }
            }
            woken.await;
        }
    }
}

impl Drop for InboxReader {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.has_no_reader = true;
        state.blocks.clear();
        self.0.set_held(&mut state, 0);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_held(&self, state: &mut State, held: usize) {
        let flow = &self.flow;
        let was_stalled = state.is_stalled;
        state.is_stalled = if was_stalled {
            held > STALL_BYTES / 2
        } else {
            held > STALL_BYTES
        };
        match (was_stalled, state.is_stalled) {
            (false, true) => flow.stalled.fetch_add(1, Ordering::SeqCst),
            (true, false) => flow.stalled.fetch_sub(1, Ordering::SeqCst),
            (false, false) | (true, true) => 0,
        };
        let before = std::mem::replace(&mut state.held, held);
        if held >= before {
            flow.held.fetch_add(held - before, Ordering::SeqCst);
        } else {
            flow.held.fetch_sub(before - held, Ordering::SeqCst);
            if !flow.is_stalled() {
                flow.room.notify_waiters();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_come_out_as_they_went_in_and_then_the_end() {
        let (inbox, mut reader) = inbox(&Arc::default());
        let mut sent = Vec::new();
        for length in [1, 2, 3, 40_000, 5, BLOCK_BYTES, 1] {
            let piece: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
            inbox.push(&piece).unwrap();
            sent.extend(piece);
        }
        inbox.end();
        inbox.push(b"late").unwrap();
        let mut received = Vec::new();
        while let Some(bytes) = reader.next().await {
            received.extend_from_slice(&bytes);
        }
        assert!(received == sent);
        assert_eq!(inbox.0.flow.held.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn a_reader_that_waits_is_woken() {
        let (inbox, mut reader) = inbox(&Arc::default());
        let reading = tokio::spawn(async move { (reader.next().await, reader.next().await) });
        tokio::task::yield_now().await;
        inbox.push(b"x").unwrap();
        inbox.end();
        assert_eq!(reading.await.unwrap(), (Some(Bytes::from("x")), None));
    }

    #[tokio::test]
    async fn one_stalled_channel_closes_the_window_until_it_is_half_empty() {
        let flow = Arc::new(Flow::default());
        let (slow, mut reader) = inbox(&flow);
        let (other, _other_reader) = inbox(&flow);
        let block = vec![0; BLOCK_BYTES];
        let blocks = STALL_BYTES / BLOCK_BYTES;
        for _ in 0..blocks {
            slow.push(&block).unwrap();
        }
        assert_eq!(flow.window(), WINDOW);
        slow.push(b"x").unwrap();
        other.push(b"x").unwrap();
        assert_eq!(flow.window(), CLOSED_WINDOW);
        for _ in 0..blocks / 2 {
            assert_eq!(flow.window(), CLOSED_WINDOW);
            reader.next().await.unwrap();
        }
        reader.next().await.unwrap();
        assert_eq!(flow.window(), WINDOW);
    }

    #[tokio::test]
    async fn many_channels_together_close_the_window() {
        let flow = Arc::new(Flow::default());
        let channels: Vec<_> = (0..8).map(|_| inbox(&flow)).collect();
        let block = vec![0; STALL_BYTES];
        for (inbox, _) in &channels {
            assert_eq!(flow.window(), WINDOW);
            inbox.push(&block).unwrap();
        }
        assert_eq!(flow.window(), CLOSED_WINDOW);
        drop(channels);
        assert_eq!(flow.window(), WINDOW);
    }

    #[tokio::test]
    async fn who_ignores_the_window_is_found_out_and_an_absent_reader_costs_nothing() {
        let flow = Arc::new(Flow::default());
        let (greedy, reader) = inbox(&flow);
        let block = vec![0; BLOCK_BYTES];
        let pushed = (0..)
            .take_while(|_| greedy.push(&block).is_ok())
            .take(2 * HELD_MAX_BYTES / BLOCK_BYTES)
            .count();
        assert_eq!(pushed, HELD_MAX_BYTES / BLOCK_BYTES);
        drop(reader);
        assert_eq!(flow.held.load(Ordering::SeqCst), 0);
        for _ in 0..2 * pushed {
            greedy.push(&block).unwrap();
        }
        assert_eq!(flow.held.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn a_pause_ends_when_room_is_made() {
        let flow = Arc::new(Flow::default());
        let (full, reader) = inbox(&flow);
        tokio::time::timeout(Duration::from_secs(5), flow.pause())
            .await
            .unwrap();
        full.push(&vec![0; STALL_BYTES + 1]).unwrap();
        let pausing = tokio::spawn({
            let flow = flow.clone();
            async move { flow.pause().await }
        });
        drop(reader);
        tokio::time::timeout(Duration::from_secs(5), pausing)
            .await
            .unwrap()
            .unwrap();
    }
}
