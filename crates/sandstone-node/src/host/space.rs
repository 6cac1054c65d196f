//! Room in the pool. When a pool is full, what sandboxes wrote is lost, so it must never be.
//!
//! ```text
//! free  ──────────────┬──────────────────────────┬────────────────────────── 0
//!    everything goes  │ low: nothing new begins  │ critical: writers wait
//! ```
//!
//! What sandboxes have written, but only to memory, counts as taken: freezing a file system
//! writes it out, and it has to fit.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use sandstone_node_api::{NodeError, Space};

use super::{Host, failed, of_pool};
use crate::record::Record;

/// Smallest room below which nothing new begins, bytes. A few seconds of writing on ordinary
/// disks, so that most of what runs can still end.
const LOW_MIN: u64 = 512 << 20;
/// The same for large pools: this part of it.
const LOW_PART: u64 = 50;
/// Smallest room below which writers wait, bytes. It takes in what the fastest writers write
/// between two looks (150 MB), and journals and tables.
const CRITICAL_MIN: u64 = 192 << 20;
/// The same for large pools: this part of it.
const CRITICAL_PART: u64 = 200;
/// Room beyond the critical mark from which on writers go on, bytes. Less would stop them again at
/// once.
const RESUME_MARGIN: u64 = 64 << 20;

/// What writers cannot exceed, bytes a second: a good NVMe disk.
const FASTEST: u64 = 3_000_000_000;
/// How long something new waits for room: file systems free what was deleted, and write what was
/// closed, in their own time.
const ADMIT_PATIENCE: Duration = Duration::from_secs(2);
/// Pause between two looks meanwhile.
const ADMIT_PAUSE: Duration = Duration::from_millis(100);
/// Shortest and longest time between two looks.
const LOOK_MIN: Duration = Duration::from_millis(50);
/// See [`LOOK_MIN`].
const LOOK_MAX: Duration = Duration::from_secs(1);
/// Time between two looks while writers wait: how late they may learn that there is room.
const LOOK_HELD: Duration = Duration::from_millis(250);

/// Which sandboxes' writers may write.
#[derive(Debug, Default)]
pub(crate) struct Writers(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Whether they wait for room.
    held: bool,
    /// What is being ended, and must not be frozen: its processes could not die.
    ending: Vec<Ending>,
    next: u64,
}

/// The images of a sandbox that is being ended.
#[derive(Debug, Clone)]
struct Ending {
    number: u64,
    volumes: Vec<String>,
    scratch: Option<String>,
}

/// Keeps the images of an ending sandbox from being frozen, until dropped.
#[derive(Debug)]
pub(super) struct Exemption<'a> {
    host: &'a Host,
    ending: Ending,
}

impl Host {
    pub(crate) fn space(&self) -> Result<Space, NodeError> {
        let space = self
            .pool
            .space()
            .map_err(|error| of_pool("measuring the pool", error))?;
        Ok(Space {
            total: space.total,
            free: space.free,
            low: (space.total / LOW_PART).max(LOW_MIN),
            critical: (space.total / CRITICAL_PART).max(CRITICAL_MIN),
        })
    }

    /// The space, and how much of it is free when what is in memory has been written.
    fn room(&self) -> Result<(Space, u64), NodeError> {
        let space = self.space()?;
        let unwritten = self
            .runtime
            .unwritten()
            .map_err(|error| failed("asking what sandboxes have written", error))?;
        Ok((space, space.free.saturating_sub(unwritten)))
    }

