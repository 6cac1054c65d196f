//! A database in a temporary directory, and short ways to fill it.

use sandstone_api::{ByteSize, IdSuffix, Region, SandboxId, Slug, SnapshotId, VolumeId};
use sandstone_core::{
    Consistency, Labels, Lifetime, Memory, MountPath, NetworkPolicy, StopReason, Timestamp,
    VolumeCapacity,
};
use tempfile::TempDir;

use crate::{
    NewSandbox, NewSnapshot, NewSource, NewVolume, OrganisationId, Snapshot, SnapshotMade, Store,
    StoreError, Volume,
};

pub(super) const GB: u64 = 1_000_000_000;

pub(super) struct Fixture {
    pub(super) store: Store,
    pub(super) ours: OrganisationId,
    pub(super) theirs: OrganisationId,
    pub(super) directory: TempDir,
}

pub(super) fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis)
}

pub(super) fn region(text: &str) -> Region {
    text.parse().unwrap()
}

pub(super) fn slug(text: &str) -> Slug {
    text.parse().unwrap()
}

/// A different suffix for every number.
pub(super) fn suffix(number: u32) -> IdSuffix {
    let mut bytes = [0; 20];
    for (byte, digit) in bytes
        .iter_mut()
        .rev()
        .zip((0..5).map(|n| number >> (5 * n) & 31))
    {
        *byte = digit.try_into().unwrap();
    }
    IdSuffix::from_random(bytes)
}

pub(super) fn volume_id(number: u32) -> VolumeId {
    VolumeId::new(region("ord"), suffix(number))
}

pub(super) fn snapshot_id(number: u32) -> SnapshotId {
    SnapshotId::new(region("ord"), suffix(number))
}

pub(super) fn capacity(bytes: u64) -> VolumeCapacity {
    VolumeCapacity::new(ByteSize::new(bytes)).unwrap()
}

pub(super) const TAKEN: SnapshotMade = SnapshotMade {
    consistency: Consistency::FileSystem,
    stall_us: 7,
};

pub(super) fn path(text: &str) -> MountPath {
    MountPath::parse(text).unwrap()
}

