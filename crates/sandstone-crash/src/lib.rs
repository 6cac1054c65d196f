//! Places where a test can make the server die, as if it were killed there.
//!
//! A place costs one atomic load when nothing is armed, which is always so outside tests.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

macro_rules! points {
    ($($(#[$doc:meta])* $name:ident => $text:literal,)*) => {
        /// A place between two steps of an operation.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Point {
            $($(#[$doc])* $name,)*
        }

        impl Point {
            /// Every place.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its name on the command line.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

points! {
    /// Create of a volume: its row is committed, its image does not exist.
    CreateRecorded => "create-recorded",
    /// Any image: written under its temporary name.
    ImageWritten => "image-written",
    /// Any image: it has its name.
    ImagePublished => "image-published",
    /// Create or fork of a volume: the node has made the image, the store does not know.
    CreateImageMade => "create-image-made",
    /// Fork: cloned, not grown or settled yet.
    ForkCloned => "fork-cloned",
    /// Snapshot: its row is committed.
    SnapshotRecorded => "snapshot-recorded",
    /// Snapshot of an attached volume: its file system is frozen.
    SnapshotFrozen => "snapshot-frozen",
    /// Snapshot: cloned; an attached volume is still frozen.
    SnapshotCloned => "snapshot-cloned",
    /// Snapshot: the node has made the image, the store does not know.
    SnapshotImageMade => "snapshot-image-made",
    /// Attach: the sandbox and its reservations are committed.
    AttachRecorded => "attach-recorded",
    /// Attach: the node's record is written, nothing is mounted.
    AttachNoted => "attach-noted",
    /// Attach: the volumes are mounted, the sandbox does not run.
    AttachMounted => "attach-mounted",
    /// Attach: the sandbox runs, the store does not know.
    AttachStarted => "attach-started",
    /// Detach: the stop is committed, the sandbox runs.
    DetachRecorded => "detach-recorded",
    /// Detach: the processes are dead, the volumes not released.
    DetachKilled => "detach-killed",
    /// Detach: the volumes are released, the node's record is there.
    DetachReleased => "detach-released",
    /// Detach: nothing is left on the host, the store does not know.
    DetachDone => "detach-done",
    /// Delete: committed, not answered.
    DeleteRecorded => "delete-recorded",
    /// Restore: committed, not answered.
    RestoreRecorded => "restore-recorded",
    /// Purge: begun in the store, the image is there.
    PurgeBegun => "purge-begun",
    /// Purge: the image is gone, the store does not know.
    PurgeImageRemoved => "purge-image-removed",
    /// Grow: committed, the image has its old size.
    GrowRecorded => "grow-recorded",
    /// Grow: the image file is longer, its file system is not.
    GrowFileGrown => "grow-file-grown",
    /// Grow: the image is grown, the store does not know.
    GrowImageGrown => "grow-image-grown",
    /// Pack: the packed copy is written, the old image has the name.
    PackCopied => "pack-copied",
    /// Pack: the packed copy has the name.
    PackSwapped => "pack-swapped",
    /// Import: unpacked, the volume is not visible.
    ImportUnpacked => "import-unpacked",
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where to die: `PLACE`, or `PLACE:N` for the N-th time it is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    point: Point,
    nth: u32,
}

impl FromStr for Plan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, nth) = match text.split_once(':') {
            None => (text, 1),
            Some((name, nth)) => match nth.parse() {
                Ok(nth) if nth > 0 => (name, nth),
                _ => return Err(format!("{nth:?} is not a number from 1 on")),
            },
        };
        let point = Point::ALL.iter().find(|point| point.as_str() == name);
        point
            .map(|point| Self { point: *point, nth })
            .ok_or_else(|| {
                let known: Vec<_> = Point::ALL.iter().map(|point| point.as_str()).collect();
                format!("there is no place {name:?}, only {}", known.join(", "))
            })
    }
}

#[derive(Debug)]
struct Armed {
    point: Point,
    left: AtomicU32,
}

static ARMED: OnceLock<Armed> = OnceLock::new();

/// Makes the process die where the plan says. The first plan counts.
pub fn arm(plan: Plan) {
    let _ = ARMED.set(Armed {
        point: plan.point,
        left: AtomicU32::new(plan.nth),
    });
}

/// Dies here, if a test wants that.
#[inline]
pub fn at(point: Point) {
    if let Some(armed) = ARMED.get()
        && armed.point == point
        && armed.left.fetch_sub(1, Ordering::SeqCst) == 1
    {
        die();
    }
}

fn die() {
    // Nothing is closed, flushed or unwound: exactly what a kill from outside does.
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    loop {
        std::thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_are_checked() {
        assert_eq!(
            "pack-copied:3".parse(),
            Ok(Plan {
                point: Point::PackCopied,
                nth: 3
            })
        );
        for bad in ["", "nowhere", "pack-copied:0", "pack-copied:x"] {
            assert!(bad.parse::<Plan>().is_err(), "{bad}");
        }
    }

    #[test]
    fn names_are_distinct() {
        let mut names: Vec<_> = Point::ALL.iter().map(|point| point.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Point::ALL.len());
    }
}
