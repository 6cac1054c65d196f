//! What moves the standard streams of a process.
//!
//! A pump outlives its connection: then it throws the output away, so that a process of a sandbox
//! that goes on never blocks on a full pipe.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use sandstone_node_api::{InboundStream, OutboundStream};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::session::Session;
use super::streams::Download;
use super::uploads::UploadReader;

/// How long the answer to `processWait` waits for output that has stopped flowing: a grandchild
/// may hold the pipe for ever.
const DRAIN_GRACE: Duration = Duration::from_millis(200);

/// How much output of one stream the answer waits for after the exit. What the process itself
/// wrote is in the pipe (at most 1 MiB) and in the stream's window; the rest is a grandchild's.
const DRAIN_MAX_BYTES: u64 = 2 << 20;

/// How far the output of one stream has come.
#[derive(Debug, Default)]
pub(super) struct PumpState {
    sent_bytes: AtomicU64,
    /// The client is the one that is slow.
    is_sending: AtomicBool,
    /// Fires when all of it is sent.
    pub(super) done: CancellationToken,
}

/// Hands what the client sends to a process's standard input.
pub(super) async fn feed_stdin(
    mut upload: UploadReader,
    mut stream: OutboundStream,
    ended: CancellationToken,
) {
    let feeding = async {
        while let Some(chunk) = upload.next().await {
            let Ok(chunk) = chunk else { return };
            if stream.send(chunk).await.is_err() {
                // The process reads no more. What still comes is dropped silently (trap 16).
                return;
            }
        }
        let _ = stream.finish().await;
    };
    tokio::select! {
        () = feeding => {}
        () = ended.cancelled() => {}
    }
}

/// Looks at output without changing it.
pub(super) type Observer = Box<dyn FnMut(&[u8]) + Send>;

/// Moves one stream of a process to the client from `released` on, or only to the observer when the
/// client wants none of it.
pub(super) async fn pump_output(
    session: Arc<Session>,
    source: InboundStream,
    download: Option<Download>,
    observer: Option<Observer>,
    released: CancellationToken,
    state: Arc<PumpState>,
) {
    let _done = state.done.clone().drop_guard();
    let ended = session.ended.clone();
    let cancelled = match &download {
        Some(download) => download.cancelled.clone(),
        None => CancellationToken::new(),
    };
    let id = download.as_ref().map(|download| download.id);
    if download.is_some() {
        tokio::select! {
            () = released.cancelled() => {}
            () = cancelled.cancelled() => {}
            () = ended.cancelled() => {}
        }
    }
    let is_observed = observer.is_some();
    tokio::select! {
        biased;
        // Dropping the source tells the agent that nobody reads this pipe any more.
        () = cancelled.cancelled(), if !is_observed => {}
        () = copy_output(source, download, observer, &state) => {}
    }
    if let Some(id) = id {
        session.downloads.forget(id);
    }
}

/// Sends everything to the client, or nowhere once the client is gone.
async fn copy_output(
    mut source: InboundStream,
    download: Option<Download>,
    mut observer: Option<Observer>,
    state: &PumpState,
) {
    let is_sending = |is| state.is_sending.store(is, Ordering::Relaxed);
    let mut client = download.as_ref();
    is_sending(true);
    if let Some(download) = client
        && download.start().await.is_err()
    {
        client = None;
    }
    is_sending(false);
    while let Some(Ok(chunk)) = source.next().await {
        if let Some(observer) = &mut observer {
            observer(&chunk);
        }
        if let Some(download) = client {
            is_sending(true);
            if download.enqueue(&chunk).await.is_err() || download.cancelled.is_cancelled() {
                client = None;
            }
            is_sending(false);
        }
        state
            .sent_bytes
            .fetch_add(chunk.len() as u64, Ordering::Relaxed);
    }
    is_sending(true);
    if let Some(download) = client {
        // A broken stream ends like a good one: Python would wait for ever after an error.
        let _ = download.end().await;
    }
}

/// Waits for a stream's end (trap 15), but not for a grandchild that holds the pipe.
pub(super) async fn drain(pump: &PumpState) {
    let sent = || pump.sent_bytes.load(Ordering::Relaxed);
    let at_exit = sent();
    loop {
        let before = sent();
        tokio::select! {
            () = pump.done.cancelled() => return,
            () = sleep(DRAIN_GRACE) => {}
        }
        let now = sent();
        let is_stuck = now == before && !pump.is_sending.load(Ordering::Relaxed);
        if is_stuck || now - at_exit > DRAIN_MAX_BYTES {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn trap_15_the_answer_waits_for_the_end_but_not_for_a_grandchild() {
        let silent = PumpState::default();
        let begun = tokio::time::Instant::now();
        drain(&silent).await;
        assert_eq!(begun.elapsed(), DRAIN_GRACE, "a silent grandchild");

        let chatty = Arc::new(PumpState::default());
        let writer = chatty.clone();
        let writing = tokio::spawn(async move {
            loop {
                writer.sent_bytes.fetch_add(1 << 20, Ordering::Relaxed);
                sleep(DRAIN_GRACE / 2).await;
            }
        });
        drain(&chatty).await;
        writing.abort();

        let slow_client = PumpState::default();
        slow_client.is_sending.store(true, Ordering::Relaxed);
        let begun = tokio::time::Instant::now();
        tokio::join!(drain(&slow_client), async {
            sleep(DRAIN_GRACE * 20).await;
            slow_client.done.cancel();
        });
        assert_eq!(begun.elapsed(), DRAIN_GRACE * 20, "a slow client");
    }
}
