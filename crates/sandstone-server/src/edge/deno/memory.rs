//! How much of what clients read is in the server's memory at once.
//!
//! Some answers are made in one piece: a whole file, the value of a REPL. A client takes at most
//! 100 MiB in one message, for which some 230 MB are used while the answer is made. What is larger
//! than a few pages therefore needs rights, which are held until the answer is on its way.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until, timeout};

use super::error::{CallError, RemoteError};
use super::session::Session;

/// Beyond this many bytes only [`LARGE_MAX`] answers of a connection are made at a time.
const LARGE_BYTES: usize = 64 << 10;

/// Large answers of one connection that are in memory at once.
const LARGE_MAX: usize = 2;

/// Beyond this many bytes only [`HUGE_MAX`] answers of the whole server are made at a time.
const HUGE_BYTES: usize = 4 << 20;

/// Huge answers that are in memory at once.
const HUGE_MAX: usize = 4;

/// How long a call waits for the memory of a huge answer. The clients of others decide how fast
/// they take theirs.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long it may take to fill the memory of a huge answer: what is in a sandbox comes much
/// faster, and the right is one of few.
pub(super) const FILL_LIMIT: Duration = Duration::from_secs(60);

/// The rights of one connection.
#[derive(Debug, Clone)]
pub(super) struct LargeRights(Arc<Semaphore>);

/// The rights of the whole server.
#[derive(Debug, Clone)]
pub(in crate::edge) struct HugeRights(Arc<Semaphore>);

/// What one answer holds, until it is dropped.
#[derive(Debug, Default)]
pub(super) struct Held {
    rights: Vec<OwnedSemaphorePermit>,
    /// When the memory of a huge answer must be filled.
    filled_by: Option<Instant>,
}

impl Default for LargeRights {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(LARGE_MAX)))
    }
}

impl Default for HugeRights {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(HUGE_MAX)))
    }
}

impl Held {
    /// Waits for what an answer of so many bytes takes beyond what is held. `operation` is what a
    /// refusal names.
    pub(super) async fn admit(
        &mut self,
        session: &Session,
        bytes: usize,
        operation: &str,
    ) -> Result<(), CallError> {
        if self.rights.is_empty() && bytes > LARGE_BYTES {
            let right = session.large_rights.0.clone().acquire_owned().await;
            self.rights.extend(right.ok());
        }
        if self.rights.len() == 1 && bytes > HUGE_BYTES {
            let right = session.edge.huge_rights.0.clone().acquire_owned();
            let Ok(right) = timeout(PATIENCE, right).await else {
                let why = format!(
                    "the server has too many large answers in memory: {operation}; try again, or \
                     use a stream"
                );
                return Err(RemoteError::new("WouldBlock", why)
                    .with_code("EAGAIN")
                    .into());
            };
            self.rights.extend(right.ok());
            self.filled_by = Some(Instant::now() + FILL_LIMIT);
        }
        Ok(())
    }

    /// Returns when what is held for a huge answer should have been used.
    pub(super) async fn overdue(&self) {
        match self.filled_by {
            Some(instant) => sleep_until(instant).await,
            None => std::future::pending().await,
        }
    }

    /// Whether the answer is large: making its text is work for a thread of its own.
    pub(super) fn is_large(&self) -> bool {
        !self.rights.is_empty()
    }
}

impl From<Option<OwnedSemaphorePermit>> for Held {
    fn from(right: Option<OwnedSemaphorePermit>) -> Self {
        Self {
            rights: right.into_iter().collect(),
            filled_by: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_a_huge_answer_is_overdue() {
        let large = Held::default();
        let day = Duration::from_secs(24 * 60 * 60);
        assert!(timeout(day, large.overdue()).await.is_err());
        let huge = Held {
            filled_by: Some(Instant::now() + FILL_LIMIT),
            ..Held::default()
        };
        let begun = Instant::now();
        huge.overdue().await;
        assert_eq!(begun.elapsed(), FILL_LIMIT);
    }
}
