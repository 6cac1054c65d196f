//! What a sandbox was refused, in the log.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lines that a sandbox may cause at once, and per second after that: it must not fill the disk.
const BURST: u32 = 100;
const PER_SECOND: u32 = 10;

/// Writes a sandbox's refusals to the log.
#[derive(Debug)]
pub(crate) struct Refusals {
    sandbox: String,
    bucket: Mutex<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    left: u32,
    filled: Instant,
    unlogged: u64,
}

impl Refusals {
    pub(crate) fn new(sandbox: String) -> Self {
        Self {
            sandbox,
            bucket: Mutex::new(Bucket {
                left: BURST,
                filled: Instant::now(),
                unlogged: 0,
            }),
        }
    }

    /// Logs that the sandbox may not look a name up.
    pub(crate) fn name(&self, name: impl fmt::Display, why: &str) {
        if let Some(unlogged) = self.take() {
            tracing::warn!(sandbox.id = %self.sandbox, %name, why, unlogged, "name refused");
        }
    }

    /// Logs that the sandbox may not connect.
    pub(crate) fn connection(&self, host: impl fmt::Display, port: u16, why: impl fmt::Display) {
        if let Some(unlogged) = self.take() {
            tracing::warn!(
                sandbox.id = %self.sandbox, %host, port, %why, unlogged, "connection refused"
            );
        }
    }

    /// Logs that something allowed did not work.
    pub(crate) fn failure(&self, host: impl fmt::Display, port: u16, why: impl fmt::Display) {
        if let Some(unlogged) = self.take() {
            tracing::info!(
                sandbox.id = %self.sandbox, %host, port, %why, unlogged, "connection failed"
            );
        }
    }

    fn take(&self) -> Option<u64> {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        bucket.take(Instant::now())
    }
}

impl Bucket {
    /// Whether one more may be logged, and how many were not since the last.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let seconds = now.duration_since(self.filled).as_secs();
        if seconds > 0 {
            let seconds_filled = u32::try_from(seconds).unwrap_or(BURST);
            let more = seconds_filled.saturating_mul(PER_SECOND);
            self.left = self.left.saturating_add(more).min(BURST);
            self.filled += Duration::from_secs(seconds);
        }
        if self.left == 0 {
            self.unlogged += 1;
            return None;
        }
        self.left -= 1;
        Some(std::mem::take(&mut self.unlogged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_counted() {
        let start = Instant::now();
        let mut bucket = Bucket {
            left: BURST,
            filled: start,
            unlogged: 0,
        };
        let logged = (0..150).filter(|_| bucket.take(start) == Some(0)).count();
        assert_eq!((logged, bucket.unlogged), (100, 50));
        let later = start + Duration::from_millis(2500);
        assert_eq!(bucket.take(later), Some(50));
        assert_eq!((0..50).filter(|_| bucket.take(later).is_some()).count(), 19);
    }
}
