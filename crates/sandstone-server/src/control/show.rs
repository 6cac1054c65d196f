//! Rows of the store as objects of the API.

use sandstone_api::{self as api, SandboxStatus};
use sandstone_core::{ExposureTarget, SandboxState, Timestamp};
use sandstone_store::{Exposure, Sandbox, Snapshot, Volume};

use super::{ControlPlane, ExposedAt};

impl ControlPlane {
    pub(super) fn show_volume(&self, volume: &Volume) -> api::VolumeDetail {
        let base_snapshot = volume.base_snapshot.as_ref();
        api::VolumeDetail {
            volume: api::Volume {
                id: volume.id.to_string(),
                slug: volume.slug.to_string(),
                region: volume.region.to_string(),
                capacity: volume.capacity,
                estimated_allocated_size: volume.usage.allocated,
                estimated_flattened_size: volume.usage.flattened,
                is_bootable: volume.is_bootable,
                base_snapshot: base_snapshot.map(|(id, slug)| api::ObjectRef {
                    id: id.to_string(),
                    slug: slug.to_string(),
                }),
            },
            state: volume.state.as_str().to_owned(),
            sandbox: volume.sandbox.map(|id| id.to_string()),
            created_at: rfc3339(volume.created_at),
            measured_at: volume.measured_at.map(rfc3339),
            deleted_at: volume.deleted_at.map(rfc3339),
            purge_at: self.purge_at(volume.deleted_at),
            write_stall_us: None,
        }
    }

    pub(super) fn show_snapshot(&self, snapshot: &Snapshot) -> api::SnapshotDetail {
        let (volume, volume_slug) = &snapshot.volume;
        api::SnapshotDetail {
            snapshot: api::Snapshot {
                id: snapshot.id.to_string(),
                slug: snapshot.slug.to_string(),
                region: snapshot.region.to_string(),
                allocated_size: snapshot.usage.allocated,
                flattened_size: snapshot.usage.flattened,
                is_bootable: snapshot.is_bootable,
                volume: api::ObjectRef {
                    id: volume.to_string(),
                    slug: volume_slug.to_string(),
                },
            },
            state: snapshot.state.as_str().to_owned(),
            capacity: snapshot.capacity,
            // Known as soon as the image is made, and not shown before.
            consistency: snapshot
                .consistency
                .map_or_else(String::new, |kind| kind.as_str().to_owned()),
            write_stall_us: snapshot.stall_us,
            extents: snapshot.extents,
            checksum: snapshot.checksum.clone(),
            health: snapshot.health.as_str().to_owned(),
            checked_at: snapshot.checked_at.map(rfc3339),
            created_at: rfc3339(snapshot.created_at),
            deleted_at: snapshot.deleted_at.map(rfc3339),
            purge_at: self.purge_at(snapshot.deleted_at),
        }
    }

    fn purge_at(&self, deleted_at: Option<Timestamp>) -> Option<String> {
        deleted_at.map(|at| rfc3339(at.plus_millis(self.config.deletion_grace_ms)))
    }
}

pub(super) fn sandbox(sandbox: Sandbox) -> api::Sandbox {
    api::Sandbox {
        id: sandbox.id.to_string(),
        created_at: rfc3339(sandbox.created_at),
        stopped_at: sandbox.stopped_at.map(rfc3339),
        region: sandbox.region.to_string(),
        status: match sandbox.state {
            // It still holds its volumes, so it is not "stopped".
            SandboxState::Starting | SandboxState::Running | SandboxState::Stopping => {
                SandboxStatus::Running
            }
            SandboxState::Stopped => SandboxStatus::Stopped,
        },
        labels: sandbox.labels,
    }
}

pub(super) fn exposure(at: &ExposedAt, exposure: &Exposure) -> api::Exposure {
    let (port, pid) = match &exposure.target {
        None => (None, None),
        Some(ExposureTarget::Port(port)) => (Some(*port), None),
        Some(ExposureTarget::Process { pid, .. }) => (None, Some(*pid)),
    };
    api::Exposure {
        domain: at.domain(&exposure.name),
        port,
        pid,
        created_at: rfc3339(exposure.created_at),
    }
}

/// RFC 3339 in UTC, always with three digits of milliseconds, so that texts sort as instants do. An
/// instant that jiff does not know, after the year 9999, is shown as the last one it knows.
fn rfc3339(at: Timestamp) -> String {
    let at = jiff::Timestamp::from_millisecond(at.as_millis()).unwrap_or(jiff::Timestamp::MAX);
    format!("{at:.3}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_sort_as_text() {
        assert_eq!(
            rfc3339(Timestamp::from_millis(0)),
            "1970-01-01T00:00:00.000Z"
        );
        assert_eq!(
            rfc3339(Timestamp::from_millis(18)),
            "1970-01-01T00:00:00.018Z"
        );
        assert_eq!(
            rfc3339(Timestamp::from_millis(i64::MAX)),
            "9999-12-30T22:00:00.999Z"
        );
    }
}
