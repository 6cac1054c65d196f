//! Copies of images as they are at one instant.

use std::thread;
use std::time::{Duration, Instant};

use sandstone_crash::{self as crash, Point};

use crate::error::{Result, StorageError};
use crate::image::Unfinished;
use crate::images::{ImageKind, ImageName};
use crate::second_mount::SecondMount;
use crate::sys::freeze;
use crate::{Pool, ext4, image};

/// How long copies may keep a file system frozen, unless the pool was told otherwise.
pub(crate) const FREEZE_LIMIT: Duration = Duration::from_secs(2);

/// A volume that is attached and released all the time is given up after so many attempts to
/// find it in either state.
const ATTEMPTS: u32 = 50;
/// Pause between two attempts.
const PAUSE: Duration = Duration::from_millis(2);

/// How often an attached volume's data is written out before it is frozen, and how short the
/// last time should be. What is left is written while its writers wait.
const SYNCS_MAX: u32 = 3;
const SYNC_SHORT: Duration = Duration::from_millis(20);

/// How an image was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    /// Everything written before is in the copy: the source's file system had ended in order, or
    /// was frozen. Otherwise the copy is what a power failure would have left, with its journal
    /// replayed: everything synced before is in it.
    pub frozen_or_idle: bool,
    /// How long writers of the source had to wait. Nothing if they were held anyway.
    pub stall: Duration,
}

impl Copied {
    pub(crate) const OF_IDLE: Self = Self {
        frozen_or_idle: true,
        stall: Duration::ZERO,
    };
}

impl Pool {
    /// Limits how long a snapshot or fork of an attached volume may freeze it, 2 s otherwise. When
    /// the time is up, the copy is as after a power failure.
    #[must_use]
    pub fn with_freeze_limit(mut self, limit: Duration) -> Self {
        self.freeze_limit = limit;
        self
    }

    /// Makes `target` a copy of an image, attached or not, that can be mounted without a write.
    pub(crate) fn copy(&self, source: ImageName<'_>, target: &Unfinished) -> Result<Copied> {
        let path = self.image_path(source)?;
        if source.kind == ImageKind::Snapshot {
            target.clone_of(&image::open(source.name, &path, false)?)?;
            return Ok(Copied::OF_IDLE);
        }
        for _ in 0..ATTEMPTS {
            let copied = match image::open_locked(source.name, &path) {
                Ok(locked) => {
                    target.clone_of(&locked)?;
                    crash::at(Point::SnapshotCloned);
                    Some(Copied::OF_IDLE)
                }
                Err(StorageError::AlreadyAttached { .. }) => self.copy_attached(source, target)?,
                Err(error) => return Err(error),
            };
            if let Some(copied) = copied {
                let was_replayed = ext4::settle(target)?;
                return Ok(Copied {
                    frozen_or_idle: copied.frozen_or_idle && !was_replayed,
                    ..copied
                });
            }
            thread::sleep(PAUSE);
        }
        Err(StorageError::Busy(source.name.to_owned()))
    }

    /// Makes `target` a copy of an attached volume; `None` when it is not attached any more.
    fn copy_attached(&self, source: ImageName<'_>, target: &Unfinished) -> Result<Option<Copied>> {
        let path = self.image_path(source)?;
        let failed = |step| StorageError::io(step, &path);
        let Some(mount) = SecondMount::of(&path).map_err(failed("mounting once more"))? else {
            return Ok(None);
        };
        let file = image::open(source.name, &path, false)?;
        let was_held = self.freezer().is_held(&path);
        if !was_held {
            // What is free now is part of the copy for as long as it lives. Only a size depends
            // on it.
            let _ = freeze::trim(mount.root());
            write_out(&mount).map_err(failed("writing out"))?;
        }
        let start = Instant::now();
        let copy = self.freezer().for_copy(&path, mount, self.freeze_limit);
        if copy.is_some() {
            crash::at(Point::SnapshotFrozen);
        }
        target.clone_of(&file)?;
        crash::at(Point::SnapshotCloned);
        let was_frozen = match copy {
            Some(copy) => copy.end().map_err(failed("thawing"))?,
            None => false,
        };
        Ok(Some(Copied {
            frozen_or_idle: was_frozen,
            stall: if was_held {
                Duration::ZERO
            } else {
                start.elapsed()
            },
        }))
    }
}

/// Writes most of a file system's data to its device.
fn write_out(mount: &SecondMount) -> std::io::Result<()> {
    for _ in 0..SYNCS_MAX {
        let start = Instant::now();
        rustix::fs::syncfs(mount.root())?;
        if start.elapsed() < SYNC_SHORT {
            break;
        }
    }
    Ok(())
}
