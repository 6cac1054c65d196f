//! Sandboxes made in advance, so that creating one need not wait for the kernel.
//!
//! On cgroup v1, moving a process into a cgroup after a quiet moment waits 5 to 28 ms for an RCU
//! grace period. A warm sandbox has that behind it: namespaces, cgroups, network and writable
//! layer exist, and its shim waits for the last word.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use sandstone_runtime::Prepared;
use tokio::sync::Notify;

/// A prepared sandbox.
#[derive(Debug)]
pub(crate) struct Warm {
    pub(crate) prepared: Prepared,
    /// Name of its writable layer in the pool.
    pub(crate) scratch: String,
    /// The writable layer, mounted nowhere yet.
    pub(crate) mount: OwnedFd,
}

/// The queue of warm sandboxes.
#[derive(Debug)]
pub(crate) struct WarmPool {
    ready: Mutex<VecDeque<Warm>>,
    target: usize,
    /// Says that the queue is below its target.
    taken: Notify,
}

impl WarmPool {
    /// A queue that is to hold `target` sandboxes.
    pub(crate) fn new(target: usize) -> Self {
        Self {
            ready: Mutex::default(),
            target,
            taken: Notify::new(),
        }
    }

    /// Takes one, if one is ready.
    pub(crate) fn take(&self) -> Option<Warm> {
        let warm = self.lock().pop_front();
        self.taken.notify_one();
        warm
    }

    /// Adds one that was made.
    pub(crate) fn add(&self, warm: Warm) {
        self.lock().push_back(warm);
    }

    /// Takes all, for shutting down.
    pub(crate) fn drain(&self) -> Vec<Warm> {
        self.lock().drain(..).collect()
    }

    /// Waits until one more is wanted.
    pub(crate) async fn wanted(&self) {
        loop {
            let taken = self.taken.notified();
            if self.lock().len() < self.target {
                return;
            }
            taken.await;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Warm>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
