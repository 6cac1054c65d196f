//! The pool itself: where images live, opened and closed.

use std::collections::HashMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::statvfs;

use crate::copy::FREEZE_LIMIT;
use crate::error::{Result, StorageError};
use crate::freeze::Freezer;
use crate::shared_tree::SharedTree;
use crate::sys::loop_device;
use crate::{file_backed, image};

/// How long devices of ended sandboxes may take to clear themselves before the pool counts as in
/// use.
const IDLE_LIMIT: Duration = Duration::from_secs(5);

/// User and group that a fresh volume belongs to: `app` of the base image.
const APP: u32 = 1000;

/// The directories of images.
const IMAGE_DIRECTORIES: [&str; 5] = ["volumes", "snapshots", "scratch", "bases", "skeleton"];

/// Where the pool is.
#[derive(Debug, Clone)]
pub struct PoolConfig {
    /// The directory of images; made if it is missing. One process at a time opens it: the caller
    /// sees to that.
    pub dir: PathBuf,
    /// Size of `<dir>.img`, bytes, in case the pool has to be a file. Used when it is made; XFS
    /// wants 300 MiB at least.
    pub file_bytes: u64,
}

/// What holds the pool's data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backing {
    /// The directory's own file system: it has reflinks.
    Reflink,
    /// An XFS in this preallocated file.
    File(PathBuf),
}

/// How full the pool is, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// All of it.
    pub total: u64,
    /// What can still be written.
    pub free: u64,
}

/// An open pool. Dropping it leaves it mounted, as a crash does; [`Pool::open`] takes it up again.
#[derive(Debug)]
pub struct Pool {
    dir: PathBuf,
    backing: Backing,
    /// Held while a template is made.
    templates: Mutex<()>,
    /// Held while a snapshot is packed.
    pub(crate) packing: Mutex<()>,
    /// By the paths of their images.
    trees: Mutex<HashMap<PathBuf, SharedTree>>,
    freezer: Freezer,
    pub(crate) freeze_limit: Duration,
    pub(crate) interrupted: AtomicBool,
}

impl Pool {
    /// Opens the pool, making it at the first time, and removes unfinished images.
    ///
    /// # Errors
    /// [`StorageError`]; [`StorageError::NoRoom`] when the pool's file does not fit on the disk,
    /// [`StorageError::Foreign`] when something else is mounted at the directory.
    pub fn open(config: PoolConfig) -> Result<Self> {
        fs::create_dir_all(&config.dir).map_err(StorageError::io("making", &config.dir))?;
        // The kernel names backing files by their whole paths.
        let dir = config
            .dir
            .canonicalize()
            .map_err(StorageError::io("opening", &config.dir))?;
        let file = dir.with_extension("img");
        let backing = if file.exists() || !file_backed::has_reflinks(&dir)? {
            file_backed::open(&dir, &file, config.file_bytes)?;
            Backing::File(file)
        } else {
            Backing::Reflink
        };
        fs::set_permissions(&dir, Permissions::from_mode(0o700))
            .map_err(StorageError::io("protecting", &dir))?;
        let pool = Self {
            dir,
            backing,
            templates: Mutex::default(),
            packing: Mutex::default(),
            trees: Mutex::default(),
            freezer: Freezer::default(),
            freeze_limit: FREEZE_LIMIT,
            interrupted: AtomicBool::new(false),
        };
        pool.lay_out()?;
        pool.sweep_temporaries()?;
        Ok(pool)
    }

    /// Closes the pool: unmounts its file system if it has one of its own, and flushes it. Takes
    /// at most about a minute. Nothing may use the pool afterwards.
    ///
    /// # Errors
    /// [`StorageError::InUse`] while images are attached, or processes have files open in it;
    /// then it is still open.
    pub fn close(&self) -> Result<()> {
        self.trees().clear();
        // The last mount of a tree ends a moment after its last sandbox.
        let start = Instant::now();
        loop {
            let attached = self.attached()?;
            if attached.is_empty() {
                break;
            }
            if start.elapsed() > IDLE_LIMIT {
                return Err(StorageError::InUse(attached.join(", ")));
            }
            thread::sleep(Duration::from_millis(5));
        }
        match &self.backing {
            Backing::File(file) => file_backed::close(&self.dir, file),
            Backing::Reflink => Ok(()),
        }
    }

    /// What holds the pool's data.
    #[must_use]
    pub fn backing(&self) -> &Backing {
        &self.backing
    }

    /// How full the pool is.
    ///
    /// # Errors
    /// The system's.
    pub fn space(&self) -> Result<Space> {
        let status = statvfs(&self.dir).map_err(StorageError::sys("measuring", &self.dir))?;
        Ok(Space {
            total: status.f_blocks.saturating_mul(status.f_frsize),
            free: status.f_bavail.saturating_mul(status.f_frsize),
        })
    }

    /// Removes unfinished images that a crash left. Those being made now are spared.
    ///
    /// # Errors
    /// The system's.
    pub fn sweep_temporaries(&self) -> Result<()> {
        for directory in IMAGE_DIRECTORIES {
            image::sweep(&self.dir.join(directory), "")?;
        }
        Ok(())
    }

    /// Makes checksums and packing end soon, for good: before the pool is closed.
    pub fn interrupt(&self) {
        self.interrupted.store(true, Ordering::Relaxed);
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the image of this kind and name is.
    pub(crate) fn path(&self, kind: &str, name: &str) -> Result<PathBuf> {
        let name = image::check_name(name)?;
        Ok(self.dir.join(kind).join(format!("{name}.img")))
    }

    pub(crate) fn template_lock(&self) -> MutexGuard<'_, ()> {
        lock(&self.templates)
    }

    pub(crate) fn trees(&self) -> MutexGuard<'_, HashMap<PathBuf, SharedTree>> {
        lock(&self.trees)
    }

    pub(crate) fn freezer(&self) -> &Freezer {
        &self.freezer
    }

    /// The images in this pool that loop devices have open.
    fn attached(&self) -> Result<Vec<String>> {
        let devices = loop_device::configured()
            .map_err(StorageError::io("listing", Path::new("/sys/block")))?;
        Ok(devices
            .into_iter()
            .filter(|(_, backing)| Path::new(backing).starts_with(&self.dir))
            .map(|(number, backing)| format!("/dev/loop{number}, which holds {backing}"))
            .collect())
    }

    fn lay_out(&self) -> Result<()> {
        let make = |path: PathBuf, owner: u32| {
            fs::create_dir_all(&path)
                .and_then(|()| chown(&path, Some(owner), Some(owner)))
                .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(0o755)))
                .map_err(StorageError::io("making", &path))
        };
        for directory in IMAGE_DIRECTORIES {
            make(self.dir.join(directory), 0)?;
        }
        make(self.dir.join("skeleton/volume"), 0)?;
        make(self.dir.join("skeleton/volume/v"), APP)?;
        make(self.dir.join("skeleton/scratch"), 0)?;
        make(self.dir.join("skeleton/scratch/upper"), 0)?;
        make(self.dir.join("skeleton/scratch/work"), 0)
    }
}

/// Locks what a panic elsewhere cannot leave half-done.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
