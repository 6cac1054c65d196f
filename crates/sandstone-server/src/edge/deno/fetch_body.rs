//! The body of a request that goes into a sandbox's network: bytes that the client streams. A
//! short one is kept while it goes out, in case a redirect asks for it again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tokio::sync::Mutex;

use super::uploads::{UploadError, UploadReader};

/// Longest body that can be sent again.
const KEPT_MAX_BYTES: usize = 1 << 20;

/// A body on its way.
pub(super) type Body = UnsyncBoxBody<Bytes, BodyError>;

/// Why a body did not come to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    /// The client's source failed.
    #[error("the body failed: {0}")]
    Source(String),
    /// The client sent faster than the server took it, for too long.
    #[error("the body came faster than the server took it")]
    Overflow,
    /// The connection of the client has ended.
    #[error("the connection is closed")]
    Closed,
}

impl From<UploadError> for BodyError {
    fn from(error: UploadError) -> Self {
        match error {
            UploadError::Client(why) => Self::Source(why),
            UploadError::Overflow => Self::Overflow,
            UploadError::Closed => Self::Closed,
        }
    }
}

/// A request's body.
#[derive(Debug, Clone)]
pub(super) struct RequestBody(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    source: Mutex<Source>,
    /// All of it is kept, or its rest is still to come.
    can_repeat: AtomicBool,
}

#[derive(Debug)]
struct Source {
    upload: UploadReader,
    kept: Vec<Bytes>,
    kept_bytes: usize,
}

impl RequestBody {
    /// A body that the client streams. `is_kept`: it may have to be sent again.
    pub(super) fn new(upload: UploadReader, is_kept: bool) -> Self {
        let source = Source {
            upload,
            kept: Vec::new(),
            kept_bytes: 0,
        };
        Self(Arc::new(Shared {
            source: Mutex::new(source),
            can_repeat: AtomicBool::new(is_kept),
        }))
    }

    /// Whether [`Self::to_send`] gives the whole body once more.
    pub(super) fn can_repeat(&self) -> bool {
        self.0.can_repeat.load(Ordering::Relaxed)
    }

    /// The body from its beginning, if [`Self::can_repeat`] or nothing was sent yet.
    pub(super) fn to_send(&self) -> Body {
        let chunks = stream::unfold((self.clone(), 0_usize), |(body, position)| async move {
            let chunk = body.chunk(position).await?;
            let frame = chunk.map(Frame::data).map_err(BodyError::from);
            Some((frame, (body, position + 1)))
        });
        StreamBody::new(chunks).boxed_unsync()
    }

    async fn chunk(&self, position: usize) -> Option<Result<Bytes, UploadError>> {
        let mut source = self.0.source.lock().await;
        if let Some(chunk) = source.kept.get(position) {
            return Some(Ok(chunk.clone()));
        }
        let chunk = source.upload.next().await?;
        if let Ok(chunk) = &chunk
            && self.can_repeat()
        {
            source.kept_bytes += chunk.len();
            if source.kept_bytes <= KEPT_MAX_BYTES {
                source.kept.push(chunk.clone());
            } else {
                self.0.can_repeat.store(false, Ordering::Relaxed);
                source.kept = Vec::new();
            }
        }
        Some(chunk)
    }
}

#[cfg(test)]
mod tests {
    use super::super::outbox::Outbox;
    use super::super::uploads::{Purpose, Uploads};
    use super::*;

    async fn body(chunks: &[usize], is_kept: bool) -> RequestBody {
        let (outbox, _queue) = Outbox::new();
        let uploads = Uploads::new(outbox);
        uploads.start(1);
        for length in chunks {
            uploads.push(1, vec![7; *length].into()).await;
        }
        uploads.end(1);
        RequestBody::new(uploads.claim(1, Purpose::File).unwrap(), is_kept)
    }

    async fn length(body: Body) -> usize {
        body.collect().await.unwrap().to_bytes().len()
    }

    #[tokio::test]
    async fn a_short_body_can_be_sent_again() {
        let body = body(&[10, 20], true).await;
        assert_eq!(length(body.to_send()).await, 30);
        assert!(body.can_repeat());
        assert_eq!(length(body.to_send()).await, 30);
    }

    #[tokio::test]
    async fn a_long_body_cannot() {
        let body = body(&[KEPT_MAX_BYTES, 1, 5], true).await;
        assert_eq!(length(body.to_send()).await, KEPT_MAX_BYTES + 6);
        assert!(!body.can_repeat());
    }
}
