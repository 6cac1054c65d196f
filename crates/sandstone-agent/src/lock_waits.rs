//! Waiting for file locks: one thread for all waits of a connection, however many.
//!
//! It asks again and again instead of blocking in `flock(2)`, because a blocked thread could only
//! be released by a signal, and everybody would need a thread of his own.

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use sandstone_protocol::message::Answer;

use crate::connection::Connection;
use crate::failure::failure;
use crate::handles::LockWait;
use crate::lock::lock;
use crate::workers::STACK_BYTES;

/// Pause between two rounds of asking: nobody notices it, and a round costs a system call for
/// each wait.
const PAUSE: Duration = Duration::from_millis(5);

/// So many more waits make the pause one longer.
const WAITS_PER_PAUSE: usize = 64;

/// The waits of one connection.
#[derive(Debug, Default)]
pub(crate) struct LockWaits(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    waiting: Vec<Waiting>,
    /// The thread runs.
    is_served: bool,
}

#[derive(Debug)]
struct Waiting {
    connection: Arc<Connection>,
    request: u32,
    wait: LockWait,
}

impl LockWaits {
    /// Answers `request` when the lock is there or the wait is over.
    pub(crate) fn add(self: &Arc<Self>, connection: Arc<Connection>, request: u32, wait: LockWait) {
        let mut state = lock(&self.0);
        state.waiting.push(Waiting {
            connection,
            request,
            wait,
        });
        if state.is_served {
            return;
        }
        state.is_served = true;
        drop(state);
        let waits = Arc::clone(self);
        let thread = thread::Builder::new()
            .name("locks".into())
            .stack_size(STACK_BYTES)
            .spawn(move || waits.serve());
        if thread.is_err() {
            let refused = {
                let mut state = lock(&self.0);
                state.is_served = false;
                std::mem::take(&mut state.waiting)
            };
            for waiting in refused {
                waiting.answer(Err(Errno::AGAIN));
            }
        }
    }

    fn serve(&self) {
        loop {
            let waiting = std::mem::take(&mut lock(&self.0).waiting);
            let pauses = 1 + waiting.len() / WAITS_PER_PAUSE;
            let mut still = Vec::new();
            for one in waiting {
                match one.wait.attempt() {
                    None => still.push(one),
                    Some(result) => one.answer(result),
                }
            }
            {
                let mut state = lock(&self.0);
                // Who waits longest asks first.
                still.append(&mut state.waiting);
                state.waiting = still;
                if state.waiting.is_empty() {
                    state.is_served = false;
                    return;
                }
            }
            thread::sleep(PAUSE.saturating_mul(u32::try_from(pauses).unwrap_or(u32::MAX)));
        }
    }
}

impl Waiting {
    fn answer(self, result: Result<(), Errno>) {
        let reply = match result {
            Ok(()) => Ok(Answer::Done),
            Err(errno) => Err(failure(errno, "lock a file")),
        };
        // A host that is gone needs no answer.
        let _ = self.connection.reply(self.request, reply);
    }
}