    /// Whether something may begin that writes up to `needed` bytes by itself. Waits a moment for
    /// room that is on its way back before it refuses.
    pub(super) fn admit(&self, needed: u64) -> Result<(), NodeError> {
        let deadline = Instant::now() + ADMIT_PATIENCE;
        loop {
            let (space, room) = self.room()?;
            if room >= space.low.saturating_add(needed) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(NodeError::PoolFull(format!(
                    "{} bytes are free, {room} when what is in memory is written; \
                     {needed} are needed, and {} are kept free",
                    space.free, space.low
                )));
            }
            thread::sleep(ADMIT_PAUSE);
        }
    }

    /// Holds writers up when there is no room, and lets them go on when there is. Returns when to
    /// look again.
    pub(crate) fn guard_space(&self) -> Result<Duration, NodeError> {
        let (space, room) = self.room()?;
        let mut state = self.writers.lock();
        if state.held {
            if room >= space.critical.saturating_add(RESUME_MARGIN) {
                let thawed = self
                    .pool
                    .resume_writers()
                    .map_err(|error| of_pool("thawing what waited for room", error))?;
                state.held = false;
                tracing::warn!(
                    free = space.free,
                    thawed,
                    "the pool has room: writers go on"
                );
            } else {
                // Also those that were attached meanwhile.
                self.hold(&state)?;
            }
        } else if room < space.critical {
            tracing::error!(
                free = space.free,
                room,
                critical = space.critical,
                "the pool is almost full: writers wait until there is room"
            );
            // Said first: whatever is frozen then can be thawed, also after a failure.
            state.held = true;
            let held = self.hold(&state)?;
            tracing::warn!(held, "file systems are frozen");
        }
        Ok(match state.held {
            true => LOOK_HELD,
            false => time_to_look(room.saturating_sub(space.critical)),
        })
    }

    fn hold(&self, state: &State) -> Result<usize, NodeError> {
        let held = self
            .pool
            .hold_writers()
            .map_err(|error| of_pool("freezing what could fill the pool", error));
        for ending in &state.ending {
            self.thaw(ending);
        }
        held
    }

    fn thaw(&self, ending: &Ending) {
        for volume in &ending.volumes {
            if let Err(error) = self.pool.thaw_volume(volume) {
                tracing::warn!(volume, %error, "cannot thaw");
            }
        }
        if let Some(scratch) = &ending.scratch
            && let Err(error) = self.pool.thaw_scratch(scratch)
        {
            tracing::warn!(scratch, %error, "cannot thaw");
        }
    }

    /// Sees to it that a sandbox can end. To be called before its processes are told to, and
    /// [`Exemption::begin`] after.
    pub(super) fn exempt(&self, record: Option<&Record>) -> Exemption<'_> {
        let attached = record.into_iter().flat_map(|record| &record.volumes);
        self.exemption(
            attached
                .filter(|volume| volume.attached)
                .map(|volume| volume.id.suffix().to_owned())
                .collect(),
            record.and_then(|record| record.scratch.clone()),
        )
    }

    /// Sees to it that a writable layer can end.
    pub(super) fn exempt_scratch(&self, scratch: &str) -> Exemption<'_> {
        self.exemption(Vec::new(), Some(scratch.to_owned()))
    }

    fn exemption(&self, volumes: Vec<String>, scratch: Option<String>) -> Exemption<'_> {
        let mut state = self.writers.lock();
        state.next += 1;
        Exemption {
            host: self,
            ending: Ending {
                number: state.next,
                volumes,
                scratch,
            },
        }
    }
}

impl Exemption<'_> {
    /// Thaws the images if they are frozen, and keeps them so. When their writers have been told
    /// to end: before that they would go on to fill the pool.
    pub(super) fn begin(&self) {
        let mut state = self.host.writers.lock();
        state.ending.push(self.ending.clone());
        if state.held {
            self.host.thaw(&self.ending);
        }
    }
}

impl Drop for Exemption<'_> {
    fn drop(&mut self) {
        let number = self.ending.number;
        let mut state = self.host.writers.lock();
        state.ending.retain(|ending| ending.number != number);
    }
}

impl Writers {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When to look again with this much room above the critical mark: before the fastest writers can
/// have taken it.
fn time_to_look(distance: u64) -> Duration {
    Duration::from_millis(distance / (FASTEST / 1000)).clamp(LOOK_MIN, LOOK_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_come_faster_than_writers() {
        assert_eq!(time_to_look(u64::MAX), LOOK_MAX);
        assert_eq!(time_to_look(0), LOOK_MIN);
        assert_eq!(time_to_look(FASTEST / 2), Duration::from_millis(500));
        // What is written in the shortest time fits below the mark.
        assert!(FASTEST / 1000 * LOOK_MIN.as_millis() as u64 <= CRITICAL_MIN);
    }
}
