//! What is known of a sandbox only while someone works on it or watches it.
//!
//! Nothing here is needed after a crash. An entry exists as long as someone holds it; the map
//! itself keeps none alive.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use sandstone_api::ApiError;
use sandstone_core::StopReason;
use tokio::sync::watch;

type Entries = Arc<Mutex<HashMap<String, Weak<Live>>>>;

/// The entries, by the random part of the sandbox's id: that is known before its region is.
#[derive(Debug, Default)]
pub(super) struct LiveMap(Entries);

/// One sandbox.
#[derive(Debug)]
pub(super) struct Live {
    suffix: String,
    entries: Entries,
    /// Held by the one task that starts or stops the sandbox.
    pub(super) work: tokio::sync::Mutex<LastStop>,
    /// How many attempts to stop it have ended.
    attempts: AtomicU64,
    ended: watch::Sender<Option<StopReason>>,
}

/// How the last attempt to stop a sandbox ended.
#[derive(Debug, Default)]
pub(super) struct LastStop {
    pub(super) failure: Option<ApiError>,
}

impl LiveMap {
    /// The entry of the sandbox with this random part.
    pub(super) fn get(&self, suffix: &str) -> Arc<Live> {
        let mut entries = lock(&self.0);
        if let Some(live) = entries.get(suffix).and_then(Weak::upgrade) {
            return live;
        }
        let live = Arc::new(Live {
            suffix: suffix.to_owned(),
            entries: self.0.clone(),
            work: tokio::sync::Mutex::default(),
            attempts: AtomicU64::new(0),
            ended: watch::Sender::new(None),
        });
        entries.insert(live.suffix.clone(), Arc::downgrade(&live));
        live
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        lock(&self.0).len()
    }
}

impl Live {
    /// Tells everyone who watches that the sandbox has begun to stop.
    pub(super) fn announce(&self, reason: StopReason) {
        self.ended.send_replace(Some(reason));
    }

    /// Tells when the sandbox begins to stop. Hears what is announced after this call, and the
    /// last announcement before it.
    pub(super) fn watch(&self) -> watch::Receiver<Option<StopReason>> {
        self.ended.subscribe()
    }

    /// How many attempts to stop it have ended.
    pub(super) fn attempts(&self) -> u64 {
        self.attempts.load(Ordering::SeqCst)
    }

    /// Counts an attempt that has ended. To be called while `work` is held.
    pub(super) fn count_attempt(&self) {
        self.attempts.fetch_add(1, Ordering::SeqCst);
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        let mut entries = lock(&self.entries);
        // A new entry may have taken the place already.
        if entries
            .get(&self.suffix)
            .is_some_and(|entry| entry.strong_count() == 0)
        {
            entries.remove(&self.suffix);
        }
    }
}

fn lock(entries: &Entries) -> MutexGuard<'_, HashMap<String, Weak<Live>>> {
    entries.lock().unwrap_or_else(PoisonError::into_inner)
}
