//! Round trips: pings that the client's WebSocket library answers without asking the program.
//!
//! They say when a client has read what was sent before. A stream that an answer names begins only
//! then ([`Session::until_picked_up`]), for two traps:
//!
//! - Trap 4: a stream that begins before the client has picked it up cannot be cancelled.
//! - Trap 2: an `end` that meets the client's `cancel` on the way kills its process. A program that
//!   does not want a body says so at once, so that its `cancel` comes right behind the pong, and
//!   nothing was sent that it could meet. Where a round trip takes longer than the delay of a local
//!   client, every `fetch` whose short body was cancelled met its `end`.
//!
//! What remains cannot be closed. The protocol acknowledges nothing of a stream, and an `end` must be
//! sent some time: a client that cancels later, in the time that the `end` takes to reach it, is
//! still hit. Sending all of a short body together with its `end` keeps that time to one way, and
//! a client that has read the `end` may cancel again.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::outbox::Item;
use super::session::Session;

/// How long after its pong a client has its stream (trap 4: 5 ms are too short for a JavaScript
/// process that has just started, 20 ms were always enough), or has sent the `cancel` of a program
/// that does not want it (trap 2). The library may answer the ping before the program goes on.
const PICK_UP_DELAY: Duration = Duration::from_millis(20);

/// Longest wait for a pong. A client that never answers must get its streams all the same.
const ECHO_LIMIT: Duration = Duration::from_secs(2);

/// The round trips of one connection, numbered from 1.
#[derive(Debug, Default)]
pub(super) struct Echoes {
    begun: Mutex<u64>,
    /// The last that was answered, and all before it: a library may answer only the latest ping
    /// (RFC 6455 section 5.5.3).
    answered: watch::Sender<u64>,
}

impl Echoes {
    /// Begins a round trip: its number.
    fn begin(&self) -> u64 {
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        *begun += 1;
        *begun
    }

    /// Takes a pong. Whether it answers a ping of ours that was not answered yet.
    pub(super) fn answer(&self, payload: &[u8]) -> bool {
        let Ok(number) = payload.try_into().map(u64::from_le_bytes) else {
            return false;
        };
        let begun = *self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        self.answered.send_if_modified(|answered| {
            let is_new = *answered < number && number <= begun;
            if is_new {
                *answered = number;
            }
            is_new
        })
    }

    /// Waits until a round trip has ended.
    async fn until_answered(&self, number: u64) {
        let mut answered = self.answered.subscribe();
        // Fails only without a sender, and we have it.
        let _ = answered.wait_for(|answered| *answered >= number).await;
    }
}

impl Session {
    /// Waits until the client has read the answer that was sent last and, as far as that can be
    /// known, has sent the `cancel` of a program that wants nothing of the stream in it.
    pub(super) async fn until_picked_up(&self) {
        let number = self.echoes.begin();
        let ping = Item::Ping(Bytes::copy_from_slice(&number.to_le_bytes()));
        if self.outbox.send(ping).await.is_ok() {
            let answered = self.echoes.until_answered(number);
            let _ = timeout(ECHO_LIMIT, answered).await;
            sleep(PICK_UP_DELAY).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pong_ends_its_round_trip_and_those_before_it_once() {
        let echoes = Echoes::default();
        let (first, second, third) = (echoes.begin(), echoes.begin(), echoes.begin());
        assert!(echoes.answer(&second.to_le_bytes()));
        echoes.until_answered(first).await;
        echoes.until_answered(second).await;
        for stale in [first, second, third + 1, 0] {
            assert!(!echoes.answer(&stale.to_le_bytes()), "{stale}");
        }
        assert!(!echoes.answer(b""), "the pong of an ordinary ping");
        let waiting = timeout(Duration::from_millis(20), echoes.until_answered(third));
        assert!(waiting.await.is_err());
        assert!(echoes.answer(&third.to_le_bytes()));
        echoes.until_answered(third).await;
    }
}
