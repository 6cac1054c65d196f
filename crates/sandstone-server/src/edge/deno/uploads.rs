//! Streams from the client to the sandbox: file contents and standard input.
//!
//! The clients know no flow control: they send as fast as the socket takes it. A file that the
//! sandbox is writing holds the socket up while more than [`FILE_AHEAD_BYTES`] are waiting, as
//! long as the sandbox makes progress. Standard input never holds the socket up, because the call
//! that would make the process read on comes over the same socket. Whatever grows beyond
//! [`STREAM_MAX_BYTES`] is given up.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::outbox::Outbox;

/// A stream that already holds this much takes no more.
const STREAM_MAX_BYTES: usize = 64 << 20;

/// All streams of a connection together hold at most this much and one message.
const CONNECTION_MAX_BYTES: usize = 256 << 20;

/// What a chunk costs beside its bytes: a flood of chunks of one byte must not be free.
const CHUNK_COST_BYTES: usize = 64;

/// Streams per connection.
const STREAMS_MAX: usize = 10_000;

/// How far a client may be ahead of the file that it sends.
const FILE_AHEAD_BYTES: usize = 4 << 20;

/// How long the socket waits for a file that does not get on. Python gives up on a connection
/// whose ping is not answered for 20 seconds.
const STALL_LIMIT: Duration = Duration::from_secs(2);

/// What a stream is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Standard input of a process.
    Input,
    /// Content of a file, or the body of a request.
    File,
}

/// Why a stream ended before its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum UploadError {
    /// The client says why.
    Client(String),
    /// The client was faster than the sandbox for too long.
    Overflow,
    /// The connection has ended.
    Closed,
}

/// The client's streams on one connection, from their `start` to the end of their use.
#[derive(Debug, Clone)]
pub(super) struct Uploads(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    streams: Mutex<HashMap<u64, Arc<Upload>>>,
    /// Bytes waiting in all streams.
    waiting: AtomicUsize,
    outbox: Outbox,
}

#[derive(Debug, Default)]
struct Upload {
    state: Mutex<State>,
    /// Wakes the reader.
    arrived: Notify,
    /// Wakes the socket.
    taken: Notify,
    /// Fires when the client has said everything.
    ended: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    chunks: VecDeque<Bytes>,
    waiting: usize,
    purpose: Option<Purpose>,
    end: Option<Result<(), UploadError>>,
    /// Chunks that the reader has taken.
    taken_chunks: u64,
    /// The reader did not get on; the socket does not wait for it until it does.
    stalled: bool,
}

impl Upload {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finish(&self, end: Result<(), UploadError>) {
        self.lock().end.get_or_insert(end);
        self.arrived.notify_one();
        self.taken.notify_one();
        self.ended.cancel();
    }
}

impl Uploads {
    /// None yet.
    pub(super) fn new(outbox: Outbox) -> Self {
        Self(Arc::new(Shared {
            streams: Mutex::default(),
            waiting: AtomicUsize::new(0),
            outbox,
        }))
    }

    /// The client begins a stream. It comes before the call that uses it.
    pub(super) fn start(&self, id: u64) {
        let mut streams = self.lock();
        if streams.len() < STREAMS_MAX {
            streams.entry(id).or_default();
        }
    }

    /// The client sends bytes. May wait, for a file that is being written (see the module).
    pub(super) async fn push(&self, id: u64, bytes: Bytes) {
        let Some(upload) = self.get(id) else {
            // Given up, or never begun: late bytes are dropped without a word (trap 16).
            return;
        };
        let is_file = {
            let mut state = upload.lock();
            if state.end.is_some() || bytes.is_empty() {
                return;
            }
            if state.waiting > STREAM_MAX_BYTES
                || self.0.waiting.load(Ordering::Relaxed) > CONNECTION_MAX_BYTES
            {
                tracing::warn!(stream = id, "a client sends faster than its sandbox reads");
                state.end = Some(Err(UploadError::Overflow));
                if state.purpose != Some(Purpose::Input) {
                    self.0.waiting.fetch_sub(state.waiting, Ordering::Relaxed);
                    state.waiting = 0;
                    state.chunks.clear();
                }
            } else {
                self.0.waiting.fetch_add(cost(&bytes), Ordering::Relaxed);
                state.waiting += cost(&bytes);
                state.chunks.push_back(bytes);
            }
            state.purpose == Some(Purpose::File)
        };
        upload.arrived.notify_one();
        if is_file {
            wait_for_room(&upload).await;
        }
    }

    /// The client has said everything.
    pub(super) fn end(&self, id: u64) {
        if let Some(upload) = self.get(id) {
            upload.finish(Ok(()));
        }
    }

    /// The client's source failed.
    pub(super) fn fail(&self, id: u64, why: String) {
        if let Some(upload) = self.get(id) {
            upload.finish(Err(UploadError::Client(why)));
        }
    }

