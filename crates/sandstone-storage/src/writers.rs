//! Writers of attached images: held up while the pool has no room, and let go again.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;

use crate::Pool;
use crate::error::{Result, StorageError};
use crate::pool::lock;
use crate::second_mount::SecondMount;
use crate::sys::{freeze, loop_device};

/// The directories whose images are written through file systems.
const WRITTEN: [&str; 2] = ["volumes", "scratch"];

/// File systems that are frozen or thawed at the same time. Each waits mostly for the disk.
const THREADS: usize = 8;

impl Pool {
    /// Freezes the file systems of all attached volumes and writable layers, which puts their data
    /// on disk first, until [`Pool::resume_writers`]. To be repeated, for those that are attached
    /// meanwhile. How many are held now.
    ///
    /// A process that writes cannot even be killed then: a sandbox's images have to be thawed
    /// before it is ended.
    ///
    /// # Errors
    /// The first failure; the others are held all the same.
    pub fn hold_writers(&self) -> Result<usize> {
        for_each(self.written()?, |path| {
            let failed = || StorageError::io("freezing", path);
            if self.freezer().is_held(path) {
                return Ok(true);
            }
            match SecondMount::of(path).map_err(failed())? {
                Some(mount) => self.freezer().hold(path, mount).map_err(failed()),
                None => Ok(false),
            }
        })
    }

    /// Thaws what [`Pool::hold_writers`] froze. How many there were.
    ///
    /// # Errors
    /// The first failure; the others are thawed all the same, and this can be repeated.
    pub fn resume_writers(&self) -> Result<usize> {
        for_each(self.freezer().held(), |path| self.thaw(path))
    }

    /// Thaws a volume, so that its sandbox can be ended. Fine when it is not frozen.
    ///
    /// # Errors
    /// The system's.
    pub fn thaw_volume(&self, name: &str) -> Result<()> {
        self.thaw(&self.volume_path(name)?).map(drop)
    }

    /// Thaws a writable layer, so that its sandbox can be ended. Fine when it is not frozen.
    ///
    /// # Errors
    /// The system's.
    pub fn thaw_scratch(&self, name: &str) -> Result<()> {
        self.thaw(&self.scratch_path(name)?).map(drop)
    }

    /// Thaws all attached images, whoever froze them: for a server that starts after another one
    /// died. Which ones were frozen, as `volumes/<name>` or `scratch/<name>`.
    ///
    /// # Errors
    /// The first failure; the others are thawed all the same.
    pub fn thaw_all(&self) -> Result<Vec<String>> {
        let frozen = Mutex::new(Vec::new());
        for_each(self.written()?, |path| {
            let failed = || StorageError::io("thawing", path);
            let mut was_frozen = self.thaw(path)?;
            if let Some(mount) = SecondMount::of(path).map_err(failed())? {
                was_frozen |= freeze::thaw(mount.root()).map_err(failed())?;
            }
            if was_frozen {
                let name = path.strip_prefix(self.dir()).unwrap_or(path);
                lock(&frozen).push(name.with_extension("").to_string_lossy().into_owned());
            }
            Ok(was_frozen)
        })?;
        let mut frozen = lock(&frozen);
        frozen.sort();
        Ok(std::mem::take(&mut frozen))
    }

    /// Thaws an image. Whether it was frozen.
    pub(crate) fn thaw(&self, path: &Path) -> Result<bool> {
        self.freezer()
            .thaw(path)
            .map_err(StorageError::io("thawing", path))
    }

    /// Gives the pool back what the file system of an attached image has freed, if that works:
    /// what ext4 has not given back when it is unmounted stays taken.
    pub(crate) fn trim_attached(&self, path: &Path) {
        // A frozen file system cannot be trimmed: the call would wait.
        if self.freezer().is_held(path) {
            return;
        }
        // Only sizes depend on it.
        if let Ok(Some(mount)) = SecondMount::of(path) {
            let _ = freeze::trim(mount.root());
        }
    }

    /// The attached images that are written through file systems.
    fn written(&self) -> Result<Vec<PathBuf>> {
        let devices = loop_device::configured()
            .map_err(StorageError::io("listing", Path::new("/sys/block")))?;
        let directories = WRITTEN.map(|directory| self.dir().join(directory));
        Ok(devices
            .into_iter()
            .map(|(_, image)| PathBuf::from(image))
            .filter(|image| {
                image
                    .parent()
                    .is_some_and(|parent| directories.iter().any(|known| known == parent))
            })
            .collect())
    }
}

/// Does something for each of the images. How often the answer was yes.
///
/// # Errors
/// The first failure, after all were tried.
fn for_each(paths: Vec<PathBuf>, task: impl Fn(&Path) -> Result<bool> + Sync) -> Result<usize> {
    let threads = THREADS.min(paths.len());
    let paths = Mutex::new(paths);
    let outcome = Mutex::new(Ok(0));
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    // Not in a `while let`, which would hold the lock meanwhile.
                    let Some(path) = lock(&paths).pop() else {
                        return;
                    };
                    let one = task(&path);
                    let mut all = lock(&outcome);
                    match (&mut *all, one) {
                        (Ok(count), Ok(yes)) => *count += usize::from(yes),
                        (all @ Ok(_), Err(error)) => *all = Err(error),
                        (Err(_), _) => {}
                    }
                }
            });
        }
    });
    let mut outcome = lock(&outcome);
    std::mem::replace(&mut *outcome, Ok(0))
}
