//! What is being made or changed by a task of this server. Whatever the store says is under way
//! and is not in here has lost its worker.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sandstone_api::ImageId;

type Counts = Arc<Mutex<HashMap<String, usize>>>;

/// The images in the hands of some task, by the random parts of their ids: those are known before
/// the region is.
#[derive(Debug, Default)]
pub(super) struct MakingSet(Counts);

/// An image is in somebody's hands, as long as this lives.
#[derive(Debug)]
pub(super) struct Making {
    counts: Counts,
    suffix: String,
}

impl MakingSet {
    /// Takes the image with this random part into one's hands. To be done before the store hears
    /// of the work.
    pub(super) fn begin(&self, suffix: &str) -> Making {
        *lock(&self.0).entry(suffix.to_owned()).or_default() += 1;
        Making {
            counts: self.0.clone(),
            suffix: suffix.to_owned(),
        }
    }

    pub(super) fn contains(&self, image: ImageId) -> bool {
        lock(&self.0).contains_key(image.suffix())
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        let mut counts = lock(&self.counts);
        if let Some(count) = counts.get_mut(&self.suffix) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.suffix);
            }
        }
    }
}

fn lock(counts: &Counts) -> MutexGuard<'_, HashMap<String, usize>> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}