impl Fixture {
    pub(super) async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = open(&directory).await;
        let ours = OrganisationId::new(suffix(1));
        let theirs = OrganisationId::new(suffix(2));
        for (id, name) in [(ours, "ours"), (theirs, "theirs")] {
            let made = store.ensure_organisation(id, &slug(name), at(0)).await;
            assert_eq!(made.unwrap(), id);
        }
        Self {
            store,
            ours,
            theirs,
            directory,
        }
    }

    /// Drops the store without closing it, and opens the file again.
    pub(super) async fn crash(self) -> Self {
        let Self {
            store,
            ours,
            theirs,
            directory,
        } = self;
        drop(store);
        Self {
            store: open(&directory).await,
            ours,
            theirs,
            directory,
        }
    }

    pub(super) fn new_volume(&self, id: VolumeId, name: &str) -> NewVolume {
        NewVolume {
            id,
            organisation: self.ours,
            slug: slug(name),
            capacity: Some(capacity(GB)),
            source: NewSource::Empty,
        }
    }

    /// An available volume of ours in `ord`.
    pub(super) async fn volume(&self, number: u32, name: &str) -> Volume {
        let new = self.new_volume(volume_id(number), name);
        self.available(&new, at(i64::from(number))).await
    }

    pub(super) async fn available(&self, new: &NewVolume, now: Timestamp) -> Volume {
        self.store.begin_volume(new, now).await.unwrap();
        self.store.finish_volume(new.id, Ok(()), now).await.unwrap()
    }

    /// An available volume of ours that holds a system.
    pub(super) async fn bootable(&self, number: u32, name: &str) -> Volume {
        let mut new = self.new_volume(volume_id(number), name);
        new.source = NewSource::Base;
        self.available(&new, at(i64::from(number))).await
    }

    pub(super) fn new_snapshot(&self, number: u32, volume: &str, name: &str) -> NewSnapshot {
        NewSnapshot {
            suffix: suffix(number),
            organisation: self.ours,
            volume: volume.to_owned(),
            slug: slug(name),
        }
    }

    /// An available snapshot of a volume of ours.
    pub(super) async fn snapshot(&self, number: u32, volume: &str, name: &str) -> Snapshot {
        let new = self.new_snapshot(number, volume, name);
        let now = at(i64::from(number));
        let begun = self.store.begin_snapshot(&new, now).await.unwrap();
        let finished = self.store.finish_snapshot(begun.id, Ok(TAKEN), now).await;
        finished.unwrap()
    }

    pub(super) fn new_sandbox(&self, number: u32, volumes: &[(&str, &str)]) -> NewSandbox {
        NewSandbox {
            sandboxes_max: 1000,
            suffix: suffix(number),
            organisation: self.ours,
            region: None,
            default_region: region("ord"),
            lifetime: Lifetime::Session,
            memory: Memory::default(),
            labels: Labels::default(),
            root: None,
            volumes: volumes
                .iter()
                .map(|(at, name)| (path(at), (*name).to_owned()))
                .collect(),
            network: NetworkPolicy::default(),
        }
    }

    pub(super) async fn begin(
        &self,
        number: u32,
        volumes: &[(&str, &str)],
    ) -> Result<SandboxId, StoreError> {
        let new = self.new_sandbox(number, volumes);
        let begun = self.store.begin_sandbox(&new, at(i64::from(number))).await;
        begun.map(|begun| begun.id)
    }

    /// A running sandbox of ours.
    pub(super) async fn running(&self, new: &NewSandbox, now: Timestamp) -> SandboxId {
        let id = self.store.begin_sandbox(new, now).await.unwrap().id;
        self.store.sandbox_started(id).await.unwrap();
        id
    }

    pub(super) async fn stop(&self, id: SandboxId, now: Timestamp) {
        self.store.begin_stop(id, StopReason::Killed).await.unwrap();
        self.store.sandbox_released(id, now).await.unwrap();
    }

    /// Everything in the database, as text.
    pub(super) async fn dump(&self) -> String {
        const TABLES: [&str; 8] = [
            "SELECT json_group_array(json_array(id, slug, created_at)) FROM organisations",
            "SELECT json_group_array(json_array(sha256, organisation, created_at)) FROM tokens",
            "SELECT json_group_array(json_array(organisation, slug, object)) FROM slugs",
            "SELECT json_group_array(json_array(id, organisation, slug, region, capacity, state, \
                 allocated, flattened, measured_at, attach_token, created_at, deleted_at, \
                 is_bootable, origin, source, source_slug, family, changed_at, growing_to, \
                 failure)) FROM volumes",
            "SELECT json_group_array(json_array(id, organisation, slug, region, capacity, \
                 is_bootable, state, source, source_slug, family, allocated, flattened, extents, \
                 measured_at, changed_at)) FROM snapshots",
            "SELECT json_group_array(json_array(id, consistency, stall_us, checksum, health, \
                 checked_at, packed_at, created_at, deleted_at, failure)) FROM snapshots",
            "SELECT json_group_array(json_array(id, organisation, region, state, lifetime, \
                 stop_at, memory, labels, created_at, stopped_at, stop_reason, purpose, \
                 snapshot)) FROM sandboxes",
            "SELECT json_group_array(json_array(volume, token, sandbox, path, state, created_at)) \
             FROM attachments",
        ];
        let mut text = String::new();
        for table in TABLES {
            let rows: String = sqlx::query_scalar(table)
                .fetch_one(self.store.read())
                .await
                .unwrap();
            text.push_str(&rows);
            text.push('\n');
        }
        text
    }

    /// Every attachment ever: volume, token, sandbox, whether it holds the volume.
    pub(super) async fn attachments(&self) -> Vec<(String, i64, String, bool)> {
        sqlx::query_as(
            "SELECT volume, token, sandbox, state <> 'detached' FROM attachments ORDER BY rowid",
        )
        .fetch_all(self.store.read())
        .await
        .unwrap()
    }
}

async fn open(directory: &TempDir) -> Store {
    Store::open(&directory.path().join("state.db"))
        .await
        .unwrap()
}
