//! Sandboxes made in advance, so that creating one need not wait for the kernel.
//!
//! On cgroup v1, moving a process into a cgroup after a quiet moment waits 5 to 28 ms for an RCU
//! grace period. A warm sandbox has that behind it: namespaces, cgroups, network and writable
//! layer exist, and its shim waits for the last word.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use sandstone_runtime::Prepared;
use tokio::sync::Notify;

/// A writable layer.
#[derive(Debug)]
pub(crate) struct Scratch {
    /// Its name in the pool.
    pub(crate) name: String,
    /// It, mounted nowhere yet.
    pub(crate) mount: OwnedFd,
}

/// A prepared sandbox.
#[derive(Debug)]
pub(crate) struct Warm {
    pub(crate) prepared: Prepared,
    pub(crate) scratch: Scratch,
}

/// The queue of warm sandboxes.
#[derive(Debug)]
pub(crate) struct WarmPool {
    state: Mutex<State>,
    target: usize,
    /// Says that the queue is below its target.
    taken: Notify,
}

#[derive(Debug, Default)]
struct State {
    ready: VecDeque<Warm>,
    /// Layers of warm sandboxes that became ones without: for the next that are made. Never more
    /// than the queue's target.
    spare: Vec<Scratch>,
}

impl WarmPool {
    /// A queue that is to hold `target` sandboxes.
    pub(crate) fn new(target: usize) -> Self {
        Self {
            state: Mutex::default(),
            target,
            taken: Notify::new(),
        }
    }

    /// Takes one, if one is ready.
    pub(crate) fn take(&self) -> Option<Warm> {
        let warm = self.lock().ready.pop_front();
        self.taken.notify_one();
        warm
    }

    /// Adds one that was made.
    pub(crate) fn add(&self, warm: Warm) {
        self.lock().ready.push_back(warm);
    }

    /// Keeps a layer that was not needed; gives it back when there are enough.
    pub(crate) fn keep(&self, scratch: Scratch) -> Option<Scratch> {
        let mut state = self.lock();
        if state.spare.len() < self.target {
            state.spare.push(scratch);
            return None;
        }
        Some(scratch)
    }

    /// Takes a layer that was kept.
    pub(crate) fn spare(&self) -> Option<Scratch> {
        self.lock().spare.pop()
    }

    /// Takes all, for shutting down.
    pub(crate) fn drain(&self) -> (Vec<Warm>, Vec<Scratch>) {
        let mut state = self.lock();
        (
            state.ready.drain(..).collect(),
            std::mem::take(&mut state.spare),
        )
    }

    /// Waits until one more is wanted.
    pub(crate) async fn wanted(&self) {
        loop {
            let taken = self.taken.notified();
            if self.lock().ready.len() < self.target {
                return;
            }
            taken.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
