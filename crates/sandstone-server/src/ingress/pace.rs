//! Whether a client takes what it is sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper::rt::Executor;

tokio::task_local! {
    /// That of the exchange which the task serves.
    static PACE: Arc<Pace>;
}

/// Turns of an answer's body: odd while the client is to take a piece, even while it waits for one.
#[derive(Debug, Default)]
pub(super) struct Pace(AtomicU64);

impl Pace {
    /// That of the exchange which the task serves.
    pub(super) fn current() -> Arc<Self> {
        PACE.try_with(Arc::clone).unwrap_or_default()
    }

    /// A piece is there for the client.
    pub(super) fn given(&self) {
        self.0.fetch_or(1, Ordering::Relaxed);
    }

    /// There is room for the next piece, or there will be none.
    pub(super) fn taken(&self) {
        // Nobody else writes: a body is polled and dropped by one task at a time.
        let turns = self.0.load(Ordering::Relaxed);
        self.0.store((turns + 1) & !1, Ordering::Relaxed);
    }

    /// Returns when the client has taken nothing for `limit`, and at most twice that, although
    /// there was something to take.
    async fn stalled(&self, limit: Duration) {
        let mut before = None;
        loop {
            let now = self.0.load(Ordering::Relaxed);
            let is_to_take = now % 2 == 1;
            if is_to_take && before == Some(now) {
                return;
            }
            before = Some(now);
            tokio::time::sleep(limit).await;
        }
    }
}

/// What `exchange` comes to; nothing when its client takes nothing for `limit`.
pub(super) async fn while_taken<F: Future>(exchange: F, limit: Duration) -> Option<F::Output> {
    let pace = Arc::new(Pace::default());
    tokio::select! {
        output = PACE.scope(pace.clone(), exchange) => Some(output),
        () = pace.stalled(limit) => None,
    }
}

/// Runs the streams of an HTTP/2 connection. One whose client takes nothing for so long is reset.
#[derive(Debug, Clone, Copy)]
pub(super) struct Streams(pub(super) Duration);

impl<F> Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, stream: F) {
        let limit = self.0;
        tokio::spawn(async move {
            if while_taken(stream, limit).await.is_none() {
                tracing::debug!("a client of an exposed server did not take its answer");
            }
        });
    }
}
