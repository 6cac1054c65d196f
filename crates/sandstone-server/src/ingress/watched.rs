//! The body of a request on its way to a sandbox, and whether it still moves.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

/// A body that counts its pieces.
pub(super) struct Watched {
    body: Incoming,
    pieces: Arc<AtomicU64>,
}

/// How far a body has come.
pub(super) struct Progress(Arc<AtomicU64>);

impl Watched {
    pub(super) fn new(body: Incoming) -> (Self, Progress) {
        let pieces = Arc::new(AtomicU64::new(0));
        let progress = Progress(pieces.clone());
        (Self { body, pieces }, progress)
    }
}

impl Progress {
    /// Returns when nothing of the body has been passed on for `limit`, and at most twice that.
    pub(super) async fn stalled(&self, limit: Duration) {
        let mut before = self.0.load(Ordering::Relaxed);
        loop {
            tokio::time::sleep(limit).await;
            let now = self.0.load(Ordering::Relaxed);
            if now == before {
                return;
            }
            before = now;
        }
    }
}

impl Body for Watched {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if polled.is_ready() {
            self.pieces.fetch_add(1, Ordering::Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
