//! A server over a model of its pool: what it does, one step at a time.

use std::collections::{BTreeMap, HashMap};

use sandstone_api::{ImageId, SandboxId, SnapshotId, VolumeId};
use sandstone_core::{StopReason, Timestamp};

use super::super::fixture::{Fixture, at};
use super::{GRACE, Name, Nth, SLUGS, Step};

/// What an image holds; every write makes it another one.
type Content = i64;

/// An image that this server is making.
pub(super) struct Making {
    pub(super) id: ImageId,
    pub(super) source: Option<ImageId>,
}

pub(super) struct World {
    pub(super) fixture: Fixture,
    pub(super) clock: i64,
    /// The images in the pool.
    pub(super) pool: BTreeMap<ImageId, Content>,
    /// What each image that was made must hold, as long as it is not purged.
    pub(super) content: BTreeMap<ImageId, Content>,
    /// Under way in this server: a crash forgets it.
    pub(super) making: Vec<Making>,
    pub(super) purging: Vec<ImageId>,
    pub(super) growing: Vec<VolumeId>,
    /// All there ever were.
    pub(super) images: Vec<ImageId>,
    pub(super) sandboxes: Vec<SandboxId>,
    /// When those that can be restored were deleted.
    pub(super) deleted: HashMap<ImageId, Timestamp>,
    /// The snapshots that sandboxes need.
    pub(super) reads: HashMap<SandboxId, SnapshotId>,
    /// The largest token ever seen on each volume, and who had it.
    pub(super) tokens: HashMap<String, (i64, String)>,
}

/// The n-th of `all`, modulo their number.
pub(super) fn pick<T: Copy>(all: &[T], n: Nth) -> Option<T> {
    all.get(n % all.len().max(1)).copied()
}

pub(super) fn take<T>(all: &mut Vec<T>, n: Nth) -> Option<T> {
    let index = n % all.len().max(1);
    (index < all.len()).then(|| all.swap_remove(index))
}

impl World {
    pub(super) async fn new() -> Self {
        Self {
            fixture: Fixture::new().await,
            clock: 100,
            pool: BTreeMap::new(),
            content: BTreeMap::new(),
            making: Vec::new(),
            purging: Vec::new(),
            growing: Vec::new(),
            images: Vec::new(),
            sandboxes: Vec::new(),
            deleted: HashMap::new(),
            reads: HashMap::new(),
            tokens: HashMap::new(),
        }
    }

    pub(super) fn now(&self) -> Timestamp {
        at(self.clock)
    }

    /// What was deleted before this is not to be restored.
    pub(super) fn grace_end(&self) -> Timestamp {
        at(self.clock - GRACE)
    }

    pub(super) fn number(&self) -> u32 {
        self.clock.try_into().unwrap()
    }

    pub(super) fn text(&self, name: Name) -> String {
        match name {
            Name::Slug(n) => SLUGS[n].to_owned(),
            Name::Id(n) => pick(&self.images, n).map_or_else(String::new, |id| id.to_string()),
        }
    }

    /// Does one step. Refusals are fine; they are judged by what they leave behind.
    pub(super) async fn apply(mut self, step: &Step) -> Self {
        self.clock += 1;
        match step {
            Step::BeginVolume(slug, source) => self.begin_volume(*slug, *source).await,
            Step::BeginSnapshot(volume, slug) => self.begin_snapshot(*volume, *slug).await,
            Step::FinishMaking(n, made) => self.finish_making(*n, *made).await,
            Step::Delete(name) => self.delete(*name).await,
            Step::Restore(name, slug) => self.restore(*name, *slug).await,
            Step::BeginPurge(n) => {
                if let Some(id) = pick(&self.images, *n) {
                    self.begin_purge(id).await;
                }
            }
            Step::BeginPurgeOfAllDue => {
                let due = self.fixture.store.images_to_purge(self.grace_end(), 99);
                for id in due.await.unwrap() {
                    assert!(self.begin_purge(id).await, "{id} was due");
                }
            }
            Step::FinishPurge(n) => {
                if let Some(id) = take(&mut self.purging, *n) {
                    self.finish_purge(id).await;
                }
            }
            Step::BeginGrow(name, size) => self.begin_grow(*name, *size).await,
            Step::FinishGrow(n, grown) => {
                if let Some(id) = take(&mut self.growing, *n) {
                    let result = if *grown { Ok(()) } else { Err(()) };
                    self.fixture.store.finish_grow(id, result).await.unwrap();
                }
            }
            Step::BeginSandbox(root, volumes) => self.begin_sandbox(*root, volumes).await,
            Step::BeginMaintenance(n) => self.begin_maintenance(*n).await,
            Step::Started(n) => {
                if let Some(id) = pick(&self.sandboxes, *n) {
                    let _ = self.fixture.store.sandbox_started(id).await;
                }
            }
            Step::Write(n) => self.write(*n).await,
            Step::BeginStop(n) => {
                if let Some(id) = pick(&self.sandboxes, *n) {
                    let _ = self.fixture.store.begin_stop(id, StopReason::Killed).await;
                }
            }
            Step::Released(n) => {
                if let Some(id) = pick(&self.sandboxes, *n) {
                    let _ = self.fixture.store.sandbox_released(id, self.now()).await;
                }
            }
            Step::Forget => {
                let forgotten = self.fixture.store.forget_stopped(self.now(), 2).await;
                forgotten.unwrap();
            }
            Step::Measure => self.measure().await,
            Step::Crash(reached_pool, ends) => return self.crash(*reached_pool, *ends).await,
        }
        self
    }
}
