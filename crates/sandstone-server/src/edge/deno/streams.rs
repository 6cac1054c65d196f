//! Streams from the sandbox to the client.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use base64::Engine;
use sandstone_core::Entropy;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::config::BASE64;
use super::error::RemoteError;
use super::outbox::{Gone, Item, Outbox};

/// Raw bytes in one message.
const CHUNK_MAX_BYTES: usize = 64 << 10;

/// Where the ids of all streams of this server come from.
///
/// Trap 1: a JavaScript process keeps the streams of all its connections in one table, so no two
/// connections, and no two servers, may use the same id. 48 random bits and a counter stay below
/// 2^53, which a JavaScript number holds exactly.
#[derive(Debug)]
pub(in crate::edge) struct StreamIds(AtomicU64);

impl StreamIds {
    /// Starts at a random base.
    pub(in crate::edge) fn new(entropy: &dyn Entropy) -> Self {
        let mut bytes = [0; 8];
        entropy.fill(&mut bytes[..6]);
        Self(AtomicU64::new(u64::from_le_bytes(bytes)))
    }

    fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

/// The open streams of one connection.
#[derive(Debug, Default)]
pub(super) struct Downloads(Mutex<HashMap<u64, CancellationToken>>);

impl Downloads {
    /// Opens a stream. Nothing is sent yet.
    pub(super) fn open(&self, ids: &StreamIds, outbox: Outbox) -> Download {
        let id = ids.next();
        let cancelled = CancellationToken::new();
        self.streams().insert(id, cancelled.clone());
        Download {
            id,
            outbox,
            cancelled,
        }
    }

    /// The client does not want more of a stream.
    pub(super) fn cancel(&self, id: u64) {
        if let Some(cancelled) = self.streams().remove(&id) {
            cancelled.cancel();
        }
    }

    /// The stream has ended.
    pub(super) fn forget(&self, id: u64) {
        self.streams().remove(&id);
    }

    fn streams(&self) -> std::sync::MutexGuard<'_, HashMap<u64, CancellationToken>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sending end of one stream.
#[derive(Debug)]
pub(super) struct Download {
    /// The id that the client knows it by.
    pub(super) id: u64,
    outbox: Outbox,
    /// Fires when the client cancels it; after that nothing more is sent (trap 2).
    pub(super) cancelled: CancellationToken,
}

impl Download {
    /// Announces the stream.
    pub(super) async fn start(&self) -> Result<(), Gone> {
        self.send(
            json!({
                "jsonrpc": "2.0",
                "method": "$sandbox.stream.start",
                "params": {"streamId": self.id},
            })
            .to_string(),
        )
        .await
    }

    /// Sends bytes. Sends nothing for no bytes (trap 3).
    pub(super) async fn enqueue(&self, bytes: &[u8]) -> Result<(), Gone> {
        for chunk in bytes.chunks(CHUNK_MAX_BYTES) {
            // By hand, because base64 needs no escaping and this is the hot path.
            let mut text = format!(
                "{{\"jsonrpc\":\"2.0\",\"method\":\"$sandbox.stream.enqueue\",\"params\":{{\"streamId\":{},\"data\":\"",
                self.id
            );
            text.reserve(chunk.len().div_ceil(3) * 4 + 3);
            BASE64.encode_string(chunk, &mut text);
            text.push_str("\"}}");
            self.send(text).await?;
        }
        Ok(())
    }

    /// Sends bytes that must not be cut. More than one message takes never go out.
    pub(super) async fn enqueue_whole(&self, bytes: &[u8]) -> Result<(), Gone> {
        if bytes.len() > CHUNK_MAX_BYTES {
            tracing::warn!(bytes = bytes.len(), "a piece of a stream is too long");
            return Ok(());
        }
        self.enqueue(bytes).await
    }

    /// Ends the stream with an error.
    pub(super) async fn error(&self, error: &RemoteError) -> Result<(), Gone> {
        self.send(
            json!({
                "jsonrpc": "2.0",
                "method": "$sandbox.stream.error",
                "params": {"streamId": self.id, "error": error.to_value()},
            })
            .to_string(),
        )
        .await
    }

    /// Ends the stream.
    pub(super) async fn end(&self) -> Result<(), Gone> {
        self.send(
            json!({
                "jsonrpc": "2.0",
                "method": "$sandbox.stream.end",
                "params": {"streamId": self.id},
            })
            .to_string(),
        )
        .await
    }

    async fn send(&self, text: String) -> Result<(), Gone> {
        self.outbox
            .send(Item::Stream {
                text,
                cancelled: self.cancelled.clone(),
            })
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixed::Fixed;

    #[test]
    fn trap_1_ids_start_at_a_random_base_and_stay_exact_in_javascript() {
        let ids = StreamIds::new(&Fixed(0xff));
        let first = ids.next();
        assert_eq!(first, (1 << 48) - 1);
        assert_eq!(ids.next(), first + 1);
        assert!(first + (1 << 40) < (1 << 53));
        assert_ne!(
            StreamIds::new(&Fixed(1)).next(),
            StreamIds::new(&Fixed(2)).next()
        );
    }

    #[tokio::test]
    async fn trap_3_no_empty_message_and_no_long_one() {
        let (outbox, mut queue) = Outbox::new();
        let download = Downloads::default().open(&StreamIds::new(&Fixed(0)), outbox);
        download.enqueue(b"").await.unwrap();
        download
            .enqueue(&vec![7; CHUNK_MAX_BYTES + 1])
            .await
            .unwrap();
        download.end().await.unwrap();
        drop(download);
        let mut lengths = Vec::new();
        while let Some(Item::Stream { text, .. }) = queue.recv().await.map(|queued| queued.item) {
            let message: serde_json::Value = serde_json::from_str(&text).unwrap();
            if message["method"] == "$sandbox.stream.enqueue" {
                let data = message["params"]["data"].as_str().unwrap();
                lengths.push(BASE64.decode(data).unwrap().len());
            }
        }
        assert_eq!(lengths, [CHUNK_MAX_BYTES, 1]);
    }
}
