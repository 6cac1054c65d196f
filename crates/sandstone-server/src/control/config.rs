//! What an operator can choose, and the control plane's own times.

use std::time::Duration;

use sandstone_api::Region;
use sandstone_core::{DELETION_GRACE_MS, SandboxBounds};

use super::ExposedAt;

/// How the control plane behaves.
#[derive(Debug, Clone)]
pub struct ControlConfig {
    /// Never empty.
    regions: Vec<Region>,
    /// What clients may ask of a sandbox.
    pub bounds: SandboxBounds,
    /// How long the data of a deleted volume or snapshot is kept, milliseconds.
    pub deletion_grace_ms: i64,
    /// How long a stopped sandbox is listed, milliseconds.
    pub stopped_listed_ms: i64,
    /// How long the record of a stopped sandbox is kept at all, milliseconds.
    pub stopped_kept_ms: i64,
    /// How often unfinished work without a worker is looked for. Also the first delay before a
    /// failed stop is tried again.
    pub retry_every: Duration,
    /// Longest delay before a failed stop is tried again; it doubles up to this.
    pub retry_max: Duration,
    /// How often what was deleted is looked through for what is to be purged.
    pub purge_every: Duration,
    /// How often the sizes of images that may have changed are measured. Those of attached volumes
    /// are never much older.
    pub measure_every: Duration,
    /// How often snapshots without a checksum, fragmented ones and those to verify are looked for.
    pub checks_every: Duration,
    /// How old the last comparison of a snapshot with its checksum may become.
    pub verify_every: Duration,
    /// How long a request waits for a volume whose sandbox is being stopped.
    pub release_wait: Duration,
    /// How long [`super::ControlPlane::stop_all`] waits.
    pub stop_all_limit: Duration,
    /// Where servers in sandboxes are reached from outside; nowhere when there is none.
    pub exposed_at: Option<ExposedAt>,
}

impl ControlConfig {
    /// The defaults, for a server in these regions.
    #[must_use]
    pub fn new(default: Region, others: &[Region]) -> Self {
        let mut regions = vec![default];
        for region in others {
            if !regions.contains(region) {
                regions.push(*region);
            }
        }
        Self {
            regions,
            bounds: SandboxBounds::default(),
            deletion_grace_ms: DELETION_GRACE_MS,
            stopped_listed_ms: 24 * 60 * 60 * 1000,
            stopped_kept_ms: 7 * 24 * 60 * 60 * 1000,
            retry_every: Duration::from_secs(5),
            retry_max: Duration::from_secs(60),
            purge_every: Duration::from_secs(60),
            measure_every: Duration::from_secs(30),
            checks_every: Duration::from_secs(60),
            verify_every: Duration::from_secs(7 * 24 * 60 * 60),
            // Ending a sandbox takes milliseconds plus the time to flush what it wrote. The Python
            // SDK gives every call 10 s.
            release_wait: Duration::from_secs(8),
            stop_all_limit: Duration::from_secs(60),
            exposed_at: None,
        }
    }

    /// The regions; the first is the default.
    pub(super) fn regions(&self) -> &[Region] {
        &self.regions
    }

    pub(super) fn default_region(&self) -> Region {
        self.regions[0]
    }
}