    /// Hands a stream to the one call that uses it; `None` when there is no such stream or it is
    /// in use.
    pub(super) fn claim(&self, id: u64, purpose: Purpose) -> Option<UploadReader> {
        let upload = self.get(id)?;
        {
            let mut state = upload.lock();
            if state.purpose.is_some() {
                return None;
            }
            state.purpose = Some(purpose);
        }
        Some(UploadReader {
            uploads: self.clone(),
            id,
            purpose,
            upload,
        })
    }

    /// The connection has ended: nothing of what waits is wanted any more. Who uses a stream may
    /// outlive the connection.
    pub(super) fn close(&self) {
        for upload in std::mem::take(&mut *self.lock()).into_values() {
            let waiting = {
                let mut state = upload.lock();
                state.chunks = VecDeque::new();
                std::mem::take(&mut state.waiting)
            };
            self.0.waiting.fetch_sub(waiting, Ordering::Relaxed);
            upload.finish(Err(UploadError::Closed));
        }
    }

    fn get(&self, id: u64) -> Option<Arc<Upload>> {
        self.lock().get(&id).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Upload>>> {
        self.0
            .streams
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a waiting chunk counts for.
fn cost(chunk: &Bytes) -> usize {
    chunk.len() + CHUNK_COST_BYTES
}

/// Waits until the file is nearly up to date, ends, or does not get on.
async fn wait_for_room(upload: &Upload) {
    loop {
        let taken = upload.taken.notified();
        let before = {
            let state = upload.lock();
            if state.waiting <= FILE_AHEAD_BYTES || state.stalled || state.end.is_some() {
                return;
            }
            state.taken_chunks
        };
        if tokio::time::timeout(STALL_LIMIT, taken).await.is_err() {
            let mut state = upload.lock();
            state.stalled = state.taken_chunks == before;
        }
    }
}

/// The using end of one stream. Dropping it gives the rest of the stream up.
#[derive(Debug)]
pub(super) struct UploadReader {
    uploads: Uploads,
    id: u64,
    purpose: Purpose,
    upload: Arc<Upload>,
}

impl UploadReader {
    /// The next bytes; `None` at the end. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Result<Bytes, UploadError>> {
        loop {
            let arrived = self.upload.arrived.notified();
            {
                let mut state = self.upload.lock();
                if let Some(chunk) = state.chunks.pop_front() {
                    state.waiting -= cost(&chunk);
                    state.taken_chunks += 1;
                    state.stalled = false;
                    drop(state);
                    self.uploads
                        .0
                        .waiting
                        .fetch_sub(cost(&chunk), Ordering::Relaxed);
                    self.upload.taken.notify_one();
                    return Some(Ok(chunk));
                }
                if let Some(end) = &state.end {
                    return end.clone().err().map(Err);
                }
            }
            arrived.await;
        }
    }

    /// Fires when the client has said everything.
    pub(super) fn ended(&self) -> CancellationToken {
        self.upload.ended.clone()
    }
}

impl Drop for UploadReader {
    fn drop(&mut self) {
        self.uploads.lock().remove(&self.id);
        let (waiting, is_flowing) = {
            let mut state = self.upload.lock();
            state.chunks.clear();
            let flowing = matches!(state.end, None | Some(Err(UploadError::Overflow)));
            // The socket may be waiting for room.
            state.end.get_or_insert(Err(UploadError::Closed));
            (std::mem::take(&mut state.waiting), flowing)
        };
        self.uploads.0.waiting.fetch_sub(waiting, Ordering::Relaxed);
        self.upload.taken.notify_one();
        // Tells the client to stop reading its file; never for standard input (trap 16), and not
        // after the client's own end, which it would complain about.
        if is_flowing && self.purpose == Purpose::File {
            self.uploads.0.outbox.offer(
                json!({
                    "jsonrpc": "2.0",
                    "method": "$sandbox.stream.cancel",
                    "params": {"streamId": self.id, "reason": null},
                })
                .to_string(),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::outbox::Queued;
    use super::*;

    async fn sent(mut queue: tokio::sync::mpsc::Receiver<Queued>) -> usize {
        queue.close();
        let mut count = 0;
        while queue.recv().await.is_some() {
            count += 1;
        }
        count
    }

    #[tokio::test]
    async fn a_stream_may_be_complete_before_it_is_used() {
        let (outbox, queue) = Outbox::new();
        let uploads = Uploads::new(outbox);
        // Trap 10: id 0 is an id.
        uploads.start(0);
        uploads.push(0, "ab".into()).await;
        uploads.push(0, Bytes::new()).await;
        uploads.end(0);
        let mut reader = uploads.claim(0, Purpose::File).unwrap();
        assert!(uploads.claim(0, Purpose::File).is_none(), "only once");
        assert_eq!(reader.next().await, Some(Ok("ab".into())));
        assert_eq!(reader.next().await, None);
        drop(reader);
        assert_eq!(uploads.0.waiting.load(Ordering::Relaxed), 0);
        assert!(uploads.lock().is_empty());
        assert_eq!(sent(queue).await, 0, "no cancel after the end");
    }

    #[tokio::test]
    async fn trap_16_only_files_are_cancelled() {
        for (purpose, cancels) in [(Purpose::Input, 0), (Purpose::File, 1)] {
            let (outbox, queue) = Outbox::new();
            let uploads = Uploads::new(outbox);
            uploads.start(5);
            uploads.push(5, "x".into()).await;
            drop(uploads.claim(5, purpose).unwrap());
            uploads.push(5, "late".into()).await;
            assert_eq!(uploads.0.waiting.load(Ordering::Relaxed), 0);
            assert_eq!(sent(queue).await, cancels, "{purpose:?}");
        }
    }

    #[tokio::test]
    async fn a_flood_is_bounded() {
        let chunk = Bytes::from(vec![0; (8 << 20) - CHUNK_COST_BYTES]);
        for (purpose, kept) in [(Some(Purpose::Input), 9), (None, 0)] {
            let (outbox, _queue) = Outbox::new();
            let uploads = Uploads::new(outbox);
            uploads.start(1);
            let early = purpose.and_then(|purpose| uploads.claim(1, purpose));
            for _ in 0..20 {
                uploads.push(1, chunk.clone()).await;
            }
            uploads.end(1);
            let mut reader = early.or_else(|| uploads.claim(1, Purpose::File)).unwrap();
            for _ in 0..kept {
                assert!(matches!(reader.next().await, Some(Ok(_))));
            }
            assert_eq!(reader.next().await, Some(Err(UploadError::Overflow)));
            assert_eq!(uploads.0.waiting.load(Ordering::Relaxed), 0);
        }
    }

    #[tokio::test]
    async fn small_chunks_are_not_free() {
        let (outbox, _queue) = Outbox::new();
        let uploads = Uploads::new(outbox);
        uploads.start(1);
        for _ in 0..STREAM_MAX_BYTES / CHUNK_COST_BYTES {
            uploads.push(1, "x".into()).await;
        }
        let mut reader = uploads.claim(1, Purpose::File).unwrap();
        assert_eq!(reader.next().await, Some(Err(UploadError::Overflow)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_holds_the_socket_up_only_while_it_gets_on() {
        let (outbox, _queue) = Outbox::new();
        let uploads = Uploads::new(outbox);
        uploads.start(1);
        let mut reader = uploads.claim(1, Purpose::File).unwrap();
        let chunk = Bytes::from(vec![0; FILE_AHEAD_BYTES - CHUNK_COST_BYTES]);
        uploads.push(1, chunk.clone()).await;
        // Held up until the reader takes a chunk.
        let (_, first) = tokio::join!(uploads.push(1, chunk.clone()), reader.next());
        assert!(first.unwrap().is_ok());
        // The reader does nothing: held up once, then never again until it does.
        let begun = tokio::time::Instant::now();
        uploads.push(1, chunk.clone()).await;
        assert!(begun.elapsed() >= STALL_LIMIT);
        let begun = tokio::time::Instant::now();
        uploads.push(1, chunk).await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }

    #[tokio::test]
    async fn the_end_of_the_connection_ends_all() {
        let (outbox, _queue) = Outbox::new();
        let uploads = Uploads::new(outbox);
        uploads.start(1);
        uploads.start(2);
        uploads.fail(2, "source failed".to_owned());
        let mut one = uploads.claim(1, Purpose::Input).unwrap();
        let mut two = uploads.claim(2, Purpose::File).unwrap();
        uploads.close();
        assert_eq!(one.next().await, Some(Err(UploadError::Closed)));
        assert_eq!(
            two.next().await,
            Some(Err(UploadError::Client("source failed".to_owned())))
        );
    }

    #[tokio::test]
    async fn a_closed_connection_keeps_no_bytes() {
        let (outbox, _queue) = Outbox::new();
        let uploads = Uploads::new(outbox);
        uploads.start(1);
        uploads.start(2);
        let mut reader = uploads.claim(2, Purpose::File).unwrap();
        let [unused, used] = [b"unused", b"used!!"].map(|bytes| Bytes::from(bytes.to_vec()));
        uploads.push(1, unused.clone()).await;
        uploads.push(2, used.clone()).await;
        assert!(!unused.is_unique() && !used.is_unique());
        uploads.close();
        assert!(unused.is_unique() && used.is_unique());
        assert_eq!(uploads.0.waiting.load(Ordering::Relaxed), 0);
        assert_eq!(reader.next().await, Some(Err(UploadError::Closed)));
        drop(reader);
        assert_eq!(uploads.0.waiting.load(Ordering::Relaxed), 0);
    }
}
