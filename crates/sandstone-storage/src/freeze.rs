//! Frozen file systems: who may freeze one, and who thaws it.
//!
//! A file system is frozen for copies, or because writers are held, or for both. It is thawed
//!
//! * when the last copy has ended, unless writers are held;
//! * by the watchdog, when copies take too long, unless writers are held;
//! * at once, whatever the reason, when its sandbox is to end or writers may go on.
//!
//! A copy that ends finds out whether the file system was frozen all the time. What something
//! else froze is left alone, and is worth nothing: it may be thawed at any moment.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::pool::lock;
use crate::second_mount::SecondMount;
use crate::sys::freeze;

/// The file systems of one pool that are frozen, or being frozen or thawed, by their images.
#[derive(Debug, Default)]
pub(crate) struct Freezer {
    images: Mutex<HashMap<PathBuf, Arc<Image>>>,
}

/// One of them. The state is locked while the kernel freezes or thaws.
#[derive(Debug, Default)]
struct Image {
    state: Mutex<Option<Frozen>>,
    changed: Condvar,
}

#[derive(Debug)]
struct Frozen {
    mount: SecondMount,
    /// Tells it from an earlier or later freeze of the same image.
    number: u64,
    copies: u32,
    held: bool,
}

impl Freezer {
    /// Freezes for a copy, for at most `limit` unless writers are held anyway. `None` when that
    /// does not work.
    pub(crate) fn for_copy(
        &self,
        path: &Path,
        mount: SecondMount,
        limit: Duration,
    ) -> Option<Copy> {
        let start = Instant::now();
        let image = self.image(path);
        let mut state = image.lock();
        let number = match &mut *state {
            Some(frozen) => {
                frozen.copies += 1;
                frozen.number
            }
            None => {
                let number = next_number();
                // First, so that nothing frozen is without one.
                image.watch(number, start + limit).ok()?;
                freeze::freeze(mount.root()).ok()?;
                *state = Some(Frozen {
                    mount,
                    number,
                    copies: 1,
                    held: false,
                });
                number
            }
        };
        drop(state);
        Some(Copy {
            image,
            number,
            has_ended: false,
        })
    }

    /// Freezes until [`Freezer::thaw`], however long that takes. Whether it is held now; fine
    /// when it was before.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn hold(&self, path: &Path, mount: SecondMount) -> io::Result<bool> {
        let image = self.image(path);
        let mut state = image.lock();
        if let Some(frozen) = &mut *state {
            frozen.held = true;
            return Ok(true);
        }
        match freeze::freeze(mount.root()) {
            Ok(()) => {
                *state = Some(Frozen {
                    mount,
                    number: next_number(),
                    copies: 0,
                    held: true,
                });
                Ok(true)
            }
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether writers are held.
    pub(crate) fn is_held(&self, path: &Path) -> bool {
        let image = lock(&self.images).get(path).cloned();
        image.is_some_and(|image| image.lock().as_ref().is_some_and(|frozen| frozen.held))
    }

    /// The images whose writers are held.
    pub(crate) fn held(&self) -> Vec<PathBuf> {
        let paths: Vec<PathBuf> = lock(&self.images).keys().cloned().collect();
        paths
            .into_iter()
            .filter(|path| self.is_held(path))
            .collect()
    }

    /// Thaws whatever was frozen here, for whatever reason. Whether it was.
    ///
    /// # Errors
    /// The system's; then it is still frozen, and this can be repeated.
    pub(crate) fn thaw(&self, path: &Path) -> io::Result<bool> {
        let Some(image) = lock(&self.images).get(path).cloned() else {
            return Ok(false);
        };
        let mut state = image.lock();
        image.thaw(&mut state)
    }

    fn image(&self, path: &Path) -> Arc<Image> {
        let mut images = lock(&self.images);
        // Those in use by others have another owner, or are frozen.
        images.retain(|_, image| Arc::strong_count(image) > 1 || image.lock().is_some());
        images.entry(path.to_owned()).or_default().clone()
    }
}

impl Image {
    fn lock(&self) -> MutexGuard<'_, Option<Frozen>> {
        lock(&self.state)
    }

    /// Whether it was frozen.
    fn thaw(&self, state: &mut Option<Frozen>) -> io::Result<bool> {
        let Some(frozen) = state else {
            return Ok(false);
        };
        let was_frozen = freeze::thaw(frozen.mount.root())?;
        *state = None;
        self.changed.notify_all();
        Ok(was_frozen)
    }

    /// Starts the watchdog of a freeze that is about to happen; the state is locked.
    fn watch(self: &Arc<Self>, number: u64, deadline: Instant) -> io::Result<()> {
        let image = Arc::clone(self);
        let watchdog = move || {
            let mut state = image.lock();
            while state.as_ref().is_some_and(|frozen| frozen.number == number) {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    if state.as_ref().is_some_and(|frozen| !frozen.held) {
                        // If the device fails, so will whoever ends the freeze, and says so.
                        let _ = image.thaw(&mut state);
                    }
                    return;
                }
                let waited = image.changed.wait_timeout(state, left);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        };
        thread::Builder::new()
            .name("thaw-watchdog".to_owned())
            .spawn(watchdog)
            .map(drop)
    }
}

/// A copy of a frozen file system in progress. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Copy {
    image: Arc<Image>,
    number: u64,
    has_ended: bool,
}

impl Copy {
    /// Ends the copy. Whether the file system was frozen until now.
    ///
    /// # Errors
    /// The system's, when it cannot be thawed.
    pub(crate) fn end(mut self) -> io::Result<bool> {
        self.finish()
    }

    fn finish(&mut self) -> io::Result<bool> {
        if std::mem::replace(&mut self.has_ended, true) {
            return Ok(false);
        }
        let mut state = self.image.lock();
        let Some(frozen) = &mut *state else {
            return Ok(false);
        };
        if frozen.number != self.number {
            return Ok(false);
        }
        frozen.copies = frozen.copies.saturating_sub(1);
        if frozen.copies > 0 || frozen.held {
            return Ok(true);
        }
        self.image.thaw(&mut state)
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        // The copy has failed already, and says so.
        let _ = self.finish();
    }
}

fn next_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
